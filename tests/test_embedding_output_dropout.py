"""`encoder_emb_output_keep_prob`, AWD-LSTM's dropouti: one mask between the lookup and the first layer."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import evaluation_mode
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.dropout import Dropouts
from minilstm.lstm import lstm

V, E, H, T, B = 11, 400, 5, 7, 30
KEEP = 0.35


def model_with(embedding_size=E, **knobs):
    config = ModelConfig(V, embedding_size, H, 3, **knobs)
    model = LanguageModel(config, seed=1, dtype=np.float64)
    model.flat_parameters[:] = np.random.default_rng(2).standard_normal(model.flat_parameters.size) * 0.5
    return model


def window(seed=0):
    text = np.random.default_rng(seed).integers(0, V, (T + 1, B))
    return text[:-1], text[1:].copy()


def masked_share(mode, first_row=0, step=0):
    """What stands in the place of every looked-up number: 0, or 1 / keep of it."""
    model = model_with(encoder_emb_output_keep_prob=KEEP, activation_dropout=mode)
    inputs, _ = window()
    x = Dropouts(model.config, MaskStream(3, step, first_row), np.float64).embedding(inputs, model.embedding)
    return x.data / model.embedding.data[inputs]


@pytest.mark.parametrize("mode", ["locked", "per_step"])
def test_the_masked_fraction_the_scaling_and_when_the_mask_is_redrawn(mode):
    mask = masked_share(mode)
    kept = np.abs(mask) > 1e-9
    np.testing.assert_allclose(mask[kept], 1 / KEEP)
    drawn = kept.size if mode == "per_step" else kept[0].size
    assert abs(kept.mean() - KEEP) < 4 * np.sqrt(KEEP * (1 - KEEP) / drawn)
    assert (kept == kept[0]).all() == (mode == "locked")
    assert (kept != (np.abs(masked_share(mode, step=1)) > 1e-9)).any()
    rest = np.abs(masked_share(mode, first_row=10)) > 1e-9
    np.testing.assert_array_equal(rest[:, : B - 10], kept[:, 10:])


def test_nothing_else_is_masked_and_evaluation_sees_nothing():
    model, plain = model_with(encoder_emb_output_keep_prob=KEEP), model_with()
    inputs, targets = window()
    mask = MaskStream(5, 2).row_mask("embedding_output", (B, E), KEEP, np.float64)
    x = F.embedding(inputs, plain.embedding) * mask
    state = plain.initial_state(B)
    for layer, (h, c) in zip(plain.layers, state, strict=True):
        x, _, _ = lstm(x, h, c, layer.W_ih, layer.W_hh, layer.b)
    got, _ = model.encode(inputs, None, MaskStream(5, 2))
    np.testing.assert_array_equal(got.data, x.data)
    with evaluation_mode():
        assert model(inputs, targets)[0].item() == plain(inputs, targets)[0].item()


@pytest.mark.parametrize("mode", ["locked", "per_step"])
def test_the_gradient_equals_differences_with_the_mask_held(mode):
    model = model_with(embedding_size=4, encoder_emb_output_keep_prob=0.6, activation_dropout=mode)
    inputs, targets = window()

    def loss():
        return model(inputs, targets, None, MaskStream(5, 2))[0]

    model.zero_grads()
    loss().backward()
    gradient, weights = model.flat_gradients.copy(), model.flat_parameters
    direction = np.random.default_rng(0).standard_normal(weights.size)
    start, h = weights.copy(), 1e-6
    weights[:] = start + h * direction
    above = loss().item()
    weights[:] = start - h * direction
    below = loss().item()
    assert gradient @ direction == pytest.approx((above - below) / (2 * h), rel=1e-7)
