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
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "negate": torch.neg,
    "power": lambda x: torch.pow(x, 3),
    "exp": torch.exp,
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sum": torch.sum,
    "mean": torch.mean,
    "dropout": torch.mul,
    "layer_normalization": lambda x, gain, shift: F.layer_norm(x, x.shape[1:], gain, shift, 1e-5),
    "reshape": lambda x: x.reshape(-1, x.shape[2]),
    "transpose": lambda x: x.transpose(0, 1),
    "get_item": lambda x: x[: len(x) // 2],
    "concatenate": lambda x, y: torch.cat([x, y]),
    "split": lambda x: torch.chunk(x, 2, dim=1)[0],
    "broadcast_to": torch.Tensor.expand_as,
    "cast": torch.Tensor.double,
    "matmul": torch.matmul,
    "linear": F.linear,
    "embedding": lambda W, ids: F.embedding(ids, W),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
    "softmax_cross_entropy": F.cross_entropy,
    "tied_softmax_loss": lambda h, W, b, targets: F.cross_entropy(F.linear(h, W, b), targets),
    "activation_regularization": lambda h: 2.0 * h.pow(2).mean(),
    "temporal_activation_regularization": lambda h: (h[1:] - h[:-1]).pow(2).mean(),
    "lstm": _lstm,
}
"""PyTorch has no sampled softmax, no adaptive one whose weights are tied, and no layer-normalised LSTM. Of
dropout it cannot be given the mask, which is what is multiplied with."""


def _as_torch_has_it(array: np.ndarray) -> np.ndarray:
    """Integers as int64, which PyTorch wants of indices."""
    return array if array.dtype.kind == "f" else array.astype(np.int64)


def prepare(name: str, case: Case) -> Callable[[], tuple[Any, list[Any]]] | None:
    """A function that goes forward and backward, and gives output and gradients; None: not in PyTorch."""
    if name not in FUNCTIONS:
        return None
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs.values()]
    constants = [torch.from_numpy(_as_torch_has_it(array)) for array in case.constants.values()]
    dy = torch.from_numpy(output_gradient(tuple(FUNCTIONS[name](*inputs, *constants).shape)))

    def run() -> tuple[Any, list[Any]]:
        for tensor in inputs:
            tensor.grad = None
        y = FUNCTIONS[name](*inputs, *constants)
        y.backward(dy)
        return y.detach().numpy(), [tensor.grad.numpy() for tensor in inputs]

    return run
