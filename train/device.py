"""Where a run's arrays live: in the host's memory, or on the GPU that belongs to this rank.

CuPy comes in as a module handed over by `autograd.backend`; what is asked of it stands here alone.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from autograd.backend import device_array_module, to_host
from autograd.errors import DeviceError
from train.threads import Launch

TENSOR_CORES_FROM = 70
"""Compute capability, times ten, of the first GPU that multiplies float16 on tensor cores: V100."""
CUDA_13_FROM = 75
"""And of the oldest that CUDA 13 runs on."""


class Host:
    """The host's own memory: arrays are where they are wanted, and nothing is copied.

    Attributes:
        xp: the array module of what lives here.
        is_gpu: whether work is queued on a GPU, so that looking at a number waits for it.
        name: for people.
    """

    xp: ModuleType = np
    is_gpu = False
    name = "cpu"

    def to_device(self, array: Any) -> Any:
        """A host's array where the model computes."""
        return array

    def to_host(self, array: Any) -> np.ndarray:
        """An array of the model's on the host."""
        return array

    def begin_read(self, *arrays: Any) -> Callable[[], list[np.ndarray]]:
        """Take copies of arrays as they are at this point of the queue; the function waits for them."""
        copies = [np.array(array).reshape(-1) for array in arrays]
        return lambda: copies

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""

    def memory(self) -> tuple[int, int] | None:
        """(bytes free, bytes in all), or None where nobody limits it."""
        return None


class Gpu(Host):
    """One GPU, with a stream of its own for all that the run computes.

    The stream does not wait for the default one, without which it could not be captured as a graph.

    Args:
        cupy: the module.
        index: of the GPU on this node.

    Attributes:
        identity: 16 bytes, equal for two ranks if they have one GPU.
    """

    is_gpu = True

    def __init__(self, cupy: Any, index: int) -> None:
        self.xp, self.index = cupy, index
        device = cupy.cuda.Device(index)
        device.use()
        self.capability = int(device.compute_capability)
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.name, self.identity = properties["name"].decode(), _identity(properties)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        # Entered and never left. Whoever enters another one, CuPy's own copies among them, falls back to the
        # stream that was entered last, and one that is only in use would be forgotten.
        self.stream.__enter__()

    def to_device(self, array: Any) -> Any:
        return self.xp.asarray(array)

    def to_host(self, array: Any) -> np.ndarray:
        return to_host(array)

    def begin_read(self, *arrays: Any) -> Callable[[], list[np.ndarray]]:
        copies = []
        for array in arrays:
            host = np.frombuffer(self.pinned(array.nbytes), array.dtype, array.size)
            array.reshape(-1).get(out=host, stream=self.stream, blocking=False)
            copies.append(host)
        event = self.stream.record()

        def wait() -> list[np.ndarray]:
            event.synchronize()
            return copies

        return wait

    def new_stream(self) -> Any:
        """A second stream, for copies and messages beside the computation."""
        return self.xp.cuda.Stream(non_blocking=True)

    def pinned(self, size: int) -> Any:
        """Host memory, of so many bytes, that the GPU copies from and to by itself."""
        return self.xp.cuda.alloc_pinned_memory(size)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def memory(self) -> tuple[int, int] | None:
        return self.xp.cuda.runtime.memGetInfo()


def _identity(properties: dict[str, Any]) -> bytes:
    """Of a GPU among those of all nodes; its uuid alone may come cut off at a byte of zero."""
    place = [properties.get(name) for name in ("uuid", "pciDomainID", "pciBusID", "pciDeviceID")]
    return hashlib.blake2b(repr([socket.gethostname(), *place]).encode(), digest_size=16).digest()


def open_device(
    name: str, precision: str, place: Launch | None, share_gpus: bool = False, array_module: Any = None
) -> Host:
    """The device of this rank: on a node with several GPUs, the one with the number of its local rank.

    Args:
        name: cpu or cuda.
        precision: float32, or mixed, which needs tensor cores.
        place: what the MPI launcher says; None of a process alone.
        share_gpus: ranks may share a GPU; else there must be one for each on the node.
        array_module: what stands for CuPy; None: CuPy.

    Raises:
        DeviceError: no CuPy, driver or GPU, too old a one of them, or fewer GPUs than ranks.
    """
    if name == "cpu":
        return Host()
    cupy = array_module or device_array_module(name)
    count = cupy.cuda.runtime.getDeviceCount()
    local_rank, local_size = (place.local_rank, place.local_size) if place else (0, 1)
    if local_size > count and not share_gpus:
        raise DeviceError(
            f"device cuda: this node has {count} GPU{'s' * (count > 1)} for its {local_size} ranks; start "
            f"{count} a node, or --set share_gpus=true, which is slower than one rank a GPU"
        )
    index = local_rank % count
    _check_generation(cupy, index, precision)
    return Gpu(cupy, index)


def _check_generation(cupy: Any, index: int, precision: str) -> None:
    """Raise a DeviceError if the GPU is too old for this CUDA, or for mixed precision."""
    capability = int(cupy.cuda.Device(index).compute_capability)
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
    version = f"{capability // 10}.{capability % 10}"
    if cupy.cuda.runtime.runtimeGetVersion() >= 13000 and capability < CUDA_13_FROM:
        raise DeviceError(
            f"device cuda: {name} has compute capability {version}, and CUDA 13 begins at 7.5; "
            "pip install cupy-cuda12x in the place of cupy-cuda13x"
        )
    if precision == "mixed" and capability < TENSOR_CORES_FROM:
        raise DeviceError(
            f"precision mixed: needs a GPU with float16 tensor cores, of compute capability 7.0 or more; "
            f"{name} has {version}; leave --precision out, to train in float32"
        )
