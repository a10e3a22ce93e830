"""What each lever of speed brings: python -m benchmarks.levers --size small

A training step as it is, and with one lever switched off at a time, in processes of their own that take
turns. Each lever changes how a step is computed and not what: the losses must agree to 1e-4, else the
benchmark fails.

  seconds     of one step, the median
  gain        seconds without the lever / seconds with all: above 1 it pays
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import autograd.function
import minilstm.lstm
import minilstm.lstm_kernels
import minilstm.tied_softmax
import train.optimizers
from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.child import PAUSE, WARM_UP, Child
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import SIZES, add_size_flag
from benchmarks.systems import LOSS_TOLERANCE
from train.environment import environment
from train.log import progress


@dataclass(frozen=True)
class Lever:
    """One of them, and how to do without."""

    what: str
    switch_off: Callable[[], None]


def _wide_blocks() -> None:
    minilstm.tied_softmax.WORKING_BYTES = 1 << 40
    minilstm.tied_softmax.TiedSoftmaxLoss.__init__.__defaults__ = (4096,)
    minilstm.tied_softmax.tied_softmax_loss.__defaults__ = (4096,)


def _no_kept_exponentials() -> None:
    minilstm.tied_softmax.KEPT_BYTES = 0
    _nothing_borrowed()


def _nothing_borrowed() -> None:
    minilstm.tied_softmax.TiedSoftmaxLoss.borrow_grad_memory = lambda self, index: None  # type: ignore[method-assign]


def _no_panels() -> None:
    minilstm.lstm_kernels._num_splits = lambda depth, rows: None


def _nothing_beside_the_loop() -> None:
    minilstm.lstm.cut = lambda T, share, parts: [slice(0, T)]


def _nothing_deferred() -> None:
    autograd.function.num_threads = lambda: 1  # which alone decides whether work is left to others


def _all_units() -> None:
    minilstm.lstm.unit_parts = lambda x, B, H: [slice(0, H)]


def _whole_arrays() -> None:
    train.optimizers.PIECE = 1 << 40


LEVERS = {
    "narrow blocks": Lever("blocks of 512 words instead of 4,096: they stay in the cache", _wide_blocks),
    "kept exponentials": Lever("128 MB of them kept for the backward pass", _no_kept_exponentials),
    "borrowed memory": Lever("more of them in the memory of the gradient of W", _nothing_borrowed),
    "panels": Lever("the recurrent product in panels that BLAS reads where they lie", _no_panels),
    "overlap": Lever(
        "products of one half of the steps beside the loop of the other", _nothing_beside_the_loop
    ),
    "deferred": Lever("gradients of the decoder on cores that the LSTMs leave idle", _nothing_deferred),
    "units on threads": Lever("some units of a layer on each thread through all steps", _all_units),
    "pieces": Lever("Adam in pieces that stay in the cache", _whole_arrays),
}


def measure(size: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Answers of a step with all levers, "all", and without each of them."""
    names = ["all", *LEVERS]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        children = {}
        for name in names:
            without = [] if name == "all" else ["--without", name]
            arguments = ["ours", size, *without]
            children[name] = stack.enter_context(Child(name, "benchmarks.training_step_worker", arguments))
        with progress(WARM_UP + rounds, "levers", "rounds") as bar:
            for round_number in range(WARM_UP + rounds):
                for name, child in children.items():
                    time.sleep(PAUSE)
                    answer = child.ask("step")
                    answers[name] += [answer] if round_number >= WARM_UP else []
                bar.update(1)
    return answers


def summarize(answers: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The figures that the module describes, by lever."""
    seconds = {name: median(answer["seconds"] for answer in found) for name, found in answers.items()}
    return {
        name: {
            "seconds": seconds[name],
            "gain": seconds[name] / seconds["all"],
            "loss_difference": abs(found[0]["loss"] - answers["all"][0]["loss"]),
        }
        for name, found in answers.items()
    }


def table(size: str, rows: dict[str, dict[str, float]]) -> str:
    """The figures for people."""
    lines = [
        f"{size}: {SIZES[size]}, a step {rows['all']['seconds']:.4f} s",
        f"{'':20}{'s without':>10}{'gain':>7}",
    ]
    for name, lever in LEVERS.items():
        lines.append(f"{name:20}{rows[name]['seconds']:10.4f}{rows[name]['gain']:7.2f}  {lever.what}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    if options.rounds < 1:
        raise InputError(f"--rounds: expected at least 1, got {options.rounds}")
    rows = summarize(measure(options.size, options.rounds))
    result = {"size": options.size, "levers": rows, "environment": environment()}
    report(options, result, table(options.size, rows))
    apart = [name for name, row in rows.items() if not row["loss_difference"] <= LOSS_TOLERANCE]
    if apart:
        raise SystemExit(f"error: the loss is another without {', '.join(apart)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.levers", __doc__)
    add_size_flag(parser)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: 7")
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
