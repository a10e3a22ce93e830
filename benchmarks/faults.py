"""Training runs that are started for real, struck by a fault, and compared with one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from autograd.errors import InputError
from benchmarks.tiny import TINY
from train.checkpoint import DamagedCheckpointError, load_checkpoint, load_newest
from train.files import earlier_version
from train.metrics import read_metrics
from train.run_folder import BEST, LATEST, RunFolder
from train.threads import BLAS_VARIABLES

ROOT = Path(__file__).resolve().parent.parent
KNOBS: dict[str, Any] = {
    **TINY,
    "epochs": 1_000_000,
    "save_every": 7,
    "evaluate_every": 20,
    "rank_timeout": 60,  # a busy machine may leave a rank without a core for long
}
"""A tiny model with dropouts, a carried state, and a checkpoint every few milliseconds."""
_PATIENCE = 300.0  # seconds after which a run that does not end counts as hung
_OUTLIVE = 20.0  # seconds in which the ranks must have ended after their launcher
_TIMES = {"seconds", "tokens_per_second"}  # what no two runs have alike


class Ended(NamedTuple):
    """How a process ended: its exit status as a shell would tell it, and what it wrote on stderr."""

    status: int
    stderr: str


class Run:
    """One run, in a folder of its own, that is started, struck and started again until it is done.

    Args:
        folder: does not exist yet.
        text: what it is trained on; data prepared from it lies beside it.
        ranks, steps: how many.
        knobs: over KNOBS.
    """

    def __init__(self, folder: Path, text: Path, ranks: int, steps: int, **knobs: Any) -> None:
        self.folder, self.ranks, self.steps = RunFolder(folder), ranks, steps
        self._text, self._knobs = text, {**KNOBS, **knobs}
        self._log = folder.parent / f"{folder.name}.stderr"

    def start(self) -> subprocess.Popen:
        """Begin the run, or go on with it; its standard error goes to a file beside the folder."""
        command = [sys.executable, "-m", "train.wt103", "--run-dir", str(self.folder.path)]
        command += ["--max-steps", str(self.steps)]
        if self.folder.config.exists():
            command.append("--resume")
        else:
            command += ["--preset", "quickstart", "--data", str(self._text)]
            command += [f"--set={name}={value}" for name, value in self._knobs.items()]
        if self.ranks > 1:
            command = [_mpirun(), "-np", str(self.ranks), *command]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script: runs would too
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self._log, "w", encoding="utf-8") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=_environment(self._text.parent),
                cwd=ROOT,
                start_new_session=True,
            )

    def end(self, process: subprocess.Popen, patience: float = _PATIENCE) -> Ended:
        """Wait for the end of what `start` began, `patience` seconds at most.

        Raises:
            InputError: it does not end; it is killed then.
        """
        try:
            status = process.wait(patience)
            deadline = time.monotonic() + _OUTLIVE
            while self._living_ranks():
                if time.monotonic() > deadline:
                    raise InputError(f"{self.folder.path}: a rank outlived its launcher by {_OUTLIVE:.0f} s")
                time.sleep(0.005)
        except subprocess.TimeoutExpired:
            raise InputError(f"{self.folder.path}: did not end within {patience:.0f} s") from None
        finally:
            for pid in (process.pid, *self._living_ranks()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
        stderr = self._log.read_text(encoding="utf-8", errors="replace")
        return Ended(status if status >= 0 else 128 - status, stderr)

    def _living_ranks(self) -> list[int]:
        """Processes that work on the folder; those of a launcher that ended early have another parent."""
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
        own = os.fsencode(self.folder.path)
        return [pid for pid in pids if _is_rank(command := _command(pid)) and own in command and _runs(pid)]

    def finish(self, patience: float = _PATIENCE) -> None:
        """Let it go on, undisturbed, to its end; InputError if it takes longer than `patience`."""
        ended = self.end(self.start(), patience)
        if ended.status != 0:
            raise InputError(f"{self.folder.path}: ended with status {ended.status}: {ended.stderr[-500:]}")

    def step_reached(self) -> int:
        """The last step with a whole row in metrics.jsonl; 0 where there is none."""
        if not self.folder.metrics.exists():
            return 0
        return max((row["step"] for row in read_metrics(self.folder.metrics)), default=0)

    def step_saved(self) -> int:
        """The step of the newest whole checkpoint; 0 where there is none."""
        if not self.folder.has_latest():
            return 0
        return load_newest(self.folder.checkpoint(LATEST)).meta["position"]["step"]

    def half_written(self) -> set[str]:
        """Names of checkpoints that are being written, or were when their writer was killed."""
        try:
            names = os.listdir(self.folder.checkpoint(LATEST).parent)
        except FileNotFoundError:
            return set()
        return {name for name in names if name.startswith(".")}

    def differences(self, other: Run) -> list[str]:
        """What of the two finished runs is not equal to the bit, times left out: names, empty when all is."""
        found = []
        for which in (BEST, LATEST):
            (arrays, facts), (others, other_facts) = (
                load_checkpoint(run.folder.checkpoint(which)) for run in (self, other)
            )
            found += [
                f"{which}.h5: {name}"
                for name in sorted(arrays.keys() | others.keys())
                if name not in arrays or name not in others or not _equal(arrays[name], others[name])
            ]
            if _timeless(facts) != _timeless(other_facts):
                found.append(f"{which}.h5: description")
        rows, other_rows = (read_metrics(run.folder.metrics) for run in (self, other))
        if _timeless(rows) != _timeless(other_rows):
            found.append("metrics.jsonl")
        results = [json.loads(run.folder.result.read_text(encoding="utf-8")) for run in (self, other)]
        for result in results:
            result.pop("environment")
        if _timeless(results[0]) != _timeless(results[1]):
            found.append("result.json")
        return found


def _equal(array: Any, other: Any) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape and array.tobytes() == other.tobytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in _TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


# When a fault strikes: each waits for its moment, and returns whether it came while the process ran.
Moment = Callable[[Run, subprocess.Popen, random.Random], bool]


def at_any_time(run: Run, process: subprocess.Popen, rng: random.Random) -> bool:
    """Up to two seconds after the start: while Python loads, data is read, the run trains or ends."""
    moment = time.monotonic() + rng.uniform(0, 2)
    return _wait(process, lambda: time.monotonic() > moment)


def while_training(run: Run, process: subprocess.Popen, rng: random.Random) -> bool:
    """Some rows after the start of this process, and up to 10 ms more."""
    return _wait_for_rows(run, process, rng.randint(1, 60)) and _wait_seconds(process, rng.uniform(0, 0.01))


def while_saving(run: Run, process: subprocess.Popen, rng: random.Random) -> bool:
    """When a checkpoint is seen being written, and up to 3 ms more."""
    left = run.half_written()
    return (
        _wait_for_rows(run, process, rng.randint(1, 30))
        and _wait(process, lambda: bool(run.half_written() - left), pause=0.0002)
        and _wait_seconds(process, rng.uniform(0, 0.003))
    )


def while_validating(run: Run, process: subprocess.Popen, rng: random.Random) -> bool:
    """When the step has been made after which validation comes, and up to 20 ms more."""
    every, before = KNOBS["evaluate_every"], _whole_rows(run)

    def begins() -> bool:
        rows = _whole_rows(run)
        return rows != before and rows > 0 and _last_row(run).get("step", 1) % every == 0

    return _wait(process, begins, pause=0.001) and _wait_seconds(process, rng.uniform(0, 0.02))


MOMENTS: dict[str, Moment] = {
    "any time": at_any_time,
    "training": while_training,
    "saving": while_saving,
    "validating": while_validating,
}


def _wait(process: subprocess.Popen, has_come: Callable[[], bool], pause: float = 0.002) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None:
        if has_come():
            return True
        if time.monotonic() > deadline:
            raise InputError(f"process {process.pid} got nowhere in {_PATIENCE:.0f} s")
        time.sleep(pause)
    return False


def _wait_seconds(process: subprocess.Popen, seconds: float) -> bool:
    time.sleep(seconds)
    return process.poll() is None


def _wait_for_rows(run: Run, process: subprocess.Popen, more: int) -> bool:
    """Rows count from where this process begins to write: it first drops those that it makes again."""
    inode = _inode(run.folder.metrics)
    if not _wait(process, lambda: _inode(run.folder.metrics) not in (None, inode)):
        return False
    first = _whole_rows(run)
    return _wait(process, lambda: _whole_rows(run) >= first + more)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _whole_rows(run: Run) -> int:
    try:
        return run.folder.metrics.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _last_row(run: Run) -> dict[str, Any]:
    lines = run.folder.metrics.read_bytes().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else {}


def rank_pids(process: subprocess.Popen) -> dict[int, int]:
    """{rank: process id} of what `Run.start` began, as far as the ranks have been started."""
    found = {}
    for pid in [process.pid, *_descendants(process.pid)]:
        if not _is_rank(_command(pid)):
            continue
        try:
            environment = dict(
                line.split(b"=", 1)
                for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"=" in line
            )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        rank = environment.get(b"PMI_RANK", environment.get(b"OMPI_COMM_WORLD_RANK", b"0"))
        found[int(rank)] = pid
    return found


def _command(pid: int) -> list[bytes]:
    """What the process was started with; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _is_rank(command: list[bytes]) -> bool:
    return command[1:3] == [b"-m", b"train.wt103"]


