"""Every knob of the model by its name: what it does alone, and all of them together."""

import functools
import math

import numpy as np
import pytest

import autograd.functions as F
from autograd import Variable, evaluation_mode, no_backprop_mode
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.adaptive_softmax import adaptive_log_probs
from minilstm.lstm_cell import unrolled_layer_norm_lstm, unrolled_lstm
from minilstm.sampled_softmax import LogUniformSampler, sampled_softmax_loss

V, E, H, T, B = 11, 6, 5, 4, 6
KEEP = 0.6
MASKS = ("weight_mask", "row_mask", "step_mask", "lookup_mask")
KEEP_PROBS = [name for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")]
MEANINGS = {"encoder_emb_dropout": ("rows", "elements"), "activation_dropout": ("locked", "per_step")}


class RecordedMasks(MaskStream):
    """Keeps every mask that the model asks for, by the name of its place."""

    def __init__(self, *args):
        super().__init__(*args)
        self.drawn = {}


def _recorded(method):
    def draw(self, place, *args):
        assert place not in self.drawn, "drawn twice in one window"
        self.drawn[place] = getattr(MaskStream, method)(self, place, *args)
        return self.drawn[place]

    return draw


for _method in MASKS:
    setattr(RecordedMasks, _method, _recorded(_method))


def model_with(seed=1, dtype=np.float64, **knobs):
    config = ModelConfig(**{"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 3, **knobs})
    model = LanguageModel(config, seed, dtype)
    rng = np.random.default_rng(2)
    model.flat_parameters[:] = rng.standard_normal(model.flat_parameters.size) * 0.5
    return model


def window(seed=0, steps=T):
    text = np.random.default_rng(seed).integers(0, V, (steps + 1, B))
    return text[:-1], text[1:].copy()


def random_state(model):
    rng = np.random.default_rng(0)
    return [tuple(rng.standard_normal(part.shape) for part in layer) for layer in model.initial_state(B)]


def objective_and_gradient(model, *args, **kwargs):
    model.zero_grads()
    objective = model.objective(*args, **kwargs).objective
    objective.backward()
    return objective.item(), model.flat_gradients.copy()


def drawn_masks(model, window_number=0):
    """The masks of one window, by place."""
    masks = RecordedMasks(0, window_number)
    with no_backprop_mode():
        model.encode(window()[0], None, masks)
    return masks.drawn


# --- the model in the plainest words, from the masks of the places of the knobs' table ---


def plain_outputs(model, inputs, state, drawn):
    """The last layer's outputs, dropped and not, from primitives; absent masks are 1."""
    config = model.config

    def masked(x, place):
        return x * drawn[place] if place in drawn else x

    x = F.embedding(inputs, model.embedding)
    if "embedding" in drawn:  # of every word, or of every element that is looked up
        mask = drawn["embedding"]
        x = x * (mask[inputs][..., None] if mask.ndim == 1 else mask)
    x = masked(x, "embedding_output")
    run = unrolled_lstm
    if config.layer_norm:
        run = functools.partial(unrolled_layer_norm_lstm, epsilon=config.layer_norm_epsilon)
    for index, (layer, (h, c)) in enumerate(zip(model.layers, state, strict=True)):
        W_ih, W_hh = (
            masked(layer.W_ih, f"input_weight.{index}"),
            masked(layer.W_hh, f"recurrent_weight.{index}"),
        )
        skip = x if config.residual else 0.0
        given = masked(x, f"input.{index}")
        y = run(given, h, c, W_ih, W_hh, *layer.vectors, candidate_mask=drawn.get(f"candidate.{index}"))[0]
        x = masked(y, f"output.{index}") + skip
    return x, y + skip


def plain_objective(model, inputs, targets, state, drawn, masks):
    config = model.config
    dropped, undropped = plain_outputs(model, inputs, state, drawn)
    flat, flat_targets = dropped.reshape(-1, config.output_size), targets.ravel()
    W, b = model.decoder_weight, model.decoder_bias
    if config.softmax == "sampled":
        sample = LogUniformSampler(V).sample(config.num_samples, masks.generator("sampled_softmax"))
        loss = sampled_softmax_loss(flat, W, b, flat_targets, sample)
    elif config.softmax == "adaptive":
        loss = plain_adaptive(flat, W, b, *model.bands, flat_targets, config.adaptive_bands)
    else:
        loss = F.softmax_cross_entropy(F.linear(flat, W, b), flat_targets)
    loss = loss + (dropped * dropped).mean() * config.activation_regularization
    change = undropped[1:] - undropped[:-1]
    return loss + (change * change).mean() * config.temporal_activation_regularization


def plain_adaptive(h, W, b, band_W, band_b, targets, bands):
    """Each target's log-probability, one softmax after the other."""
    bounds = (*bands, len(W))
    head = F.log_softmax(
        F.linear(h, F.concatenate([W[: bands[0]], band_W]), F.concatenate([b[: bands[0]], band_b]))
    )
    total = Variable(np.zeros(()), requires_grad=False)
    for n, target in enumerate(targets.tolist()):
        if target < bands[0]:
            total = total + head[n, target]
            continue
        k = max(k for k, first in enumerate(bands) if first <= target)
        words = slice(bounds[k], bounds[k + 1])
        tail = F.log_softmax(F.linear(h[n : n + 1], W[words], b[words]))
        total = total + head[n, bands[0] + k] + tail[0, target - bounds[k]]
    return total * (-1 / len(targets))


# --- what holds of every knob ---


def assert_equals_the_plain_model(**knobs):
    """Values and gradients, of the fused sequences and of the readable cells, with the very same masks."""
    model, (inputs, targets) = model_with(**knobs), window()
    state, results = random_state(model), []
    for model.implementation in ("fused", "readable"):
        masks = RecordedMasks(0)
        results.append(objective_and_gradient(model, inputs, targets, state, masks))
    model.zero_grads()
    expected = plain_objective(model, inputs, targets, state, masks.drawn, MaskStream(0))
    expected.backward()
    for objective, gradient in results:
        assert objective == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(gradient, model.flat_gradients, rtol=1e-9, atol=1e-12)


def assert_gradient_equals_differences(**knobs):
    """Of the objective, along random directions of all parameters at once, the masks held."""
    model, (inputs, targets), masks = model_with(**knobs), window(), MaskStream(4)
    state, rng = random_state(model), np.random.default_rng(0)
    _, gradient = objective_and_gradient(model, inputs, targets, state, masks)
    weights, step = model.flat_parameters.copy(), 3e-6
    for _ in range(3):
        direction = rng.standard_normal(weights.size)
        above, below = (
            moved_objective(model, weights + sign * step * direction, inputs, targets, state, masks)
            for sign in (1, -1)
        )
        error = abs(gradient @ direction - (above - below) / (2 * step))
        assert error / np.linalg.norm(gradient) < 1e-7


def moved_objective(model, weights, *args):
    model.flat_parameters[:] = weights
    return model.objective(*args).objective.item()


def assert_evaluation_is_untouched(without=None, **knobs):
    """In evaluation no mask is drawn, and what comes out is what the model without the knob gives."""
    masks = RecordedMasks(0)
    with_knob, without_knob = model_with(**knobs), model_with(**(without or {}))
    with evaluation_mode():
        losses = [model(*window(), masks=masks)[0].item() for model in (with_knob, without_knob)]
        objective = with_knob.objective(*window(), masks=masks)
    assert losses[0] == losses[1] == objective.loss.item() == objective.objective.item()
    assert masks.drawn == {}
    log_probs = [model.next_log_probs(np.array([1, 2]))[0] for model in (with_knob, without_knob)]
    np.testing.assert_array_equal(*log_probs)


def assert_is_a_dropout(places, **knobs):
    """Everything that the table says of a keep probability.

    Args:
        places: name → shape of the masks that are drawn, these and no others.
        knobs: the knob at KEEP, and its meaning.
    """
    model = model_with(**knobs)
    windows = [drawn_masks(model, number) for number in range(100)]
    assert {place: mask.shape for place, mask in windows[0].items()} == places
    for place, shape in places.items():
        masks = np.array([drawn[place] for drawn in windows])
        assert np.unique(masks) == pytest.approx([0, 1 / KEEP], rel=1e-4), "divided by the probability"
        size = 100 * V * E if shape == (T, B, E) and place == "embedding" else masks.size  # words stand twice
        assert abs((masks > 0).mean() - KEEP) < 4.5 * math.sqrt(KEEP * (1 - KEEP) / size), place
        assert len({mask.tobytes() for mask in masks}) > 1, "a new mask for every window"
        np.testing.assert_array_equal(
            drawn_masks(model, 7)[place], masks[7], "it comes from the window's number"
        )
    stream, given = MaskStream(5), window()
    losses = [model(*given, masks=masks)[0].item() for masks in (stream, stream, stream.next_window())]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != model_with()(*given, masks=stream)[0].item()
    own = [model(*given)[0].item() for _ in range(3)]
    assert len(set(own)) == 3, "without masks given, the model draws new ones for each window"
    assert [model_with(**knobs)(*given)[0].item() for _ in range(2)] == [own[0]] * 2
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)
    assert_evaluation_is_untouched(**knobs)


def assert_steps_differ(**knobs):
    """A mask (T, …) is another at every step of the window."""
    for place, mask in drawn_masks(model_with(**knobs)).items():
        assert len({step.tobytes() for step in mask}) == T, place


def test_a_keep_probability_of_one_draws_nothing():
    for meanings in ({}, {"encoder_emb_dropout": "elements", "activation_dropout": "per_step"}):
        assert drawn_masks(model_with(**meanings)) == {}


# --- the table of knobs ---


def test_encoder_emb_keep_prob():
    """Whole words of the embedding, at lookup, once per window."""
    assert_is_a_dropout({"embedding": (V,)}, encoder_emb_keep_prob=KEEP)


def test_encoder_emb_dropout():
    """Single elements of the embedding: a word has one mask, wherever in the window it stands."""
    elements = {"encoder_emb_keep_prob": KEEP, "encoder_emb_dropout": "elements"}
    assert_is_a_dropout({"embedding": (T, B, E)}, **elements)
    model, (inputs, _) = model_with(**elements), window()
    table = MaskStream(0).lookup_mask("embedding", np.arange(V), E, KEEP, np.float64)
    np.testing.assert_array_equal(drawn_masks(model)["embedding"], table[inputs])


def test_the_decoder_sees_the_undropped_embedding():
    for meaning in MEANINGS["encoder_emb_dropout"]:
        model = model_with(encoder_emb_keep_prob=1e-4, encoder_emb_dropout=meaning)
        _, gradient = objective_and_gradient(model, *window(), masks=MaskStream(0))
        words = gradient[: V * E].reshape(V, E)
        assert words.any(axis=1).all(), "every row is in the softmax, though no word is an input"


def test_input_weight_keep_prob():
    places = {"input_weight.0": (4 * H, E), "input_weight.1": (4 * H, H), "input_weight.2": (4 * E, H)}
    assert_is_a_dropout(places, input_weight_keep_prob=KEEP)


def test_recurrent_weight_keep_prob():
    places = {
        "recurrent_weight.0": (4 * H, H),
        "recurrent_weight.1": (4 * H, H),
        "recurrent_weight.2": (4 * E, E),
    }
    assert_is_a_dropout(places, recurrent_weight_keep_prob=KEEP)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_recurrent_keep_prob(layer_norm):
    """The candidate, at every step."""
    knobs = {"recurrent_keep_prob": KEEP, "layer_norm": layer_norm}
    places = {"candidate.0": (T, B, H), "candidate.1": (T, B, H), "candidate.2": (T, B, E)}
    if not layer_norm:
        assert_is_a_dropout(places, **knobs)
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)
    assert_evaluation_is_untouched(without={"layer_norm": layer_norm}, **knobs)
    assert_steps_differ(**knobs)


ACTIVATIONS = {
    "encoder_emb_output_keep_prob": {"embedding_output": E},
    "encoder_dp_input_keep_prob": {"input.0": E, "input.1": H},
    "encoder_dp_output_keep_prob": {"output.0": H, "output.1": H},
    "encoder_last_input_keep_prob": {"input.2": H},
    "encoder_last_output_keep_prob": {"output.2": E},
}


def assert_is_an_activation_dropout(knob):
    """In both meanings: one mask (B, units) for all steps of the window, or a new one at each."""
    widths = ACTIVATIONS[knob]
    assert_is_a_dropout({place: (B, width) for place, width in widths.items()}, **{knob: KEEP})
    per_step = {knob: KEEP, "activation_dropout": "per_step"}
    assert_is_a_dropout({place: (T, B, width) for place, width in widths.items()}, **per_step)
    assert_steps_differ(**per_step)


def test_encoder_emb_output_keep_prob():
    """What was looked up, before the first layer: AWD-LSTM's dropouti."""
    assert_is_an_activation_dropout("encoder_emb_output_keep_prob")


def test_encoder_dp_input_keep_prob():
    assert_is_an_activation_dropout("encoder_dp_input_keep_prob")


def test_encoder_dp_output_keep_prob():
    assert_is_an_activation_dropout("encoder_dp_output_keep_prob")


def test_encoder_last_input_keep_prob():
    assert_is_an_activation_dropout("encoder_last_input_keep_prob")


def test_encoder_last_output_keep_prob():
    assert_is_an_activation_dropout("encoder_last_output_keep_prob")


def test_activation_dropout():
    """It is the meaning of those five knobs and of no other."""
    others = {name: KEEP for name in KEEP_PROBS if name not in ACTIVATIONS}
    meanings = [drawn_masks(model_with(activation_dropout=way, **others)) for way in ("locked", "per_step")]
    assert meanings[0].keys() == meanings[1].keys()
    for place, mask in meanings[0].items():
        np.testing.assert_array_equal(mask, meanings[1][place])


# --- cells and connections ---


def test_layer_norm():
    assert_equals_the_plain_model(layer_norm=True)
    assert_gradient_equals_differences(layer_norm=True)
    model = LanguageModel(ModelConfig(V, E, H, 2, layer_norm=True))
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    assert "lstm.0.bias" not in values
    for index, units in enumerate((H, E)):
        for of, size in (("gate", 4 * units), ("cell", units)):
            np.testing.assert_array_equal(values[f"lstm.{index}.{of}_gain"], np.ones(size))
            np.testing.assert_array_equal(values[f"lstm.{index}.{of}_shift"], np.zeros(size))
    for part in model(*window())[1]:
        np.testing.assert_allclose(part[1].data.mean(axis=1), 0, atol=1e-6)
        np.testing.assert_allclose(part[1].data.var(axis=1), 1, rtol=1e-4)


def test_layer_norm_epsilon():
    """With 1e-5 it bears a text that begins with a word left out: all units are 0 there, but for shifts."""
    assert_equals_the_plain_model(layer_norm=True, layer_norm_epsilon=0.1)
    assert_gradient_equals_differences(layer_norm=True, layer_norm_epsilon=0.1)
    mask = MaskStream(0).weight_mask("embedding", (V,), KEEP)
    inputs, targets = window()
    inputs[0] = np.flatnonzero(mask == 0)[0]

    def norm(keep, epsilon, shift, implementation):
        knobs = {"layer_norm": True, "encoder_emb_keep_prob": keep, "lstm_init": "glorot"}
        model = LanguageModel(ModelConfig(V, E, H, 4, layer_norm_epsilon=epsilon, **knobs), dtype=np.float64)
        model.implementation = implementation
        for layer in model.layers:
            for vector in layer.vectors[1::2]:
                vector.data[...] = shift * np.random.default_rng(0).standard_normal(vector.shape)
        _, gradient = objective_and_gradient(model, inputs, targets, masks=MaskStream(0))
        return np.linalg.norm(gradient)

    for shift in (1e-4, 1e-3, 0.1, 1.0):  # of Adam's first update: its learning rate
        fused, readable = (norm(KEEP, 1e-5, shift, name) for name in ("fused", "readable"))
        assert fused == pytest.approx(readable, rel=1e-9)
        assert fused < 100 * norm(1.0, 1e-5, shift, "fused")
    largest = float(np.finfo(np.float32).max)
    assert norm(KEEP, 1e-5, 0.0, "fused") < largest < norm(KEEP, 0.0, 0.0, "fused"), "in float32 it is lost"


def test_residual():
    knobs = {"residual": True, "embedding_size": H}
    assert_equals_the_plain_model(**knobs)
    assert_equals_the_plain_model(
        encoder_dp_output_keep_prob=KEEP, encoder_last_input_keep_prob=KEEP, **knobs
    )
    assert_gradient_equals_differences(**knobs)
    model, (inputs, _) = model_with(**knobs), window()
    for layer in model.layers:  # output gates shut: only the connections are left
        layer.b.data[3 * H :] = -800
        layer.W_ih.data[3 * H :], layer.W_hh.data[3 * H :] = 0, 0
    h, _ = model.encode(inputs, None)
    np.testing.assert_array_equal(h.data, model.embedding.data[inputs])


def test_tied_weights():
    knobs = {"tied_weights": False}
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)
    model = model_with(**knobs)
    assert model.decoder_weight is not model.embedding
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "embedding.weight"
    assert names[-2:] == ["decoder.weight", "decoder.bias"]
    tied = model_with()
    assert tied.decoder_weight is tied.embedding
    assert model.config.num_parameters() - tied.config.num_parameters() == V * E


