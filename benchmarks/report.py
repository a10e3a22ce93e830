"""How a benchmark ends: the table for people or one JSON object on the screen, all figures in a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from autograd.errors import InputError
from train.files import atomic_write


def add_report_flags(parser: argparse.ArgumentParser, plot: bool = False) -> None:
    """--out, --json, and --plot if the benchmark draws."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures here as JSON")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def check_report_flags(options: argparse.Namespace) -> None:
    """Refuse what would only fail after the measurement.

    Raises:
        InputError: a file that cannot be written; --plot without matplotlib.
    """
    for name in ("out", "plot"):
        path = getattr(options, name, None)
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"--{name}: expected a file in an existing folder, got {path}")
    if getattr(options, "plot", None):
        from train.plot import styled_figure

        with styled_figure(1, 1):
            pass  # matplotlib is there


def report(options: argparse.Namespace, result: dict[str, Any], table: str) -> None:
    """Write the result where --out says, and print it as --json says, else the table."""
    if options.out:
        with atomic_write(options.out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else table)
