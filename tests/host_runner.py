"""Runs CUDA kernels on NumPy arrays: the source compiled by g++ behind tests/cuda_host/cuda_host.h."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from autograd.kernels import STORAGE

HEADER = Path(__file__).resolve().parent / "cuda_host" / "cuda_host.h"
SCHEDULES = ("first thread first", "last thread first", "threads in any order")
GUARD = 4096
"""Bytes before and after every array: what a kernel writes there is found."""
SIGNALING_NAN = {1: 0, 2: 0xFD00, 4: 0xFFA0_0000, 8: 0xFFF4_0000_0000_0000}
"""By size: what is calculated from one is a not-a-number too, but a quiet one with other bits."""


class KernelError(AssertionError):
    """What a kernel must not do: race, hang, write outside its arrays."""


class HostRunner:
    """A runner for `autograd.kernels.host_kernels`.

    Every launch is run once under each schedule of the threads, on copies of the arrays with guards around
    them. The schedules must leave equal bits behind.

    Args:
        folder: for the compiled libraries; processes may share it.
    """

    def __init__(self, folder):
        self.folder, self.libraries, self.launches = Path(folder), {}, []

    def __call__(self, module, kernel, storage, blocks, threads, args, shared_bytes):
        self.launches.append(kernel)
        function = getattr(self._library(module, storage), f"host_{kernel}")
        function.restype = ctypes.c_char_p
        grid, block = ((ctypes.c_uint * 3)(*sizes) for sizes in (blocks, threads))
        results = []
        for schedule, name in enumerate(SCHEDULES):
            arrays = guarded_copies(kernel, args)
            pointers = [argument_pointer(arg, arrays) for arg in args]
            packed = (ctypes.c_void_p * len(args))(*(ctypes.addressof(pointer) for pointer in pointers))
            fault = function(packed, grid, block, ctypes.c_size_t(shared_bytes), schedule)
            if fault:
                raise KernelError(f"{kernel}, {name}: {fault.decode()}")
            results.append(arrays)
        names = [parameter.name for parameter in module.kernels[kernel]]
        self._compare(kernel, names, args, results)
        for arg in args:
            if isinstance(arg, np.ndarray) and arg.flags.writeable:
                arg[...] = results[0][address(arg)].values.reshape(arg.shape)

    def _compare(self, kernel, names, args, results):
        for name, arg in zip(names, args, strict=True):
            if not isinstance(arg, np.ndarray):
                continue
            for schedule, arrays in zip(SCHEDULES, results, strict=True):
                copy = arrays[address(arg)]
                if not copy.guards_are_whole():
                    raise KernelError(f"{kernel}, {schedule}: writes outside of {name} {arg.shape}")
                if copy.bytes() != results[0][address(arg)].bytes():
                    raise KernelError(
                        f"{kernel}: {name} depends on the order of threads ({SCHEDULES[0]}, {schedule}): "
                        "a barrier is missing, or two threads write to one place"
                    )

    def _library(self, module, storage):
        """The compiled source; built once, whichever process comes first."""
        key = module.name, module.source, storage
        if key not in self.libraries:
            code = "\n".join(
                [f'#include "{HEADER}"', module.source, *(f"HOST_KERNEL({name})" for name in module.kernels)]
            )
            digest = hashlib.sha256((code + HEADER.read_text() + storage).encode()).hexdigest()[:16]
            path = self.folder / f"{module.name}-{storage}-{digest}.so"
            if not path.exists():
                compile_for_host(code, storage, path)
            self.libraries[key] = ctypes.CDLL(str(path))
        return self.libraries[key]


def compile_for_host(code, storage, path):
    """A shared library of CUDA source; half made it never bears its name."""
    source = path.with_suffix(f".{os.getpid()}.cpp")
    partial = path.with_suffix(f".{os.getpid()}.part")
    source.write_text(code)
    T, real = STORAGE[storage]
    flags = ["-std=c++17", "-O1", "-g0", "-ffp-contract=off", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE"]
    command = ["g++", *flags, f"-DSTORAGE={T}", f"-DREAL={real}", "-o", str(partial), str(source)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise KernelError(f"g++ does not take the source:\n{made.stderr[:4000]}")
    os.replace(partial, path)
    source.unlink()


def can_compile_for_host():
    """Whether there is a g++ with half-precision numbers."""
    if shutil.which("g++") is None:
        return False
    command = ["g++", "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="_Float16 x;", text=True, capture_output=True).returncode == 0


class GuardedCopy:
    """An array's values with a guard on either side."""

    def __init__(self, array):
        start = GUARD // array.itemsize
        whole = np.empty(array.size + 2 * start, array.dtype)
        self.bits = whole.view(f"u{array.itemsize}")
        self.guards = slice(0, start), slice(start + array.size, None)
        for guard in self.guards:
            self.bits[guard] = guard_bits(array.itemsize)
        self.values = whole[start : start + array.size]
        self.values[...] = array.reshape(-1)

    def guards_are_whole(self):
        return all((self.bits[guard] == guard_bits(self.bits.itemsize)).all() for guard in self.guards)

    def bytes(self):
        return self.values.tobytes()


@functools.cache
def guard_bits(itemsize):
    """A guard's elements, each with bits of its own, as unsigned integers."""
    count = np.arange(GUARD // itemsize, dtype=np.uint64) % np.uint64(251)
    return (np.uint64(SIGNALING_NAN[itemsize]) + count).astype(f"u{itemsize}")


def address(array):
    return array.__array_interface__["data"][0], array.nbytes


def guarded_copies(kernel, args):
    """Copies by address and size; one array given twice stays one."""
    arrays = {address(arg): arg for arg in args if isinstance(arg, np.ndarray)}
    ranges = sorted(key for key in arrays if key[1])
    for (low, size), (following, _) in zip(ranges[:-1], ranges[1:], strict=True):
        if low + size > following:
            raise KernelError(f"{kernel}: two of its arrays overlap without being the same")
    return {key: GuardedCopy(array) for key, array in arrays.items()}


def argument_pointer(arg, arrays):
    """A ctypes object that holds the argument as the kernel takes it."""
    if arg is None:
        return ctypes.c_void_p(None)
    if isinstance(arg, np.ndarray):
        return ctypes.c_void_p(arrays[address(arg)].values.ctypes.data)
    return (ctypes.c_char * 8)(*arg.tobytes().ljust(8, b"\0"))
