"""Work on a GPU captured once and launched as a whole: what many small launches cost the host is paid once.

A graph is a recording of launches with all their arguments. So every number that changes from step to step
lies in device memory, arrays stay where they were, and what Python does between launches happens at the
recording alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

from autograd.errors import DeviceError, InputError

MOST_GRAPHS = 32
"""Keys that are captured; work of further ones, many lengths of windows say, is launched piece by piece."""


class GraphedFunction:
    """A function of arrays on a GPU: run as it is at first, then captured, then launched as a graph.

    The first call with a key runs the function eagerly: kernels are compiled, handles made, memory is brought
    into the private pool. The second captures it, which runs nothing, and launches the graph. Inputs are
    copied into buffers that stay; results stay where the graph writes them, and hold until the next call.

    Args:
        function: takes the arrays of `__call__` and returns a tuple of arrays. It launches the same work
            whenever its inputs' shapes are the same, does not look at a number on the GPU, and may be run
            again without harm: Python runs it twice a key.
        gpu: whose stream it works on (train.device.Gpu).
        tell: hears one line, once, if something cannot be captured; work then goes on piece by piece.
    """

    def __init__(
        self, function: Callable[..., tuple[Any, ...]], gpu: Any, tell: Callable[[str], None] = print
    ) -> None:
        self._function, self._gpu, self._tell = function, gpu, tell
        self._recordings: dict[Hashable, _Recording] = {}
        # Of its own and as long-lived as the graphs: nobody else is given the memory that they write to.
        self._pool = gpu.xp.cuda.MemoryPool()
        self.is_plain = False

    def __call__(self, key: Hashable, *inputs: Any) -> tuple[Any, ...]:
        """function(*inputs); `key` must differ wherever a shape or anything else of the launches does."""
        recording = self._recordings.get(key)
        if self.is_plain or (recording is None and len(self._recordings) == MOST_GRAPHS):
            return self._function(*inputs)
        if recording is None:
            recording = self._recordings[key] = _Recording(inputs)
            with self._private_pool():
                return self._function(*recording.inputs)
        recording.fill(inputs)
        if recording.graph is None and not self._capture(recording):
            return self._function(*inputs)
        recording.graph.launch(self._gpu.stream)
        return recording.outputs

    def _private_pool(self) -> Any:
        return self._gpu.xp.cuda.using_allocator(self._pool.malloc)

    def _capture(self, recording: _Recording) -> bool:
        """Whether the function could be captured; if not, everything is as it was before."""
        stream, mode = self._gpu.stream, self._gpu.xp.cuda.runtime.streamCaptureModeRelaxed
        try:
            with self._private_pool():
                stream.begin_capture(mode)
                recording.outputs = self._function(*recording.inputs)
                recording.graph = stream.end_capture()
        except Exception as error:
            self._abandon()
            if isinstance(error, InputError) and not isinstance(error, DeviceError):
                raise  # a mistake of the caller's; the others are CUDA's, CuPy's or cuBLAS's
            self._tell(f"no CUDA graphs: {_first_line(error)}; each kernel is launched by itself")
            return False
        return True

    def _abandon(self) -> None:
        """Leave a capture that failed, and all graphs with it: what cannot be captured once never will."""
        self.is_plain = True
        self._recordings.clear()
        # Whatever the capture has come to: a stream is of no use until it was ended, and to ask whether it
        # still captures is an error once it has failed.
        with contextlib.suppress(Exception):
            self._gpu.stream.end_capture()


class _Recording:
    """What belongs to one key: buffers of the inputs, the graph, where it leaves its results."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = tuple(array.copy() for array in inputs)
        self.graph: Any = None
        self.outputs: tuple[Any, ...] = ()

    def fill(self, inputs: tuple[Any, ...]) -> None:
        for buffer, array in zip(self.inputs, inputs, strict=True):
            if array is not buffer:
                buffer[...] = array


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
