"""Inverted dropout (Srivastava et al. 2014)."""

from __future__ import annotations

from typing import Any

from autograd.backend import get_array_module
from autograd.errors import InputError
from autograd.functions.arithmetic import multiply
from autograd.mode import is_training
from autograd.variable import Variable, as_variable


def dropout(x: Any, ratio: float, rng: Any = None, mask: Any = None) -> Variable:
    """Each element is zeroed with probability `ratio` and else divided by (1 - ratio); training only.

    Args:
        x: any shape.
        ratio: in [0, 1).
        rng: a NumPy (or CuPy) Generator; a fresh one if none is given.
        mask: what to multiply with (0 or 1 / (1 - ratio)) instead of drawing; broadcast to x.

    Raises:
        InputError: a ratio outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise InputError(f"dropout: ratio must be in [0, 1); got {ratio}")
    x = as_variable(x)
    if not is_training() or (ratio == 0 and mask is None):
        return x
    if mask is None:
        xp = get_array_module(x.data)
        rng = xp.random.default_rng() if rng is None else rng
        mask = (rng.random(x.shape, dtype="float32") >= ratio) * xp.asarray(1 / (1 - ratio), x.dtype)
    return multiply(x, mask)
