"""A small define-by-run engine for reverse-mode differentiation over NumPy and CuPy arrays.

    >>> import numpy as np
    >>> from autograd import Variable
    >>> x = Variable(np.array([1.0, 2.0, 3.0]))
    >>> loss = (x * x).sum()
    >>> loss.backward()
    >>> x.grad
    array([2., 4., 6.])

Read in this order: `variable`, `function`, `backprop`, then any file of `functions`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autograd.errors import AnomalyError, DeviceError, DtypeError, InputError, ShapeError

if TYPE_CHECKING:
    from autograd import functions
    from autograd.function import Function
    from autograd.mode import detect_anomaly, evaluation_mode, is_training, no_backprop_mode
    from autograd.variable import Parameter, Variable

__all__ = [
    "AnomalyError", "DeviceError", "DtypeError", "Function", "InputError", "Parameter", "ShapeError",
    "Variable", "detect_anomaly", "evaluation_mode", "functions", "is_training", "no_backprop_mode",
]  # fmt: skip

_MODULES = {
    "autograd.function": ("Function",),
    "autograd.mode": ("detect_anomaly", "evaluation_mode", "is_training", "no_backprop_mode"),
    "autograd.variable": ("Parameter", "Variable"),
}


def __getattr__(name: str) -> Any:
    """What computes, and with it NumPy, is loaded when it is first asked for.

    The errors are loaded at once: a command that only reads its flags takes them, and should start at once.
    """
    if name == "functions":
        return import_module("autograd.functions")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'autograd' has no attribute {name!r}")
