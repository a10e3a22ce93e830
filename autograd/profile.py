"""Where the time goes: spans of work, nested as the calls are, recorded only while somebody asks.

    with profile() as recorded:
        with span("layer 1"):
            y = F.relu(F.linear(x, W, b))
        y.backward(gradient)

`recorded.spans` then holds "layer 1", in it the forward of each Function, and after it their backward. A
backward remembers the span that the Function was applied in: the backward pass, which knows no layers, can so
be summed up by layer. When nobody asks, a span costs one look at a variable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar

Item = TypeVar("Item")
Kind = Literal["span", "forward", "backward"]


class Span(NamedTuple):
    """One piece of work.

    Attributes:
        name: as given to `span`, or a Function's label.
        kind: "span", or of a Function "forward" or "backward".
        within: the innermost span around it; of a Function's backward, that around its forward. "" if none.
        start: seconds, of `time.perf_counter`.
        seconds: how long it took.
    """

    name: str
    kind: Kind
    within: str
    start: float
    seconds: float


class Profile:
    """What was recorded in the thread that began it; work that others share with it lies in its own spans.

    Attributes:
        spans: in the order in which they ended.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._thread = threading.get_ident()
        self._open: list[str] = []

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the calling thread's work is recorded."""
        return self._thread == threading.get_ident()

    @property
    def innermost(self) -> str:
        """The name of the span that is open now; "" if none is."""
        return self._open[-1] if self._open else ""

    @contextmanager
    def record(self, name: str, kind: Kind, within: str) -> Iterator[None]:
        """Context whose duration becomes a span."""
        self._open.append(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append(Span(name, kind, within, start, time.perf_counter() - start))
            self._open.pop()


_profile: ContextVar[Profile | None] = ContextVar("profile", default=None)


@contextmanager
def profile() -> Iterator[Profile]:
    """Context whose spans and Functions are recorded."""
    recorded = Profile()
    token = _profile.set(recorded)
    try:
        yield recorded
    finally:
        _profile.reset(token)


def span(name: str) -> AbstractContextManager[None]:
    """Context that is recorded under this name, if anybody asks."""
    recorded = _profile.get()
    if recorded is None or not recorded.is_of_this_thread:
        return nullcontext()
    return recorded.record(name, "span", recorded.innermost)


def function_span(function: Any, kind: Kind, part: str = "") -> AbstractContextManager[None]:
    """The same for a Function's forward or backward, or for a part of it; the engine calls it."""
    recorded = _profile.get()
    if recorded is None or not recorded.is_of_this_thread:
        return nullcontext()
    if kind == "forward":
        function.applied_within = recorded.innermost
    return recorded.record(function.label + part, kind, function.applied_within)


def spans_of(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items, the making of each recorded as a span."""
    iterator = iter(items)
    while True:
        with span(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