@pytest.mark.parametrize("layer_norm", [False, True])
def test_last_hidden_size(layer_norm):
    knobs = {"tied_weights": False, "last_hidden_size": 7, "layer_norm": layer_norm}
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)
    model = model_with(**knobs)
    assert model.config.layer_sizes == [(E, H), (H, H), (H, 7)]
    assert model.decoder_weight.shape == (V, 7)
    assert model.encode(window()[0], None)[0].shape == (T, B, 7)
    assert model.next_log_probs(np.array([1, 2]))[0].shape == (2, V)


def test_lstm_init():
    """Glorot: the kernel is TensorFlow's one (I + H, 4H); the bias is 0 but for the forget gate's 1."""
    for layer_norm in (False, True):
        model = LanguageModel(ModelConfig(40, 30, 50, 2, lstm_init="glorot", layer_norm=layer_norm))
        for layer, (inputs, units) in zip(model.layers, model.config.layer_sizes, strict=True):
            bound = math.sqrt(6 / (inputs + units + 4 * units))
            for weights in (layer.W_ih.data, layer.W_hh.data):
                assert 0.98 * bound < np.abs(weights).max() <= bound * 1.000001
                assert weights.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
            if not layer_norm:
                expected = np.repeat([0, 1, 0, 0], units)
                np.testing.assert_array_equal(layer.b.data, expected)
        assert np.abs(model.embedding.data).max() <= 0.1


