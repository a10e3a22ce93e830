"""What float16 does to gradients, and what it costs on a CPU: `python -m benchmarks.mixed_precision`.

A small model is trained for a while in float32. Of one more window its gradients are computed in float64,
from the weights rounded to float16, and in float16 with one scale of the loss after another: too small a
scale rounds them to zero, too large a one overflows. The error is that of a single gradient,
|found - exact| / |exact| or 1 at most, its mean over all of them: an optimizer that divides by each one's own
size, as Adam does, makes much of small ones too.

Then steps of both precisions are timed in turns, in seconds of processor time, which do not count what else
the machine does. --plot draws the gradients' sizes and their error by scale.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser, run
from autograd.errors import InputError
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import zipf_ids
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.environment import environment
from train.files import atomic_write
from train.mixed_precision import Backoff
from train.optimizers import Adam
from train.plot import COLOURS, styled_figure
from train.step import TrainingStep

CONFIG = ModelConfig(vocab_size=5000, embedding_size=64, hidden_size=96, num_layers=2)
BATCH_SIZE, WINDOW = 20, 35
EXPONENTS = range(-6, 31, 2)
"""Scales of the loss that are tried, as powers of two."""
LOST, LARGEST = 2.0**-25, 65_504.0
"""float16 rounds to zero what is not above the one, and ends at the other."""


def window(number: int) -> np.ndarray:
    """Ids (T + 1, B) by a law close to that of words."""
    return zipf_ids(np.random.default_rng(number), (WINDOW + 1, BATCH_SIZE), CONFIG.vocab_size)


def make_step(model: LanguageModel, mixed: bool) -> TrainingStep:
    optimizer = Adam(model.flat_parameters, 2e-3)
    return TrainingStep(model, optimizer, SingleProcess(), 0.25, scaler=Backoff() if mixed else None)


def make(step: TrainingStep, number: int) -> None:
    text = window(number)
    step(text[:-1], text[1:], None, MaskStream(0, number), 2e-3)


@np.errstate(all="ignore")
def gradients(model: LanguageModel, dtype: Any, scale: float = 1.0) -> np.ndarray:
    """d(loss)/d(weights) in float64, computed in `dtype` with a scaled loss."""
    copy, text = model.copy(dtype), window(2**31)
    (copy.objective(text[:-1], text[1:]).objective * scale).backward()
    return copy.flat_gradients.astype(np.float64) / scale


def gradient_errors(model: LanguageModel) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The exact gradients; for each scale what became of them in float16."""
    half = model.copy(np.float16)  # the rounding of the weights is not the gradients' fault
    exact, rows = gradients(half, np.float64), []
    for exponent in EXPONENTS:
        found = gradients(half, np.float16, 2.0**exponent)
        finite = bool(np.isfinite(found).all())
        there = exact != 0
        error = np.minimum(np.abs(found[there] / exact[there] - 1), 1)
        row = {"scale_exponent": exponent, "relative_error": float(error.mean()) if finite else None}
        rows.append({**row, "rounded_to_zero": float(np.mean(found[there] == 0)) if finite else None})
    return exact, rows


def step_seconds(repeats: int) -> dict[str, float]:
    """Processor seconds of one step of each precision, medians; measured in turns."""
    steps = {name: make_step(LanguageModel(CONFIG), name == "mixed") for name in ("float32", "mixed")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            begin = time.process_time()
            make(step, number)
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def draw(exact: np.ndarray, rows: list[dict[str, Any]], path: Path) -> None:
    """Sizes of the gradients over what float16 holds of them, and their error by scale."""
    with styled_figure(9, 7.5) as figure:
        sizes, errors = figure.subplots(2, 1)
        _draw_sizes(sizes, np.log2(np.abs(exact[exact != 0])))
        _draw_errors(errors, rows)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _draw_sizes(axes: Any, log2: np.ndarray) -> None:
    bins = np.arange(np.floor(log2.min()), 18)
    for shift, colour, label in ((0, COLOURS[0], "as they are"), (14, COLOURS[1], "times 2^14")):
        lost = np.mean(log2 + shift <= np.log2(LOST))
        axes.hist(
            log2 + shift,
            bins=bins,
            histtype="step",
            linewidth=1.6,
            color=colour,
            label=f"{label}: {lost:.2%} round to zero",
            weights=np.full(log2.size, 100 / log2.size),
        )
    axes.axvspan(np.log2(LOST), np.log2(LARGEST), color="k", alpha=0.06)
    axes.set(xlim=(bins[0], bins[-1]), xlabel="log2 of a gradient's size; grey: what float16 holds")
    axes.set(ylabel="% of the gradients, by powers of two")
    axes.set_title("Gradients of a small language model, without and with a scaled loss", loc="left")
    axes.legend(loc="upper left")


def _draw_errors(axes: Any, rows: list[dict[str, Any]]) -> None:
    drawn = [row for row in rows if row["relative_error"] is not None]
    exponents = [row["scale_exponent"] for row in drawn]
    axes.semilogy(exponents, [row["relative_error"] for row in drawn], "o-", color=COLOURS[2])
    if len(drawn) < len(rows):
        axes.axvspan(exponents[-1] + 1, EXPONENTS[-1], color=COLOURS[1], alpha=0.15)
        axes.text(exponents[-1] + 1.3, drawn[0]["relative_error"], "overflow:\nno update", va="top")
    axes.set_xticks(EXPONENTS)
    axes.set(xlim=(EXPONENTS[0] - 0.3, EXPONENTS[-1]), xlabel="log2 of the loss scale")
    axes.set(ylabel="mean relative error of a gradient")
    axes.set_title("Their error in float16, by scale", loc="left")


def table(rows: list[dict[str, Any]], seconds: dict[str, float]) -> str:
    """The figures for people."""
    lines = ["loss scale   mean relative error   rounded to zero"]
    for row in rows:
        error, lost = row["relative_error"], row["rounded_to_zero"]
        told = "overflow" if error is None else f"{error:<21.4f} {lost:.2%}"
        lines.append(f"2^{row['scale_exponent']:<10} {told}")
    ratio = seconds["mixed"] / seconds["float32"]
    lines.append(
        f"processor time of a step: float32 {seconds['float32']:.3f} s, mixed {seconds['mixed']:.3f} s"
    )
    return "\n".join([*lines, f"mixed precision on this processor takes {ratio:.1f} times as long"])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    if options.steps < 0 or options.repeats < 1:
        raise InputError(
            f"--steps must be at least 0, --repeats at least 1; got {options.steps}, {options.repeats}"
        )
    step = make_step(LanguageModel(CONFIG), mixed=False)
    for number in range(options.steps):
        make(step, number)
    exact, rows = gradient_errors(step.model)
    seconds = step_seconds(options.repeats)
    if options.plot:
        draw(exact, rows, options.plot)
    result = {"gradients": rows, "step_processor_seconds": seconds, "environment": environment()}
    report(options, result, table(rows, seconds))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.mixed_precision", __doc__)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=100, help="of training before (default: 100)"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=9, help="timed steps of each (default: 9)"
    )
    add_report_flags(parser, plot=True)
    return parser


if __name__ == "__main__":
    run(main)
