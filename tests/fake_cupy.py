"""As much of CuPy as the runtime asks for besides arrays, on the host: streams, graphs, pools, devices.

What has to be right and can be without a GPU is the order of calls. `launch` stands for every kernel launch:
it acts at once, or, while the current stream is captured, when the graph is launched.
"""

import ctypes
import re
import types
from contextlib import contextmanager

import numpy as np
from cupy_surface import CONSTANTS, FUNCTIONS, METHODS, REDUCE_TAKES, UFUNC_TAKES, UFUNCS, check_options
from stream_trace import Trace

from autograd.kernels import STORAGE, _signatures


class CUDARuntimeError(RuntimeError):
    """As CuPy's: `status` is CUDA's number of the error."""

    def __init__(self, status, text):
        self.status = status
        super().__init__(text)


WAITS_ARE_ERRORS = False
"""Set while a capture runs that carries out what it captures: looking at a number would end a real one."""


TRACE = None
"""A `stream_trace.Trace` that hears of all launches, inside `FakeCupy.traced`."""


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
        if ufunc.__name__ not in (*UFUNCS, "matmul"):
            raise TypeError(f"numpy.{ufunc.__name__} of a cupy.ndarray: not among the fake's functions")
        check_options(ufunc.__name__, REDUCE_TAKES if method == "reduce" else UFUNC_TAKES, options)
        plain = [_plain(value) for value in inputs]
        options = _plain_options(options)
        if out:
            options["out"] = tuple(_plain(value) for value in out)
        result = getattr(ufunc, method)(*plain, **options)
        result = out[0] if out else _on_device(result)
        _traced(ufunc.__name__, inputs, [result])
        return result

    def __array_function__(self, function, types, args, kwargs):
        _refuse_host_arrays((*args, *kwargs.values()))
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"numpy.{function.__name__} of a cupy.ndarray: not among the fake's functions")
        check_options(function.__name__, FUNCTIONS[function.__name__], kwargs)
        result = _on_device(function(*_plain(args), **_plain_options(kwargs)))
        moves_nothing = ("empty_like", "broadcast_to", "expand_dims", "split")
        if function.__name__ not in moves_nothing:
            _traced(function.__name__, _flat(args), [result])
        return result

    def __setitem__(self, index, value):
        _refuse_host_arrays((value,))
        super().__setitem__(index, value)
        written = super().__getitem__(index)
        if isinstance(written, np.ndarray) and np.may_share_memory(_plain(written), _plain(self)):
            _traced("setitem", [value], [written])

    def copy(self, order="C"):
        result = super().copy(order)
        _traced("copy", [self], [result])
        return result

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        result = super().astype(dtype, order, copy=copy)
        if result is not self:
            _traced("astype", [self], [result])
        return result

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, np.generic):  # CuPy has no scalars: an element is an array, and a view
            found = super().__getitem__((*index, ...) if isinstance(index, tuple) else (index, ...))
        return _on_device(found)

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
        check_options(f"ndarray.{name}", METHODS[name], options)
        result = _on_device(getattr(_plain(self), name)(*map(_plain, args), **_plain_options(options)))
        _traced(name, [self], [result])
        return result

    return reduce


def _flat(values):
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _traced(name, reads, writes):
    """Tell the trace, if there is one, which arrays of the device a launch has to do with."""
    if TRACE is not None:
        of_device = ([value for value in values if isinstance(value, ndarray)] for values in (reads, writes))
        TRACE.launch(name, *of_device)


def _plain_options(options):
    return {name: _plain(value) for name, value in options.items()}


for _name in METHODS:
    setattr(ndarray, _name, _reduction(_name))  # NumPy would make scalars of them, CuPy has none


class Event:
    done = True

    def __init__(self, capture, clock):
        self.capture, self.clock = capture, clock

    def synchronize(self):
        pass


class Memory:
    """Device memory outside every pool."""

    def __init__(self, size):
        self.bytes = (ctypes.c_char * size)()
        self.ptr, self.size = ctypes.addressof(self.bytes), size


