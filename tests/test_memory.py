"""The memory that a run is said to take, against what a training step of the model really allocates."""

import tracemalloc

import numpy as np
import pytest

from autograd.parallel import num_threads
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.config import TrainConfig
from train.memory import FLOAT_BYTES, describe, memory_parts
from train.mixed_precision import Backoff
from train.optimizers import SGD
from train.step import TrainingStep

V, E, H, T, B = 2000, 48, 64, 30, 16
KEEP_PROBS = [name for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")]
DROPPED = dict.fromkeys(KEEP_PROBS, 0.5)
EVERY_STEP = {"activation_dropout": "per_step", "encoder_emb_dropout": "elements", **DROPPED}
PENALTIES = {"activation_regularization": 2.0, "temporal_activation_regularization": 1.0}


def allocated(config, steps=T, rows=B):
    """Bytes that a step takes beyond parameters and gradients, once the first one is done."""
    text = np.random.default_rng(0).integers(0, config.vocab_size, (steps + 1, rows))
    model = LanguageModel(config)
    for _ in range(2):
        tracemalloc.start()
        objective = model.objective(text[:-1], text[1:])
        model.zero_grads()
        objective.objective.backward()
        del objective
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def reckoned(config, steps=T, rows=B):
    parts = memory_parts(config, TrainConfig(window=steps, batch_size=rows), rows)
    return parts["activations"] + parts["softmax blocks"]


@pytest.mark.parametrize(
    "knobs",
    [
        {}, *({name: 0.5} for name in KEEP_PROBS), EVERY_STEP, {"layer_norm": True},
        {"softmax": "sampled", "num_samples": 400}, {"tied_weights": False}, PENALTIES,
        {"residual": True, "hidden_size": E},
        {"layer_norm": True, "softmax": "sampled", "num_samples": 400, **EVERY_STEP, **PENALTIES},
    ],
    ids=lambda knobs: "-".join(knobs) if len(knobs) < 3 else f"{len(knobs)} knobs",
)  # fmt: skip
def test_it_is_what_a_step_allocates(knobs):
    config = ModelConfig(**{"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 3, **knobs})
    tolerance = 0.06 if num_threads() == 1 else 0.2  # threads need not hold their blocks at one time
    assert reckoned(config) == pytest.approx(allocated(config), rel=tolerance)


@pytest.mark.parametrize(
    "knobs",
    [{}, EVERY_STEP, {"layer_norm": True}, {"softmax": "sampled", "num_samples": 400}],
    ids=lambda knobs: "-".join(knobs) if len(knobs) < 3 else f"{len(knobs)} knobs",
)
def test_so_it_is_in_mixed_precision(knobs):
    """What a whole step allocates beyond the weights and gradients that are there twice."""
    config = ModelConfig(**{"vocab_size": V, "embedding_size": E, "hidden_size": H, "num_layers": 3, **knobs})
    text = np.random.default_rng(0).integers(0, V, (T + 1, B))
    model = LanguageModel(config)
    optimizer = SGD(model.flat_parameters, threads=1)
    step = TrainingStep(model, optimizer, SingleProcess(), scaler=Backoff())
    for window in range(2):
        tracemalloc.start()
        step(text[:-1], text[1:], None, MaskStream(0, window), 0.1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    parts = memory_parts(config, TrainConfig(window=T, batch_size=B, precision="mixed"), B)
    size = config.num_parameters()
    assert (parts["parameters"], parts["float16 parameters"]) == (4 * size, 2 * size)
    assert (parts["gradients"], parts["float16 gradients"]) == (4 * size, 2 * size)
    tolerance = 0.06 if num_threads() == 1 else 0.2
    assert parts["activations"] + parts["softmax blocks"] == pytest.approx(peak, rel=tolerance)


@pytest.mark.parametrize(
    "knobs",
    [
        {}, {"layer_norm": True}, {"recurrent_weight_keep_prob": 0.5}, {"input_weight_keep_prob": 0.5},
        {"recurrent_weight_keep_prob": 0.5, "input_weight_keep_prob": 0.5},
        {"softmax": "adaptive", "adaptive_bands": (9000,)},
        {"softmax": "adaptive", "adaptive_bands": (5000, 8000)},
    ],
    ids=str,
)  # fmt: skip
def test_so_it_is_where_weights_are_larger_than_activations(knobs):
    """What masked weights and the adaptive softmax's head hold besides the parameters and their gradients."""
    config = ModelConfig(10_000, 300, 300, 3, **knobs)
    assert reckoned(config, 4, 4) == pytest.approx(allocated(config, 4, 4), rel=0.1)


def test_of_an_adaptive_softmax_it_is_the_most():
    config = ModelConfig(V, E, H, 3, softmax="adaptive", adaptive_bands=(200, 800))
    assert 0.9 < reckoned(config) / allocated(config) < 1.7


@pytest.mark.parametrize(
    ("optimizer", "momentum", "moments"), [("adam", 0.0, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0)]
)
def test_the_moments_of_an_optimizer(optimizer, momentum, moments):
    config = ModelConfig(V, E, H, 3)
    parts = memory_parts(config, TrainConfig(optimizer=optimizer, momentum=momentum), B)
    assert parts[f"{optimizer} moments"] == moments * config.num_parameters() * FLOAT_BYTES
    assert parts["parameters"] == config.num_parameters() * FLOAT_BYTES


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"layer_norm": True, "tied_weights": False, "softmax": "adaptive", "adaptive_bands": (2800, 76_000)},
    ],
    ids=["card", "options"],
)
def test_the_lines_add_up_to_the_parameters(knobs):
    config = ModelConfig(267_735, **knobs)
    above, _, _ = describe(config, TrainConfig(batch_size=224, window=96), 4).partition("\n\n")
    *lines, total = [int(line.split()[-1].replace(",", "")) for line in above.splitlines()]
    assert sum(lines) == total == config.num_parameters()
    assert total == 123_871_239 or knobs
