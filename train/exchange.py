"""How gradients are averaged over the ranks: by which path, in which pieces, while the backward pass goes on.

The flat gradient is cut into buckets, always at the same places. A bucket sets out as soon as the backward
pass has finished every gradient in it; what comes last (the tied matrix: its lookup is the first thing
forward, the last one backward) waits for nothing else. The order in which buckets become whole follows from
the model's graph, so it is the same on every rank, as collectives must be.

Each path averages a bucket in the same way whenever it sets out, so the bits do not depend on the overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

BUCKET_BYTES = 16 << 20  # one message: MPI needs as much memory again, and larger ones are slower
MOST_AT_ONCE = 4
"""Messages under way at a time: each takes as much memory again while it is."""


class Exchange(ABC):
    """One path between the ranks for pieces of a flat array.

    Attributes:
        path: what the log says of it, and why it was taken.
        at_once: how many messages may be under way at a time.
    """

    path: str
    at_once = MOST_AT_ONCE

    @abstractmethod
    def start(self, bucket: Any) -> Any:
        """Send a piece (1-D) on its way; returns what `is_done` and `finish` take. It must be left alone."""

    def is_done(self, ticket: Any) -> bool:
        """Whether `finish` need not wait. It also lets MPI, which works only when it is called, go on."""
        return False

    @abstractmethod
    def finish(self, ticket: Any, bucket: Any) -> None:
        """Wait until the piece is the mean over the ranks, the same bits on all of them."""


class MpiExchange(Exchange):
    """By MPI's allreduce: of the host's arrays, or of a GPU's where MPI says that it can read them.

    Args:
        mpi, world: mpi4py's module and communicator.
        half: send float16: divided before they are summed, so that the sum stays in its range. MPI knows no
            float16, so these sums are made here, in float32, rounded at each meeting of two ranks.
        synchronize: waits for what a GPU still writes; None on the host.
        path: what the log says.
    """

    def __init__(
        self, mpi: Any, world: Any, half: bool = False, synchronize: Any = None, path: str = "MPI"
    ) -> None:
        self._mpi, self._world, self.size = mpi, world, world.Get_size()
        self._half, self._synchronize, self.path = half, synchronize, path
        self._sum = mpi.Op.Create(_sum_of_halves, commute=True) if half else mpi.SUM

    def start(self, bucket: Any) -> Any:
        if self._synchronize is not None:
            self._synchronize()
        message = as_half(bucket, self.size) if self._half else bucket
        return self.begin_sum(message), message

    def begin_sum(self, message: Any) -> Any:
        """MPI's request of the sum over the ranks, in place."""
        place = [message.view(np.uint16), self._mpi.UINT16_T] if self._half else message
        return self._world.Iallreduce(self._mpi.IN_PLACE, place, op=self._sum)

    def is_done(self, ticket: Any) -> bool:
        return ticket[0].Test()

    def finish(self, ticket: Any, bucket: Any) -> None:
        request, message = ticket
        request.Wait()
        if self._half:
            bucket[...] = message
        else:
            bucket /= self.size


def as_half(bucket: Any, size: int) -> Any:
    """This rank's share of the mean, in float16: no sum of shares is larger than the largest gradient."""
    return (bucket * bucket.dtype.type(1 / size)).astype(np.float16)


def _sum_of_halves(given: Any, sums: Any, datatype: Any) -> None:
    """MPI's operation: sums += given, both float16 in memory."""
    one, other = (np.frombuffer(memory, np.float16) for memory in (given, sums))
    other[...] = one.astype(np.float32) + other


class NcclExchange(Exchange):
    """By NCCL, from GPU to GPU, on a stream beside the one that computes.

    Args:
        nccl: CuPy's module; communicator: its NcclCommunicator.
        gpu: this rank's (train.device.Gpu).
        size: number of ranks.
        half: send float16, divided before they are summed.
        path: what the log says.
    """

    at_once = 1 << 30  # they queue up on the GPU and take no memory

    def __init__(
        self, nccl: Any, communicator: Any, gpu: Any, size: int, half: bool = False, path: str = "NCCL"
    ) -> None:
        self._nccl, self._communicator, self._gpu, self._size = nccl, communicator, gpu, size
        self._half, self.path = half, path
        self._stream = gpu.new_stream()

    def start(self, bucket: Any) -> Any:
        message = as_half(bucket, self._size) if self._half else bucket  # on the computing stream
        self._stream.wait_event(self._gpu.stream.record())
        kinds = {"float16": self._nccl.NCCL_FLOAT16, "float32": self._nccl.NCCL_FLOAT32}
        at = message.data.ptr
        kind = kinds[str(message.dtype)]
        self._communicator.allReduce(at, at, message.size, kind, self._nccl.NCCL_SUM, self._stream.ptr)
        return self._stream.record(), message

    def finish(self, ticket: Any, bucket: Any) -> None:
        event, message = ticket
        self._gpu.stream.wait_event(event)  # the host does not wait
        if self._half:
            bucket[...] = message
        else:
            bucket *= bucket.dtype.type(1 / self._size)


