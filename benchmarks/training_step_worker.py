"""One side of `benchmarks.training_step`; it starts this module in a process of its own."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd.parallel import num_threads
from benchmarks.child import peak_rss_mb, serve
from benchmarks.floor import elementwise_timer, floor_timer
from benchmarks.levers import LEVERS
from benchmarks.sizes import Size, size_of, zipf_windows
from benchmarks.systems import make_system
from train.config import TrainConfig

SEED = 1
GEMM_SIZE = 2048
GEMM_REPEATS = 3
BARE = {"floor": floor_timer, "others": elementwise_timer}
"""Parts of a step that are timed alone."""


def step_timer(name: str, size: Size) -> Callable[[], dict[str, Any]]:
    """A function that makes one training step and returns its seconds and loss; each takes a new window."""
    train = TrainConfig(learning_rate=1e-3, clip_norm=0.25)
    system = make_system(name, size.model_config(), train, SEED, one_bias=True)
    windows = zipf_windows(size, SEED)

    def step() -> dict[str, Any]:
        inputs, targets = next(windows)
        start = time.perf_counter()
        loss = system.step(inputs, targets)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    return step


def gemm_timer() -> Callable[[], dict[str, Any]]:
    """A function that multiplies two large float32 matrices; the fastest of a few tries, in seconds."""
    rng = np.random.default_rng(SEED)
    x, y = (rng.random((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(2))
    out = np.empty_like(x)

    def multiply() -> dict[str, Any]:
        seconds = []
        for _ in range(GEMM_REPEATS):
            start = time.perf_counter()
            np.matmul(x, y, out=out)
            seconds.append(time.perf_counter() - start)
        return {"seconds": min(seconds)}

    return multiply


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step_worker")
    parser.add_argument("system", choices=("ours", "torch", "floor", "others", "gemm"))
    parser.add_argument("--without", choices=LEVERS, help="a lever of speed that is switched off")
    parser.add_argument("size", type=size_of)
    options = parser.parse_args()
    size = options.size
    if options.without:
        LEVERS[options.without].switch_off()
    if options.system == "gemm":
        step = gemm_timer()
    elif options.system in BARE:
        compute = BARE[options.system](size)
        step = lambda: {"seconds": compute()}  # noqa: E731
    else:
        step = step_timer(options.system, size)
    serve({"step": step, "finish": lambda: {"peak_rss_mb": peak_rss_mb(), "threads": num_threads()}})
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
