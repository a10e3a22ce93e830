"""cuBLAS by ctypes: matrix products that a CUDA graph may capture, with float32 sums of float16 operands.

CuPy refuses every cuBLAS call while a stream is captured, and its matmul has neither alpha and beta nor a
float32 result of float16 operands. This binding is what `autograd.backend.matmul` uses on a GPU: one handle
for each device and stream, with a workspace of its own, so that no call allocates anything.

cuBLAS counts matrices column by column, NumPy row by row. A row-major matrix is, read column by column, its
own transpose, hence C = A B is asked for as Cᵀ = Bᵀ Aᵀ: B stands first, and nothing is copied.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_float, c_int, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np

from autograd.errors import DeviceError, DtypeError, ShapeError

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper; a graph needs memory that stays where it is."""

# Numbers from cublas_api.h and library_types.h.
_OP_N, _OP_T = 0, 1
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2}
_COMPUTE_32F, _COMPUTE_64F = 68, 70
_DEFAULT_ALGORITHM = -1
_EXACT_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no partial sums in float16
_HOST_SCALARS, _DEVICE_SCALARS = 0, 1

_SIGNATURES: dict[str, list[Any]] = {
    "cublasCreate_v2": [c_void_p],
    "cublasDestroy_v2": [c_void_p],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasSetMathMode": [c_void_p, c_int],
    "cublasSetPointerMode_v2": [c_void_p, c_int],
    "cublasGemmEx": [
        c_void_p, c_int, c_int, c_int, c_int, c_int,  # handle, op of the first and second, m, n, k
        c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int,  # alpha; first, type, ld; second, type, ld
        c_void_p, c_void_p, c_int, c_int, c_int, c_int,  # beta; result, type, ld; compute type, algorithm
    ],
}  # fmt: skip

_OUT_OF_MEMORY = 3
_STATUS = {
    1: "not initialised (is there a working driver?)",
    _OUT_OF_MEMORY: "out of memory",
    7: "invalid value",
    8: "not supported by this GPU",
    13: "the GPU failed to execute",
    14: "internal error",
    15: "not supported with these types or this alignment",
}


class Layout(NamedTuple):
    """How a matrix lies in memory: row by row, or, `transposed`, column by column; and its leading dimension,
    the elements from the start of one row (column) to the next."""

    transposed: bool
    leading: int


