"""One whole training step against PyTorch's: python -m benchmarks.training_step --size wt2 --against torch

A step is forward, backward, clipping by the global norm and Adam. PyTorch's side is eager: nn.Embedding, a
stack of nn.LSTM, a tied nn.Linear, cross_entropy, clip_grad_norm_, torch.optim.Adam as it comes. Both start
from the same weights (nn.LSTM's second bias is held at zero) and see the same windows of Zipf-like words, the
state carried from one to the next. The losses of the first five steps must agree to 1e-4, else the benchmark
fails: that holds only if forward pass, gradients, clipping and Adam all do.

Each side, the bare products of the step and the one large product that tells what the machine can do live in
processes of their own, so that peak memory is that of one system; they are stepped in turns, so that a busy
neighbour slows all of them.

The JSON object has these fields, its figures being medians over the steps:

  size                what was measured: small, wt2 or wt103
  ours, torch         {seconds, tokens_per_second, gflops, peak_rss_mb} of one step, and its spread,
                      fastest_seconds, slowest_seconds; torch is null without it
    seconds             of one step
    tokens_per_second   targets trained on: T·B / seconds
    gflops              6·(V·E + Σ 4·H_out·(H_in + H_out))·T·B / seconds / 10⁹
    peak_rss_mb         largest resident memory of the whole process, libraries included, in 10⁶ bytes
  speedup             torch's seconds / ours
  memory_ratio        our peak_rss_mb / torch's
  loss_difference     largest difference between two losses of the same step, among the first five, in nats
  floor               {seconds, gflops} of the step's matrix products in NumPy and nothing else
  floor_ratio         our seconds / the floor's
  others              {seconds} of what is not a product: exp of every logit and tanh of every gate by
                      NumPy, the norm and Adam, on all threads and nothing else
  gemm_peak_gflops    of a 2048 × 2048 float32 product by NumPy, on all threads, in the same run
  peak_fraction       our gflops / gemm_peak_gflops
  bare_speedup        torch's seconds / those of floor and others together
  speedup_limit       the same with the floor's flops at that rate
  environment         commit, versions, machine
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.child import PAUSE, WARM_UP, Child
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import SIZES, Size, add_size_flag
from benchmarks.systems import LOSS_TOLERANCE, require_torch
from benchmarks.training_step_worker import GEMM_SIZE
from train.environment import environment

COMPARED_STEPS = 5
"""Steps whose losses are compared: each update makes the rounding differences before it larger."""


@dataclass
class Samples:
    """What one side answered, step by step."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_rss_mb: float = 0.0
    threads: int = 0


def measure(size_name: str, against: str, steps: int, threads: int | None) -> dict[str, Samples]:
    """Step all sides in turns, `steps` times after the warm-up; losses of the warm-up are kept too."""
    names = ["ours", *([against] if against != "none" else []), "floor", "others", "gemm"]
    samples = {name: Samples() for name in names}
    with ExitStack() as stack:
        children = {}
        for name in names:
            child = Child(name, "benchmarks.training_step_worker", [name, size_name], threads)
            children[name] = stack.enter_context(child)
        for round_number in range(WARM_UP + steps):
            for name, child in children.items():
                time.sleep(PAUSE)
                answer = child.ask("step")
                samples[name].losses += [answer["loss"]] if "loss" in answer else []
                samples[name].seconds += [answer["seconds"]] if round_number >= WARM_UP else []
        for name, child in children.items():
            answer = child.ask("finish")
            samples[name].peak_rss_mb, samples[name].threads = answer["peak_rss_mb"], answer["threads"]
    return samples


