"""Matrix products."""

from __future__ import annotations

from typing import Any

from autograd.backend import get_array_module
from autograd.backend import matmul as product
from autograd.errors import ShapeError
from autograd.function import Function
from autograd.functions.arithmetic import sum_to
from autograd.parallel import matmul_rows
from autograd.variable import Variable


def column_sums(x: Any) -> Any:
    """The sum (O) of the rows of x (N, O); as a product with ones it runs at the speed of the memory."""
    return product(get_array_module(x).ones(len(x), x.dtype), x)


def matmul_into(function: Function, index: int, x: Any, y: Any) -> Any:
    """x @ y, (m, k) by (k, n), as the gradient of a function's input `index`, in that gradient's own memory.

    Added to it where it is written already; None if nobody wants it.
    """
    if not function.needs_grad(index):
        return None
    target, unwritten = function.grad_target(index, like=x)
    return matmul_rows(x, y, out=target, accumulate=not unwritten)


class Matmul(Function):
    """z = x y, matrices in the last two axes; dx = dz yᵀ, dy = xᵀ dz, summed over broadcast axes."""

    def forward(self, x, y):
        if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
            raise ShapeError(f"matmul: shapes must be (…, m, k) and (…, k, n); got {x.shape} and {y.shape}")
        self.save(x, y)
        return product(x, y)

    def backward(self, dz):
        x, y = self.saved
        dx = sum_to(product(dz, y.swapaxes(-1, -2)), x.shape) if self.needs_grad(0) else None
        dy = sum_to(product(x.swapaxes(-1, -2), dz), y.shape) if self.needs_grad(1) else None
        return dx, dy


class Linear(Function):
    """y = x Wᵀ + b; dx = dy W, dW = dyᵀ x, db = the sum of dy's rows."""

    def forward(self, x, W, *b):
        if x.ndim < 1 or W.ndim != 2 or x.shape[-1] != W.shape[1]:
            raise ShapeError(f"linear: x must be (…, I) and W (O, I); got {x.shape} and {W.shape}")
        self.save(x, W)
        y = product(x, W.T)
        if b:
            self.check_shape("b", b[0].shape, W.shape[:1], f"W is {W.shape}")
            y += b[0]
        return y

    def backward(self, dy):
        x, W = self.saved
        rows = dy.reshape(-1, W.shape[0])  # every leading axis is one long batch
        dx = product(rows, W).reshape(x.shape) if self.needs_grad(0) else None
        dW = matmul_into(self, 1, rows.T, x.reshape(-1, W.shape[1]))
        return (dx, dW, column_sums(rows))[: len(self.inputs)]


def matmul(x: Any, y: Any) -> Variable:
    """Matrix product of (…, m, k) and (…, k, n); leading axes broadcast.

    Raises:
        ShapeError: fewer than two axes, or inner sizes that differ.
    """
    return Matmul().apply(x, y)


def linear(x: Any, W: Any, b: Any = None) -> Variable:
    """x Wᵀ + b for x (…, I), W (O, I), b (O) or None; returns (…, O). W as torch.nn.Linear stores it.

    Raises:
        ShapeError: sizes that do not fit.
    """
    return Linear().apply(x, W) if b is None else Linear().apply(x, W, b)
