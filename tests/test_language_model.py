"""The model: its size, its flat buffers, its first values, its gradient, and what its state carries."""

import math

import numpy as np
import pytest
from model_examples import CONFIG, B, E, H, T, V, example, random_state, window

import autograd.functions as F
from autograd import Parameter, Variable, evaluation_mode, is_training
from autograd.gradient_check import check_backward
from minilstm import LanguageModel, ModelConfig, detach
from minilstm.lstm import lstm

# --- size and order ---


@pytest.mark.parametrize(("vocab_size", "expected"), [(267_735, 123_871_239), (267_340, 123_712_844)])
def test_the_model_cards_size(vocab_size, expected):
    """The card says 123.7M; its vocabulary is of words seen at least 3 times."""
    assert (
        ModelConfig(vocab_size, embedding_size=400, hidden_size=1024, num_layers=3).num_parameters()
        == expected
    )


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_norm": True},
        {"tied_weights": False},
        {"tied_weights": False, "last_hidden_size": 9, "layer_norm": True},
        {"softmax": "adaptive", "adaptive_bands": (2, 5, 9)},
        {"softmax": "adaptive", "adaptive_bands": (2,), "tied_weights": False, "last_hidden_size": 9},
        {"softmax": "sampled", "num_samples": 5, "lstm_init": "glorot"},
    ],
    ids=str,
)
def test_the_number_of_parameters_is_that_of_the_arrays(num_layers, options):
    config = ModelConfig(V, E, H, num_layers, **options)
    model = LanguageModel(config)
    sizes = [parameter.data.size for _, parameter in model.named_parameters()]
    assert config.num_parameters() == sum(sizes) == model.flat_parameters.size == model.flat_gradients.size


def test_parameters_stand_in_one_fixed_order():
    expected = [("embedding.weight", (V, E))]
    for index, (inputs, units) in enumerate([(E, H), (H, H), (H, E)]):
        shapes = {"weight_ih": (4 * units, inputs), "weight_hh": (4 * units, units), "bias": (4 * units,)}
        expected += [(f"lstm.{index}.{name}", shape) for name, shape in shapes.items()]
    expected += [("decoder.bias", (V,))]
    model = LanguageModel(CONFIG)
    for _ in range(2):
        assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == expected
    assert CONFIG.layer_sizes == [(E, H), (H, H), (H, E)]
    assert ModelConfig(V, E, H, 1).layer_sizes == [(E, E)]


def test_so_do_those_of_the_options():
    config = ModelConfig(
        V, E, H, 2, layer_norm=True, tied_weights=False, softmax="adaptive", adaptive_bands=(5,)
    )
    cells = ("weight_ih", "weight_hh", "gate_gain", "gate_shift", "cell_gain", "cell_shift")
    expected = [f"lstm.{index}.{name}" for index in range(2) for name in cells]
    decoder = ["decoder.weight", "decoder.bias", "decoder.band_weight", "decoder.band_bias"]
    names = [name for name, _ in LanguageModel(config).named_parameters()]
    assert names == ["embedding.weight", *expected, *decoder]


def test_parameters_and_gradients_are_views_into_flat_buffers_in_that_order():
    model = example()
    model(*window())[0].backward()
    start = 0
    for _, parameter in model.named_parameters():
        assert isinstance(parameter, Parameter)
        part = slice(start, start + parameter.size)
        for array, flat in ((parameter.data, model.flat_parameters), (parameter.grad, model.flat_gradients)):
            assert np.shares_memory(array, flat)
            np.testing.assert_array_equal(array.ravel(), flat[part])
        start = part.stop
    assert start == model.flat_parameters.size
    model.flat_parameters[:] = np.arange(start)
    assert model.embedding.data[0].tolist() == list(range(E))
    assert model.decoder_bias.data[-1] == start - 1


def test_flat_gradients_are_zero_where_nothing_arrived():
    model = example()
    assert not model.flat_gradients.any()
    model(*window())[0].backward()
    assert model.flat_gradients.any()
    memory = model.flat_gradients
    model.zero_grads()
    F.sum(model.decoder_bias).backward()
    assert model.flat_gradients is memory
    assert model.flat_gradients[-V:].tolist() == [1] * V
    assert not model.flat_gradients[:-V].any(), "the last pass shines through"


def test_gradients_are_overwritten_after_zero_grads_and_else_added():
    model, given = example(), window()
    model(*given)[0].backward()
    once = model.flat_gradients.copy()
    model(*given)[0].backward()
    np.testing.assert_allclose(model.flat_gradients, 2 * once, rtol=1e-12, atol=1e-15)
    model.zero_grads()
    model(*given)[0].backward()
    assert model.flat_gradients.tobytes() == once.tobytes()


