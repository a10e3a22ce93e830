"""The Functions that `benchmarks.kernels` measures: their inputs, their arithmetic, their least traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import Variable
from benchmarks.sizes import zipf_ids
from minilstm.adaptive_softmax import adaptive_softmax_loss
from minilstm.layer_norm_lstm import layer_norm_lstm
from minilstm.lstm import lstm
from minilstm.regularization import activation_regularization, temporal_activation_regularization
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
        constants: other arrays by name.
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
    n, v = t * b, max(v, 16)  # two bands of words at least
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
    unary, positive = {"x": x}, {"x": np.abs(x) + np.float32(0.1)}
    binary = {"x": x, "y": normal(rng, n, h)}
    row = {"gain": np.ones(h, np.float32), "shift": np.zeros(h, np.float32)}
    mask = (rng.random((n, h)) < 0.5) * np.float32(2)
    return {
        "add": Case(F.add, binary, streams=2),
        "subtract": Case(F.subtract, binary, streams=3),
        "multiply": Case(F.multiply, binary, streams=4),
        "divide": Case(F.divide, {"x": x, "y": positive["x"]}, streams=4),
        "negate": Case(F.negate, unary, streams=4),
        "power": Case(lambda x: F.power(x, 3), unary),
        "exp": Case(F.exp, unary),
        "log": Case(F.log, positive),
        "sigmoid": Case(F.sigmoid, unary),
        "tanh": Case(F.tanh, unary),
        "relu": Case(F.relu, unary),
        "sum": Case(F.sum, unary, streams=2),
        "mean": Case(F.mean, unary, streams=2),
        "dropout": Case(lambda x, mask: F.dropout(x, 0.5, mask=mask), unary, {"mask": mask}, streams=6),
        "layer_normalization": Case(F.layer_normalization, {"x": x, **row}),
        **_rearrangements(x.reshape(t, b, h)),
        "matmul": Case(
            F.matmul, {"x": normal(rng, n, e), "y": normal(rng, e, 4 * h)}, flops=6 * n * e * 4 * h
        ),
        "linear": Case(
            F.linear,
            {"x": normal(rng, n, e), "W": gates["W_ih"], "b": sequence["b"]},
            flops=6 * n * e * 4 * h,
        ),
        "embedding": Case(
            lambda W, ids: F.embedding(ids, W), {"W": W}, {"ids": words.reshape(t, b)}, streams=1
        ),
        "log_softmax": Case(F.log_softmax, {"x": normal(rng, n, v)}),
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
        "adaptive_softmax_loss": _adaptive_softmax(tied, targets, bands=(v // 16, v // 4)),
        "activation_regularization": Case(
            lambda h: activation_regularization(h, 2.0), {"h": x.reshape(t, b, h)}, streams=3
        ),
        "temporal_activation_regularization": Case(
            lambda h: temporal_activation_regularization(h, 1.0), {"h": x.reshape(t, b, h)}, streams=3
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


def _rearrangements(x: np.ndarray) -> dict[str, Case]:
    """Functions that move numbers of x (T, B, H), or only look at them in another way."""
    T, B, H = x.shape
    half = slice(0, T // 2)
    return {
        "reshape": Case(lambda x: F.reshape(x, (-1, H)), {"x": x}, streams=0),
        "transpose": Case(lambda x: F.transpose(x, (1, 0, 2)), {"x": x}, streams=0),
        "get_item": Case(lambda x: F.get_item(x, half), {"x": x}, streams=1),
        "concatenate": Case(lambda x, y: F.concatenate([x, y]), {"x": x, "y": x + 1}, streams=2),
        "split": Case(lambda x: F.split(x, 2, axis=1)[0], {"x": x[:, : B // 2 * 2]}, streams=1),
        "broadcast_to": Case(
            lambda x, like: F.broadcast_to(x, like.shape), {"x": x[:1, :1]}, {"like": x}, streams=T * B
        ),
        "cast": Case(lambda x: F.cast(x, np.float64), {"x": x}, streams=6),
    }


def _adaptive_softmax(tied: dict[str, np.ndarray], targets: np.ndarray, bands: tuple[int, ...]) -> Case:
    """Every row meets the head; the words of a band only the rows whose target is among them."""
    rng, (V, E) = np.random.default_rng(2), tied["W"].shape
    band_weights = {"band_W": normal(rng, len(bands), E, scale=0.1), "band_b": normal(rng, len(bands))}
    multiplied = len(targets) * (bands[0] + len(bands))
    for low, high in zip(bands, (*bands[1:], V), strict=True):
        multiplied += int(((low <= targets) & (targets < high)).sum()) * (high - low)
    return Case(
        lambda h, W, b, band_W, band_b, targets: adaptive_softmax_loss(
            h, W, b, band_W, band_b, targets, bands
        ),
        {**tied, **band_weights},
        {"targets": targets},
        6 * multiplied * E,
    )


def _zero_state(x: Any, W_hh: Any) -> tuple[np.ndarray, np.ndarray]:
    zeros = np.zeros((x.shape[1], W_hh.shape[1]), np.float32)
    return zeros, zeros
