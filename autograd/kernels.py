"""CUDA kernels: their source as package data, and the one face through which they are launched.

A source is a file `cuda/<name>.cu` beside the Python that has its NumPy twin. Its kernels are written as

    extern "C" __global__ void lstm_forward(const T* z, const real* scale, T* h, int B, int H) { … }

T is how numbers are stored, real is what they are calculated in: a source is compiled once for float32
(T = real = float), once for float16 (T = __half, real = float), each when it is first needed. There are no
templates over T and no mangled names; `cuda/common.cuh` stands in front of every source and declares both
types, `load` and `store` between them, and sums over a block. The parameter lists are read from the source:
what is launched is checked against them, and T follows from the arrays given for it.

On CuPy's arrays a kernel is compiled by NVRTC and runs on the GPU. On NumPy's it runs only where somebody has
registered a runner (`host_kernels`): the tests do so, with a shim that compiles the same source for the CPU.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from autograd.backend import get_array_module
from autograd.errors import DtypeError, ShapeError

STORAGE = {
    "float16": ("__half", "float"),
    "bfloat16": ("__nv_bfloat16", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}
"""What T and real are for arrays of a dtype. NumPy itself has no bfloat16; float64 is for gradient checks."""
_NAMES = {np.dtype(name): name for name in STORAGE if name != "bfloat16"}

_C_TYPES = {
    "float": "float32", "double": "float64", "int": "int32", "unsigned int": "uint32",
    "long long": "int64", "unsigned long long": "uint64", "short": "int16", "unsigned short": "uint16",
    "signed char": "int8", "unsigned char": "uint8", "bool": "bool",
}  # fmt: skip

Runner = Callable[["KernelModule", str, str, tuple[int, ...], tuple[int, ...], list[Any], int], None]
"""Runs (module, kernel, storage, blocks, threads, arguments, shared_bytes) on NumPy arrays, in place."""

_runner: ContextVar[Runner | None] = ContextVar("runner", default=None)


def use_kernels(array: Any) -> bool:
    """Whether kernels can work on this array: on CuPy's always, on NumPy's inside `host_kernels`."""
    return get_array_module(array) is not np or _runner.get() is not None


@contextmanager
def host_kernels(runner: Runner) -> Iterator[None]:
    """Context in which kernels run on NumPy arrays, each launch by a call of `runner`; for tests."""
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)


class KernelParameter(NamedTuple):
    """One parameter of a kernel: its name, its C type without const and *, whether it is an array."""

    name: str
    type: str
    is_array: bool

    def dtype(self, storage: str) -> np.dtype:
        """The dtype that this parameter takes where T is `storage`."""
        if self.type == "T":
            return np.dtype(storage)
        return np.dtype(_C_TYPES[STORAGE[storage][1] if self.type == "real" else self.type])


class KernelModule:
    """The kernels of one CUDA source.

    Args:
        package: whose folder `cuda/` holds it.
        name: of the file, without `.cu`.
        source: the text itself, in the place of the file's.

    Attributes:
        kernels: the parameters of each kernel, by its name.
    """

    def __init__(self, package: str, name: str, source: str | None = None) -> None:
        self.package, self.name = package, name
        self._given = source
        self._compiled: dict[tuple[int, str], dict[str, Any]] = {}
        self._dtypes_of: dict[tuple[str, str], list[np.dtype]] = {}

    @functools.cached_property
    def source(self) -> str:
        """What is compiled: common.cuh and the file; errors name the file's own lines."""
        own = _read(self.package, f"{self.name}.cu") if self._given is None else self._given
        return f'#line 1 "common.cuh"\n{_read("autograd", "common.cuh")}\n#line 1 "{self.name}.cu"\n{own}'

    @functools.cached_property
    def kernels(self) -> dict[str, list[KernelParameter]]:
        return _signatures(self.source)

    @staticmethod
    def options(storage: str) -> tuple[str, ...]:
        """Of the compiler, for arrays of the dtype `storage`: C++17, contractions but no fast mathematics."""
        T, real = STORAGE[storage]
        return ("--std=c++17", f"-DSTORAGE={T}", f"-DREAL={real}")

    def launch(
        self, kernel: str, blocks: int | tuple[int, ...], threads: int | tuple[int, ...], *args: Any,
        shared_bytes: int = 0, dtype: Any = None,
    ) -> None:  # fmt: skip
        """Run a kernel on the current stream; with no blocks nothing is done.

        Args:
            blocks, threads: of the grid and of a block, up to three numbers each.
            args: arrays (contiguous, or None for a null pointer) and numbers, as the source lists them.
            shared_bytes: of dynamic shared memory in each block.
            dtype: what T is, for kernels without an array of it; float32 if not given.

        Raises:
            ShapeError: too few or too many arguments, an array that is not contiguous.
            DtypeError: an array of another dtype or another library.
        """
        parameters = self._parameters(kernel)
        if len(args) != len(parameters):
            names = ", ".join(parameter.name for parameter in parameters)
            raise ShapeError(f"{kernel}: takes {len(parameters)} arguments ({names}); got {len(args)}")
        storage = _storage(kernel, parameters, args, dtype)
        xp = _array_module(kernel, parameters, args)
        ready = [
            _checked_array(kernel, parameter.name, arg, expected, xp)
            if parameter.is_array
            else expected.type(arg)
            for parameter, arg, expected in zip(parameters, args, self._dtypes(kernel, storage), strict=True)
        ]
        grid, block = _three(blocks), _three(threads)
        if 0 in grid:
            return
        if xp is not np:
            null = np.uint64(0)  # a kernel's arguments go by value: eight bytes of zero are a null pointer
            values = tuple(null if arg is None else arg for arg in ready)
            self._function(xp, kernel, storage)(grid, block, values, shared_mem=shared_bytes)
            return
        runner = _runner.get()
        if runner is None:
            raise DtypeError(f"{kernel}: kernels take CuPy arrays; got NumPy's (tests: inside host_kernels)")
        runner(self, kernel, storage, grid, block, ready, shared_bytes)

    def _dtypes(self, kernel: str, storage: str) -> list[np.dtype]:
        """Of each parameter."""
        key = kernel, storage
        if key not in self._dtypes_of:
            self._dtypes_of[key] = [parameter.dtype(storage) for parameter in self.kernels[kernel]]
        return self._dtypes_of[key]

    def _parameters(self, kernel: str) -> list[KernelParameter]:
        if kernel not in self.kernels:
            raise ShapeError(f"{self.name}.cu has no kernel {kernel}; it has {', '.join(self.kernels)}")
        return self.kernels[kernel]

    def _function(self, xp: Any, kernel: str, storage: str) -> Any:
        """The compiled kernel for the current device."""
        device = xp.cuda.Device().id
        if (device, storage) not in self._compiled:
            module = xp.RawModule(code=self.source, options=self.options(storage), backend="nvrtc")
            self._compiled[device, storage] = {name: module.get_function(name) for name in self.kernels}
        return self._compiled[device, storage][kernel]