def _descendants(pid: int) -> Iterator[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry)] = int(
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                )
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, above in parents.items() if above == parent]
        yield from children
        waiting += children


def _runs(pid: int) -> bool:
    """Alive, and not a zombie that nobody has asked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def send(process: subprocess.Popen, number: int, target: str, rng: random.Random) -> None:
    """Send a signal to "one rank", "all ranks" or "the launcher"; before there are ranks, to the launcher."""
    pids = list(rank_pids(process).values())
    if target == "one rank" and pids:
        pids = [rng.choice(pids)]
    if target == "the launcher" or not pids:
        pids = [process.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def fill_disk(process: subprocess.Popen, rng: random.Random) -> bool:
    """From now on the root's files may not grow beyond some KB, as on a full disk; False if it is gone."""
    root = rank_pids(process).get(0)
    limit = rng.randrange(1 << 10, 48 << 10)
    try:
        resource.prlimit(root or -1, resource.RLIMIT_FSIZE, (limit, limit))
    except (ProcessLookupError, PermissionError, ValueError):
        return False
    return True


DAMAGES = ("cut off", "one bit flipped", "removed")


def damage(run: Run, how: str, rng: random.Random) -> bool:
    """Do to latest.h5 what a dying disk may; whether it is damaged now, with an earlier one there."""
    latest = run.folder.checkpoint(LATEST)
    before = earlier_version(latest, 1)
    if not (latest.exists() and before.exists()):
        return False
    content = bytearray(latest.read_bytes())
    latest.unlink()  # the one before may be the same file by another name
    if how == "removed":
        return True
    if how == "cut off":
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    latest.write_bytes(content)
    try:
        load_checkpoint(latest)
    except DamagedCheckpointError:
        return True
    return False  # a bit that carries nothing


def _mpirun() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise InputError(
            "no mpirun beside this Python, nor on the path; pip install mpich, or give --ranks 1"
        )
    return found


def _environment(data: Path) -> dict[str, str]:
    """One thread a rank: whatever else the machine does, the bits of all runs then belong together."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PMI_", "OMPI_", "MPI_LOCAL"))
    }
    return {**inherited, **dict.fromkeys(BLAS_VARIABLES, "1"), "MINILSTM_DATA": str(data / "prepared")}
