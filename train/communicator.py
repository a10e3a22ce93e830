"""The ranks of one run behind one small face: a process alone, or many joined by MPI.

`get_communicator()` gives the one of this process. No other module asks how many ranks there are in order to
do something else: averages over one rank, broadcasts to nobody and gathers from oneself are what they should
be. Everything travels as bytes of arrays or as JSON, nothing is pickled.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import sys
import time
import traceback
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from autograd.backend import load_nccl
from autograd.errors import DtypeError, InputError
from train.exchange import (
    BUCKET_BYTES,
    Exchange,
    MeanOfOne,
    MpiExchange,
    NcclExchange,
    OverlappedMean,
    PinnedExchange,
)
from train.threads import Launch, launcher


class Communicator(ABC):
    """What a run may ask of its ranks. Every method is collective: all ranks call it, in the same order.

    Attributes:
        rank, size: this process's number among all, and how many there are.
        local_rank: its number among those on its node; chooses its GPU.
        calls: collective calls that it has entered: who waits for the others is one ahead of them.
    """

    rank: int
    size: int
    local_rank: int
    calls: int = 0

    @property
    def is_root(self) -> bool:
        """Whether this rank is the one that prints, writes and prepares."""
        return self.rank == 0

    def allreduce_mean_(self, flat: np.ndarray) -> None:
        """Replace `flat`, 1-D float32 or float64, by its mean over the ranks, the same bits on every rank."""
        self.begin_mean(flat).finish()

    @abstractmethod
    def begin_mean(self, flat: Any) -> OverlappedMean:
        """The same in parts, as they become whole: `completed(range)` for each, then `finish()`.

        Whether parts were told of, and when, does not change a bit; the ranks must tell in the same order.
        """

    def use_device(self, device: Any, half: bool = False) -> str | None:
        """Average what lives on this rank's device (`train.device`); the path that gradients will take.

        Args:
            half: send float16, divided by the number of ranks before it is summed.

        Returns:
            the path and why it was taken, in words; None where there is nobody to send to.
        """
        return None

    @abstractmethod
    def allreduce_sum(self, values: ArrayLike) -> np.ndarray:
        """The sum over the ranks of a few numbers, as a new float64 array."""

    @abstractmethod
    def broadcast_(self, array: np.ndarray) -> None:
        """Replace `array`, C-contiguous and of the same shape and type on every rank, by the root's."""

    @abstractmethod
    def broadcast_json(self, value: Any = None) -> Any:
        """The root's value on every rank, through JSON (tuples become lists); the others' is ignored."""

    @abstractmethod
    def gather_rows(self, array: np.ndarray, axis: int = 0) -> np.ndarray | None:
        """On the root all ranks' arrays joined along `axis` in the order of ranks; None elsewhere.

        The lengths along `axis` may differ between ranks; the other lengths and the type may not.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks are here, keeping no core busy: the root may prepare data for minutes."""

    @abstractmethod
    def announce(self) -> None:
        """Tell the other ranks, without waiting for them, that this one wants to stop; not collective."""

    @abstractmethod
    def is_announced(self) -> bool:
        """Whether another rank's `announce` has come here by now; not collective, takes microseconds."""

    @abstractmethod
    def abort(self, status: int) -> NoReturn:
        """End every rank at once, with `status` as the exit status of the whole run."""


class SingleProcess(Communicator):
    """One rank, no MPI."""

    rank, size, local_rank = 0, 1, 0

    def begin_mean(self, flat: Any) -> OverlappedMean:
        _check_floating(flat)
        return MeanOfOne()

    def allreduce_sum(self, values: ArrayLike) -> np.ndarray:
        return np.array(values, np.float64)

    def broadcast_(self, array: np.ndarray) -> None:
        _bytes_of(array)

    def broadcast_json(self, value: Any = None) -> Any:
        return json.loads(json.dumps(value))

    def gather_rows(self, array: np.ndarray, axis: int = 0) -> np.ndarray | None:
        return np.array(array, order="C")

    def barrier(self) -> None:
        pass

    def announce(self) -> None:
        pass

    def is_announced(self) -> bool:
        return False

    def abort(self, status: int) -> NoReturn:
        sys.exit(status)


