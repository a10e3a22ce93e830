"""Which array library an array belongs to, where a new one is made, and how two are multiplied.

NumPy on a CPU, CuPy on a GPU. The only file that imports cupy, and only once it is asked for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from autograd.errors import DeviceError


def get_array_module(*arrays: Any) -> ModuleType:
    """The module, numpy or cupy, whose functions take these arrays."""
    if any(type(array).__module__.partition(".")[0] == "cupy" for array in arrays):
        import cupy

        return cupy
    return np


def device_array_module(device: str) -> ModuleType:
    """The array module of a device by name: `cpu` or `cuda`.

    Raises:
        DeviceError: an unknown name, or a GPU asked for where CuPy or a working GPU is missing.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise DeviceError(f"device must be cpu or cuda; got {device!r}")
    try:
        import cupy

        num_devices = cupy.cuda.runtime.getDeviceCount()
    except ImportError:
        raise DeviceError(
            "device cuda needs CuPy, which is not installed; pip install 'minilstm[cuda13]' (or cuda12), "
            "or use cpu"
        ) from None
    except Exception as error:  # CuPy's own error class can only be named where CuPy loads
        raise DeviceError(
            f"device cuda needs a working GPU and driver; CuPy says: {error}; use cpu instead"
        ) from None
    if num_devices == 0:
        raise DeviceError("device cuda needs a GPU; none was found; use cpu instead")
    return cupy


def accumulation_dtype(dtype: Any) -> np.dtype:
    """What sums over numbers of this dtype are made in: float32 for float16, else the dtype itself.

    float16 has 11 bits and ends at 65,504: a sum of it stands still once it is 2,048 times its next term
    (Micikevicius et al. 2018, arXiv 1710.03740, section 3.3).
    """
    return np.dtype(np.float32 if dtype == np.float16 else dtype)


def matmul(a: Any, b: Any, out: Any = None, accumulate: bool = False, alpha: float = 1.0) -> Any:
    """alpha · a @ b; the one product of the engine and of the model.

    float16 operands are multiplied and summed in float32, and the result is rounded once, as a GPU's tensor
    cores do it; float32 and float64 are multiplied as `numpy.matmul` does.

    Args:
        a, b: matrices, stacks of them, or vectors, as for `numpy.matmul`; one may be float16, one float32.
        out: array to write into, whose dtype decides where the result is rounded to: float16 operands may
            have a float32 product. None: a new array, of the operands' dtype.
        accumulate: the product is added to what `out` holds, before the result is rounded.
        alpha: a number, applied before the result is rounded.
    """
    xp = get_array_module(a, b)
    halves = a.dtype == b.dtype == np.float16
    if out is not None and not accumulate and alpha == 1:
        return xp.matmul(a, b, out=out, dtype=np.float32) if halves else xp.matmul(a, b, out=out)
    product = xp.matmul(a, b, dtype=np.float32) if halves else xp.matmul(a, b)
    if alpha != 1:
        product *= product.dtype.type(alpha)
    if out is None:
        return product.astype(a.dtype) if halves else product
    if accumulate:
        out += product
    else:
        out[...] = product
    return out
