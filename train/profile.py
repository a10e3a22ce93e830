"""`--profile`: where the time of a step goes, as a table and as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from autograd.profile import Profile, Span, profile
from train.communicator import Communicator
from train.files import atomic_write

STEP, DATA = "step", "data"
WARM_UP = 2
"""Steps before the profile begins: they make buffers that later ones use again."""


class StepProfile:
    """Records some of a run's steps, then says where their time went.

    Args:
        steps: how many; 0: none, and every method does nothing.
        communicator: of all ranks; each records itself.
        trace: the file that the root writes, in Chrome's Trace Event Format, a process per rank.
    """

    def __init__(self, steps: int, communicator: Communicator, trace: Path) -> None:
        self.steps, self.communicator, self.trace = steps, communicator, trace
        self._made = 0
        self._recording = ExitStack()
        self._profile: Profile | None = None

    def after_step(self) -> str | None:
        """Call after every step, on all ranks; after the last that is recorded, the table, on the root."""
        self._made += 1
        if self.steps and self._made == WARM_UP:
            self._profile = self._recording.enter_context(profile())
        return self.close() if self._made == WARM_UP + self.steps else None

    def close(self) -> str | None:
        """End the profile, complete or not, on all ranks; the table, on the root, of what was recorded."""
        recorded, self._profile = self._profile, None
        self._recording.close()
        steps, self.steps = self.steps, 0
        if not steps:
            return None
        events = trace_events(recorded.spans if recorded else [], self.communicator.rank)
        text = "".join(json.dumps(event) + "\n" for event in events).encode()
        gathered = self.communicator.gather_rows(np.frombuffer(text, np.uint8))
        if gathered is None:
            return None
        if recorded is None:
            return f"--profile: the run ended before {WARM_UP + 1} steps were made; nothing was recorded"
        with atomic_write(self.trace) as temporary:
            _write_trace(temporary, gathered.tobytes().splitlines())
        return f"{table(recorded.spans)}\ntrace, for ui.perfetto.dev or chrome://tracing: {self.trace}"


def _write_trace(path: Path, events: list[bytes]) -> None:
    with open(path, "wb") as file:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n' + b",\n".join(events) + b"\n]}\n")


def trace_events(spans: list[Span], rank: int) -> list[dict[str, Any]]:
    """Spans as complete events of the Trace Event Format: microseconds, the rank as the process."""
    name = {"name": f"rank {rank} ({os.uname().nodename})"}
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": rank, "tid": 0, "args": name},
    ]
    for span in spans:
        label = span.name if span.kind == "span" else f"{span.name} {span.kind}"
        times = {"ts": round(span.start * 1e6, 1), "dur": round(span.seconds * 1e6, 1)}
        event = {"name": label, "cat": span.kind, "ph": "X", "pid": rank, "tid": 0, **times}
        events.append(event if not span.within else {**event, "args": {"within": span.within}})
    return events


def parts_of(spans: list[Span]) -> dict[str, float]:
    """Seconds of all steps together by part, in the order of a step; they add up to the steps and their data.

    The forward pass of a part is the span around it. The engine knows no parts: a part's backward pass is
    that of all Functions which were applied in it.
    """
    total = sum(span.seconds for span in spans if span.kind == "span" and span.name in (STEP, DATA))
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    ends: dict[str, float] = defaultdict(float)
    for span in spans:
        if span.kind == "backward":
            backward[f"backward: {span.within if span.within != STEP else 'other functions'}"] += span.seconds
        elif span.kind == "span" and span.name in (DATA, "allreduce", "update"):
            ends[span.name] += span.seconds
        elif span.kind == "span" and span.within == STEP:
            forward[f"forward: {span.name}"] += span.seconds
    parts = {DATA: ends.pop(DATA, 0.0), **forward, **backward, **ends}
    return {**parts, "the rest": max(total - sum(parts.values()), 0.0)}


def table(spans: list[Span]) -> str:
    """Milliseconds a step, and the share of it, part by part; parts under 0.05% are left out."""
    steps = max(sum(span.name == STEP for span in spans), 1)
    parts = parts_of(spans)
    total = sum(parts.values())
    rows = [f"where the time of a step goes (rank 0's mean of {steps} steps)"]
    for name, seconds in [*parts.items(), ("a step", total)]:
        share = seconds / total if total else 0.0
        if share >= 0.0005:
            rows.append(f"  {name:<28}{seconds / steps * 1e3:>10.2f} ms{share:>9.1%}")
    return "\n".join(rows)