class MPI(Communicator):
    """The ranks that an MPI launcher started, through mpi4py.

    Collectives are started without blocking and waited for at once: MPICH's blocking ones never give a core
    away, and with more ranks than cores take it from the very rank that they wait for. An allreduce of 0.8 MB
    over four ranks on two cores took 0.8 s so, and takes 1 ms this way; with a core for each rank it is no
    slower.
    """

    def __init__(self, place: Launch):
        self._mpi = _load_mpi(place)
        self._world = self._mpi.COMM_WORLD
        self._notices = self._world.Dup()  # apart from the world, whose messages have any tag
        self._announced = False
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        node = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank = node.Get_rank()
        node.Free()
        _unlink_shared_memory()  # the split has met all ranks, so all have it open
        sys.excepthook = _end_on_exception
        self._exchange: Exchange = MpiExchange(self._mpi, self._world)

    def begin_mean(self, flat: Any) -> OverlappedMean:
        _check_floating(flat)
        return OverlappedMean(self._exchange, flat, BUCKET_BYTES, self._count_call)

    def use_device(self, device: Any, half: bool = False) -> str | None:
        kind = "float16, divided before it is summed" if half else "float32"
        if not device.is_gpu:
            self._exchange = MpiExchange(self._mpi, self._world, half)
            return f"gradients: MPI, {kind}" if half else None
        self._exchange = self._gpu_exchange(device, half)
        return f"gradients: {self._exchange.path}; {kind}"

    def _gpu_exchange(self, gpu: Any, half: bool) -> Exchange:
        """NCCL where it is and each rank has a GPU to itself; a CUDA-aware MPI; else through the host."""
        nccl, version = load_nccl()
        in_use = len({bytes(identity) for identity in self._gather_everywhere(gpu.identity)})
        if not self._all_agree(nccl is not None):
            why = version if nccl is None else "NCCL is missing on another rank"
        elif in_use < self.size:
            why = f"NCCL takes one rank a GPU, and {self.size} ranks share {in_use}"
        else:
            unique_id = self.broadcast_json(nccl.get_unique_id() if self.is_root else None)
            communicator = nccl.NcclCommunicator(self.size, tuple(unique_id), self.rank)
            return NcclExchange(nccl, communicator, gpu, self.size, half, f"{version}, GPU to GPU")
        if half:
            why += "; MPI knows no float16"
        elif self._all_agree(self._mpi_reads_gpus()):
            path = f"CUDA-aware MPI, GPU to GPU ({why})"
            return MpiExchange(self._mpi, self._world, synchronize=gpu.synchronize, path=path)
        else:
            why += "; MPI is not CUDA-aware"
        path = f"MPI through pinned host memory, in pieces of {BUCKET_BYTES >> 20} MB ({why})"
        return PinnedExchange(MpiExchange(self._mpi, self._world, half), gpu, half, path)

    def _gather_everywhere(self, own: bytes) -> list[list[int]]:
        """What each rank has given, of equal lengths, on every rank."""
        rows = self.gather_rows(np.frombuffer(own, np.uint8)[None])
        return self.broadcast_json(rows.tolist() if rows is not None else None)

    def _all_agree(self, here: bool) -> bool:
        return self.allreduce_sum([here])[0] == self.size

    def _mpi_reads_gpus(self) -> bool:
        """What MPI itself says; to try it with a device's address would end the process where it cannot."""
        try:
            return bool(ctypes.CDLL(self._mpi.__file__).MPIX_Query_cuda_support())
        except (OSError, AttributeError):  # an MPI that does not know the question
            return False

    def allreduce_sum(self, values: ArrayLike) -> np.ndarray:
        total = np.array(values, np.float64)
        self._complete(self._world.Iallreduce(self._mpi.IN_PLACE, total, op=self._mpi.SUM))
        return total

    def broadcast_(self, array: np.ndarray) -> None:
        for bucket in _buckets(_bytes_of(array)):
            self._complete(self._world.Ibcast(bucket, root=0))

    def broadcast_json(self, value: Any = None) -> Any:
        self.barrier()  # the others often wait here for the root's work
        text = json.dumps(value).encode() if self.is_root else b""
        length = np.array([len(text)], np.int64)
        self.broadcast_(length)
        content = np.frombuffer(text, np.uint8).copy() if self.is_root else np.empty(length[0], np.uint8)
        self.broadcast_(content)
        return json.loads(content.tobytes())

    def gather_rows(self, array: np.ndarray, axis: int = 0) -> np.ndarray | None:
        rows = np.ascontiguousarray(np.moveaxis(array, axis, 0))
        counts = self._row_counts(rows)
        if not self.is_root:
            for bucket in _buckets(_bytes_of(rows)):
                self._world.Isend(bucket, dest=0).Wait()
            return None
        gathered = np.empty((sum(counts), *rows.shape[1:]), rows.dtype)
        gathered[: counts[0]] = rows
        begin = counts[0]
        for rank, count in enumerate(counts[1:], start=1):
            for bucket in _buckets(_bytes_of(gathered[begin : begin + count])):
                self._world.Irecv(bucket, source=rank).Wait()
            begin += count
        return np.ascontiguousarray(np.moveaxis(gathered, 0, axis))

    def _row_counts(self, rows: np.ndarray) -> list[int]:
        """The number of rows of every rank, once it is sure that all mean the same by a row."""
        kind = repr((rows.dtype.str, rows.shape[1:]))
        own = np.array([len(rows), zlib.crc32(kind.encode())], np.int64)
        headers = np.empty((self.size, 2), np.int64)
        self._complete(self._world.Iallgather(own, headers))
        if np.any(headers[:, 1] != own[1]):
            raise ValueError(
                f"gather_rows: type and shape of a row must be the same on all ranks; here {kind}"
            )
        return headers[:, 0].tolist()

    def _complete(self, request: Any) -> None:
        """Wait for a collective that was started."""
        self._count_call()
        request.Wait()

    def _count_call(self) -> None:
        self.calls += 1

    def barrier(self) -> None:
        request = self._world.Ibarrier()
        self.calls += 1
        pause = 1e-6
        while not request.Test():
            time.sleep(pause)
            pause = min(1.1 * pause, 0.005)

    def announce(self) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                self._notices.Isend(np.empty(0, np.uint8), dest=rank).Free()  # holds nothing: no one waits

    def is_announced(self) -> bool:
        if not self._announced and self._notices.Iprobe():
            self._announced = True
        return self._announced

    def abort(self, status: int) -> NoReturn:
        # The launcher forwards what was printed, and may drop it when all ranks are gone at once: leave it
        # the time.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        time.sleep(0.3)
        with open(os.devnull, "w") as silence:  # MPICH would add a line of its own to ours
            os.dup2(silence.fileno(), 2)
        self._world.Abort(status)
        os._exit(status)  # not reached; tells the type checker so


