"""Peak memory of a training step: python -m benchmarks.memory --against torch

One number of a small model (V=10,000 E=200 H=200 L=2 B=20 T=35) is varied at a time: the steps of a
window, the rows of the batch, the words. Each point is a process of its own that makes three steps with Adam;
its peak is that of the whole process, libraries included.

  peak_rss_mb     largest resident memory, in 10⁶ bytes: ours, and torch's
  memory_ratio    ours / torch's
  reckoned_mb     what `train.wt103 --dry-run` says of ours beforehand
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from autograd.command import Parser
from benchmarks.child import Child
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import SIZES, Size
from benchmarks.systems import require_torch
from train.config import TrainConfig
from train.environment import environment
from train.files import atomic_write
from train.log import progress
from train.memory import memory_parts
from train.plot import COLOURS, styled_figure

STEPS = 3
VARIED = {
    "window": (35, 70, 140, 280),
    "batch_size": (20, 40, 80, 160),
    "vocab_size": (10_000, 33_278, 100_000, 267_735),
}
SYMBOLS = {"window": "T", "batch_size": "B", "vocab_size": "V"}


def points(short: bool) -> list[tuple[str, Size]]:
    """(what is varied, size) of every measurement; the short form leaves the two largest out."""
    base = SIZES["small"]
    return [
        (name, dataclasses.replace(base, **{name: value}))
        for name, values in VARIED.items()
        for value in (values[:2] if short else values)
    ]


def peak(system: str, size: Size) -> float:
    """MB of a process that makes a few steps."""
    with Child(system, "benchmarks.training_step_worker", [system, str(size)]) as child:
        for _ in range(STEPS):
            child.ask("step")
        return child.ask("finish")["peak_rss_mb"]


def reckoned(size: Size) -> float:
    """MB by the shapes."""
    train = TrainConfig(window=size.window, batch_size=size.batch_size)
    return sum(memory_parts(size.model_config(), train, size.batch_size).values()) / 1e6


def measure(wanted: list[tuple[str, Size]], against: str) -> list[dict[str, Any]]:
    """A row of figures for each point."""
    rows = []
    with progress(len(wanted), "memory", "sizes") as bar:
        for name, size in wanted:
            ours = peak("ours", size)
            torch = peak("torch", size) if against == "torch" else None
            rows.append(
                {
                    "varied": name,
                    "value": getattr(size, name),
                    "size": str(size),
                    "ours": ours,
                    "torch": torch,
                    "memory_ratio": ours / torch if torch else None,
                    "reckoned_mb": reckoned(size),
                }
            )
            bar.update(1)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [f"{'':12}{'ours MB':>9}{'reckoned':>10}{'torch MB':>10}{'ratio':>7}"]
    for row in rows:
        torch = f"{row['torch']:10,.0f}{row['memory_ratio']:7.2f}" if row["torch"] else ""
        name = f"{SYMBOLS[row['varied']]}={row['value']:,}"
        lines.append(f"{name:12}{row['ours']:9,.0f}{row['reckoned_mb']:10,.0f}{torch}")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak against each number that was varied."""
    with styled_figure(12, 3.8) as figure:
        for axes, name in zip(figure.subplots(1, len(VARIED), sharey=True), VARIED, strict=True):
            own = [row for row in rows if row["varied"] == name]
            values = [row["value"] for row in own]
            for side, label, colour in (("torch", "PyTorch", COLOURS[1]), ("ours", "MiniLSTM", COLOURS[0])):
                if own[0][side] is not None:
                    axes.loglog(values, [row[side] for row in own], "o-", color=colour, label=label)
            axes.loglog(values, [row["reckoned_mb"] for row in own], "k:", label="reckoned beforehand")
            axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
            axes.xaxis.minorticks_off()
            axes.yaxis.minorticks_off()
            axes.set(xlabel=f"{SYMBOLS[name]} ({name})")
            axes.legend(fontsize=8)
        shown = (100, 200, 500, 1000, 2000, 5000)
        figure.axes[0].set_yticks(shown, [f"{megabytes:,}" for megabytes in shown])
        highest = max(row[side] or 0 for row in rows for side in ("ours", "torch", "reckoned_mb"))
        figure.axes[0].set(ylabel="peak MB", ylim=(min(row["ours"] for row in rows) / 1.3, highest * 1.3))
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    if options.against == "torch":
        require_torch()
    rows = measure(points(options.short), options.against)
    if options.plot:
        draw(rows, options.plot)
    report(options, {"rows": rows, "environment": environment()}, table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.memory", __doc__)
    parser.add_argument("--against", choices=("torch", "none"), default="none", help="default: none")
    parser.add_argument("--short", action="store_true", help="the two smaller of each four sizes")
    add_report_flags(parser, plot=True)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
