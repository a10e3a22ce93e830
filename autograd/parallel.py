"""Python threads over independent parts of one computation; NumPy releases the lock inside each call.

BLAS's own threads meet at the end of every product and spin while they wait. Parts that are large and
independent (blocks of the vocabulary, rows of the batch) run better with one thread of ours each and BLAS
held to a single one: elementwise work is shared too, and a busy neighbour costs its share and no more.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from autograd.backend import get_array_module, matmul

Part = TypeVar("Part")
Result = TypeVar("Result")

_THREAD_NAME = "autograd"
MIN_PARALLEL_PRODUCT = 500_000_000
"""Multiplications of one product below which a second thread costs more than it brings."""
MIN_PARALLEL_ELEMENTS = 50_000
"""The same of elements, for work of a dozen operations on each."""


@functools.cache
def _blas() -> tuple[Any, int]:
    """NumPy's BLAS as threadpoolctl sees it (or None), and the threads that it was given."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:  # then BLAS keeps its own threads, and there are none of ours
        return None, 1
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    numpys = [library for library in libraries if "numpy" in library.filepath]
    blas = (numpys or libraries or [None])[0]
    return blas, blas.num_threads if blas is not None else 1


def num_threads() -> int:
    """Threads for one process: as many as BLAS was given (OPENBLAS_NUM_THREADS, or the cores)."""
    return _blas()[1]


def blas_architecture() -> str:
    """The processor that NumPy's OpenBLAS computes for, by its own name, as "Haswell"; "" of another BLAS."""
    return getattr(_blas()[0], "architecture", None) or ""


def free_threads() -> int:
    """Threads that have nothing else to do: one, while others do what a function deferred.

    It does not look at how far they have come: the same work is always cut in the same way.
    """
    return 1 if _open_regions else num_threads()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), thread_name_prefix=_THREAD_NAME)


_open_regions = 0  # contexts of `single_threaded_blas` that are open
_regions_lock = threading.Lock()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Context in which BLAS has one thread; several may overlap, in whatever order they end."""
    _count_region(+1)
    try:
        yield
    finally:
        _count_region(-1)


def _count_region(change: int) -> None:
    """One region more or less: BLAS has one thread from the first on, and its own again after the last."""
    global _open_regions
    blas, given = _blas()
    with _regions_lock:
        _open_regions += change
        if blas is not None and _open_regions == max(change, 0):
            blas.set_num_threads(1 if change > 0 else given)  # takes about a microsecond


def submit(function: Callable[[], Result]) -> Future[Result]:
    """Let one of our threads call the function when it is free; those that came before go first."""
    return _pool().submit(function)


def run_parts(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """[function(part) for part in parts], each in a thread of its own; results in the order of the parts.

    Parts are fixed beforehand and never handed out by who is free first, so the same bits come out
    however the threads are scheduled. The first part runs in the calling thread; the others see its modes
    and its numpy.errstate. All of them have ended when it returns, or raises what a part has raised.
    """
    if len(parts) == 1 or not can_share_work():
        return [function(part) for part in parts]
    with single_threaded_blas():
        token = _is_part.set(True)
        others = [_pool().submit(contextvars.copy_context().run, function, part) for part in parts[1:]]
        try:
            first = function(parts[0])
        finally:
            wait(others)
            _is_part.reset(token)
        return [first] + [other.result() for other in others]


_is_part: contextvars.ContextVar[bool] = contextvars.ContextVar("is_part", default=False)


def can_share_work() -> bool:
    """False within a part of shared work, and in our own threads, which must not wait for each other: what
    could be shared there is done by one thread, part after part."""
    return not (_is_part.get() or threading.current_thread().name.startswith(_THREAD_NAME))


def run_in_step(function: Callable[[Part, Callable[[], object]], object], parts: Sequence[Part]) -> None:
    """function(part, meet) for all parts side by side; a thread that calls `meet()` waits for all the others.

    All must call it equally often. When one of them raises, so does `meet` in the others, and its exception
    is the one that arrives.

    Args:
        parts: no more than `num_threads()`, and one alone where `can_share_work()` is False: each needs a
            thread that is free for it.
    """
    if len(parts) == 1:
        function(parts[0], lambda: None)
        return
    barrier = threading.Barrier(len(parts))

    def run(part: Part) -> BaseException | None:
        try:
            function(part, barrier.wait)
        except threading.BrokenBarrierError:
            pass  # another's exception tells why
        except BaseException as error:
            barrier.abort()
            return error
        return None

    for error in run_parts(run, parts):
        if error is not None:
            raise error


def split_range(size: int, pieces: int, multiple: int = 1) -> list[slice]:
    """At most `pieces` slices that cover range(size) in order, their inner bounds multiples of `multiple`."""
    units = -(-size // multiple)
    bounds = [min(round(k * units / pieces) * multiple, size) for k in range(pieces + 1)]
    slices = [slice(low, high) for low, high in zip(bounds[:-1], bounds[1:], strict=True) if high > low]
    return slices or [slice(0, size)]


def matmul_rows(x: Any, y: Any, out: Any = None, accumulate: bool = False) -> Any:
    """`autograd.backend.matmul` of two matrices, the rows of x shared out among the threads.

    Args:
        x: (m, k). y: (k, n).
        out: (m, n) to write into, or, with `accumulate`, to add to; None for a new array.
    """
    large = get_array_module(x) is np and x.shape[0] * x.shape[1] * y.shape[1] >= MIN_PARALLEL_PRODUCT
    if not large:
        return matmul(x, y, out, accumulate)
    if out is None:
        out = np.empty((x.shape[0], y.shape[1]), x.dtype)
    parts = split_range(x.shape[0], num_threads(), multiple=16)
    run_parts(lambda rows: matmul(x[rows], y, out[rows], accumulate), parts)
    return out
