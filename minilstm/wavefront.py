"""Layers as a wavefront on a GPU: chunks of steps, each layer on a stream of its own, events between them.

A step of one layer is a small product and a small kernel, which fill a large GPU for a part of their time
only. The layer above needs no more than the outputs of the steps before it: while one layer is at its second
chunk of steps, the next one is at its first, and backward the other way round. Chunks, products and kernels
are those of the sequential order, so every bit is; only the streams that they are launched on differ.

A stream is a queue. What one stream writes and another reads needs two things:

- An event between them: `has` records it behind what was written, `needs` makes the reader wait for it.
- Memory that stays: once Python lets go of an array, CuPy gives its memory back to the stream that it was
  made on, although another one may still be reading. So a lane `holds` it until all streams have met.

Within a graph that is captured, streams and events become the graph's edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from autograd import Function, Variable
from minilstm.tied_softmax import assign_or_add

CHUNK = 12
"""Steps: few enough that layers soon work side by side, enough that products with inputs stay large."""


class Lane:
    """Where one layer's work is launched: one after the other, on the stream that is current."""

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def chunks(self, T: int) -> list[slice]:
        """The steps of a window, chunk by chunk."""
        return [slice(start, min(start + CHUNK, T)) for start in range(0, T, CHUNK)]

    def needs(self, array: Any, steps: slice) -> None:
        """What follows reads these steps of an array (T, …), which another lane may have written."""

    def has(self, array: Any, steps: slice) -> None:
        """These steps of an array (T, …) are written; another lane may read them."""

    def holds(self, array: Any) -> None:
        """What was launched here reads an array that another lane may have made."""


_current: ContextVar[Lane | None] = ContextVar("lane", default=None)
_SEQUENTIAL = Lane()


def current_lane() -> Lane:
    """The lane that Functions which are applied here belong to, in their backward pass too."""
    return _current.get() or _SEQUENTIAL


class StreamLane(Lane):
    """A stream of its own for one layer. Entered, it waits for the main stream and takes its place."""

    def __init__(self, wavefront: Wavefront, stream: Any) -> None:
        self.wavefront, self.stream = wavefront, stream

    def __enter__(self) -> Lane:
        self.stream.wait_event(self.wavefront.main.record())
        self.stream.__enter__()
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)
        self.stream.__exit__(*exception)

    def needs(self, array: Any, steps: slice) -> None:
        writer, event = self.wavefront.written.get((array.data.ptr, steps.start), (self, None))
        if writer is not self:
            self.stream.wait_event(event)
            self.holds(array)

    def has(self, array: Any, steps: slice) -> None:
        self.wavefront.written[array.data.ptr, steps.start] = self, self.stream.record()

    def holds(self, array: Any) -> None:
        self.wavefront.held.append(array)


class Wavefront:
    """The lanes of a model's layers, and where they meet.

    Args:
        main: the stream that everything else runs on, entered by whoever made it.
        streams: one for each layer.

    Attributes:
        written: the lane that wrote a chunk, and the event behind it, by the array's address and first step.
        held: arrays that lanes may still read although Python has let go of them.
    """

    def __init__(self, main: Any, streams: list[Any]) -> None:
        self.main = main
        self.lanes = [StreamLane(self, stream) for stream in streams]
        self.written: dict[tuple[int, int], tuple[Lane, Any]] = {}
        self.held: list[Any] = []

    def meet(self) -> None:
        """Let the main stream wait for all lanes."""
        for lane in self.lanes:
            self.main.wait_event(lane.stream.record())
        self.written.clear()
        self.held.clear()

    def lower_end(self, x: Variable) -> Variable:
        """x (T, B, E), as it enters the lowest layer: there the lanes meet after the backward pass."""
        return Meeting(self, after_backward=True).apply(x)

    def upper_end(self, y: Variable) -> Variable:
        """y (T, B, E), as it leaves the highest layer: there they meet after the forward pass."""
        return Meeting(self, after_backward=False).apply(y)


class Meeting(Function):
    """y = x, and the lanes of a wavefront meet there on the way forward, or on the way back."""

    needs_kernels = True

    def __init__(self, wavefront: Wavefront, after_backward: bool) -> None:
        self.wavefront, self.after_backward = wavefront, after_backward

    def forward(self, x):
        if not self.after_backward:
            self.wavefront.meet()
        return x

    def backward(self, dy):
        if self.after_backward:
            self.wavefront.meet()
        return dy


def written_gradient(function: Function, index: int, gradient: Any) -> Any:
    """A gradient brought where that of an input of `function` is built, here and in this lane.

    A parameter's would else be brought there by the engine, on the main stream.
    """
    if not function.needs_grad(index):
        return None
    target = function.grad_target(index, like=gradient)
    assign_or_add(target, slice(None), gradient)
    return target[0]


@contextmanager
def lane_of(wavefront: Wavefront | None, layer: int) -> Iterator[None]:
    """Context in which a layer's work is launched: in its lane, or, without a wavefront, where all is."""
    with wavefront.lanes[layer] if wavefront else _SEQUENTIAL:
        yield
