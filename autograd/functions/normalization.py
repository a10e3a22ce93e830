"""Layer normalisation (Ba, Kiros & Hinton 2016)."""

from __future__ import annotations

from typing import Any

from autograd.backend import accumulation_dtype, get_array_module
from autograd.function import Function
from autograd.variable import Variable


class LayerNormalization(Function):
    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def forward(self, x, gain, shift):
        self.check_shape("gain", gain.shape, x.shape[-1:], f"x is {x.shape}")
        self.check_shape("shift", shift.shape, x.shape[-1:], f"x is {x.shape}")
        wide = accumulation_dtype(x.dtype)  # statistics of float16 are taken in float32
        centred = x - x.mean(axis=-1, keepdims=True, dtype=wide)
        variance = (centred * centred).mean(axis=-1, keepdims=True, dtype=wide)
        inverse_std = 1 / get_array_module(x).sqrt(variance + variance.dtype.type(self.epsilon))
        normalized = (centred * inverse_std).astype(x.dtype)  # (40) of docs/lstm_backward.md
        self.save(normalized, inverse_std, gain)
        return normalized * gain + shift  # (41)

    def backward(self, dy):
        # With z the normalised x: dx = (dz - mean(dz) - z · mean(dz · z)) / std; the two means are what
        # flows back through the mean and through the variance.
        z, inverse_std, gain = self.saved
        xp, wide = get_array_module(dy), inverse_std.dtype
        dz = dy * gain  # (42)
        dx = (
            dz
            - dz.mean(axis=-1, keepdims=True, dtype=wide)
            - z * xp.multiply(dz, z, dtype=wide).mean(axis=-1, keepdims=True)
        ) * inverse_std  # (43)
        rows = tuple(range(dy.ndim - 1))
        d_gain = xp.multiply(dy, z, dtype=wide).sum(axis=rows)  # (44)
        d_shift = dy.sum(axis=rows, dtype=wide)
        return tuple(gradient.astype(z.dtype, copy=False) for gradient in (dx, d_gain, d_shift))


def layer_normalization(x: Any, gain: Any, shift: Any, epsilon: float = 1e-5) -> Variable:
    """(x - mean) / sqrt(variance + epsilon) · gain + shift, the statistics taken over the last axis.

    Args:
        x: (…, N).
        gain, shift: (N,).
        epsilon: keeps the root away from 0.

    Raises:
        ShapeError: gain or shift of another size.
    """
    return LayerNormalization(epsilon).apply(x, gain, shift)
