"""Scoring a text against PyTorch: python -m benchmarks.evaluation --against torch

Both score the same words with the same weights, the state carried from window to window, and must come to the
same loss to 1e-4. Ours is `train.evaluate`; PyTorch reads one stream under no_grad, 256 steps at a time.

  tokens_per_second   scored, medians of the rounds: ours, and torch's
  speedup             ours / torch's
  loss_difference     of the mean losses, in nats
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.child import PAUSE, Child, serve
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import add_size_flag, size_of, zipf_ids
from benchmarks.systems import LOSS_TOLERANCE, make_system, require_torch
from train.config import TrainConfig
from train.environment import environment

SEED = 1
EOS = 0
TOKENS = 245_569
"""As many as the test split of WikiText-2 has."""
FIRST_TOKENS = 4096
"""Scored before anything is measured: memory is there then, and threads are."""


def scorers(name: str, size: str, tokens: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Functions that score the text, or its beginning, once: seconds and mean loss."""
    config = size_of(size).model_config()
    system = make_system(name, config, TrainConfig(), SEED)
    text = zipf_ids(np.random.default_rng(SEED), (tokens,), config.vocab_size)

    def score(words: np.ndarray) -> dict[str, Any]:
        start = time.perf_counter()
        loss = system.score(words, EOS)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    return {"begin": lambda: score(text[:FIRST_TOKENS]), "score": lambda: score(text)}


def measure(size: str, tokens: int, rounds: int, sides: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What each side answered, round by round."""
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    children = {
        side: Child(
            side, "benchmarks.evaluation", ["--worker", side, "--size", size, "--tokens", str(tokens)]
        )
        for side in sides
    }
    try:
        for child in children.values():
            child.ask("begin")
        for _ in range(rounds):
            for side, child in children.items():
                time.sleep(PAUSE)
                answers[side].append(child.ask("score"))
    finally:
        for child in children.values():
            child.__exit__()
    return answers


def summarize(size: str, tokens: int, answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures that the module describes."""
    speed = {side: tokens / median(answer["seconds"] for answer in found) for side, found in answers.items()}
    losses = [found[0]["loss"] for found in answers.values()]
    both = "torch" in speed
    return {
        "size": size,
        "tokens": tokens,
        "ours": speed["ours"],
        "torch": speed.get("torch"),
        "speedup": speed["ours"] / speed["torch"] if both else None,
        "loss_difference": abs(losses[0] - losses[1]) if both else None,
    }


def table(result: dict[str, Any]) -> str:
    """One line for people."""
    line = f"{result['size']}: {result['ours']:,.0f} tokens/s"
    if result["torch"]:
        line += (
            f", {result['speedup']:.2f}× PyTorch's {result['torch']:,.0f}; "
            f"losses differ by {result['loss_difference']:.1e}"
        )
    return line


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.worker:
        serve(scorers(options.worker, options.size, options.tokens))
        return 0
    check_report_flags(options)
    for name in ("tokens", "rounds"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.against == "torch":
        require_torch()
    sides = ["ours", "torch"] if options.against == "torch" else ["ours"]
    result = summarize(
        options.size, options.tokens, measure(options.size, options.tokens, options.rounds, sides)
    )
    report(options, {**result, "environment": environment()}, table(result))
    if result["torch"] and not result["loss_difference"] <= LOSS_TOLERANCE:
        raise SystemExit(f"error: the losses differ by {result['loss_difference']:.2e} nats")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.evaluation", __doc__)
    add_size_flag(parser)
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"default: {TOKENS:,}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--against", choices=("torch", "none"), default="none", help="default: none")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