class Graph:
    """What was captured, and the streams that have waited for others in it."""

    def __init__(self, *streams):
        self.launches, self.operations, self.streams = 0, [], [*streams]

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
        self.pools, self.history, self.num_streams = [], [], 0
        # As in CuPy: `use` makes a stream current and does not enter it, and whoever leaves a stream falls
        # back to the one that was entered before.
        self.current_stream = types.SimpleNamespace(ptr=0)
        self.entered = [self.current_stream]
        self.capturing = None
        self.refuses_to_capture = None  # what launches raise inside a capture
        self.runs_what_it_captures = False  # then a graph is not launched, and a capture may not wait
        self.cuda = types.SimpleNamespace(
            Memory=Memory,
            Stream=stream_class(self),
            MemoryPool=self._make_pool,
            using_allocator=self._using_allocator,
            get_current_stream=lambda: self.current_stream,
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
        if name in CONSTANTS or name in UFUNCS:
            return getattr(np, name)
        if name not in FUNCTIONS:
            raise AttributeError(f"cupy.{name}: not among the fake's functions; see FUNCTIONS and UFUNCS")
        inner = self._function(name, getattr(np, name))

        def checked(*args, **options):
            check_options(name, FUNCTIONS[name], options)
            if name == "searchsorted" and not all(isinstance(array, ndarray) for array in args[:2]):
                raise NotImplementedError("cupy.searchsorted: Only int or ndarray are supported for a")
            return inner(*args, **options)

        return checked

    def _function(self, name, function):
        if name in ("array", "asarray", "ascontiguousarray"):
            return self._placing(function)
        if name in ("empty", "zeros", "ones", "full", "arange"):
            return self._making(name, function)
        return function

    def _making(self, name, function):
        def make(*args, **options):
            made = function(*args, **options).view(ndarray)
            if name != "empty":
                _traced(name, [], [made])
            return made

        return make

    def _placing(self, function):
        def place(values, *args, **options):
            if not isinstance(values, ndarray):
                _refuse_to_wait("a copy from the host")
            made = function(_plain(values), *args, **options).view(ndarray)
            if not np.may_share_memory(_plain(made), _plain(values)):
                _traced(function.__name__, [values], [made])
            return made

        return place

    @contextmanager
    def traced(self, cublas):
        """Context in which all launches are held against each other; `cublas`: a FakeCublas."""
        global TRACE
        TRACE = Trace(lambda: self.current_stream.ptr)
        cublas.on_product = lambda reads, write: TRACE.launch("gemm", reads, [write])
        try:
            yield TRACE
        finally:
            TRACE = cublas.on_product = None

    def RawModule(self, code, options, backend):
        """The kernels of a source, compiled for the host."""
        storage = next(storage for storage, (T, _) in STORAGE.items() if f"-DSTORAGE={T}" in options)
        signatures = _signatures(code)
        module = types.SimpleNamespace(source=code, kernels=signatures, name="fake")

        def get_function(name):
            parameters = re.search(rf"\b{name}\s*\(([^)]*)\)", code[code.index("__global__") :])[1]
            written = ["*" in part and "const" not in part for part in parameters.split(",")]

            def launch(grid, block, values, shared_mem=0):
                args = [
                    None if parameter.is_array and not isinstance(value, np.ndarray) else _plain(value)
                    for parameter, value in zip(signatures[name], values, strict=True)
                ]
                work = lambda: self.host_runner(module, name, storage, grid, block, args, shared_mem)  # noqa: E731
                self.launch(work)
                arrays = [value for value in values if isinstance(value, ndarray)]
                _traced(name, arrays, [a for a, kind in zip(values, written, strict=True) if kind])

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
            cupy.num_streams += 1
            self.non_blocking, self.ptr = non_blocking, 1000 + cupy.num_streams

        def use(self):
            cupy.current_stream = self
            return self

        def __enter__(self):
            cupy.entered.append(self)
            return self.use()

        def __exit__(self, *exception):
            cupy.entered.pop()
            cupy.current_stream = cupy.entered[-1]

        def begin_capture(self, mode=None):
            global WAITS_ARE_ERRORS
            cupy.history.append("begin_capture")
            cupy.capturing, WAITS_ARE_ERRORS = Graph(self), cupy.runs_what_it_captures

        def end_capture(self):
            global WAITS_ARE_ERRORS
            cupy.history.append("end_capture")
            WAITS_ARE_ERRORS = False
            if cupy.capturing is None:
                raise CUDARuntimeError(401, "cudaErrorIllegalState: the stream does not capture")
            graph, cupy.capturing = cupy.capturing, None
            if TRACE and not TRACE.knows_of_all(self.ptr):
                raise CUDARuntimeError(904, "cudaErrorStreamCaptureUnjoined: a stream was not waited for")
            return graph

        def is_capturing(self):
            return cupy.capturing is not None and self in cupy.capturing.streams

        def synchronize(self):
            cupy.history.append("synchronize")

        def wait_event(self, event):
            cupy.history.append("wait_event")
            if cupy.capturing is not None:
                if event.capture is cupy.capturing and not self.is_capturing():
                    cupy.capturing.streams.append(self)
                elif event.capture is not cupy.capturing and self.is_capturing():
                    raise CUDARuntimeError(905, "cudaErrorStreamCaptureIsolation: an event of before")
            if TRACE:
                TRACE.wait(self.ptr, event.clock)

        def record(self, event=None):
            capture = cupy.capturing if self.is_capturing() else None
            return Event(capture, TRACE.record(self.ptr) if TRACE else {})

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
