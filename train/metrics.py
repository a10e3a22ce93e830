"""metrics.jsonl: what a run measured, one row an event, and how it is read back."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from autograd.errors import InputError
from train.files import atomic_write


class MetricsLog:
    """Appends rows to metrics.jsonl, one JSON object a line; a written row outlives the process.

    Numbers that JSON does not know (nan, infinities) become null.

    Args:
        path: the file; its folder must exist.
        resume_step: None for a new run. A run that goes on from the checkpoint of this step makes the later
            steps once more, so their rows are dropped.
        pending: it makes the evaluation of that step once more too.
        enabled: False for ranks other than 0, which write nothing.

    Raises:
        InputError: rows of another run are there and `resume_step` is None, or the file is not metrics.jsonl.
    """

    def __init__(
        self, path: str | Path, resume_step: int | None = None, enabled: bool = True, pending: bool = False
    ) -> None:
        self._file: TextIO | None = None
        if not enabled:
            return
        path = Path(path)
        if path.exists() and resume_step is not None:
            again = {("evaluation", resume_step)} if pending else set()
            kept = [
                row
                for row in read_metrics(path)
                if row["step"] <= resume_step and (row["kind"], row["step"]) not in again
            ]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(map(_json_line, kept)), encoding="utf-8")
        elif path.exists() and path.stat().st_size > 0:
            raise InputError(f"{path}: holds a run already; give --resume to go on, or another --run-dir")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it has at least "kind" and "step". InputError if it cannot be written."""
        if self._file:
            with _one_line_if_refused(self._file.name):
                self._file.write(_json_line(row))
                self._file.flush()

    def sync(self) -> None:
        """Force the rows onto the disk, as a checkpoint is that counts on them: they outlive a power cut."""
        if self._file:
            with _one_line_if_refused(self._file.name):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        file, self._file = self._file, None
        if file:
            with contextlib.suppress(OSError):  # what could not be flushed has been told of by write
                file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl; a last line cut short, as a kill leaves it, is left out.

    Raises:
        InputError: no such file, or a line that is not a row with a kind and a step.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the metrics of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as metrics: {error}") from None
    rows = []
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # what follows the last line's end is nothing, or torn
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and "kind" in row and isinstance(row.get("step"), int)):
            raise InputError(f"{path}: line {number} is not a row of metrics; got {line[:60]!r}")
        rows.append(row)
    return rows


@contextlib.contextmanager
def _one_line_if_refused(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk, mostly; it does not say of which file
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{path}: cannot be written ({reason}); make room, then go on with --resume"
        ) from None


def _json_line(row: Mapping[str, Any]) -> str:
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
