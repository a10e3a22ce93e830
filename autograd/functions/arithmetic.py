"""Elementwise arithmetic with broadcasting: add, subtract, multiply, divide, negate, power."""

from __future__ import annotations

from typing import Any

from autograd.backend import accumulation_dtype, get_array_module
from autograd.function import Function
from autograd.variable import Variable


def sum_to(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Undo broadcasting: the sum of `gradient` over the axes along which `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = tuple(axis + added for axis, size in enumerate(shape) if size == 1)
    total = gradient.sum(axis=tuple(range(added)) + repeated, dtype=accumulation_dtype(gradient.dtype))
    return total.reshape(shape).astype(gradient.dtype, copy=False)


def _operands(x: Any, y: Any) -> tuple[Any, Any]:
    """Numbers and integers take the precision of the other operand, so that float32 * 2 stays float32."""
    return _in_precision_of(y, x), _in_precision_of(x, y)


def _in_precision_of(other: Any, value: Any) -> Any:
    dtype = getattr(other, "dtype", None)
    if dtype is None or dtype.kind != "f":
        return value
    if isinstance(value, int | float) or getattr(value, "dtype", dtype).kind in "iu":
        array = value.data if isinstance(value, Variable) else value
        return get_array_module(array, other.data).asarray(array, dtype=dtype)
    return value


class Add(Function):
    """z = x + y with broadcasting; dx and dy are dz, summed over what was repeated."""

    def forward(self, x, y):
        return x + y

    def backward(self, dz):
        x, y = self.inputs
        return sum_to(dz, x.shape), sum_to(dz, y.shape)


class Subtract(Function):
    """z = x - y with broadcasting; dx = dz, dy = -dz, summed over what was repeated."""

    def forward(self, x, y):
        return x - y

    def backward(self, dz):
        x, y = self.inputs
        return sum_to(dz, x.shape), sum_to(-dz, y.shape)


class Multiply(Function):
    """z = x · y elementwise with broadcasting; dx = dz · y, dy = dz · x, summed over what was repeated."""

    def forward(self, x, y):
        self.save(x, y)
        return x * y

    def backward(self, dz):
        x, y = self.saved
        dx = sum_to(dz * y, x.shape) if self.needs_grad(0) else None  # (33) of docs/lstm_backward.md
        dy = sum_to(dz * x, y.shape) if self.needs_grad(1) else None
        return dx, dy


class Divide(Function):
    """z = x / y with broadcasting; dx = dz / y, dy = -dz · x / y², summed over what was repeated."""

    def forward(self, x, y):
        self.save(x, y)
        return x / y

    def backward(self, dz):
        x, y = self.saved
        dx = dz / y
        dy = sum_to(-dx * x / y, y.shape) if self.needs_grad(1) else None
        return sum_to(dx, x.shape), dy


class Negate(Function):
    """y = -x; dx = -dy."""

    def forward(self, x):
        return -x

    def backward(self, dy):
        return -dy


class Power(Function):
    """y = x^p, elementwise, p a number; dx = dy · p x^(p - 1)."""

    def __init__(self, exponent: float) -> None:
        self.exponent = float(exponent)  # a NumPy number would make float32 float64

    def forward(self, x):
        self.save(x)
        return _power(x, self.exponent)

    def backward(self, dy):
        (x,) = self.saved
        if self.exponent == 0:
            return get_array_module(x).zeros_like(x)  # 0 · x⁻¹ is no number at x = 0
        return dy * self.exponent * _power(x, self.exponent - 1)


def _power(x: Any, exponent: float) -> Any:
    """x ** exponent. NumPy multiplies for a square alone; higher powers it makes by logarithms, slowly."""
    if exponent not in range(3, 17):
        return x**exponent
    root = _power(x, exponent // 2)
    return root * root * x if exponent % 2 else root * root


def add(x: Any, y: Any) -> Variable:
    """x + y, broadcast as NumPy does."""
    return Add().apply(*_operands(x, y))


def subtract(x: Any, y: Any) -> Variable:
    """x - y, broadcast as NumPy does."""
    return Subtract().apply(*_operands(x, y))


def multiply(x: Any, y: Any) -> Variable:
    """x · y elementwise, broadcast as NumPy does."""
    return Multiply().apply(*_operands(x, y))


def divide(x: Any, y: Any) -> Variable:
    """x / y elementwise, broadcast as NumPy does."""
    return Divide().apply(*_operands(x, y))


def negate(x: Any) -> Variable:
    """-x, elementwise."""
    return Negate().apply(x)


def power(x: Any, exponent: float) -> Variable:
    """x ** exponent, elementwise; the exponent is a Python number."""
    return Power(exponent).apply(x)
