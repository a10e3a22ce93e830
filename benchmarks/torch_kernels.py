"""PyTorch's side of `benchmarks.kernels`: what its users would write for each case, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.kernel_cases import Case, output_gradient


def _lstm(x: torch.Tensor, W_ih: torch.Tensor, W_hh: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """nn.LSTM's own kernel, its second bias zero."""
    zeros = x.new_zeros(1, x.shape[1], W_hh.shape[1])
    weights = [W_ih, W_hh, b, torch.zeros_like(b)]
    return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, False, False, False)[0]


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "multiply": torch.mul,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sum": torch.sum,
    "layer_normalization": lambda x, gain, shift: F.layer_norm(x, x.shape[1:], gain, shift, 1e-5),
    "linear": F.linear,
    "embedding": lambda W, ids: F.embedding(ids, W),
    "softmax_cross_entropy": F.cross_entropy,
    "tied_softmax_loss": lambda h, W, b, targets: F.cross_entropy(F.linear(h, W, b), targets),
    "lstm": _lstm,
}
"""PyTorch has no sampled softmax and no layer-normalised LSTM."""


def prepare(name: str, case: Case) -> Callable[[], tuple[Any, list[Any]]] | None:
    """A function that goes forward and backward, and gives output and gradients; None: not in PyTorch."""
    if name not in FUNCTIONS:
        return None
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs.values()]
    constants = [torch.from_numpy(array.astype(np.int64)) for array in case.constants.values()]
    dy = torch.from_numpy(output_gradient(tuple(FUNCTIONS[name](*inputs, *constants).shape)))

    def run() -> tuple[Any, list[Any]]:
        for tensor in inputs:
            tensor.grad = None
        y = FUNCTIONS[name](*inputs, *constants)
        y.backward(dy)
        return y.detach().numpy(), [tensor.grad.numpy() for tensor in inputs]

    return run
