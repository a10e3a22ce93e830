"""What a person sees while a run goes: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# Programs between a rank and the terminal that a person started it from; /proc cuts names at 15 letters.
_LAUNCHERS = {"mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "orted", "prterun", "prted"}
_STEP_BAR = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """How far a long piece of work has come. This one is silent; `progress` gives one that shows itself.

    A context manager: leaving it closes it. A display that can no longer be written to (its terminal is gone)
    falls silent; it never ends the work.
    """

    def update(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown beside the count until the next one."""
        with contextlib.suppress(OSError):
            self._update(amount, note)

    def message(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        with contextlib.suppress(OSError):
            self._message(text)

    def close(self) -> None:
        """Show the last state and end the display; closing again does nothing."""
        with contextlib.suppress(OSError):
            self._close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _update(self, amount: float, note: str) -> None: ...

    def _message(self, text: str) -> None: ...

    def _close(self) -> None: ...


def progress(
    total: float | None,
    description: str,
    unit: str = "it",
    *,
    unit_scale: bool = False,
    initial: float = 0,
    enabled: bool = True,
    interval: float = 5.0,
    stream: TextIO | None = None,
    bar_format: str | None = None,
    leave: bool = True,
) -> Progress:
    """A tqdm bar on a terminal, also on the one behind mpirun; elsewhere a plain line every few seconds.

    Args:
        total: units of the whole work; None: unknown.
        description, unit: what goes on, counted in what: "training", "steps"; "reading", "tokens".
        unit_scale: write counts as 1.23M.
        initial: units done before, when a run is resumed; they do not count for the speed.
        enabled: False for ranks other than 0, which say nothing.
        interval: seconds between plain lines, at least.
        stream: where to write; None: standard error.
        bar_format: tqdm's, for the bar.
        leave: False for a part of longer work: its bar goes when it is done, a short one gets no line.
    """
    if not enabled:
        return Progress()
    work = _Work(total, description, unit, unit_scale, initial)
    stream = stream or sys.stderr
    terminal = stream if _is_terminal(stream) else _launcher_terminal() if stream is sys.stderr else None
    if terminal:
        return _Bar(work, terminal, bar_format, leave)
    return _Lines(work, stream, interval, leave)


@dataclass(frozen=True)
class _Work:
    """What there is to do, as in `progress`."""

    total: float | None
    description: str
    unit: str
    unit_scale: bool
    initial: float

    def count(self, number: float) -> str:
        return self.number(number) + (self.unit if self.unit_scale else f" {self.unit}")

    def number(self, number: float) -> str:
        return scaled(number) if self.unit_scale else f"{number:,.0f}"


class _Bar(Progress):
    def __init__(self, work: _Work, stream: TextIO, bar_format: str | None, leave: bool) -> None:
        from tqdm import tqdm

        self._tqdm = tqdm(
            total=work.total,
            desc=work.description,
            unit=work.unit if work.unit_scale else f" {work.unit}",
            unit_scale=work.unit_scale,
            initial=work.initial,
            file=stream,
            bar_format=bar_format,
            dynamic_ncols=True,
            leave=leave,
        )

    def _update(self, amount: float, note: str) -> None:
        self._tqdm.set_postfix_str(note, refresh=False)
        self._tqdm.update(amount)

    def _message(self, text: str) -> None:
        self._tqdm.write(text, file=self._tqdm.fp)

    def _close(self) -> None:
        self._tqdm.close()


class _Lines(Progress):
    def __init__(self, work: _Work, stream: TextIO, interval: float, leave: bool) -> None:
        self._leave = leave
        self._work, self._stream, self._interval = work, stream, interval
        self._done = self._shown = work.initial
        self._start = self._last_line = time.monotonic()
        self._note = ""

    def _update(self, amount: float, note: str) -> None:
        self._done += amount
        self._note = note
        if time.monotonic() - self._last_line >= self._interval:
            self._show()

    def _message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _close(self) -> None:
        if self._shown != self._done and (self._leave or self._shown != self._work.initial):
            self._show()

    def _show(self) -> None:
        self._last_line, self._shown = time.monotonic(), self._done
        work, seconds = self._work, self._last_line - self._start
        rate = (self._done - work.initial) / max(seconds, 1e-9)
        parts = [f"{work.description}: {work.count(self._done)}"]
        if work.total:
            share = f"{self._done / work.total:.0%}"
            parts = [f"{work.description}: {work.number(self._done)} of {work.count(work.total)} ({share})"]
        parts += [self._note or f"{work.count(rate)}/s", f"{duration(seconds)} gone"]
        if work.total and rate > 0:
            parts.append(f"{duration((work.total - self._done) / rate)} left")
        self._message(", ".join(parts))


class TrainingDisplay:
    """The loop's display: fed with rows of metrics.jsonl, it shows loss, perplexity, tokens/s, time left.

    Args:
        total_steps: updates of the whole run.
        first_step: updates made before, by the run that is resumed.
        enabled: False for ranks other than 0, which say nothing.
        stream, interval: as in `progress`.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        interval: float = 5.0,
    ) -> None:
        self._step = first_step
        self._progress = progress(
            total_steps,
            "training",
            "steps",
            initial=first_step,
            enabled=enabled,
            interval=interval,
            stream=stream,
            bar_format=_STEP_BAR,
        )

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a training row: step, loss, perplexity, tokens_per_second."""
        speed = f"{row['tokens_per_second']:,.0f} tokens/s"
        perplexity = format_perplexity(row["perplexity"], decimals=1)
        note = f"loss {row['loss']:.3f}, perplexity {perplexity}, {speed}"  # fits 80 columns
        self._progress.update(row["step"] - self._step, note)
        self._step = row["step"]

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Print an evaluation row: split, step, loss, perplexity, scored_tokens."""
        self._progress.message(
            f"{row['split']} after step {row['step']:,}: perplexity {format_perplexity(row['perplexity'])}, "
            f"loss {row['loss']:.4f} over {row['scored_tokens']:,} tokens"
        )

    def message(self, text: str) -> None:
        """Print one line."""
        self._progress.message(text)

    def close(self) -> None:
        """Show the last state and end the display."""
        self._progress.close()

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_perplexity(value: float, decimals: int = 2) -> str:
    """1,234.56; from a million on, where no model is that is any use, 1.2e+304."""
    return f"{value:,.{decimals}f}" if value < 1e6 else f"{value:.1e}"


def scaled(number: float) -> str:
    """Three digits, and a letter for the thousands: 1.23k, 45.6M."""
    letters = iter(("", "k", "M", "G", "T"))
    letter = next(letters)
    while number >= 999.5 and letter != "T":
        number, letter = number / 1000, next(letters)
    return f"{number:.0f}{letter}" if number >= 99.95 else f"{number:.3g}{letter}"


def _launcher_terminal() -> TextIO | None:
    """The terminal that mpirun's own standard error is; its ranks' are pipes, which it copies there."""
    launcher, pid = None, os.getppid()
    try:
        while Path(f"/proc/{pid}/comm").read_text().strip() in _LAUNCHERS:
            launcher = f"/proc/{pid}/fd/2"
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if not (launcher and stat.S_ISCHR(os.stat(launcher).st_mode)):
            return None  # a file above all, which must not be opened a second time
        descriptor = os.open(launcher, os.O_WRONLY | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    stream = os.fdopen(descriptor, "w", encoding="utf-8")
    return stream if _is_terminal(stream) else None


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn there: some pseudo-terminals have no size, and tqdm then draws nothing."""
    return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0