class PinnedExchange(Exchange):
    """Through the host: a piece is copied to pinned memory, averaged by MPI, and copied back.

    It works anywhere, two ranks on one GPU included.

    Args:
        by: averages the host's pieces.
        gpu: this rank's (train.device.Gpu).
        half: copy and send float16, as `by` must too.
        path: what the log says.
    """

    def __init__(self, by: MpiExchange, gpu: Any, half: bool = False, path: str = "") -> None:
        self._by, self._gpu, self._half, self.path = by, gpu, half, path
        self._stream = gpu.new_stream()
        self._free: list[Any] = []

    def start(self, bucket: Any) -> Any:
        message = as_half(bucket, self._by.size) if self._half else bucket
        memory = self._free.pop() if self._free else self._gpu.pinned(max(BUCKET_BYTES, message.nbytes))
        host = np.frombuffer(memory, message.dtype, message.size)
        self._stream.wait_event(self._gpu.stream.record())
        message.get(out=host, stream=self._stream, blocking=False)
        return self._stream.record(), message, host, memory

    def finish(self, ticket: Any, bucket: Any) -> None:
        event, message, host, memory = ticket
        event.synchronize()
        if self._half:
            self._by.begin_sum(host).Wait()  # of shares: it is the mean already
        else:
            self._by.finish(self._by.start(host), host)
        message.set(host, stream=self._gpu.stream)
        if self._half:
            bucket[...] = message
        self._gpu.stream.synchronize()  # the pinned memory is free again
        self._free.append(memory)


class OverlappedMean:
    """One averaging of a flat array, whose parts are told of as they become whole.

    Args:
        exchange: the path.
        flat: 1-D, the same length on every rank.
        bucket_bytes: of one message.
        on_wait: called once, when this rank has nothing left to do but wait for the others.
    """

    def __init__(
        self, exchange: Exchange, flat: Any, bucket_bytes: int, on_wait: Callable[[], None] | None = None
    ) -> None:
        self._exchange, self._flat, self._on_wait = exchange, flat, on_wait
        self._length = max(bucket_bytes // flat.itemsize, 1)
        count = -(-flat.size // self._length)
        self._missing = [len(self._range(index)) for index in range(count)]
        self._ready: deque[int] = deque()
        self._under_way: deque[tuple[Any, Any]] = deque()

    def completed(self, part: range) -> None:
        """The backward pass has finished this part of the array; each element is told of once at most."""
        for index in range(part.start // self._length, -(-part.stop // self._length)):
            own = self._range(index)
            self._missing[index] -= max(0, min(part.stop, own.stop) - max(part.start, own.start))
            if self._missing[index] == 0:
                self._ready.append(index)
        self._go_on()

    def finish(self) -> None:
        """Send what has not been told of, and wait for all."""
        if self._on_wait:
            self._on_wait()
        self._ready.extend(index for index, missing in enumerate(self._missing) if missing > 0)
        while self._ready or self._under_way:
            self._start_ready()
            self._finish_first()

    def _range(self, index: int) -> range:
        return range(index * self._length, min((index + 1) * self._length, self._flat.size))

    def _go_on(self) -> None:
        while self._under_way and self._exchange.is_done(self._under_way[0][0]):
            self._finish_first()
        self._start_ready()

    def _start_ready(self) -> None:
        while self._ready and len(self._under_way) < self._exchange.at_once:
            own = self._range(self._ready.popleft())
            bucket = self._flat[own.start : own.stop]
            self._under_way.append((self._exchange.start(bucket), bucket))

    def _finish_first(self) -> None:
        self._exchange.finish(*self._under_way.popleft())


class MeanOfOne(OverlappedMean):
    """Of a rank alone: every gradient is its own mean."""

    def __init__(self) -> None:
        """There is nothing to send."""

    def completed(self, part: range) -> None:
        """It is whole, and stays."""

    def finish(self) -> None:
        """Nothing is under way."""
