"""The Functions that `benchmarks.kernels` measures: their inputs, their arithmetic, their least traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import Variable
from benchmarks.sizes import zipf_ids
from minilstm.layer_norm_lstm import layer_norm_lstm
from minilstm.lstm import lstm
from minilstm.sampled_softmax import LogUniformSampler, sampled_softmax_loss
from minilstm.tied_softmax import tied_softmax_loss

FLOAT_BYTES = 4
T, B, E, H, V = 70, 20, 400, 1150, 33_278
"""The sizes of AWD-LSTM on WikiText-2."""


@dataclass(frozen=True)
class Case:
    """One Function, forward and backward.

    Attributes:
        ours: takes variables of `inputs`; returns the output, a single number or an array.
        inputs: float32 arrays by name, each of which gets a gradient.
        constants: other arrays, as integers, by name.
        flops: of its matrix products, forward and backward; 0 if it has none.
        streams: arrays of the first input's size that it must at least read or write.
    """

    ours: Callable[..., Variable]
    inputs: dict[str, np.ndarray]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    flops: float = 0.0
    streams: int = 5  # x in, y out; x (or y) in, dy in, dx out

    @property
    def num_bytes(self) -> int:
        """That pass between memory and processor at least; the other inputs in once, their gradients out."""
        first, *others = self.inputs.values()
        return FLOAT_BYTES * (self.streams * first.size + 2 * sum(array.size for array in others))


def output_gradient(shape: tuple[int, ...]) -> np.ndarray:
    """What the backward pass begins with, the same on both sides."""
    return normal(np.random.default_rng(1), *shape) if shape else np.ones((), np.float32)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32."""
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def make_cases(scale: float = 1.0) -> dict[str, Case]:
    """Every case by name.

    Args:
        scale: of the sizes; under 1 for a trial that measures nothing.
    """
    rng = np.random.default_rng(0)
    t, b, e, h, v = (max(round(size * scale), 2) for size in (T, B, E, H, V))
    n = t * b
    x = normal(rng, n, h)
    words = zipf_ids(rng, (n,), v)
    targets = zipf_ids(rng, (n,), v)
    W, bias = normal(rng, v, e, scale=0.1), normal(rng, v, scale=0.1)
    tied = {"h": normal(rng, n, e, scale=0.3), "W": W, "b": bias}
    sample = LogUniformSampler(v).sample(min(8192, v), rng)
    gates = {"W_ih": normal(rng, 4 * h, e, scale=0.03), "W_hh": normal(rng, 4 * h, h, scale=0.03)}
    sequence = {"x": normal(rng, t, b, e), **gates, "b": normal(rng, 4 * h, scale=0.03)}
    lstm_flops = 6 * n * 4 * h * (e + h)
    softmax_flops = 6 * n * v * e
    unary = {"x": x}
    row = {"gain": np.ones(h, np.float32), "shift": np.zeros(h, np.float32)}
    return {
        "add": Case(F.add, {"x": x, "y": normal(rng, n, h)}, streams=2),
        "multiply": Case(F.multiply, {"x": x, "y": normal(rng, n, h)}, streams=4),
        "exp": Case(F.exp, unary),
        "sigmoid": Case(F.sigmoid, unary),
        "tanh": Case(F.tanh, unary),
        "relu": Case(F.relu, unary),
        "sum": Case(F.sum, unary, streams=2),
        "layer_normalization": Case(F.layer_normalization, {"x": x, **row}),
        "linear": Case(
            F.linear,
            {"x": normal(rng, n, e), "W": gates["W_ih"], "b": sequence["b"]},
            flops=6 * n * e * 4 * h,
        ),
        "embedding": Case(
            lambda W, ids: F.embedding(ids, W), {"W": W}, {"ids": words.reshape(t, b)}, streams=1
        ),
        "softmax_cross_entropy": Case(
            F.softmax_cross_entropy, {"logits": normal(rng, n, v)}, {"targets": targets}, streams=3
        ),
        "tied_softmax_loss": Case(tied_softmax_loss, tied, {"targets": targets}, softmax_flops),
        "sampled_softmax_loss": Case(
            lambda h, W, b, targets: sampled_softmax_loss(h, W, b, targets, sample),
            tied,
            {"targets": targets},
            6 * n * len(sample.ids) * e,
        ),
        "lstm": Case(
            lambda x, W_ih, W_hh, b: lstm(x, *_zero_state(x, W_hh), W_ih, W_hh, b)[0],
            sequence,
            flops=lstm_flops,
        ),
        "layer_norm_lstm": Case(
            lambda x, W_ih, W_hh, *vectors: layer_norm_lstm(x, *_zero_state(x, W_hh), W_ih, W_hh, *vectors)[
                0
            ],
            {
                "x": sequence["x"],
                **gates,
                "gate_gain": np.ones(4 * h, np.float32),
                "gate_shift": np.zeros(4 * h, np.float32),
                "cell_gain": np.ones(h, np.float32),
                "cell_shift": np.zeros(h, np.float32),
            },
            flops=lstm_flops,
        ),
    }


def _zero_state(x: Any, W_hh: Any) -> tuple[np.ndarray, np.ndarray]:
    zeros = np.zeros((x.shape[1], W_hh.shape[1]), np.float32)
    return zeros, zeros