# --- initial values ---


@pytest.mark.parametrize("scale", [0.1, 0.02])
def test_initial_values(scale):
    model = LanguageModel(ModelConfig(500, 30, 50, 2, embedding_init_scale=scale))
    bounds = [scale] + [1 / math.sqrt(50)] * 3 + [1 / math.sqrt(30)] * 3
    *drawn, (name, decoder_bias) = model.named_parameters()
    assert (name, decoder_bias.data.any()) == ("decoder.bias", False)
    for (name, parameter), bound in zip(drawn, bounds, strict=True):
        values = parameter.data
        assert np.abs(values).max() <= bound, name
        assert values.min() < -0.9 * bound, name
        assert values.max() > 0.9 * bound, name
        assert abs(values.mean()) < 4 * bound / math.sqrt(3 * values.size), name
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_initial_values_come_from_the_seed():
    weights = [LanguageModel(CONFIG, seed).flat_parameters.tobytes() for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]
    both = [LanguageModel(CONFIG, 0, dtype).flat_parameters for dtype in (np.float32, np.float64)]
    np.testing.assert_array_equal(*both)


def test_an_untrained_model_guesses_blindly():
    assert LanguageModel(CONFIG)(*window())[0].item() == pytest.approx(math.log(V), abs=0.02)


# --- precision ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
def test_every_array_keeps_the_models_precision(dtype, keep_prob):
    knobs = [name for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")]
    model = example(dtype, **dict.fromkeys(knobs, keep_prob))
    assert model.dtype == model.flat_parameters.dtype == model.flat_gradients.dtype == dtype
    loss, state = model(*window())
    loss.backward()
    parts = [part for layer in state for part in layer]
    parts += [part for layer in model.initial_state(2) for part in layer]
    parts += [parameter.grad for _, parameter in model.named_parameters()]
    assert {part.dtype for part in parts} | {loss.dtype, model.next_log_probs(np.array([1]))[0].dtype} == {
        np.dtype(dtype)
    }


def test_float64_is_float64_through_and_through():
    """A float32 anywhere on the way would show as an error of 1e-7 and not as one of 1e-15."""
    given = window()
    low, high = example(np.float32, 0.3), example(np.float64, 0.3)
    high.flat_parameters[:] = low.flat_parameters
    exact = example(np.float64, 0.3)
    exact._flatten(np.dtype(np.longdouble))  # no precision of a model's, but enough to tell the others apart
    exact.flat_parameters[:] = low.flat_parameters
    losses = [model(*given)[0].data for model in (low, high, exact)]
    assert 1e-10 < abs(losses[0] - losses[2]) < 1e-5
    assert abs(losses[1] - losses[2]) < 1e-14


# --- the loss and its gradient ---


def test_the_gradient_equals_differences_for_every_parameter_and_the_state():
    model, (inputs, targets) = example(scale=0.5), window()
    targets[0, 1] = -1
    state = [part for layer in random_state(model) for part in layer]

    def loss_and_state(*parts):
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        loss, new_state = model(inputs, targets, pairs)
        return loss, *(part for layer in new_state for part in layer)

    check_backward(loss_and_state, state)
    weights = model.flat_parameters.copy()
    model.zero_grads()
    model(inputs, targets)[0].backward()
    for name, parameter in model.named_parameters():
        direction = np.random.default_rng(0).standard_normal(parameter.shape)
        losses = []
        for sign in (1, -1):
            kept = parameter.data.copy()
            parameter.data += sign * 1e-5 * direction
            losses.append(model(inputs, targets)[0].item())
            parameter.data[...] = kept
        numerical = (losses[0] - losses[1]) / 2e-5
        assert abs((parameter.grad * direction).sum() - numerical) < 1e-7 * np.linalg.norm(parameter.grad), (
            name
        )
    assert model.flat_parameters.tobytes() == weights.tobytes()


def test_the_tied_matrix_gets_lookup_and_decoder_gradients():
    model, given = example(), window()
    model(*given)[0].backward()
    both = model.embedding.grad.copy()
    table, decoder = (Variable(model.embedding.data.copy()) for _ in range(2))
    x = F.embedding(given[0], table)
    for layer, (h, c) in zip(model.layers, model.initial_state(B), strict=True):
        x = lstm(x, h, c, layer.W_ih, layer.W_hh, layer.b)[0]
    F.softmax_cross_entropy(F.linear(x, decoder, model.decoder_bias), given[1]).backward()
    np.testing.assert_allclose(both, table.grad + decoder.grad, rtol=1e-11, atol=1e-15)
    for part in (table.grad, decoder.grad):
        assert np.abs(part).max() > 0.01 * np.abs(both).max()


def test_the_loss_is_the_mean_over_scored_targets():
    model, (inputs, targets) = example(), window()
    log_probs, state = [], None
    for step in inputs:
        after, state = model.next_log_probs(step, state)
        log_probs.append(after)
    nll = -np.take_along_axis(np.array(log_probs), targets[..., None], axis=2)[..., 0]
    assert model(inputs, targets)[0].item() == pytest.approx(nll.mean(), rel=1e-13)
    targets[1:3, 1] = -1
    scored = targets != -1
    assert model(inputs, targets)[0].item() == pytest.approx(nll[scored].mean(), rel=1e-13)
    assert model(inputs, np.full_like(targets, -1))[0].item() == 0


def test_inputs_may_be_lists_and_any_integers():
    model, (inputs, targets) = example(), window()
    expected = model(inputs, targets)[0].item()
    assert model(inputs.tolist(), targets.tolist())[0].item() == expected
    for dtype in (np.uint8, np.int32, np.int64):
        assert model(inputs.astype(dtype), targets.astype(dtype))[0].item() == expected


def test_an_empty_batch():
    model = example()
    loss, state = model(np.zeros((T, 0), int), np.zeros((T, 0), int))
    loss.backward()
    assert loss.item() == 0
    assert not model.flat_gradients.any()
    assert [h.shape for h, _ in state] == [(0, H), (0, H), (0, E)]


# --- state ---


def test_a_carried_state_makes_two_windows_one():
    model, (inputs, targets) = example(), window(8)
    with evaluation_mode():
        whole, end = model(inputs, targets)
        first, state = model(inputs[:3], targets[:3])
        second, state = model(inputs[3:], targets[3:], detach(state))
    assert (first.item() * 3 + second.item() * 5) / 8 == pytest.approx(whole.item(), rel=1e-14)
    for (h, c), (end_h, end_c) in zip(state, end, strict=True):
        np.testing.assert_allclose(h.data, end_h.data, rtol=1e-12)
        np.testing.assert_allclose(c.data, end_c.data, rtol=1e-12)


def test_gradients_flow_through_a_state_of_variables_and_stop_at_a_detached_one():
    model, (inputs, targets) = example(), window(8)

    def gradient(join):
        model.zero_grads()
        first, state = model(inputs[:3], targets[:3])
        second, _ = model(inputs[3:], targets[3:], join(state))
        (first * (3 / 8) + second * (5 / 8)).backward()
        return model.flat_gradients.copy()

    flowing, cut = gradient(lambda state: state), gradient(detach)
    model.zero_grads()
    model(inputs, targets)[0].backward()
    np.testing.assert_allclose(flowing, model.flat_gradients, rtol=1e-10, atol=1e-14)
    assert np.abs(cut - flowing).max() > 1e-5


def test_a_detached_state_is_of_small_arrays_of_its_own():
    model = example()
    _, state = model(*window())
    for (h, c), (plain_h, plain_c) in zip(state, detach(state), strict=True):
        for variable, array in ((h, plain_h), (c, plain_c)):
            assert isinstance(array, np.ndarray)
            assert array.base is None, "a view would keep the whole window alive"
            np.testing.assert_array_equal(array, variable.data)
    again = detach(detach(state))
    np.testing.assert_array_equal(again[0][0], state[0][0].data)


def test_a_given_state_is_not_written_to():
    model = example()
    state = random_state(model)
    kept = [[part.copy() for part in layer] for layer in state]
    model(*window(), state)[0].backward()
    for layer, kept_layer in zip(state, kept, strict=True):
        np.testing.assert_array_equal(layer, kept_layer)


def test_no_state_means_zeros():
    model, given = example(), window()
    zeros = model.initial_state(B)
    assert not any(part.any() for layer in zeros for part in layer)
    assert [(h.shape, c.shape) for h, c in zeros] == [((B, H),) * 2, ((B, H),) * 2, ((B, E),) * 2]
    assert model(*given)[0].item() == model(*given, zeros)[0].item()


# --- next words ---


def test_next_log_probs_are_a_distribution_and_leave_no_trace():
    model = example(np.float32)
    state = [tuple(part.astype(np.float32) for part in layer) for layer in random_state(model)]
    log_probs, new_state = model.next_log_probs(np.array([1, 2, 12]), state)
    assert log_probs.shape == (B, V)
    np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(axis=1), 1, rtol=1e-6)
    assert all(isinstance(part, np.ndarray) for layer in new_state for part in layer)
    assert is_training()
    assert not model.flat_gradients.any()
