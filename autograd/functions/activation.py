"""Elementwise functions of one array: exp, log, sigmoid, tanh, relu."""

from __future__ import annotations

from typing import Any

from autograd.backend import get_array_module
from autograd.function import Function
from autograd.variable import Variable


class Exp(Function):
    """y = exp(x), elementwise; dx = dy · y."""

    def forward(self, x):
        y = get_array_module(x).exp(x)
        self.save(y)
        return y

    def backward(self, dy):
        (y,) = self.saved
        return dy * y


class Log(Function):
    """y = log x, elementwise; dx = dy / x."""

    def forward(self, x):
        self.save(x)
        return get_array_module(x).log(x)

    def backward(self, dy):
        (x,) = self.saved
        return dy / x


class Sigmoid(Function):
    """y = 1 / (1 + exp(-x)), elementwise; dx = dy · y (1 - y)."""

    def forward(self, x):
        # 1 / (1 + exp(-x)) = (tanh(x/2) + 1) / 2, and tanh cannot overflow.
        y = get_array_module(x).tanh(x * 0.5)
        y *= 0.5
        y += 0.5
        self.save(y)
        return y

    def backward(self, dy):
        (y,) = self.saved
        return dy * y * (1 - y)


class Tanh(Function):
    """y = tanh x, elementwise; dx = dy · (1 - y²)."""

    def forward(self, x):
        y = get_array_module(x).tanh(x)
        self.save(y)
        return y

    def backward(self, dy):
        (y,) = self.saved
        return dy * (1 - y * y)


class Relu(Function):
    """y = max(x, 0), elementwise; dx = dy where x > 0, else 0."""

    def forward(self, x):
        y = get_array_module(x).maximum(x, 0)
        self.save(y)
        return y

    def backward(self, dy):
        (y,) = self.saved
        return dy * (y > 0)


def exp(x: Any) -> Variable:
    """e to the x, elementwise."""
    return Exp().apply(x)


def log(x: Any) -> Variable:
    """Natural logarithm, elementwise."""
    return Log().apply(x)


def sigmoid(x: Any) -> Variable:
    """1 / (1 + exp(-x)), elementwise."""
    return Sigmoid().apply(x)


def tanh(x: Any) -> Variable:
    """Hyperbolic tangent, elementwise."""
    return Tanh().apply(x)


def relu(x: Any) -> Variable:
    """max(x, 0), elementwise; the derivative at 0 is taken as 0."""
    return Relu().apply(x)
