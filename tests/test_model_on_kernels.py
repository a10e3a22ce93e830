"""A whole model's loss and gradients where kernels do the work: those of the NumPy path in float64."""

import numpy as np
import pytest

from autograd.kernels import host_kernels
from minilstm import LanguageModel, MaskStream, ModelConfig

KEEPS = {name: 0.7 for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")}
T, B, V = 4, 3, 30
MODELS = {
    "plain": {},
    "every dropout, locked": {**KEEPS, "activation_dropout": "locked"},
    "every dropout, per step": {**KEEPS, "activation_dropout": "per_step", "encoder_emb_dropout": "elements"},
    "layer norm, dropped candidates": {
        "layer_norm": True, "layer_norm_epsilon": 1e-3, "recurrent_keep_prob": 0.7,
    },
    "residual, AR, TAR": {
        "hidden_size": 6, "residual": True, "activation_regularization": 2.0,
        "temporal_activation_regularization": 1.0,
    },
}  # fmt: skip


def loss_and_gradients(options, dtype):
    """Of a model whose weights are exact in float16."""
    model = LanguageModel(ModelConfig(V, 6, **{"hidden_size": 8, "num_layers": 2, **options}), dtype=dtype)
    model.flat_parameters[...] = model.flat_parameters.astype(np.float16)
    text = np.random.default_rng(0).integers(0, V, (T + 1, B))
    state = [tuple(np.full_like(part, 0.25) for part in layer) for layer in model.initial_state(B)]
    made = model.objective(text[:-1], text[1:], state, MaskStream(3, 5, first_row=2))
    made.objective.backward()
    return made.objective.item(), model.flat_gradients.astype(np.float64)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 3e-6), ("float16", 2e-3)])
def test_the_model_is_the_same(host_runner, options, dtype, tolerance):
    loss, gradients = loss_and_gradients(options, "float64")
    host_runner.launches.clear()
    with host_kernels(host_runner):
        kernels_loss, kernels_gradients = loss_and_gradients(options, dtype)
    assert len(set(host_runner.launches)) >= 2
    assert kernels_loss == pytest.approx(loss, rel=tolerance)
    scale = np.abs(gradients).max()
    np.testing.assert_allclose(kernels_gradients, gradients, rtol=0, atol=tolerance * scale)
