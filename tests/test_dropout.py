"""Masks: what they are drawn from, the same for any number of ranks, and where in the model each one acts."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import evaluation_mode
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.dropout import WORDS_PER_COUNT
from minilstm.lstm_cell import unrolled_lstm

V, E, H, T, B = 11, 6, 5, 4, 6
KNOBS = {
    "encoder_emb_keep_prob": {"embedding": (V,)},
    "recurrent_weight_keep_prob": {
        "recurrent_weight.0": (4 * H, H), "recurrent_weight.1": (4 * H, H), "recurrent_weight.2": (4 * E, E)
    },
    "encoder_dp_input_keep_prob": {"input.0": (B, E), "input.1": (B, H)},
    "encoder_dp_output_keep_prob": {"output.0": (B, H), "output.1": (B, H)},
    "encoder_last_input_keep_prob": {"input.2": (B, H)},
    "encoder_last_output_keep_prob": {"output.2": (B, E)},
}  # fmt: skip
ALL = dict.fromkeys(KNOBS, 0.6)


class RecordedMasks(MaskStream):
    """Keeps every mask that the model asks for, by the name of its place."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn = {}

    def _draw(self, place, *args):
        assert place not in self.drawn, "drawn twice in one window"
        self.drawn[place] = super()._draw(place, *args)
        return self.drawn[place]


def model_with(**knobs):
    config = ModelConfig(vocab_size=V, embedding_size=E, hidden_size=H, num_layers=3, **knobs)
    model = LanguageModel(config, seed=1, dtype=np.float64)
    rng = np.random.default_rng(2)
    model.flat_parameters[:] = rng.standard_normal(model.flat_parameters.size) * 0.5
    return model


def window(seed=0):
    text = np.random.default_rng(seed).integers(0, V, (T + 1, B))
    return text[:-1], text[1:].copy()


def loss_and_gradient(model, *args, **kwargs):
    model.zero_grads()
    loss, _ = model(*args, **kwargs)
    loss.backward()
    return loss.item(), model.flat_gradients.copy()


def plain_loss(model, inputs, targets, masks):
    """The model from primitives, each mask where the table of knobs puts it; absent ones are 1."""

    def masked(x, place):
        return x * masks[place] if place in masks else x

    x = F.embedding(inputs, model.embedding)
    if "embedding" in masks:
        x = x * masks["embedding"][inputs][..., None]
    for index, (layer, (h, c)) in enumerate(zip(model.layers, model.initial_state(B), strict=True)):
        W_hh = masked(layer.W_hh, f"recurrent_weight.{index}")
        x = masked(x, f"input.{index}")
        x = unrolled_lstm(x, h, c, layer.W_ih, W_hh, layer.b)[0]
        x = masked(x, f"output.{index}")
    return F.softmax_cross_entropy(F.linear(x, model.embedding, model.decoder_bias), targets)


# --- masks ---


