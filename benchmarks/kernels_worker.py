"""One side of `benchmarks.kernels`; it starts this module in a process of its own."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import Variable
from benchmarks.child import serve
from benchmarks.kernel_cases import Case, make_cases, output_gradient
from benchmarks.training_step_worker import gemm_timer

COPIED = 64 << 20
"""Bytes of the copy that tells how fast memory is: more than a cache holds."""


def prepare(name: str, case: Case) -> Callable[[], tuple[Any, list[Any]]]:
    """A function that goes forward and backward, and gives output and gradients."""
    inputs = [Variable(array, requires_grad=True) for array in case.inputs.values()]
    dy = output_gradient(case.ours(*inputs, *case.constants.values()).shape)

    def run() -> tuple[Any, list[Any]]:
        for variable in inputs:
            variable.zero_grad()
        y = case.ours(*inputs, *case.constants.values())
        y.backward(dy)
        return y.data, [variable.grad for variable in inputs]

    return run


def timer(run: Callable[[], tuple[Any, list[Any]]]) -> Callable[[], dict[str, Any]]:
    """A function that runs a case once more: seconds, and sums by which two sides can be compared."""

    def time_once() -> dict[str, Any]:
        start = time.perf_counter()
        y, gradients = run()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "norms": [_norm(array) for array in (y, *gradients)]}

    return time_once


def _norm(array: Any) -> float:
    flat = np.asarray(array, np.float64).reshape(-1)
    return float(np.sqrt(flat @ flat))


def copy_timer() -> Callable[[], dict[str, Any]]:
    """A function that copies an array, and tells the bytes a second that were read and written."""
    source, target = np.ones(COPIED // 4, np.float32), np.empty(COPIED // 4, np.float32)

    def copy() -> dict[str, Any]:
        start = time.perf_counter()
        np.copyto(target, source)
        return {"bytes_per_second": 2 * COPIED / (time.perf_counter() - start)}

    return copy


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels_worker")
    parser.add_argument("system", choices=("ours", "torch"))
    parser.add_argument("scale", type=float)
    options = parser.parse_args()
    cases = make_cases(options.scale)
    if options.system == "torch":
        from benchmarks import torch_kernels

        side = torch_kernels.prepare
    else:
        side = prepare

    @functools.cache
    def order(name: str) -> Callable[[], dict[str, Any]]:
        run = side(name, cases[name])
        return (lambda: {"seconds": None}) if run is None else timer(run)

    orders = {name: (lambda name=name: order(name)()) for name in cases}
    serve({**orders, "gemm": gemm_timer(), "copy": copy_timer()})
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
