"""Two penalties on the last layer's outputs h (T, B, E), added to the loss that is trained on.

Merity, McCann & Socher 2017 (arXiv 1708.01009), in the form of AWD-LSTM (Merity et al. 2018), whose means go
over every element. See docs/lstm_backward.md, equations (61) to (64).
"""

from __future__ import annotations

from typing import Any

from autograd import Function, ShapeError, Variable
from autograd.backend import accumulation_dtype, get_array_module


class ActivationRegularization(Function):
    is_sum = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def forward(self, h):
        self.save(h)
        return _scaled_mean_square(h, self.alpha)  # (61)

    def backward(self, dy):
        (h,) = self.saved
        return (h * (dy * (2 * self.alpha / max(h.size, 1)))).astype(h.dtype, copy=False)  # (63)


class TemporalActivationRegularization(Function):
    is_sum = True

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def forward(self, h):
        if h.ndim < 1:
            raise ShapeError(f"{self.label}: h must be (T, …) with the steps first; got {h.shape}")
        change = h[1:] - h[:-1]
        self.save(change)
        return _scaled_mean_square(change, self.beta)  # (62)

    def backward(self, dy):
        (change,) = self.saved
        change = change * (dy * (2 * self.beta / max(change.size, 1)))
        dh = get_array_module(change).zeros(self.inputs[0].shape, change.dtype)
        dh[1:] = change
        dh[:-1] -= change  # (64)
        return dh.astype(self.inputs[0].dtype, copy=False)


def _scaled_mean_square(x: Any, scale: float) -> Any:
    """scale · mean(x²) in the dtype of x, float32 of float16, summed in double precision; 0 if x is empty."""
    xp, dtype = get_array_module(x), accumulation_dtype(x.dtype)
    squares = xp.square(x, dtype=dtype).sum(dtype="float64")
    return xp.asarray(scale * squares / max(x.size, 1), dtype)


def activation_regularization(h: Any, alpha: float) -> Variable:
    """AR: alpha · mean(h²), which keeps activations small; a single number.

    Args:
        h: the last layer's outputs after dropout, (T, B, E) or any other shape.
        alpha: α, its weight; AWD-LSTM's is 2.
    """
    return ActivationRegularization(alpha).apply(h)


def temporal_activation_regularization(h: Any, beta: float) -> Variable:
    """TAR: beta · mean((h[t+1] - h[t])²), which makes outputs change slowly; 0 of a single step.

    Args:
        h: the last layer's outputs before dropout, (T, B, E), or any shape with the steps first.
        beta: β, its weight; AWD-LSTM's is 1.

    Raises:
        ShapeError: h has no axis of steps.
    """
    return TemporalActivationRegularization(beta).apply(h)
