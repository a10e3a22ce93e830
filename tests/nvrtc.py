"""NVIDIA's compiler as a library, called without a GPU: PyPI's wheels of NVRTC through ctypes."""

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple


class Toolkit(NamedTuple):
    """Where a wheel of CUDA keeps its compiler, and another its headers."""

    library: str
    headers: str
    packages: str


CUDA_12 = Toolkit("cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include", "nvidia-cuda-nvrtc-cu12==12.9.*")
CUDA_13 = Toolkit("cu13/lib/libnvrtc.so.13", "cu13/include", "nvidia-cuda-nvrtc")
TOOLKITS = {"sm_70": CUDA_12, "sm_80": CUDA_13, "sm_90": CUDA_13}


class CompileError(AssertionError):
    """The compiler's own words."""


def folder_of(path):
    """The folder of the `nvidia` packages that holds `path`, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((Path(folder) for folder in folders if (Path(folder) / path).exists()), None)


def missing(architecture):
    """Why sources can't be compiled for an architecture; None if they can."""
    toolkit = TOOLKITS[architecture]
    if folder_of(toolkit.library) and folder_of(f"{toolkit.headers}/cuda_fp16.h"):
        return None
    return f"{architecture} needs {toolkit.packages}: pip install -e '.[cuda-compile]'"


@functools.cache
def load(library):
    nvrtc = ctypes.CDLL(str(folder_of(library) / library))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


def compile_source(source, architecture, options=()):
    """The machine code (a cubin) of CUDA source.

    Raises:
        CompileError: with the compiler's log.
    """
    toolkit = TOOLKITS[architecture]
    nvrtc = load(toolkit.library)
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    check(nvrtc, created)
    try:
        headers = folder_of(toolkit.headers) / toolkit.headers
        # The last one is what CuPy adds to the options of every source.
        given = [f"-arch={architecture}", f"-I{headers}", *options, "--device-as-default-execution-space"]
        packed = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        if nvrtc.nvrtcCompileProgram(program, len(given), packed):
            raise CompileError(text_of(nvrtc, "ProgramLog", program).decode().rstrip("\0"))
        return text_of(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def text_of(nvrtc, what, program):
    size = ctypes.c_size_t()
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def check(nvrtc, code):
    if code:
        raise CompileError(nvrtc.nvrtcGetErrorString(code).decode())
