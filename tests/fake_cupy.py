"""As much of CuPy as the runtime asks for besides arrays, on the host: streams, graphs, pools, devices.

What has to be right and can be without a GPU is the order of calls. `launch` stands for every kernel launch:
it acts at once, or, while the current stream is captured, when the graph is launched.
"""

import ctypes
import types
from contextlib import contextmanager

import numpy as np

from autograd.kernels import STORAGE, _signatures


class CUDARuntimeError(RuntimeError):
    """As CuPy's: `status` is CUDA's number of the error."""

    def __init__(self, status, text):
        self.status = status
        super().__init__(text)


WAITS_ARE_ERRORS = False
"""Set while a capture runs that carries out what it captures: looking at a number would end a real one."""


def _refuse_to_wait(what):
    if WAITS_ARE_ERRORS:
        raise CUDARuntimeError(906, f"cudaErrorStreamCaptureImplicit: {what} waits for the GPU")


def _refuse_host_arrays(values):
    for value in values:
        if isinstance(value, (list, tuple)):
            _refuse_host_arrays(value)
        if type(value) is np.ndarray:
            raise TypeError(f"Unsupported type {type(value)}: an array of the host met one of the GPU")


def _plain(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return np.asarray(value) if isinstance(value, ndarray) else value


def _on_device(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(ndarray)
    return value


class ndarray(np.ndarray):  # noqa: N801 (CuPy's own name)
    """An array "on the device": of another type than the host's, with CuPy's own methods."""

    __module__ = "cupy"

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        """As NumPy's, but for a host's array among the inputs, which CuPy refuses."""
        _refuse_host_arrays((*inputs, *out, *options.values()))
        plain = [_plain(value) for value in inputs]
        options = _plain_options(options)
        if out:
            options["out"] = tuple(_plain(value) for value in out)
        result = getattr(ufunc, method)(*plain, **options)
        return out[0] if out else _on_device(result)

    def __array_function__(self, function, types, args, kwargs):
        _refuse_host_arrays((*args, *kwargs.values()))
        return _on_device(function(*_plain(args), **_plain_options(kwargs)))

    def __setitem__(self, index, value):
        _refuse_host_arrays((value,))
        super().__setitem__(index, value)

    def __getitem__(self, index):
        return _on_device(super().__getitem__(index))  # CuPy has no scalars: an element is an array

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def item(self, *index):
        _refuse_to_wait("item")
        return super().item(*index)

    def tolist(self):
        _refuse_to_wait("tolist")
        return super().tolist()

    def __bool__(self):
        _refuse_to_wait("bool")
        return bool(_plain(self))

    def __int__(self):
        _refuse_to_wait("int")
        return int(_plain(self))

    def __float__(self):
        _refuse_to_wait("float")
        return float(_plain(self))

    def get(self, stream=None, order="C", out=None, blocking=True):
        _refuse_to_wait("get")
        host = np.array(self, order=order, subok=False)
        if out is None:
            return host
        assert (out.dtype, out.shape) == (self.dtype, self.shape)
        out[...] = host
        return out

    def set(self, array, stream=None):
        _refuse_to_wait("set")
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (self.dtype, self.shape)
        np.copyto(self.view(np.ndarray), array)


def _reduction(name):
    def reduce(self, *args, **options):
        return _on_device(getattr(_plain(self), name)(*map(_plain, args), **_plain_options(options)))

    return reduce


def _plain_options(options):
    return {name: _plain(value) for name, value in options.items()}


for _name in ("all", "any", "argmax", "dot", "max", "mean", "min", "sum"):
    setattr(ndarray, _name, _reduction(_name))  # NumPy would make scalars of them, CuPy has none


class Event:
    done = True

    def synchronize(self):
        pass


class Memory:
    """Device memory outside every pool."""

    def __init__(self, size):
        self.bytes = (ctypes.c_char * size)()
        self.ptr, self.size = ctypes.addressof(self.bytes), size


class Graph:
    def __init__(self):
        self.launches, self.operations = 0, []

    def launch(self, stream=None):
        self.launches += 1
        for operation in self.operations:
            operation()


class FakeCupy(types.ModuleType):
    """The module `cupy`; what is not here is NumPy's.

    Args:
        devices: how many GPUs there are; driver: the version of theirs, 0: none; runtime: CuPy's own.
        capability: "90" of an H200, "61" of a GPU without tensor cores.
    """

    def __init__(self, devices=1, driver=13000, runtime=13000, capability="90", uuids=None, host_runner=None):
        super().__init__("cupy")
        self.host_runner = host_runner  # carries out the kernels of RawModule
        self.devices, self.capability, self.used_device = devices, capability, 0
        self.uuids = uuids or [bytes([device]) * 16 for device in range(devices)]
        self.pools, self.streams, self.history = [], [], []
        self.capturing = None
        self.refuses_to_capture = None  # what launches raise inside a capture
        self.runs_what_it_captures = False  # then a graph is not launched, and a capture may not wait
        self.cuda = types.SimpleNamespace(
            Memory=Memory,
            Stream=stream_class(self),
            MemoryPool=self._make_pool,
            using_allocator=self._using_allocator,
            get_current_stream=lambda: self.streams[-1] if self.streams else types.SimpleNamespace(ptr=0),
            Device=device_class(self),
            alloc_pinned_memory=lambda size: memoryview(bytearray(size)),
            runtime=types.SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                memcpyHostToDevice=1,
                streamCaptureModeRelaxed=2,
                memcpy=lambda to, source, size, kind: ctypes.memmove(to, source, size),
                getDevice=lambda: self.used_device,
                getDeviceCount=lambda: self._count(driver, runtime),
                getDeviceProperties=lambda index: {"name": b"Fake", "uuid": self.uuids[index]},
                memGetInfo=lambda: (60 << 30, 80 << 30),
                driverGetVersion=lambda: driver,
                runtimeGetVersion=lambda: runtime,
            ),
        )

    ndarray = ndarray

    def __getattr__(self, name):
        function = getattr(np, name)
        if name in ("array", "asarray", "ascontiguousarray"):
            return self._placing(function)
        if name in ("empty", "zeros", "ones", "full", "arange"):
            return lambda *args, **options: function(*args, **options).view(ndarray)
        return function

    def _placing(self, function):
        def place(values, *args, **options):
            if not isinstance(values, ndarray):
                _refuse_to_wait("a copy from the host")
            return function(_plain(values), *args, **options).view(ndarray)

        return place

    def RawModule(self, code, options, backend):
        """The kernels of a source, compiled for the host."""
        storage = next(storage for storage, (T, _) in STORAGE.items() if f"-DSTORAGE={T}" in options)
        signatures = _signatures(code)
        module = types.SimpleNamespace(source=code, kernels=signatures, name="fake")

        def get_function(name):
            def launch(grid, block, values, shared_mem=0):
                args = [
                    None if parameter.is_array and not isinstance(value, np.ndarray) else _plain(value)
                    for parameter, value in zip(signatures[name], values, strict=True)
                ]
                work = lambda: self.host_runner(module, name, storage, grid, block, args, shared_mem)  # noqa: E731
                self.launch(work)

            return launch

        return types.SimpleNamespace(get_function=get_function)

    def _count(self, driver, runtime):
        if driver < runtime:
            raise CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        if not self.devices:
            raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.devices

    def _make_pool(self):
        pool = types.SimpleNamespace(malloc=object(), freed=0, total_bytes=lambda: 0)
        self.pools.append(pool)
        return pool

    @contextmanager
    def _using_allocator(self, allocator):
        self.history.append(
            "private pool" if any(allocator is pool.malloc for pool in self.pools) else "pool?"
        )
        yield

    def launch(self, operation):
        """What stands for a kernel launch."""
        if self.capturing is None or self.runs_what_it_captures:
            operation()
        elif self.refuses_to_capture:
            raise self.refuses_to_capture
        else:
            self.capturing.operations.append(operation)


def stream_class(cupy):
    class Stream:
        def __init__(self, non_blocking=False):
            self.non_blocking, self.ptr = non_blocking, 1000 + id(self) % 1000

        def use(self):
            cupy.streams[:] = [self]

        def __enter__(self):
            cupy.streams.append(self)
            return self

        def __exit__(self, *exception):
            cupy.streams.pop()

        def begin_capture(self, mode=None):
            global WAITS_ARE_ERRORS
            cupy.history.append("begin_capture")
            cupy.capturing, WAITS_ARE_ERRORS = Graph(), cupy.runs_what_it_captures

        def end_capture(self):
            global WAITS_ARE_ERRORS
            cupy.history.append("end_capture")
            WAITS_ARE_ERRORS = False
            graph, cupy.capturing = cupy.capturing, None
            return graph

        def is_capturing(self):
            return cupy.capturing is not None

        def synchronize(self):
            cupy.history.append("synchronize")

        def wait_event(self, event):
            cupy.history.append("wait_event")

        def record(self, event=None):
            return Event()

    return Stream


def device_class(cupy):
    class Device:
        def __init__(self, index=None):
            self.id = cupy.used_device if index is None else index

        def use(self):
            cupy.used_device = self.id

        @property
        def compute_capability(self):
            return cupy.capability

        def synchronize(self):
            cupy.history.append("synchronize")

    return Device
