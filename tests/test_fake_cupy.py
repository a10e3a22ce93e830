"""The fake CuPy takes no more than CuPy does: asked of CuPy itself, if installed; it needs no GPU for it."""

import inspect

import cupy_surface
import numpy as np
import pytest
from fake_cupy import FakeCupy


def accepted(function):
    """The names that a function of CuPy's takes; those of Cython's stand in its first line of help."""
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        line = function.__doc__.splitlines()[0]
        inside = line.partition("(")[2].rpartition(")")[0]
        return {part.partition("=")[0].strip(" \\*/").split(" ")[-1] for part in inside.split(",")}


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed")


@pytest.mark.parametrize("name", cupy_surface.FUNCTIONS)
def test_functions_are_cupy_s(cupy, name):
    takes = accepted(getattr(cupy, name))
    if name == "einsum":  # passes them on by name
        takes = {"operands", "dtype", "optimize"}
    assert set(cupy_surface.FUNCTIONS[name].split()) <= takes


def test_ufuncs_are_cupy_s(cupy):
    for name in cupy_surface.UFUNCS:
        assert set(cupy_surface.UFUNC_TAKES.split()) <= accepted(getattr(cupy, name)), name
    assert set(cupy_surface.REDUCE_TAKES.split()) <= accepted(cupy.add.reduce)
    assert all(hasattr(cupy, name) for name in cupy_surface.CONSTANTS)


@pytest.mark.parametrize("name", cupy_surface.METHODS)
def test_methods_of_an_array_are_cupy_s(cupy, name):
    assert set(cupy_surface.METHODS[name].split()) <= accepted(getattr(cupy.ndarray, name))


def test_the_runtime_is_cupy_s(cupy):
    fake = FakeCupy()
    for name in vars(fake.cuda):
        assert hasattr(cupy.cuda, name), name
    for name in vars(fake.cuda.runtime):
        assert hasattr(cupy.cuda.runtime, name), name
    for kind in ("Stream", "Device"):
        ours = {name for name in vars(getattr(fake.cuda, kind)) if not name.startswith("__")}
        assert ours <= set(dir(getattr(cupy.cuda, kind))) | {"id", "non_blocking", "ptr"}
    assert {"synchronize", "done"} <= set(dir(cupy.cuda.Event))
    assert {"launch"} <= set(dir(cupy.cuda.Graph))
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert cupy.ndarray.__module__ == "cupy"
    assert cupy.cuda.runtime.streamCaptureModeRelaxed == fake.cuda.runtime.streamCaptureModeRelaxed
    assert cupy.cuda.runtime.memcpyHostToDevice == fake.cuda.runtime.memcpyHostToDevice
    assert {"out", "stream", "blocking"} <= accepted(cupy.ndarray.get)
    assert {"arr", "stream"} <= accepted(cupy.ndarray.set)
    assert {"code", "options", "backend"} <= accepted(cupy.RawModule)


def test_the_fake_refuses_what_cupy_does_not_have():
    cupy = FakeCupy()
    array = cupy.zeros((2, 3), np.float32)
    for wrong in (
        lambda: cupy.add.outer_product,
        lambda: cupy.put_along_axis,
        lambda: cupy.where(array > 0, np.ones((2, 3)), array),
        lambda: array.max(axis=1, initial=0),
        lambda: cupy.zeros(3, like=array),
        lambda: np.cumsum(array),
        lambda: cupy.searchsorted([1, 2], array),
        lambda: cupy.sum,
    ):
        with pytest.raises((AttributeError, TypeError, NotImplementedError)):
            wrong()


def test_an_element_is_a_view():
    array = FakeCupy().zeros((2, 3))
    first, last = array[0, 1], array[1][2]
    array[...] = 5
    assert (float(first), float(last), first.shape) == (5, 5, ())


def test_leaving_a_stream_forgets_one_that_is_only_in_use():
    """The trap for which train.device enters its stream."""
    cupy = FakeCupy()
    main, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream()
    main.use()
    with other:
        pass
    assert cupy.cuda.get_current_stream() is not main
    main.__enter__()
    with other:
        pass
    assert cupy.cuda.get_current_stream() is main
