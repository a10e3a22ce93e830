"""Which array library an array belongs to, where a new one is made, and how two are multiplied.

NumPy on a CPU, CuPy on a GPU. The only file that imports cupy, and only once it is asked for.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from autograd.cublas import WORKSPACE_BYTES, Cublas, layout_of, load_library
from autograd.errors import DeviceError


def get_array_module(*arrays: Any) -> ModuleType:
    """The module, numpy or cupy, whose functions take these arrays."""
    for array in arrays:
        if type(array) is not np.ndarray and type(array).__module__.partition(".")[0] == "cupy":
            import cupy

            return cupy
    return np


def to_host(array: Any) -> np.ndarray:
    """The same numbers as a NumPy array: itself, or a copy of what lies on a GPU."""
    return array if get_array_module(array) is np else array.get()


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
    except ImportError:
        raise DeviceError(
            "device cuda needs CuPy, which is not installed; pip install cupy-cuda13x (or cupy-cuda12x), "
            "or use cpu"
        ) from None
    try:
        num_devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own error class can only be named where CuPy loads
        raise DeviceError(_why_no_gpu(cupy.cuda.runtime, error)) from None
    if num_devices == 0:
        raise DeviceError(_NO_GPU)
    return cupy


def load_nccl() -> tuple[Any, str]:
    """CuPy's binding of NCCL and its version; or None, and why it cannot be had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns in twelve lines
        try:
            from cupy.cuda import nccl

            version = nccl.get_version() if nccl.available else None
        except Exception as error:  # a library that is there and does not work
            return None, f"NCCL does not load ({str(error).splitlines()[0]})"
    if version is None:
        return None, "NCCL is not installed (pip install nvidia-nccl-cu13, or cu12)"
    return nccl, f"NCCL {version // 10000}.{version % 10000 // 100}.{version % 100}"


_NO_GPU = "device cuda needs a GPU; none was found (is CUDA_VISIBLE_DEVICES set?); use cpu instead"
_CUDA_ERROR_NO_DEVICE = 100


def _why_no_gpu(runtime: Any, error: Exception) -> str:
    """What is in the way, in words, when CUDA cannot even count the GPUs."""
    try:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception:  # a CUDA that cannot tell its own version
        driver, needed = 1, 0
    if driver == 0:
        return "device cuda needs an NVIDIA driver; none is installed here; install one, or use cpu instead"
    if driver < needed:
        return (
            f"device cuda: the driver is for CUDA {_version(driver)} at most, and this CuPy needs "
            f"{_version(needed)}; bring the driver up to date, or install the CuPy that fits it "
            "(pip install cupy-cuda12x), or use cpu instead"
        )
    if getattr(error, "status", None) == _CUDA_ERROR_NO_DEVICE:
        return _NO_GPU
    return f"device cuda needs a working GPU and driver; CuPy says: {error}; use cpu instead"


def _version(number: int) -> str:
    """CUDA counts 12.4 as 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"


def accumulation_dtype(dtype: Any) -> np.dtype:
    """What sums over numbers of this dtype are made in: float32 for float16, else the dtype itself.

    float16 has 11 bits and ends at 65,504: a sum of it stands still once it is 2,048 times its next term
    (Micikevicius et al. 2018, arXiv 1710.03740, section 3.3).
    """
    return np.dtype(np.float32 if dtype == np.float16 else dtype)


def matmul(a: Any, b: Any, out: Any = None, accumulate: bool = False, alpha: Any = 1.0) -> Any:
    """alpha · a @ b; the one product of the engine and of the model.

    float16 operands are multiplied and summed in float32, and the result is rounded once, as a GPU's tensor
    cores do it; float32 and float64 are multiplied as `numpy.matmul` does.

    Args:
        a, b: matrices, stacks of them, or vectors, as for `numpy.matmul`; one may be float16, one float32.
        out: array to write into, whose dtype decides where the result is rounded to: float16 operands may
            have a float32 product. None: a new array, of the operands' dtype.
        accumulate: the product is added to what `out` holds, before the result is rounded.
        alpha: a number, or an array of one float32 where the operands are, applied before the result is
            rounded.
    """
    xp = get_array_module(a, b)
    if xp is not np and a.ndim <= 2 and b.ndim <= 2:
        return matmul_by_cublas(_cublas_of_stream(), a, b, out, accumulate, alpha)
    halves = a.dtype == b.dtype == np.float16
    if out is not None and not accumulate and _is_one(alpha):
        return xp.matmul(a, b, out=out, dtype=np.float32) if halves else xp.matmul(a, b, out=out)
    product = xp.matmul(a, b, dtype=np.float32) if halves else xp.matmul(a, b)
    if not _is_one(alpha):
        product *= alpha if hasattr(alpha, "dtype") else product.dtype.type(alpha)
    if out is None:
        return product.astype(a.dtype) if halves else product
    if accumulate:
        out += product
    else:
        out[...] = product
    return out


def _is_one(alpha: Any) -> bool:
    """Whether a product is to be left as it is; an array, which may lie on a GPU, is not looked at."""
    return not hasattr(alpha, "dtype") and alpha == 1


def matmul_by_cublas(cublas: Cublas, a: Any, b: Any, out: Any, accumulate: bool, alpha: Any) -> Any:
    """`matmul` of vectors and matrices, (m, k) by (k, n), on a device, into memory that cuBLAS can write to.

    What it cannot read where it lies is copied, and so is a float16 operand beside a float32 one.
    """
    xp = get_array_module(a, b)
    shape = (*a.shape[:-1], *b.shape[1:])
    dtype = np.promote_types(a.dtype, b.dtype)
    if out is None:
        out, accumulate = xp.empty(shape, dtype), False
    left, right = (
        operand if layout_of(operand) else xp.ascontiguousarray(operand)
        for operand in (
            (a if a.ndim == 2 else a[None]).astype(dtype, copy=False),
            (b if b.ndim == 2 else b[:, None]).astype(dtype, copy=False),
        )
    )
    cublas.gemm(left, right, out.reshape(len(left), right.shape[1]), accumulate, alpha)
    return out


def _cublas_of_stream() -> Cublas:
    """The handle of the current device and stream."""
    import cupy

    return _cublas(cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr)


@functools.cache
def _cublas(device: int, stream: int) -> Cublas:
    """A handle with memory of its own, outside every pool: a graph that uses it may outlive its pool."""
    import cupy

    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    try:
        library = load_library(major)
    except OSError:
        _ = cupy.cuda.Device().cublas_handle  # CuPy knows where wheels keep theirs; then it is loaded
        library = load_library(major)
    workspace, scalars = cupy.cuda.Memory(WORKSPACE_BYTES), cupy.cuda.Memory(8)
    ones = np.array([1, 0], np.float32)
    cupy.cuda.runtime.memcpy(scalars.ptr, ones.ctypes.data, ones.nbytes, cupy.cuda.runtime.memcpyHostToDevice)
    cublas = Cublas(library, stream, (workspace.ptr, workspace.size), scalars.ptr)
    cublas.memory = (workspace, scalars)
    return cublas
