"""Train for an hour under kills and watch the memory: `python -m benchmarks.soak --minutes 60`.

A run of `train.wt103` on two ranks. In the first two thirds of the time it is killed and resumed again and
again (SIGKILL, SIGTERM and SIGINT by turns, 50 of them in an hour); then it is left alone, and its memory is
read every second. What counts is how far each rank's resident memory moves after the first twelfth of the
whole time (5 minutes of an hour). Beside it, in the same conditions, trains a twin that nobody disturbs. When
the time is over both are led to the end of the validation that the twin, which is ahead, comes to next: the
twin by going on to it, the disturbed run by making up for its kills. There they are compared: weights,
optimizer, metrics and result to the bit.

The exit status is 1 when the memory moves by more than 2%, or anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autograd.command import Parser, run
from autograd.errors import InputError
from benchmarks.chaos import write_table
from benchmarks.faults import Run, rank_pids, send
from benchmarks.tiny import write_text
from train.checkpoint import load_checkpoint
from train.environment import environment
from train.files import versions
from train.log import progress
from train.run_folder import LATEST

MOST_GROWTH = 0.02
_KILLS_PER_MINUTE = 50 / 60
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_ENDLESS = 10**9  # steps; the clock ends it
_LEAST_WATCHED = 3.0  # seconds, however late the kills ended
# Steps between validations. The end is at one, where a run validates whether it goes on or not; and the twin
# must be stopped before the next one, which may change best.h5.
_EVERY = 1000
_KNOBS = {"log_every": 100, "save_every": 100, "evaluate_every": _EVERY, "keep_checkpoints": 5}
_BEGIN, _END = "<!-- made by benchmarks.soak: begin -->", "<!-- made by benchmarks.soak: end -->"


def soak(minutes: float, ranks: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run it, and its undisturbed twin beside it.

    Args:
        minutes: of the disturbed run; kills and the time that memory may take to settle are in proportion.
        ranks: how many, of each of the two.
        seed: of the moments.
        folder: where the runs are made.

    Returns:
        what `table` and the JSON file are made of.
    """
    text, where = folder / "text.txt", environment()
    write_text(text)
    soaked, twin = (Run(folder / name, text, ranks, _ENDLESS, **_KNOBS) for name in ("soaked", "twin"))
    kills = max(1, round(_KILLS_PER_MINUTE * minutes))
    with _running(twin) as undisturbed:
        _train_beyond(0, twin, undisturbed)  # it prepares the text, for both
        began = time.monotonic()
        _kill(soaked, kills, minutes * 60 * 2 / 3, random.Random(seed))
        seconds = max(_LEAST_WATCHED, minutes * 60 - (time.monotonic() - began))
        memory = _left_alone(soaked, seconds, settling=minutes * 60 / 12)
        end = (max(soaked.step_saved(), twin.step_reached()) // _EVERY + 1) * _EVERY
        _train_beyond(end, twin, undisturbed)
        _stop(twin, undisturbed)
    _go_back(twin, end)
    soaked.steps = twin.steps = end
    twin.finish()  # makes no step, but the test and the result that follow the last
    soaked.finish(patience=600 + 60 * minutes)
    return {
        "minutes": minutes,
        "ranks": ranks,
        "seed": seed,
        "kills": kills,
        "steps": soaked.steps,
        "memory_mb": memory,
        "growth": [_growth(series) for series in memory],
        "differences": soaked.differences(twin),
        "environment": where,
    }


@contextlib.contextmanager
def _running(run: Run) -> Iterator[subprocess.Popen]:
    """The run's process; it is ended, at the latest, with the block."""
    process = run.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(InputError):  # it did not end by itself, of course
                run.end(process, patience=0)


def _kill(soaked: Run, kills: int, seconds: float, rng: random.Random) -> None:
    """Start it and strike it so many times, once in each of as many parts of the time."""
    began = time.monotonic()
    with progress(kills, "killing", "kills") as display:
        for kill in range(kills):
            process = soaked.start()
            moment = began + seconds * (kill + rng.uniform(0.5, 1)) / kills
            time.sleep(max(0.0, moment - time.monotonic()))
            send(process, _SIGNALS[kill % len(_SIGNALS)], rng.choice(["one rank", "all ranks"]), rng)
            soaked.end(process)
            display.update()


def _train_beyond(step: int, run: Run, process: subprocess.Popen) -> None:
    """Wait until it has passed the step."""
    while run.step_reached() <= step:
        if process.poll() is not None:
            raise InputError(f"{run.folder.path}: ended: {run.end(process).stderr[-500:]}")
        time.sleep(0.1)


def _stop(run: Run, process: subprocess.Popen) -> None:
    """Have it save and stop."""
    process.send_signal(signal.SIGTERM)
    ended = run.end(process)
    if ended.status != 128 + signal.SIGTERM:
        raise InputError(f"{run.folder.path}: ended with status {ended.status}: {ended.stderr[-500:]}")


def _go_back(run: Run, step: int) -> None:
    """Make the checkpoint that it wrote at the step its latest."""
    latest = run.folder.checkpoint(LATEST)
    for path in versions(latest):
        if load_checkpoint(path)[1]["position"]["step"] == step:
            path.replace(latest)
            return
    raise InputError(f"{run.folder.path}: the checkpoint of step {step} is gone")


def _left_alone(soaked: Run, seconds: float, settling: float) -> list[list[float]]:
    """Let it train for so long; the resident memory in MB of each rank, second by second, once settled."""
    process = soaked.start()
    began, shown, memory = time.monotonic(), 0.0, []
    with progress(seconds, "watching the memory", "s") as display:
        while (gone := time.monotonic() - began) < seconds:
            display.update(gone - shown)
            shown = gone
            time.sleep(1)
            pids = rank_pids(process)
            if process.poll() is not None:
                raise InputError(f"{soaked.folder.path}: ended: {soaked.end(process).stderr[-500:]}")
            if gone > settling:
                memory.append([_resident_mb(pid) for _, pid in sorted(pids.items())])
    _stop(soaked, process)
    return [list(series) for series in zip(*memory, strict=True)]


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def _growth(series: list[float]) -> float:
    """How far memory moves, as a share of the least."""
    return max(series) / min(series) - 1


def faults_found(result: dict[str, Any]) -> list[str]:
    """What was not as it should be: empty after a good end."""
    grown = [
        f"rank {rank}: memory moved by {growth:.1%}"
        for rank, growth in enumerate(result["growth"])
        if growth > MOST_GROWTH
    ]
    return grown + [f"differs: {name}" for name in result["differences"]]


def table(result: dict[str, Any], command: str) -> str:
    """The soak in Markdown, for docs/reliability.md."""
    memory = ", ".join(
        f"rank {rank}: {min(series):.1f} to {max(series):.1f} MB"
        for rank, series in enumerate(result["memory_mb"])
    )
    rows = [
        ("length", f"{result['minutes']:g} minutes on {result['ranks']} ranks"),
        ("kills", f"{result['kills']}"),
        ("steps", f"{result['steps']:,}"),
        ("memory, settled", memory),
        ("moved by, at most", f"{max(result['growth']):.2%}"),
        ("different from the undisturbed run", ", ".join(result["differences"]) or "nothing"),
    ]
    commit = result["environment"]["commit"]
    lines = [f"    {command}", "", f"At commit `{commit}`.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(lines + [f"- {line}" for line in faults_found(result)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.minutes < 0.5 or options.ranks < 1:
        raise InputError("--minutes and --ranks: expected at least 0.5 and 1")
    with tempfile.TemporaryDirectory() as scratch:
        result = soak(options.minutes, options.ranks, options.seed, Path(scratch))
    command = shlex.join(["python", "-m", "benchmarks.soak", *(sys.argv[1:] if argv is None else argv)])
    text = table(result, command)
    if options.out:
        options.out.write_text(json.dumps({"command": command, **result}) + "\n", encoding="utf-8")
    if options.docs:
        write_table(options.docs, text, _BEGIN, _END)
    print(text)
    return 1 if faults_found(result) else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="default 60")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments; default 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table between its marks in FILE")
    return parser


if __name__ == "__main__":
    run(main)
