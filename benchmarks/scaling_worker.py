"""One rank of `benchmarks.scaling`, which starts this module under mpirun; the root prints JSON."""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np

from autograd.parallel import num_threads
from autograd.profile import profile
from benchmarks.sizes import SIZES, Size, zipf_windows
from benchmarks.systems import OurSystem
from train.communicator import Communicator, get_communicator
from train.config import TrainConfig

WARM_UP = 2
SHORT, LONG = 16, 4 << 20
"""Numbers in the messages that α and β are read off."""


def time_steps(size: Size, rows: int, steps: int, communicator: Communicator) -> dict[str, float]:
    """Medians of a step's seconds, and of what the allreduce takes of it, on this rank."""
    train = TrainConfig(learning_rate=1e-3, clip_norm=0.25)
    system = OurSystem(size.model_config(), train, 1, communicator)
    windows = zipf_windows(size, seed=communicator.rank)
    seconds, waiting = [], []
    for _ in range(WARM_UP + steps):
        inputs, targets = next(windows)
        communicator.barrier()
        start = time.perf_counter()
        with profile() as recorded:
            system.step(inputs[:, :rows], targets[:, :rows])
        seconds.append(time.perf_counter() - start)
        waiting.append(sum(span.seconds for span in recorded.spans if span.name == "allreduce"))
    return {
        "seconds": median(seconds[WARM_UP:]),
        "allreduce_seconds": median(waiting[WARM_UP:]),
        "gradient_bytes": system.model.flat_gradients.nbytes,
    }


def time_allreduce(length: int, repeats: int, communicator: Communicator) -> float:
    """Seconds of the allreduce of so many float32 on each rank: the median of `repeats`."""
    array = np.ones(length, np.float32)
    seconds = []
    for _ in range(repeats):
        communicator.barrier()
        start = time.perf_counter()
        communicator.allreduce_mean_(array)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_worker")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("rows", type=int)
    parser.add_argument("steps", type=int)
    options = parser.parse_args()
    communicator = get_communicator()
    found = time_steps(SIZES[options.size], options.rows, options.steps, communicator)
    short = time_allreduce(SHORT, 20, communicator)
    long = time_allreduce(LONG, 5, communicator)
    # The slowest rank's: all wait for it.
    slowest = {name: max(values) for name, values in _of_all_ranks(found, communicator).items()}
    if communicator.is_root:
        print(json.dumps({**slowest, "short": short, "long": long, "threads": num_threads()}), flush=True)
    return 0


def _of_all_ranks(found: dict[str, float], communicator: Communicator) -> dict[str, list[float]]:
    """On the root each figure of every rank; elsewhere this one's alone."""
    own = np.array([list(found.values())], np.float64)
    gathered = communicator.gather_rows(own)
    columns = (own if gathered is None else gathered).T.tolist()
    return dict(zip(found, columns, strict=True))


if __name__ == "__main__":
    from train.commands import run

    run(main)
