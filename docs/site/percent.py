"""Scripts in percent format, as editors and jupytext know it: cells that begin with `# %%`.

A cell `# %% [markdown]` is text, each line a comment; any other is code.
"""

from __future__ import annotations

from typing import NamedTuple

MARK = "# %%"


class Cell(NamedTuple):
    """A cell of a script: text without its comment signs, or code.

    Attributes:
        is_text: Markdown, or Python.
        source: its lines.
        line: of the script where it begins, counted from 1.
    """

    is_text: bool
    source: str
    line: int


def read_cells(script: str) -> list[Cell]:
    """The cells of a script, in their order.

    Raises:
        ValueError: text before the first cell, or a line in a text cell that is no comment; with the line.
    """
    lines = script.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    if any(line.strip() for line in lines[: starts[0] if starts else None]):
        raise ValueError(f"line 1: a script begins with a cell, {MARK}")
    stops = [*starts[1:], len(lines)]
    return [_cell(lines, start, stop) for start, stop in zip(starts, stops, strict=True)]


def _cell(lines: list[str], start: int, stop: int) -> Cell:
    is_text, body = lines[start] == f"{MARK} [markdown]", lines[start + 1 : stop]
    if is_text:
        body = [_uncommented(line, start + 2 + offset) for offset, line in enumerate(body)]
    elif lines[start] != MARK:
        raise ValueError(f"line {start + 1}: expected {MARK} or {MARK} [markdown]; got {lines[start]!r}")
    return Cell(is_text, "\n".join(body).strip("\n"), start + 2)


def _uncommented(line: str, number: int) -> str:
    if line.strip() and line != "#" and not line.startswith("# "):
        raise ValueError(f"line {number}: in a text cell every line begins with '# '; got {line!r}")
    return line[2:]