def test_embedding_init_scale():
    model = LanguageModel(ModelConfig(400, 30, 50, 2, tied_weights=False, embedding_init_scale=0.03))
    for table in (model.embedding.data, model.decoder_weight.data):
        assert 0.0299 < np.abs(table).max() <= 0.03 * 1.000001
    assert (model.embedding.data != model.decoder_weight.data).all()


# --- losses ---


@pytest.mark.parametrize("softmax", ["sampled", "adaptive"])
@pytest.mark.parametrize("tied_weights", [True, False])
def test_softmax(softmax, tied_weights):
    knobs = {"softmax": softmax, "num_samples": 6, "tied_weights": tied_weights}
    knobs |= {"adaptive_bands": (3, 7)} if softmax == "adaptive" else {}
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)


def test_num_samples():
    """Words are drawn anew for each window, the same on all ranks; evaluation is the full softmax."""
    knobs = {"softmax": "sampled", "num_samples": 6}
    assert_evaluation_is_untouched(**knobs)
    model, given = model_with(**knobs), window()
    losses = [model(*given, masks=MaskStream(0, number))[0].item() for number in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    assert model(*given, masks=MaskStream(0, 0, first_row=B))[0].item() == losses[0]
    full, every_word = model_with(), model_with(softmax="sampled", num_samples=V)
    expected = full(*given)[0].item()
    assert every_word(*given, masks=MaskStream(0))[0].item() != pytest.approx(losses[0])
    assert losses[0] != pytest.approx(expected)


def test_adaptive_bands():
    """A distribution of its own, the same in training and in evaluation."""
    knobs = {"softmax": "adaptive", "adaptive_bands": (3, 7)}
    model, (inputs, targets) = model_with(**knobs), window()
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert list(names.items())[-3:] == [
        ("decoder.bias", (V,)), ("decoder.band_weight", (2, E)), ("decoder.band_bias", (2,))
    ]  # fmt: skip
    fresh = LanguageModel(model.config)
    assert not any(band.data.any() for band in fresh.bands)
    log_probs, state = [], None
    for step in inputs:
        after, state = model.next_log_probs(step, state)
        np.testing.assert_allclose(np.exp(after).sum(axis=1), 1, rtol=1e-12)
        log_probs.append(after)
    nll = -np.take_along_axis(np.array(log_probs), targets[..., None], axis=2).mean()
    assert model(inputs, targets)[0].item() == pytest.approx(nll, rel=1e-12)
    with evaluation_mode():
        assert model(inputs, targets)[0].item() == pytest.approx(nll, rel=1e-12)
    h = model.encode(inputs, None)[0].data.reshape(-1, E)
    bands = (band.data for band in model.bands)
    expected = adaptive_log_probs(h, model.embedding.data, model.decoder_bias.data, *bands, (3, 7))
    np.testing.assert_array_equal(model.log_probs(h), expected)


@pytest.mark.parametrize("residual", [False, True])
def test_activation_regularization(residual):
    """α times the mean square of the dropped outputs; not in the loss that is printed."""
    knobs = {
        "encoder_last_output_keep_prob": KEEP,
        "residual": residual,
        "embedding_size": H if residual else E,
    }
    model, masks = model_with(activation_regularization=2.0, **knobs), MaskStream(0)
    objective, loss, _ = model.objective(*window(), masks=masks)
    h = model.encode(window()[0], None, masks)[0].data
    assert objective.item() - loss.item() == pytest.approx(2 * (h**2).mean(), rel=1e-12)
    assert (
        loss.item()
        == model_with(**knobs)(*window(), masks=masks)[0].item()
        == model(*window(), masks=masks)[0].item()
    )
    assert_equals_the_plain_model(activation_regularization=2.0, **knobs)
    assert_gradient_equals_differences(activation_regularization=2.0, **knobs)
    without = {name: value for name, value in knobs.items() if not name.endswith("_keep_prob")}
    assert_evaluation_is_untouched(without=without, activation_regularization=2.0, **knobs)


@pytest.mark.parametrize("residual", [False, True])
def test_temporal_activation_regularization(residual):
    """β times the mean square of the changes of the undropped outputs; not in the loss that is printed."""
    sizes = {"residual": residual, "embedding_size": H if residual else E}
    knobs = {"encoder_last_output_keep_prob": KEEP, "temporal_activation_regularization": 1.5, **sizes}
    model, masks = model_with(**knobs), MaskStream(0)
    objective, loss, _ = model.objective(*window(), masks=masks)
    h = model_with(**sizes).encode(window()[0], None)[0].data
    assert objective.item() - loss.item() == pytest.approx(1.5 * (np.diff(h, axis=0) ** 2).mean(), rel=1e-12)
    assert_equals_the_plain_model(**knobs)
    assert_gradient_equals_differences(**knobs)
    assert_evaluation_is_untouched(without=sizes, **knobs)
    single = window(steps=1)
    assert model.objective(*single).objective.item() > 0


def test_without_regularisers_the_objective_is_the_loss():
    objective, loss, _ = model_with().objective(*window(), masks=MaskStream(0))
    assert objective is loss


# --- all together ---


def random_knobs(seed):
    """Some value for every knob that there is."""
    rng = np.random.default_rng(seed)
    knobs = {name: float(rng.choice([0.5, 0.8, 1.0])) for name in KEEP_PROBS}
    knobs |= {name: str(rng.choice(meanings)) for name, meanings in MEANINGS.items()}
    knobs |= {"softmax": str(rng.choice(["full", "sampled", "adaptive"])), "num_samples": 7}
    knobs |= {"adaptive_bands": (2, 6) if knobs["softmax"] == "adaptive" else ()}
    knobs |= {"layer_norm": bool(rng.integers(2)), "residual": bool(rng.integers(2))}
    knobs |= {"tied_weights": bool(rng.integers(2)), "lstm_init": str(rng.choice(["uniform", "glorot"]))}
    knobs |= {"activation_regularization": 2.0, "temporal_activation_regularization": float(rng.integers(2))}
    if knobs["residual"]:
        knobs["embedding_size"] = H
    elif not knobs["tied_weights"]:
        knobs["last_hidden_size"] = 7
    return knobs


@pytest.mark.parametrize("seed", range(12))
def test_any_knobs_together_the_fused_sequence_equals_the_cell(seed):
    assert_equals_the_plain_model(**random_knobs(seed))


@pytest.mark.parametrize("seed", range(12))
def test_any_knobs_together_the_gradient_equals_differences(seed):
    assert_gradient_equals_differences(**random_knobs(seed))


def test_random_knobs_reach_every_value():
    drawn = [random_knobs(seed) for seed in range(12)]
    for name, values in {
        "layer_norm": {False, True}, "residual": {False, True}, "tied_weights": {False, True},
        "softmax": {"full", "sampled", "adaptive"}, "temporal_activation_regularization": {0.0, 1.0},
        **{name: set(meanings) for name, meanings in MEANINGS.items()},
        **{name: {0.5, 0.8, 1.0} for name in KEEP_PROBS},
    }.items():  # fmt: skip
        assert {knobs[name] for knobs in drawn} == values, name


def test_every_knob_of_the_model_has_a_test_of_its_name():
    sizes = {"vocab_size", "embedding_size", "hidden_size", "num_layers"}  # tests/test_language_model.py
    missing = [name for name in ModelConfig.__dataclass_fields__ if f"test_{name}" not in globals()]
    assert set(missing) == sizes


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("meaning", [0, 1])
def test_the_mean_over_ranks_is_the_gradient_of_the_whole_batch(ranks, meaning):
    """Each rank with its own rows draws the masks and samples that one rank draws for all of them."""
    knobs = dict.fromkeys(KEEP_PROBS, KEEP) | {name: way[meaning] for name, way in MEANINGS.items()}
    knobs |= {"layer_norm": bool(meaning), "softmax": "sampled", "num_samples": 6}
    model = model_with(activation_regularization=2.0, temporal_activation_regularization=1.0, **knobs)
    inputs, targets = window()
    whole, gradient = objective_and_gradient(model, inputs, targets, masks=MaskStream(0))
    size = B // ranks
    results = []
    for first in range(0, B, size):
        rows, masks = slice(first, first + size), MaskStream(0, first_row=first)
        results.append(objective_and_gradient(model, inputs[:, rows], targets[:, rows], masks=masks))
    assert np.mean([part for part, _ in results]) == pytest.approx(whole, rel=1e-13)
    np.testing.assert_allclose(
        np.mean([part for _, part in results], axis=0), gradient, rtol=1e-9, atol=1e-12
    )


def test_given_masks_leave_the_models_own_alone():
    knobs = dict.fromkeys(KEEP_PROBS, KEEP)
    model, given = model_with(**knobs), window()
    expected = [model(*given)[0].item() for _ in range(2)]
    model = model_with(**knobs)
    first = model(*given)[0].item()
    model(*given, masks=MaskStream(9))
    with evaluation_mode():
        model(*given)
    assert [first, model(*given)[0].item()] == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_every_array_keeps_the_models_precision(dtype, seed):
    model = model_with(dtype=dtype, **random_knobs(seed))
    objective, loss, state = model.objective(*window())
    objective.backward()
    parts = [part for layer in state for part in layer] + [p.grad for _, p in model.named_parameters()]
    kinds = {part.dtype for part in (*parts, objective, loss, model.flat_gradients)}
    kinds.add(model.next_log_probs(np.array([1]))[0].dtype)
    assert kinds == {np.dtype(dtype)}