def _read(package: str, name: str) -> str:
    return (importlib.resources.files(package) / "cuda" / name).read_text(encoding="utf-8")


def _signatures(source: str) -> dict[str, list[KernelParameter]]:
    """The parameter lists of all kernels in a source."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    pattern = r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
    return {
        match[1]: [_parameter(match[1], text) for text in match[2].split(",") if text.strip()]
        for match in re.finditer(pattern, code)
    }


def _parameter(kernel: str, text: str) -> KernelParameter:
    words = re.sub(r"\bconst\b|\b__restrict__\b", " ", text.replace("*", " * ")).split()
    *type_words, name = words
    is_array = "*" in type_words
    type_name = " ".join(word for word in type_words if word != "*")
    if type_name not in {"T", "real", *_C_TYPES} or (type_name == "T" and not is_array):
        raise DtypeError(
            f"{kernel}: parameter {text.strip()!r} must be an array or a number of T (arrays only), real, "
            f"{', '.join(_C_TYPES)}"
        )
    return KernelParameter(name, type_name, is_array)


def _storage(kernel: str, parameters: list[KernelParameter], args: tuple[Any, ...], dtype: Any) -> str:
    """The dtype of the arrays given for T, by the first of them; the others are checked against it."""
    if dtype is None:
        given = (arg for parameter, arg in zip(parameters, args, strict=True) if parameter.type == "T")
        dtype = next((arg.dtype for arg in given if arg is not None), np.dtype(np.float32))
    storage = _NAMES.get(dtype) or str(np.dtype(dtype))
    if storage not in STORAGE:
        raise DtypeError(f"{kernel}: arrays of T must be of {', '.join(STORAGE)}; got {storage}")
    return storage


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    given = sizes if isinstance(sizes, tuple) else (sizes,)
    return tuple(int(size) for size in given) + (1,) * (3 - len(given))


def _array_module(kernel: str, parameters: list[KernelParameter], args: tuple[Any, ...]) -> Any:
    """NumPy or CuPy, by the first array."""
    for parameter, arg in zip(parameters, args, strict=True):
        if parameter.is_array and arg is not None:
            return get_array_module(arg)
    raise DtypeError(f"{kernel}: at least one argument must be an array")


def _checked_array(kernel: str, name: str, array: Any, dtype: np.dtype, xp: Any) -> Any:
    if array is None:
        return None
    if not isinstance(array, xp.ndarray) or array.dtype != dtype:
        got = f"{type(array).__module__}.{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
        raise DtypeError(f"{kernel}: {name} must be {xp.__name__}.ndarray of {dtype}; got {got}")
    if not array.flags.c_contiguous:
        raise ShapeError(f"{kernel}: {name} must be contiguous; got {array.shape}, strides {array.strides}")
    return array