def summarize(size_name: str, samples: dict[str, Samples]) -> dict[str, Any]:
    """The JSON object that the module describes."""
    size, ours, torch = SIZES[size_name], samples["ours"], samples.get("torch")
    gemm_peak_gflops = 2 * GEMM_SIZE**3 / median(samples["gemm"].seconds) / 1e9
    figures = _figures(ours, size)
    floor = {name: _figures(samples["floor"], size)[name] for name in ("seconds", "gflops")}
    others = median(samples["others"].seconds)
    least = size.flops / gemm_peak_gflops / 1e9 + others
    return {
        "size": size_name,
        "ours": figures,
        "torch": _figures(torch, size) if torch else None,
        "speedup": median(torch.seconds) / median(ours.seconds) if torch else None,
        "memory_ratio": ours.peak_rss_mb / torch.peak_rss_mb if torch else None,
        "loss_difference": _loss_difference(ours, torch) if torch else None,
        "floor": floor,
        "floor_ratio": figures["seconds"] / floor["seconds"],
        "others": {"seconds": others},
        "gemm_peak_gflops": gemm_peak_gflops,
        "peak_fraction": figures["gflops"] / gemm_peak_gflops,
        "bare_speedup": median(torch.seconds) / (floor["seconds"] + others) if torch else None,
        "speedup_limit": median(torch.seconds) / least if torch else None,
    }


def _figures(samples: Samples, size: Size) -> dict[str, float]:
    seconds = median(samples.seconds)
    return {
        "seconds": seconds,
        "fastest_seconds": min(samples.seconds),
        "slowest_seconds": max(samples.seconds),
        "tokens_per_second": size.tokens / seconds,
        "gflops": size.flops / seconds / 1e9,
        "peak_rss_mb": samples.peak_rss_mb,
    }


def _loss_difference(ours: Samples, torch: Samples) -> float:
    pairs = zip(ours.losses[:COMPARED_STEPS], torch.losses[:COMPARED_STEPS], strict=True)
    differences = [abs(a - b) for a, b in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)  # max alone may miss a nan


def table(result: dict[str, Any], samples: dict[str, Samples]) -> str:
    """The same for people, with the fastest and the slowest step."""
    lines = [
        f"{result['size']}: {SIZES[result['size']]}, {len(samples['ours'].seconds)} steps, "
        f"{samples['ours'].threads} threads",
        f"{'':6}{'seconds':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'peak MB':>9}",
    ]
    for name, side in samples.items():
        times = f"{median(side.seconds):9.4f}{min(side.seconds):9.4f}{max(side.seconds):9.4f}"
        figures = result.get(name, {"gflops": result["gemm_peak_gflops"]})
        speed = f"{figures['tokens_per_second']:10,.0f}" if "tokens_per_second" in figures else " " * 10
        rate = f"{figures['gflops']:9.1f}" if "gflops" in figures else " " * 9
        lines.append(f"{name:6}{times}{speed}{rate}{side.peak_rss_mb:9,.0f}")
    summary = (
        f"{result['floor_ratio']:.2f}× the time of its bare products, "
        f"{result['peak_fraction']:.0%} of the GEMM peak"
    )
    if result["torch"]:
        summary = (
            f"{result['speedup']:.2f}× PyTorch's speed in {result['memory_ratio']:.2f}× its memory, "
            f"{summary};\n"
            f"floor and others alone are at {result['bare_speedup']:.2f}× PyTorch's speed, with the floor at "
            f"the peak at {result['speedup_limit']:.2f}×;\n"
            f"losses differ by {result['loss_difference']:.1e} at most"
        )
    return "\n".join([*lines, summary])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    for name in ("steps", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected at least 1, got {value}")
    check_report_flags(options)
    if options.against == "torch":
        require_torch()
    steps = options.steps or SIZES[options.size].steps
    samples = measure(options.size, options.against, steps, options.threads)
    result = summarize(options.size, samples)
    report(options, {**result, "environment": environment()}, table(result, samples))
    difference = result["loss_difference"]
    if difference is not None and not difference <= LOSS_TOLERANCE:
        raise SystemExit(
            f"error: the losses of one step differ by {difference:.2e} nats, more than {LOSS_TOLERANCE:.0e}: "
            "the two sides do not compute the same"
        )
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.training_step", __doc__)
    add_size_flag(parser)
    parser.add_argument("--against", choices=("torch", "none"), default="none", help="default: none")
    parser.add_argument("--steps", type=int, metavar="N", help="timed steps of each side; default: by size")
    parser.add_argument("--threads", type=int, metavar="N", help="of each side; default: one a core")
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
