"""Which array library an array belongs to, and where a new one is made: NumPy on a CPU, CuPy on a GPU.

The only file that imports cupy, and only once it is asked for.
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
