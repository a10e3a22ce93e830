"""Every kernel that training launches, on the device, against its NumPy twin: a part of `benchmarks.gpu`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import Variable
from autograd.kernels import use_kernels
from benchmarks.sizes import zipf_ids
from minilstm import MaskStream, ModelConfig
from minilstm.dropout import Dropouts
from minilstm.dropout_cuda import KernelDropouts
from minilstm.layer_norm_lstm import layer_norm_lstm
from minilstm.lstm import lstm
from minilstm.sampled_softmax import LogUniformSampler, sampled_softmax_loss
from minilstm.tied_softmax import tied_softmax_loss
from train.device import Host
from train.optimizers import SGD, Adam, Optimizer, clip_factor, global_norm


def compare_kernels(tiny: bool, device: Host) -> dict[str, dict[str, float]]:
    """By Function and optimizer: the largest error, relative to the largest number, and the seconds."""
    T, B, H, V = (4, 3, 8, 50) if tiny else (24, 32, 256, 5000)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 4).astype(np.float32)

    ids, state = zipf_ids(rng, (T * B,), V), (normal(B, H), normal(B, H))
    weights = normal(4 * H, H), normal(4 * H, H)
    sample = LogUniformSampler(V).sample(V // 5, rng)
    of_norm = (np.ones(4 * H, np.float32), normal(4 * H), np.ones(H, np.float32), normal(H))
    cases: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
        "lstm": (lambda *v: lstm(*v)[0], [normal(T, B, H), *state, *weights, normal(4 * H)]),
        "layer_norm_lstm": (lambda *v: layer_norm_lstm(*v)[0], [normal(T, B, H), *state, *weights, *of_norm]),
        "tied_softmax_loss": (tied_softmax_loss, [normal(T * B, H), normal(V, H), normal(V), ids]),
        "sampled_softmax_loss": (
            lambda h, W, b, y: sampled_softmax_loss(h, W, b, y, sample),
            [normal(T * B, H), normal(V, H), normal(V), ids],
        ),
        "embedding": (lambda W, y: F.embedding(y, W), [normal(V, H), ids]),
        "step_dropout": (lambda x: _dropouts(x).times_step_mask("case", x, 0.7), [normal(T, B, H)]),
        "weight_dropout": (lambda W: _dropouts(W).times_weight_mask("case", W, 0.7), [normal(4 * H, H)]),
    }  # fmt: skip
    tasks: dict[str, tuple[Callable[..., tuple[list[np.ndarray], float]], Any, list[np.ndarray]]] = {
        **{name: (_gradients, function, arrays) for name, (function, arrays) in cases.items()},
        "adam": (_updates, Adam, [normal(V * H), normal(V * H)]),
        "sgd": (_updates, SGD, [normal(V * H), normal(V * H)]),
    }
    results = {}
    for name, (task, function, arrays) in tasks.items():
        expected, _ = task(function, arrays, Host())
        task(function, arrays, device)  # compiles
        got, seconds = task(function, arrays, device)
        error = max(
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
            for a, b in zip(got, expected, strict=True)
        )
        results[name] = {"error": error, "seconds": seconds}
    return results


def _gradients(
    function: Callable[..., Any], arrays: list[np.ndarray], device: Host
) -> tuple[list[np.ndarray], float]:
    """d(sum of squares of the output) by each floating-point input; and the seconds of both passes."""
    variables = [Variable(device.to_device(x), requires_grad=x.dtype.kind == "f") for x in arrays]
    device.synchronize()
    start = time.perf_counter()
    output = function(*variables)
    (output * output).sum().backward()
    device.synchronize()
    seconds = time.perf_counter() - start
    return [device.to_host(v.grad) for v in variables if v.grad is not None], seconds


def _dropouts(x: Variable) -> Dropouts:
    """What masks x where it lies: the same bits by kernels and by their twin."""
    kind = KernelDropouts if use_kernels(x.data) else Dropouts
    return kind(ModelConfig(2), MaskStream(0), x.data)


def _updates(
    optimizer: Callable[..., Optimizer], arrays: list[np.ndarray], device: Host
) -> tuple[list[np.ndarray], float]:
    """Parameters after three updates, clipped by the gradient's norm, and that norm; the seconds."""
    parameters, gradients = (device.to_device(array.copy()) for array in arrays)
    updated = optimizer(parameters, 1e-3)
    device.synchronize()
    start = time.perf_counter()
    for _ in range(3):
        norm = global_norm(gradients)
        updated.update(gradients, scale=clip_factor(norm, 0.25))
    device.synchronize()
    return [device.to_host(parameters), np.array([norm])], time.perf_counter() - start