def layout_of(matrix: Any) -> Layout | None:
    """The layout in which cuBLAS can read a 2-D array where it lies; None if it must be copied first."""
    (rows, columns), size = matrix.shape, matrix.itemsize
    down, right = (stride // size if stride % size == 0 else -1 for stride in matrix.strides)
    if columns <= 1 or right == 1:  # of one row, or one column, the other stride means nothing
        leading = down if rows > 1 else max(columns, 1)
        if leading >= max(columns, 1):
            return Layout(False, leading)
    if rows <= 1 or down == 1:
        leading = right if columns > 1 else max(rows, 1)
        if leading >= max(rows, 1):
            return Layout(True, leading)
    return None


class Cublas:
    """One cuBLAS handle, bound to a stream.

    Args:
        library: what `load_library` gives.
        stream: address of the CUDA stream.
        workspace: address and size in bytes of device memory that is this handle's alone.
        one_and_zero: address of two float32 in device memory, 1 and 0: what beta is when alpha lies there.

    Attributes:
        memory: whatever must live as long as the handle.

    Raises:
        DeviceError: cuBLAS does not start. MemoryError: the GPU has no room for it.
    """

    memory: Any = None

    def __init__(self, library: Any, stream: int, workspace: tuple[int, int], one_and_zero: int) -> None:
        self._library, self._handle = library, c_void_p()
        self._one_and_zero = one_and_zero
        self._scalars_on_device = False
        self._check(library.cublasCreate_v2(byref(self._handle)), "start")
        # In this order: setting the stream takes a workspace away again.
        self._check(library.cublasSetStream_v2(self._handle, stream), "take its stream")
        self._check(library.cublasSetWorkspace_v2(self._handle, *workspace), "take its workspace")
        self._check(library.cublasSetMathMode(self._handle, _EXACT_SUMS), "sum in float32")

    def gemm(self, a: Any, b: Any, out: Any, accumulate: bool = False, alpha: Any = 1.0) -> None:
        """out ← alpha · a b, or out ← out + alpha · a b; summed in float32 (float64 for float64).

        Args:
            a: (m, k). b: (k, n). Both in one type; views and transposes are read where they lie.
            out: (m, n), of the operands' type, or float32 for float16 operands.
            alpha: a number, or an array of one float32 on the device.

        Raises:
            ShapeError: sizes that do not fit, an `out` that cannot be written where it lies.
            DtypeError: types that cuBLAS does not multiply. DeviceError: cuBLAS reports an error.
        """
        check_operands(a, b, out)
        if 0 in (out.size, a.size):  # nothing to multiply: a sum of nothing is zero
            if not accumulate:
                out[...] = 0
            return
        lay_a, lay_b, lay_out = (_layout(name, x) for name, x in (("a", a), ("b", b), ("out", out)))
        if lay_out.transposed:  # outᵀ = bᵀ aᵀ, which lies row by row
            self.gemm(b.T, a.T, out.T, accumulate, alpha)
            return
        (m, k), n = a.shape, b.shape[1]
        double = a.dtype == np.float64
        alpha_at, beta_at = self._scalars(alpha, accumulate, double)
        status = self._library.cublasGemmEx(
            self._handle, _op(lay_b), _op(lay_a), n, m, k,
            alpha_at,
            _address(b), _data_type(b), lay_b.leading,
            _address(a), _data_type(a), lay_a.leading,
            beta_at,
            _address(out), _data_type(out), lay_out.leading,
            _COMPUTE_64F if double else _COMPUTE_32F, _DEFAULT_ALGORITHM,
        )  # fmt: skip
        self._check(status, f"multiply {a.shape} {a.dtype} by {b.shape} into {out.dtype}")

    def close(self) -> None:
        """Give the handle back."""
        if self._handle:
            self._library.cublasDestroy_v2(self._handle)
            self._handle = c_void_p()

    def _scalars(self, alpha: Any, accumulate: bool, double: bool) -> tuple[Any, Any]:
        """Where cuBLAS finds alpha and beta, once it knows on which side to look."""
        on_device = not isinstance(alpha, int | float | np.generic)
        if on_device and (double or alpha.dtype != np.float32 or alpha.size != 1):
            raise DtypeError(
                "matmul: alpha must be a number, or an array of one float32, which float64 operands cannot "
                f"have; got {alpha.shape} {alpha.dtype}"
            )
        if on_device != self._scalars_on_device:
            mode = _DEVICE_SCALARS if on_device else _HOST_SCALARS
            self._check(self._library.cublasSetPointerMode_v2(self._handle, mode), "change its scalars")
            self._scalars_on_device = on_device
        if on_device:
            return _address(alpha), self._one_and_zero + (0 if accumulate else 4)
        number = c_double if double else c_float
        return byref(number(float(alpha))), byref(number(1.0 if accumulate else 0.0))

    def _check(self, status: int, what: str) -> None:
        if status:
            reason = _STATUS.get(status, "unknown error")
            kind = MemoryError if status == _OUT_OF_MEMORY else DeviceError
            raise kind(f"cuBLAS could not {what}: {reason} (status {status})")


def check_operands(a: Any, b: Any, out: Any) -> None:
    """Raise unless out (m, n) can hold a (m, k) times b (k, n), by their shapes and types."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise ShapeError(
            f"matmul: must be (m, k), (k, n) and out (m, n); got {a.shape}, {b.shape} and {out.shape}"
        )
    results = {"float16": ("float16", "float32"), "float32": ("float32",), "float64": ("float64",)}
    if a.dtype != b.dtype or str(out.dtype) not in results.get(str(a.dtype), ()):
        raise DtypeError(
            "matmul: operands must both be float16, float32 or float64, and out of their type, or float32 "
            f"for float16; got {a.dtype}, {b.dtype} and {out.dtype}"
        )


def _layout(name: str, matrix: Any) -> Layout:
    layout = layout_of(matrix)
    if layout is None:
        raise ShapeError(
            f"matmul: {name} must have rows or columns that lie next to each other; got strides "
            f"{matrix.strides} for {matrix.shape}; make it contiguous first"
        )
    return layout


def _op(layout: Layout) -> int:
    """cuBLAS reads what lies row by row as its transpose, which is what the product of transposes wants."""
    return _OP_T if layout.transposed else _OP_N


def _data_type(matrix: Any) -> int:
    return _DATA_TYPES[str(matrix.dtype)]


def _address(array: Any) -> int:
    """Where the array's first element lies: in device memory of a CuPy array, in the host's of NumPy's."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def load_library(cuda_major: int) -> Any:
    """libcublas of this major version of CUDA, its functions ready to be called.

    Raises:
        OSError: it is not loaded yet, and not found on the loader's path.
    """
    return with_signatures(ctypes.CDLL(f"libcublas.so.{cuda_major}"))


def with_signatures(library: Any) -> Any:
    """The library, told the types of its arguments: ctypes would cut addresses to 32 bits otherwise."""
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    return library
