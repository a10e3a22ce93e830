"""Runs of the tiny model of benchmarks/tiny.py, that take a second or two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mpi import run_ranks

from benchmarks.tiny import TINY, write_text
from train.wt103 import main

__all__ = ["TINY", "flags", "rows_of", "train_tiny", "write_text"]


def flags(text: Path, run: Path, **knobs: object) -> list[str]:
    """Arguments of train.wt103 for a tiny run; knobs replace those of `TINY`."""
    settings = [part for key, value in {**TINY, **knobs}.items() for part in ("--set", f"{key}={value}")]
    return ["--preset", "quickstart", "--data", str(text), "--run-dir", str(run), *settings]


def train_tiny(ranks: int, text: Path, run: Path, *more: str, **knobs: object) -> list[dict]:
    """Train for real on some ranks, one rank in this process; the rows of metrics.jsonl."""
    arguments, prepared = [*flags(text, run, **knobs), *more], str(text.parent / "prepared")
    if ranks == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MINILSTM_DATA", prepared)
            assert main(arguments) == 0
    else:
        result = run_ranks(ranks, "train.wt103", *arguments, env={"MINILSTM_DATA": prepared}, timeout=120)
        assert result.returncode == 0, result.stderr
    return rows_of(run)


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