@pytest.mark.parametrize("keep_prob", [0.05, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kept_fraction_and_what_it_is_scaled_by(keep_prob, dtype):
    mask = MaskStream(0).weight_mask("somewhere", (400, 1000), keep_prob, dtype)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {0, dtype(1 / keep_prob)}
    deviation = np.sqrt(keep_prob * (1 - keep_prob) / mask.size)
    assert abs((mask > 0).mean() - keep_prob) < 4 * deviation
    for axis in (0, 1):  # no row and no column is favoured
        deviation = np.sqrt(keep_prob * (1 - keep_prob) / mask.shape[axis])
        assert np.abs((mask > 0).mean(axis=axis) - keep_prob).max() < 5.5 * deviation


def test_a_mask_depends_on_seed_window_and_place_alone():
    def kept(seed, window, place):
        return MaskStream(seed, window).weight_mask(place, (100, 100), 0.5) > 0

    first = kept(1, 2, "input.0")
    np.testing.assert_array_equal(kept(1, 2, "input.0"), first)
    others = [
        kept(*other) for other in ((2, 2, "input.0"), (1, 3, "input.0"), (1, 2, "input.1"), (2, 1, "input.0"))
    ]
    for other in others:
        assert 0.47 < (other == first).mean() < 0.53, "unrelated masks agree on half of their elements"


def test_windows_follow_each_other():
    stream = MaskStream(5, 7, first_row=3).next_window()
    assert (stream.seed, stream.window, stream.first_row) == (5, 8, 3)
    stream.row_mask("a", (2, 2), 0.5)
    again = MaskStream(5, 8, 3)
    np.testing.assert_array_equal(stream.row_mask("a", (4, 5), 0.5), again.row_mask("a", (4, 5), 0.5))


def test_neighbouring_elements_are_unrelated():
    kept = MaskStream(0).row_mask("a", (300, 300), 0.5) > 0
    for shift in (1, 4, WORDS_PER_COUNT, 64, 300):
        agreeing = (kept.ravel()[shift:] == kept.ravel()[:-shift]).mean()
        assert abs(agreeing - 0.5) < 0.01


@pytest.mark.parametrize("units", [1, 3, 4, 15, 16, 17, 400])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rows_are_those_of_the_whole_batch_on_any_number_of_ranks(units, ranks):
    rows = 12
    whole = MaskStream(3, 9).row_mask("input.0", (rows, units), 0.7)
    size = rows // ranks
    parts = [MaskStream(3, 9, rank * size).row_mask("input.0", (size, units), 0.7) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_weights_have_the_same_mask_on_all_ranks():
    masks = [MaskStream(3, 9, first_row).weight_mask("a", (8, 5), 0.7) for first_row in (0, 1, 8)]
    assert len({mask.tobytes() for mask in masks}) == 1


def test_masks_of_both_precisions_keep_the_same_elements():
    low, high = (MaskStream(0).row_mask("a", (50, 50), 0.3, dtype) for dtype in (np.float32, np.float64))
    np.testing.assert_array_equal(low > 0, high > 0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_an_empty_mask(shape):
    assert MaskStream(0, first_row=3).row_mask("a", shape, 0.5).shape == shape


# --- where they act in the model ---


@pytest.mark.parametrize("knob", KNOBS)
def test_each_knob_masks_its_own_places_once_per_window(knob):
    masks = RecordedMasks(0)
    model = model_with(**{knob: 0.6})
    inputs, targets = window()
    loss, gradient = loss_and_gradient(model, inputs, targets, masks=masks)
    assert {place: mask.shape for place, mask in masks.drawn.items()} == KNOBS[knob]
    assert all(set(np.unique(mask)) == {0, 1 / 0.6} for mask in masks.drawn.values())
    undropped = model_with()
    assert loss != loss_and_gradient(undropped, inputs, targets)[0]
    model.zero_grads()
    expected = plain_loss(model, inputs, targets, masks.drawn)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, model.flat_gradients, rtol=1e-10, atol=1e-14)


def test_all_knobs_together():
    masks = RecordedMasks(0)
    model, (inputs, targets) = model_with(**ALL), window()
    loss, gradient = loss_and_gradient(model, inputs, targets, masks=masks)
    assert masks.drawn.keys() == {place for places in KNOBS.values() for place in places}
    model.zero_grads()
    expected = plain_loss(model, inputs, targets, masks.drawn)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, model.flat_gradients, rtol=1e-10, atol=1e-14)


def test_a_keep_probability_of_one_draws_nothing():
    masks = RecordedMasks(0)
    model_with()(*window(), masks=masks)
    assert masks.drawn == {}


@pytest.mark.parametrize("knob", KNOBS)
def test_evaluation_does_not_see_the_knob(knob):
    masks = RecordedMasks(0)
    dropped, undropped = model_with(**{knob: 0.6}), model_with()
    with evaluation_mode():
        losses = [model(*window(), masks=masks)[0].item() for model in (dropped, undropped)]
    assert losses[0] == losses[1]
    assert masks.drawn == {}
    ids = np.array([1, 2])
    log_probs = [model.next_log_probs(ids)[0] for model in (dropped, undropped)]
    np.testing.assert_array_equal(*log_probs)


@pytest.mark.parametrize("knob", KNOBS)
def test_masks_are_drawn_anew_for_every_window(knob):
    model, given = model_with(**{knob: 0.5}), window()
    own = [model(*given)[0].item() for _ in range(3)]
    assert len(set(own)) == 3
    assert [model_with(**{knob: 0.5})(*given)[0].item() for _ in range(2)] == [own[0]] * 2, (
        "seeded with the model"
    )
    stream = MaskStream(5)
    named = [model(*given, masks=masks)[0].item() for masks in (stream, stream, stream.next_window())]
    assert named[0] == named[1] != named[2]
    assert own[0] != named[0]


def test_given_masks_leave_the_models_own_alone():
    model, given = model_with(**ALL), window()
    expected = [model(*given)[0].item() for _ in range(2)]
    model = model_with(**ALL)
    first = model(*given)[0].item()
    model(*given, masks=MaskStream(9))
    with evaluation_mode():
        model(*given)
    assert [first, model(*given)[0].item()] == expected


@pytest.mark.parametrize("knobs", [ALL] + [{knob: 0.6} for knob in KNOBS], ids=lambda knobs: "-".join(knobs))
def test_the_whole_models_gradient_equals_differences_with_masks_held(knobs):
    model, (inputs, targets), masks = model_with(**knobs), window(), MaskStream(4)
    targets[1, 2] = -1
    rng = np.random.default_rng(0)
    state = [tuple(rng.standard_normal(part.shape) for part in layer) for layer in model.initial_state(B)]
    _, gradient = loss_and_gradient(model, inputs, targets, state, masks=masks)
    weights, step = model.flat_parameters.copy(), 1e-5
    for _ in range(3):
        direction = rng.standard_normal(weights.size)
        losses = []
        for sign in (1, -1):
            model.flat_parameters[:] = weights + sign * step * direction
            losses.append(model(inputs, targets, state, masks=masks)[0].item())
        numerical = (losses[0] - losses[1]) / (2 * step)
        error = abs(gradient @ direction - numerical)
        assert error / np.linalg.norm(gradient) < 1e-7


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_over_ranks_is_the_gradient_of_the_whole_batch(ranks):
    model, (inputs, targets) = model_with(**ALL), window()
    loss, gradient = loss_and_gradient(model, inputs, targets, masks=MaskStream(0))
    size = B // ranks
    results = [
        loss_and_gradient(model, inputs[:, rows], targets[:, rows], masks=MaskStream(0, first_row=rows.start))
        for rows in (slice(rank * size, (rank + 1) * size) for rank in range(ranks))
    ]
    assert np.mean([part for part, _ in results]) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(
        np.mean([part for _, part in results], axis=0), gradient, rtol=1e-10, atol=1e-14
    )
