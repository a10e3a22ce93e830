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

from autograd import functions
from autograd.errors import AnomalyError, DeviceError, DtypeError, InputError, ShapeError
from autograd.function import Function
from autograd.mode import detect_anomaly, evaluation_mode, is_training, no_backprop_mode
from autograd.variable import Parameter, Variable

__all__ = [
    "AnomalyError", "DeviceError", "DtypeError", "Function", "InputError", "Parameter", "ShapeError",
    "Variable", "detect_anomaly", "evaluation_mode", "functions", "is_training", "no_backprop_mode",
]  # fmt: skip
