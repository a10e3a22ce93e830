"""cuBLAS's part of a matrix product on the host: called through the C interface, on addresses in host memory.

It is made of ctypes callbacks with the argument types of cublas_api.h, written down here once more, so a
value in the wrong place, a wrong leading dimension or a wrong flag gives a wrong product, or an error status.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_float, c_int, c_size_t, c_void_p
from types import SimpleNamespace

import numpy as np
from numpy.lib.array_utils import byte_bounds

DTYPES = {0: np.float32, 1: np.float64, 2: np.float16}  # cudaDataType
INVALID = 7  # CUBLAS_STATUS_INVALID_VALUE


def columns_in_memory(address, dtype, rows, columns, leading):
    """The column-major matrix (rows, columns) at an address, as a view that can be written to."""
    length = leading * (columns - 1) + rows if rows and columns else 0
    if not length:
        return np.empty((rows, columns), dtype)
    memory = (ctypes.c_char * (length * np.dtype(dtype).itemsize)).from_address(address)
    flat = np.frombuffer(memory, dtype)
    strides = (flat.itemsize, leading * flat.itemsize)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides, writeable=True)


class FakeCublas:
    """What `autograd.cublas.Cublas` calls, and a record of it.

    Attributes:
        library: takes the place of the loaded library.
        calls: names of what was called, in order.
        workspaces, streams: what each handle was given.
        fail_with: status of the next product; 0: it is made.
    """

    def __init__(self):
        self.calls, self.streams, self.workspaces, self.modes = [], {}, {}, {}
        self.handles, self.fail_with, self.scalar_sides = 0, 0, {}
        self.on_product = None
        kinds = {
            "cublasCreate_v2": [POINTER(c_void_p)],
            "cublasDestroy_v2": [c_void_p],
            "cublasSetStream_v2": [c_void_p, c_void_p],
            "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
            "cublasSetMathMode": [c_void_p, c_int],
            "cublasSetPointerMode_v2": [c_void_p, c_int],
            # handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc,
            # computeType, algo
            "cublasGemmEx": [c_void_p, *[c_int] * 5, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int]
            + [c_void_p, c_void_p, c_int, c_int, c_int, c_int],
        }
        self.library = SimpleNamespace(
            **{name: CFUNCTYPE(c_int, *kind)(self._recorded(name)) for name, kind in kinds.items()}
        )

    def _recorded(self, name):
        def call(*arguments):
            self.calls.append(name)
            return getattr(self, "_" + name)(*arguments)

        return call

    def _cublasCreate_v2(self, handle):
        self.handles += 1
        handle[0] = self.handles
        return 0

    def _cublasDestroy_v2(self, handle):
        return 0

    def _cublasSetStream_v2(self, handle, stream):
        self.streams[handle] = stream
        self.workspaces.pop(handle, None)  # as cuBLAS does
        return 0

    def _cublasSetWorkspace_v2(self, handle, address, size):
        self.workspaces[handle] = (address, size)
        return 0

    def _cublasSetMathMode(self, handle, mode):
        self.modes[handle] = mode
        return 0

    def _cublasSetPointerMode_v2(self, handle, side):
        self.scalar_sides[handle] = side
        return 0

    def _cublasGemmEx(self, handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, *rest):
        beta, c, c_type, ldc, compute, _ = rest
        if self.fail_with:
            return self.fail_with
        if op_a not in (0, 1) or op_b not in (0, 1) or min(m, n, k) < 0:
            return INVALID
        a_shape, b_shape = ((m, k), (k, n))
        a_shape, b_shape = a_shape[:: 1 - 2 * op_a], b_shape[:: 1 - 2 * op_b]
        for leading, rows in ((lda, a_shape[0]), (ldb, b_shape[0]), (ldc, m)):
            if leading < max(rows, 1):
                return INVALID
        number = {68: c_float, 70: ctypes.c_double}.get(compute)
        if number is None or (compute == 70) != (c_type == 1):
            return INVALID
        alpha, beta = (number.from_address(scalar).value for scalar in (alpha, beta))
        precision = np.float32 if compute == 68 else np.float64
        A_there = columns_in_memory(a, DTYPES[a_type], *a_shape, lda)
        B_there = columns_in_memory(b, DTYPES[b_type], *b_shape, ldb)
        A, B = A_there.astype(precision), B_there.astype(precision)
        C = columns_in_memory(c, DTYPES[c_type], m, n, ldc)
        product = precision(alpha) * ((A.T if op_a else A) @ (B.T if op_b else B))
        C[...] = product if beta == 0 else product + precision(beta) * C.astype(precision)
        if self.on_product:
            self.on_product([byte_bounds(A_there), byte_bounds(B_there)], byte_bounds(C))
        return 0
