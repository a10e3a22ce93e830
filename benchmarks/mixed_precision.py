"""What float16 does to gradients, and what it costs on a CPU: `python -m benchmarks.mixed_precision`.

A small model is trained for a while in float32. Of one more window its gradients are computed in float64,
from the weights rounded to float16, and in float16 with one scale of the loss after another: too small a scale
rounds them to zero, too large a one overflows. The error is that of a single gradient, |found - exact| / |exact|
or 1 at most, its mean over all of them: an optimizer that divides by each one's own size, as Adam does, makes
much of small ones too.

Then steps of both precisions are timed in turns, in seconds of processor time, which do not count what else
the machine does. --plot draws the gradients' sizes and their error by scale.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser, run
from autograd.errors import InputError
from benchmarks.sizes import zipf_ids
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.mixed_precision import Backoff
from train.optimizers import Adam
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
    """Sizes of the gradients above what float16 holds of them, and their error by scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.5), layout="constrained")
    sizes, errors = figure.subplots(2, 1)
    log2 = np.log2(np.abs(exact[exact != 0]))
    bins = np.arange(np.floor(log2.min()), 18)
    for shift, colour, label in ((0, "#0072B2", "as they are"), (14, "#D55E00", "times 2^14")):
        lost = np.mean(log2 + shift <= np.log2(LOST))
        sizes.hist(
            log2 + shift, bins=bins, histtype="step", linewidth=1.6, color=colour,
            label=f"{label}: {lost:.1%} round to zero", weights=np.full(log2.size, 100 / log2.size),
        )  # fmt: skip
    for edge in (np.log2(LOST), np.log2(LARGEST)):
        sizes.axvline(edge, color="#5f6368", linestyle=":", linewidth=1)
    sizes.axvspan(np.log2(LOST), np.log2(LARGEST), color="#5f6368", alpha=0.08)
    sizes.set(xlim=(bins[0], bins[-1]), xlabel="log2 of the gradient's size; grey: what float16 holds")
    sizes.set(ylabel="% of the gradients, by powers of two")
    sizes.set_title("Gradients of a small language model, without and with a scaled loss", loc="left")
    sizes.legend(frameon=False, loc="upper left")
    drawn = [row for row in rows if row["relative_error"] is not None]
    exponents = [row["scale_exponent"] for row in drawn]
    errors.plot(
        exponents, [row["relative_error"] for row in drawn], color="#009E73", marker="o", markersize=5
    )
    overflows = [row["scale_exponent"] for row in rows if row["relative_error"] is None]
    if overflows:
        errors.axvspan(overflows[0] - 1, EXPONENTS[-1], color="#D55E00", alpha=0.12)
        errors.text(
            overflows[0] - 0.7, 0.5, "overflow: the step is skipped", transform=errors.get_xaxis_transform()
        )
    errors.set(yscale="log", xlim=(EXPONENTS[0], EXPONENTS[-1]), xlabel="log2 of the loss scale")
    errors.set(ylabel="mean relative error of a gradient")
    errors.set_title(
        "Its error in float16: too small a scale rounds to zero, too large a one overflows", loc="left"
    )
    for axes in (sizes, errors):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = Parser.documented("python -m benchmarks.mixed_precision", __doc__)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=100, help="of training before (default 100)"
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=9, help="timed steps of each precision")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the picture")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    args = parser.parse_args(argv)
    if args.steps < 0 or args.repeats < 1:
        raise InputError(f"--steps must be at least 0 and --repeats 1; got {args.steps} and {args.repeats}")
    if args.plot and not (args.plot.suffix == ".png" and args.plot.absolute().parent.is_dir()):
        raise InputError(f"--plot: expected a name ending in .png in a folder that exists; got {args.plot}")
    step = make_step(LanguageModel(CONFIG), mixed=False)
    for number in range(args.steps):
        make(step, number)
    exact, rows = gradient_errors(step.model)
    seconds = step_seconds(args.repeats)
    if args.plot:
        draw(exact, rows, args.plot)
    ratio = seconds["mixed"] / seconds["float32"]
    if args.json:
        print(json.dumps({"gradients": rows, "step_cpu_seconds": seconds, "mixed_over_float32": ratio}))
        return 0
    print("loss scale   mean relative error        rounded to zero")
    for row in rows:
        error, lost = row["relative_error"], row["rounded_to_zero"]
        told = "overflow" if error is None else f"{error:<26.4f} {lost:.2%}"
        print(f"2^{row['scale_exponent']:<10} {told}")
    print(
        f"a step takes {seconds['float32']:.3f} s of processor time in float32, {seconds['mixed']:.3f} s in "
        f"mixed precision: {ratio:.1f} times as much"
    )
    return 0


if __name__ == "__main__":
    run(main)