@functools.cache
def get_communicator() -> Communicator:
    """This process's communicator, made at the first call; to join MPI is collective: all ranks must call it.

    Raises:
        InputError: started by an MPI launcher, but mpi4py or its MPI library does not work or is another's.
    """
    place = launcher()
    return MPI(place) if place and place.size > 1 else SingleProcess()


def end_all_ranks(message: str, status: int) -> NoReturn:
    """Print `message` on stderr, unless empty, and end this process and every other rank with `status`.

    When several ranks fail alike only the lowest speaks: the others wait for a moment, in which it ends them.
    So an error that all share is printed once, and one that a single rank has still ends all within seconds.
    """
    communicator = get_communicator()
    if communicator.rank > 0:
        time.sleep(min(1.0 + 0.1 * communicator.rank, 5.0))
    if message:
        # One write, so that lines of several ranks do not mix.
        sys.stderr.write(message.rstrip("\n") + "\n")
    communicator.abort(status)


def describe_rank() -> str:
    """The prefix that names this rank in a message: "rank 1 of 4 (hostname): ", empty for a process alone."""
    communicator = get_communicator()
    if communicator.size == 1:
        return ""
    return f"rank {communicator.rank} of {communicator.size} ({socket.gethostname()}): "


def _end_on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The hook for an uncaught exception: without it MPI's other ranks wait for this one for ever."""
    text = "".join(traceback.format_exception(kind, error, trace))
    end_all_ranks(f"{describe_rank()}uncaught exception, all ranks end\n{text}", 1)


def _load_mpi(place: Launch) -> ModuleType:
    """mpi4py's MPI module, initialised."""
    started = f"started by an MPI launcher as rank {place.rank} of {place.size}, but "
    advice = "install it (pip install mpi4py mpich) or start one process without the launcher"
    try:
        import mpi4py

        # Any one thread at a time may call MPI: buckets may later be sent from a thread beside the backward
        # pass, and unlike the default, "multiple", it costs no locks.
        mpi4py.rc.thread_level = "serialized"
        import mpi4py.MPI
    except ImportError as error:
        raise InputError(f"{started}mpi4py cannot be imported ({error}); {advice}") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{started}mpi4py finds no MPI library ({reason}); {advice}") from None
    size = mpi4py.MPI.COMM_WORLD.Get_size()
    if size != place.size:
        raise InputError(
            f"{started}mpi4py sees {size} ranks: the launcher is another MPI's; "
            "use the mpirun that belongs to mpi4py's library"
        )
    return mpi4py.MPI


def _unlink_shared_memory() -> None:
    """Remove the name of the memory that MPICH's ranks on one node share; it lives on until the last ends.

    MPICH removes it at a good end only: each killed or aborted run would leave some megabytes in /dev/shm, of
    which containers often have 64 MB in all.
    """
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="ascii") as maps:
        names = set(re.findall(r"/dev/shm/mpich_shm_\w+$", maps.read(), re.MULTILINE))
        for name in names:
            with contextlib.suppress(OSError):  # another rank of this node was faster
                os.unlink(name)


def _buckets(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Views of a 1-D array of at most BUCKET_BYTES each, in order."""
    length = BUCKET_BYTES // flat.itemsize
    for begin in range(0, flat.size, length):
        yield flat[begin : begin + length]


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-contiguous array as a 1-D view, never a copy."""
    if not array.flags.c_contiguous:
        raise ValueError("an array that is sent or received in place must be C-contiguous")
    return array.reshape(-1).view(np.uint8)


def _check_floating(flat: np.ndarray) -> None:
    if flat.dtype not in (np.float32, np.float64) or flat.ndim != 1:
        raise DtypeError(
            f"allreduce_mean_: expected a 1-D float32 or float64 array, got {flat.ndim}-D {flat.dtype}"
        )
