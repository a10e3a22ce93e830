"""Each Function alone, forward and backward: python -m benchmarks.kernels --against torch

At the sizes of AWD-LSTM on WikiText-2 (T=70 B=20 E=400 H=1,150 V=33,278). The two sides live in processes of
their own and take turns; figures are medians. Norms of output and gradients must agree to 1e-3, else the
benchmark fails.

  seconds          of one forward and backward pass: ours, and torch's (none where PyTorch has no such thing)
  speedup          torch's / ours
  gflops, of_gemm  of the matrix products, and as a share of what a 2048 × 2048 product reaches in this run
  gbytes, of_copy  a second of the least traffic that the function needs, as a share of what a copy reaches
"""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.child import PAUSE, Child
from benchmarks.kernel_cases import Case, make_cases
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.systems import require_torch
from benchmarks.training_step_worker import GEMM_SIZE
from train.environment import environment
from train.log import progress

WARM_UP = 1
TOLERANCE = 1e-3
Answers = dict[str, list[dict[str, Any]]]


def measure(
    names: list[str], sides: list[str], rounds: int, scale: float
) -> tuple[dict[str, Answers], Answers]:
    """What each side answered to each case, round by round; and the machine's rates."""
    answers: dict[str, Answers] = {name: {side: [] for side in sides} for name in names}
    rates: Answers = {"gemm": [], "copy": []}
    children = {side: Child(side, "benchmarks.kernels_worker", [side, str(scale)]) for side in sides}
    try:
        with progress(rounds + WARM_UP, "kernels", "rounds") as bar:
            for round_number in range(WARM_UP + rounds):
                for name in names:
                    for side, child in children.items():
                        time.sleep(PAUSE)
                        answer = child.ask(name)
                        answers[name][side] += [answer] if round_number >= WARM_UP else []
                for rate, found in rates.items():
                    time.sleep(PAUSE)
                    found.append(children["ours"].ask(rate))
                bar.update(1)
    finally:
        for child in children.values():
            child.__exit__()
    return answers, rates


def summarize(case: Case, answers: Answers, gemm: float, copy: float) -> dict[str, Any]:
    """One row of figures; `gemm` in flops a second, `copy` in bytes a second."""
    seconds = median(answer["seconds"] for answer in answers["ours"])
    others = [answer["seconds"] for answer in answers.get("torch", []) if answer["seconds"] is not None]
    torch = median(others) if others else None
    return {
        "ours": seconds,
        "torch": torch,
        "speedup": torch / seconds if torch else None,
        "gflops": case.flops / seconds / 1e9,
        "of_gemm": case.flops / seconds / gemm,
        "gbytes": case.num_bytes / seconds / 1e9,
        "of_copy": case.num_bytes / seconds / copy,
        "difference": _difference(answers) if torch else None,
    }


def _difference(answers: Answers) -> float:
    """Largest relative difference between two norms."""
    pairs = zip(answers["ours"][0]["norms"], answers["torch"][0]["norms"], strict=True)
    differences = [abs(ours - torch) / max(abs(torch), 1e-12) for ours, torch in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def table(rows: dict[str, dict[str, Any]], gemm: float, copy: float) -> str:
    """The figures for people."""
    lines = [
        f"GEMM {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s",
        f"{'':34}{'ours ms':>9}{'torch ms':>10}{'speedup':>9}"
        f"{'GFLOP/s':>9}{'of GEMM':>9}{'GB/s':>7}{'of copy':>9}",
    ]
    for name, row in rows.items():
        torch = f"{1e3 * row['torch']:10.2f}{row['speedup']:9.2f}" if row["torch"] else f"{'':19}"
        flops = f"{row['gflops']:9.1f}{row['of_gemm']:9.0%}" if row["gflops"] else f"{'':18}"
        lines.append(
            f"{name:34}{1e3 * row['ours']:9.2f}{torch}{flops}{row['gbytes']:7.1f}{row['of_copy']:9.0%}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    if options.rounds < 1:
        raise InputError(f"--rounds: expected at least 1, got {options.rounds}")
    if not 0 < options.scale <= 1:
        raise InputError(f"--scale: expected a number in (0, 1], got {options.scale}")
    sides = ["ours"]
    if options.against == "torch":
        require_torch()
        sides.append("torch")
    cases = make_cases(options.scale)
    answers, rates = measure(list(cases), sides, options.rounds, options.scale)
    gemm = 2 * GEMM_SIZE**3 / median(answer["seconds"] for answer in rates["gemm"])
    copy = median(answer["bytes_per_second"] for answer in rates["copy"])
    rows = {name: summarize(case, answers[name], gemm, copy) for name, case in cases.items()}
    result = {"gemm_flops": gemm, "copy_bytes": copy, "kernels": rows, "environment": environment()}
    report(options, result, table(rows, gemm, copy))
    apart = [name for name, row in rows.items() if row["torch"] and not row["difference"] <= TOLERANCE]
    if apart:
        raise SystemExit(f"error: the two sides do not compute the same: {', '.join(apart)}")
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.kernels", __doc__)
    parser.add_argument("--against", choices=("torch", "none"), default="none", help="default: none")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="S", help="of the sizes; under 1 to try the benchmark out"
    )
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
