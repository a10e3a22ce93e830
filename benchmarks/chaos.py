"""Kill training at random moments, resume it, and compare: `python -m benchmarks.chaos --kills 200`.

Real runs of `train.wt103`, on one process and under mpirun, get SIGKILL, SIGTERM or SIGINT, in one rank or
all, at any time, while training, while a checkpoint is being written, or while validating; between a SIGKILL
and the resumption the newest checkpoint is sometimes damaged, and sometimes the disk is full before. Each run
is resumed until it is done and then compared with one that was left alone: weights, optimizer, state,
position, metrics and result must be equal to the bit, but for times. The seed draws faults and moments; where
a process is at such a moment, the machine decides.

SIGTERM and SIGINT, to this program itself, end it with the table of what has been tried by then. The exit
status is 1 when anything differs, or a run ends otherwise than it should.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograd.command import Parser, run
from autograd.errors import InputError
from benchmarks.faults import DAMAGES, MOMENTS, Ended, Run, damage, fill_disk, send
from benchmarks.tiny import write_text
from train.communicator import SingleProcess
from train.environment import environment
from train.files import atomic_write
from train.log import Progress, progress
from train.signals import StopRequest

STEPS = 200
"""Updates of each run: it lives through a handful of faults."""
_DISK_FULL = "disk full"
_STOPS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
_SIGNALS = {"SIGKILL": signal.SIGKILL, **_STOPS}
_SAVED_WITHIN = 10.0  # seconds from SIGTERM or SIGINT to the end
_ENDED_WITHIN = 30.0  # seconds from any other fault to the end of all ranks
_BEGIN, _END = "<!-- made by benchmarks.chaos: begin -->", "<!-- made by benchmarks.chaos: end -->"


@dataclass
class Struck:
    """One fault that struck, and what came of it."""

    what: str  # SIGKILL, …, or what happened to the disk
    target: str  # one rank, all ranks, the launcher
    moment: str
    ranks: int
    run: str
    step: int = 0  # reached when it struck
    again: int = 0  # steps that the resumed run made once more
    seconds: float = 0.0  # from the fault to the end of all ranks
    in_write: bool = False  # a checkpoint was left half written
    damage: str | None = None  # done to latest.h5 before the resumption
    wrong: str | None = None  # what was not as it should be


class Chaos:
    """All runs on one number of ranks: one undisturbed, the others struck.

    Args:
        folder: for the runs.
        text: what they are trained on.
        ranks: how many.
        kills: faults in all.
        rng: draws faults and moments.
        steps: updates of each run.
    """

    def __init__(
        self, folder: Path, text: Path, ranks: int, kills: int, rng: random.Random, steps: int = STEPS
    ) -> None:
        self.folder, self.text, self.ranks, self.kills = folder, text, ranks, kills
        self.rng, self.steps = rng, steps
        self.struck: list[Struck] = []
        self.compared: list[dict[str, Any]] = []  # each run with its differences
        self._faults = self._draw_faults()
        self._undisturbed = self._run("undisturbed")
        self._undisturbed.finish()

    @property
    def share_done(self) -> float:
        return len(self.struck) / self.kills

    def strike_one_run(self, display: Progress, is_enough: Callable[[], bool]) -> None:
        """Strike one run until it is done, or enough faults have been; let it end, and compare it."""
        victim, done = self._run(f"run{len(self.compared)}"), False
        first = len(self.struck)
        while not done and len(self.struck) < self.kills and not is_enough():
            before = len(self.struck)
            done = self._strike_once(victim, next(self._faults))
            display.update(len(self.struck) - before)
        if not done:
            victim.finish()
        name = f"{victim.folder.path.name} on {self.ranks}"
        differing = victim.differences(self._undisturbed)
        self.compared.append({"run": name, "faults": len(self.struck) - first, "differences": differing})

    def _run(self, name: str) -> Run:
        return Run(self.folder / f"ranks{self.ranks}" / name, self.text, self.ranks, self.steps)

    def _draw_faults(self) -> Iterator[tuple[str, str, str]]:
        """(what, target, moment): every combination once in random order, then again."""
        targets = ["one rank", "all ranks", "the launcher"] if self.ranks > 1 else ["all ranks"]
        faults = [(what, target, moment) for what in _SIGNALS for target in targets for moment in MOMENTS]
        faults += [(_DISK_FULL, "one rank", "training")] * (len(faults) // 10 or 1)
        while True:
            yield from self.rng.sample(faults, len(faults))

    def _strike_once(self, victim: Run, fault: tuple[str, str, str]) -> bool:
        """Start the run and strike it; whether it came to its end before."""
        what, target, moment = fault
        struck = Struck(what, target, moment, self.ranks, victim.folder.path.name)
        left = victim.half_written()
        process = victim.start()
        hit = MOMENTS[moment](victim, process, self.rng)
        struck.step = victim.step_reached()
        if hit and what == _DISK_FULL:
            hit = fill_disk(process, self.rng)
        elif hit:
            send(process, _SIGNALS[what], target, self.rng)
        began = time.monotonic()
        ended = victim.end(process)
        struck.seconds = time.monotonic() - began
        if ended.status == 0:
            return True  # it was done before, or just as, the fault struck
        if not hit:
            raise InputError(f"{victim.folder.path}: ended with status {ended.status}: {ended.stderr[-500:]}")
        struck.again = victim.step_reached() - victim.step_saved()
        struck.in_write = bool(victim.half_written() - left)
        struck.wrong = _wrong(struck, ended)
        if what == "SIGKILL" and self.rng.random() < 0.25:
            struck.damage = self.rng.choice(DAMAGES)
            if not damage(victim, struck.damage, self.rng):
                struck.damage = None
        self.struck.append(struck)
        return False


def _wrong(struck: Struck, ended: Ended) -> str | None:
    """What is wrong with how a process ended after a fault, or None."""
    if struck.seconds > (_SAVED_WITHIN if struck.what in _STOPS else _ENDED_WITHIN):
        return f"ended only after {struck.seconds:.1f} s"
    if struck.what == "SIGKILL" or struck.moment == "any time":
        return None  # at any time it may have been loading: nothing to save, no one yet to hear of the signal
    told = f"ended with status {ended.status}: {ended.stderr[-300:]}"
    if struck.what == _DISK_FULL:
        return None if ended.status == 2 and ended.stderr.count("error:") == 1 else told
    if ended.status != 128 + _STOPS[struck.what] or "Traceback" in ended.stderr:
        return told
    return f"{struck.again} steps were not saved" if struck.again else None


def chaos(
    kills: int, ranks: list[int], seed: int, folder: Path, seconds: float = float("inf"), steps: int = STEPS
) -> dict[str, Any]:
    """Strike `kills` times in all, shared out in inverse proportion to the ranks, which take time to start.

    Args:
        kills: faults in all.
        ranks: numbers of ranks to train on.
        seed: of faults and moments.
        folder: where the runs are made.
        seconds: after which no new fault is begun, nor after a SIGTERM or SIGINT.
        steps: updates of each run.

    Returns:
        what `table` and the JSON file are made of.
    """
    text = folder / "text.txt"
    write_text(text)
    rng, began, where = random.Random(seed), time.monotonic(), environment()
    with progress(kills, "striking", "faults") as display, StopRequest(SingleProcess()) as stop:

        def is_enough() -> bool:
            return stop.is_wanted() or time.monotonic() > began + seconds

        parts = [Chaos(folder, text, number, share, rng, steps) for number, share in _shares(kills, ranks)]
        while (left := [part for part in parts if part.share_done < 1]) and not is_enough():
            min(left, key=lambda part: part.share_done).strike_one_run(display, is_enough)
    return {
        "seed": seed,
        "steps": steps,
        "seconds": time.monotonic() - began,
        "faults": [dataclasses.asdict(struck) for part in parts for struck in part.struck],
        "runs": [compared for part in parts for compared in part.compared],
        "environment": where,
    }


def _shares(kills: int, ranks: list[int]) -> list[tuple[int, int]]:
    """(ranks, kills): at least one each, the rest in inverse proportion."""
    weights = [1 / number for number in ranks]
    shares = [max(1, round(kills * weight / sum(weights))) for weight in weights]
    shares[0] += kills - sum(shares)
    return list(zip(ranks, shares, strict=True))


def faults_found(result: dict[str, Any]) -> list[str]:
    """What was not as it should be, a line each: empty after a good end."""
    lines = [
        f"{fault['what']} of {fault['target']} ({fault['moment']}, on {fault['ranks']}): {fault['wrong']}"
        for fault in result["faults"]
        if fault["wrong"]
    ]
    return lines + [f"{r['run']}: {', '.join(r['differences'])}" for r in result["runs"] if r["differences"]]


def table(result: dict[str, Any], command: str) -> str:
    """The faults in Markdown, with what was lost, for docs/reliability.md."""
    faults, runs, wrong = result["faults"], result["runs"], faults_found(result)
    numbers = sorted({fault["ranks"] for fault in faults})
    columns = [f"on {number} rank{'s' * (number > 1)}" for number in numbers]
    columns += ["of them while saving", "in the write itself", "while validating", "slowest end, s"]
    columns += ["steps made again, at most"]
    lines = [
        f"    {command}",
        "",
        f"{len(faults)} faults in {len(runs)} runs of {result['steps']} steps, within "
        f"{result['seconds'] / 60:.1f} minutes, at commit `{result['environment']['commit']}`.",
        "",
        f"| fault | struck | {' | '.join(columns)} | lost |",
        f"| --- | --- | {'---: | ' * len(columns)}--- |",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for fault in faults:
        groups.setdefault((fault["what"], fault["target"]), []).append(fault)
        if fault["damage"]:
            groups.setdefault((f"latest.h5 {fault['damage']}", "after a SIGKILL"), []).append(fault)
    for (what, target), group in sorted(groups.items()):
        counts = [sum(fault["ranks"] == number for fault in group) for number in numbers]
        counts += [sum(fault["moment"] == "saving" for fault in group)]
        counts += [sum(fault["in_write"] for fault in group)]
        counts += [sum(fault["moment"] == "validating" for fault in group)]
        cells = [what, target, *map(str, counts), f"{max(fault['seconds'] for fault in group):.1f}"]
        cells += [str(max(fault["again"] for fault in group)), "see below" if wrong else "nothing"]
        lines.append(f"| {' | '.join(cells)} |")
    equal = sum(not run["differences"] for run in runs)
    lines += ["", f"{equal} of {len(runs)} runs ended with the bits of the undisturbed one."]
    return "\n".join(lines + [f"- {line}" for line in wrong]) + "\n"


def write_table(path: Path, text: str, begin: str = _BEGIN, end: str = _END) -> None:
    """Put `text` between the two marks in the document; InputError if they are not there."""
    document = path.read_text(encoding="utf-8")
    if begin not in document or end not in document:
        raise InputError(f"{path}: expected the marks {begin} and {end} around the table")
    before, _, rest = document.partition(begin)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    try:
        ranks = [int(number) for number in options.ranks.split(",")]
    except ValueError:
        raise InputError(f"--ranks: expected numbers with commas, 1,2,4 say; got {options.ranks!r}") from None
    if min(options.kills, *ranks) < 1 or options.kills < len(ranks):
        raise InputError("--kills and --ranks: expected at least one kill for each number of ranks")
    with tempfile.TemporaryDirectory() as scratch:
        result = chaos(options.kills, ranks, options.seed, Path(scratch), options.seconds)
    command = shlex.join(["python", "-m", "benchmarks.chaos", *(sys.argv[1:] if argv is None else argv)])
    result = {"command": command, **result}
    text = table(result, command)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.docs:
        write_table(options.docs, text)
    print(text)
    return 1 if faults_found(result) else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser.documented("python -m benchmarks.chaos", __doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="faults in all; default 200")
    parser.add_argument("--ranks", default="1,2,4", metavar="N,N", help="numbers of ranks; default 1,2,4")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of faults and moments; default 0")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), metavar="S", help="begin no new fault after S seconds"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every fault as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table between its marks in FILE")
    return parser


if __name__ == "__main__":
    run(main)
