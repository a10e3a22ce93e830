"""Sums and means over axes."""

from __future__ import annotations

from typing import Any

from autograd.backend import get_array_module
from autograd.function import Function
from autograd.variable import Variable

Axes = int | tuple[int, ...] | None


class Sum(Function):
    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        return _reduced(x, x.sum, self.axis, self.keepdims)

    def backward(self, dy):
        return _spread(dy, self.inputs[0].shape, self.axis, self.keepdims)


class Mean(Function):
    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x):
        y = _reduced(x, x.mean, self.axis, self.keepdims)
        self.count = x.size // max(y.size, 1)
        return y

    def backward(self, dy):
        return _spread(dy / self.count, self.inputs[0].shape, self.axis, self.keepdims)


def _reduced(x: Any, reduce: Any, axis: Axes, keepdims: bool) -> Any:
    """x.sum or x.mean as an array; of float16 it is made in float32 and rounded once."""
    if x.dtype != "float16":
        return get_array_module(x).asarray(reduce(axis=axis, keepdims=keepdims))
    total = reduce(axis=axis, keepdims=keepdims, dtype="float32")
    return get_array_module(x).asarray(total, dtype=x.dtype)


def _spread(dy: Any, shape: tuple[int, ...], axis: Axes, keepdims: bool) -> Any:
    """dy repeated along the axes that were summed away."""
    xp = get_array_module(dy)
    if axis is not None and not keepdims:
        dy = xp.expand_dims(dy, axis)
    return xp.broadcast_to(dy, shape)


# `sum` shadows the builtin on purpose, as numpy.sum does: one name for one thing.
def sum(x: Any, axis: Axes = None, keepdims: bool = False) -> Variable:
    """Sum over the given axes (all of them by default)."""
    return Sum(axis, keepdims).apply(x)


def mean(x: Any, axis: Axes = None, keepdims: bool = False) -> Variable:
    """Arithmetic mean over the given axes (all of them by default)."""
    return Mean(axis, keepdims).apply(x)
