"""Functions that move numbers without changing them: reshape, transpose, slice, concatenate, split, cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd.backend import accumulation_dtype, get_array_module
from autograd.errors import ShapeError
from autograd.function import Function
from autograd.functions.arithmetic import sum_to
from autograd.variable import Variable, as_variable


class Reshape(Function):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x):
        return x.reshape(self.shape)

    def backward(self, dy):
        return dy.reshape(self.inputs[0].shape)


class Transpose(Function):
    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def forward(self, x):
        return x.transpose(self.axes)

    def backward(self, dy):
        inverse = sorted(range(len(self.axes)), key=lambda axis: self.axes[axis] % len(self.axes))
        return dy.transpose(inverse)


class GetItem(Function):
    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, x):
        return x[self.index]

    def backward(self, dy):
        xp = get_array_module(dy)
        if _picks_each_once(self.index):
            dx = xp.zeros(self.inputs[0].shape, dy.dtype)
            dx[self.index] = dy
            return dx
        dx = xp.zeros(self.inputs[0].shape, accumulation_dtype(dy.dtype))
        xp.add.at(dx, self.index, dy)
        return dx.astype(dy.dtype, copy=False)


def _picks_each_once(index: Any) -> bool:
    """Whether no element can be taken twice: true of integers and slices, not of arrays of ids."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)


class Concatenate(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *arrays):
        return get_array_module(*arrays).concatenate(arrays, self.axis)

    def backward(self, dy):
        ends, end = [], 0
        for node in self.inputs[:-1]:
            end += node.shape[self.axis]
            ends.append(end)
        return tuple(get_array_module(dy).split(dy, ends, self.axis))


class Split(Function):
    def __init__(self, sections: int, axis: int) -> None:
        self.sections, self.axis = sections, axis

    def forward(self, x):
        if x.shape[self.axis] % self.sections:
            raise ShapeError(
                f"split: axis {self.axis} of {x.shape} must divide into {self.sections} equal parts; "
                f"{x.shape[self.axis]} does not"
            )
        return tuple(get_array_module(x).split(x, self.sections, self.axis))

    def backward(self, *dys):
        xp = get_array_module(*dys)
        some = next(dy for dy in dys if dy is not None)
        return xp.concatenate([xp.zeros_like(some) if dy is None else dy for dy in dys], self.axis)


class BroadcastTo(Function):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x):
        return get_array_module(x).broadcast_to(x, self.shape)

    def backward(self, dy):
        return sum_to(dy, self.inputs[0].shape)


class Cast(Function):
    changes_dtype = True

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, x):
        return x.astype(self.dtype)

    def backward(self, dy):
        return dy.astype(self.inputs[0].dtype)


def reshape(x: Any, shape: tuple[int, ...]) -> Variable:
    """The same numbers in another shape; one size may be -1."""
    return Reshape(shape).apply(x)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Variable:
    """Axes in another order; reversed if none is given."""
    ndim = as_variable(x).ndim
    return Transpose(tuple(reversed(range(ndim)) if axes is None else axes)).apply(x)


def get_item(x: Any, index: Any) -> Variable:
    """x[index] for integers, slices and integer arrays; elements taken twice get both gradients."""
    return GetItem(index).apply(x)


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Variable:
    """Arrays of equal shape but for `axis`, joined along it."""
    return Concatenate(axis).apply(*arrays)


def split(x: Any, sections: int, axis: int = 0) -> tuple[Variable, ...]:
    """x cut into equal sections along `axis`.

    Raises:
        ShapeError: the axis does not divide evenly.
    """
    return Split(sections, axis).apply(x)


def stack(arrays: Sequence[Any], axis: int = 0) -> Variable:
    """Arrays of one shape along a new axis."""
    rows = []
    axis %= as_variable(arrays[0]).ndim + 1
    for array in arrays:
        shape = as_variable(array).shape
        rows.append(reshape(array, shape[:axis] + (1,) + shape[axis:]))
    return concatenate(rows, axis)


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Variable:
    """x repeated to `shape` by NumPy's rules."""
    return BroadcastTo(shape).apply(x)


def cast(x: Any, dtype: Any) -> Variable:
    """x in another floating-point dtype; the gradient comes back in x's own."""
    return Cast(dtype).apply(x)
