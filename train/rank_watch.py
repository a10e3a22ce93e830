"""Does every rank live, and does the run go on? Beside each rank's work a thread looks after the others.

MPI's collectives wait for ever for a rank that has died or stands still, and many launchers notice neither.
So each rank shows a sign of life in a small file of its own in the run's folder, once a second, and reads
those of the others. A rank is judged by whether its file changes, on the reader's own clock that counts
steadily: clocks that differ or jump do not matter. Ranks on one machine also learn from the kernel, at once,
that another has ended. The thread calls no MPI, which one thread at a time may call, and can therefore end
its process while the main thread hangs in a collective. The others do the same: no launcher is needed.

What this tells apart: a rank that is dead or stopped (its file no longer changes), and a run in which all
ranks live but none gets on (its numbers no longer change), as when one waits for a disk that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from train.communicator import Communicator

_LENGTH = 512  # bytes of a file: rewritten in place, so that a full disk cannot silence a rank
FAILED_STATUS = 1  # of a run that its watch ends: unlike a mistake in what was given, worth another try


@dataclass(frozen=True)
class Sign:
    """One rank's sign of life.

    Attributes:
        rank, size: whose it is, among how many.
        host, pid: where it runs.
        machine: equal on two ranks exactly when one can be found by its pid from the other.
        count: signs given so far.
        step: updates that the run has made, as this rank knows it.
        calls: collective calls that it has entered.
        ending: it ends by an exception, and is about to end the others too.
    """

    rank: int
    size: int
    host: str
    pid: int
    machine: str
    count: int = 0
    step: int = 0
    calls: int = 0
    ending: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """How far the rank has come."""
        return self.step, self.calls

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} ({self.host}, process {self.pid})"


class Verdict(NamedTuple):
    """Why a run must end: the ranks that are to blame, and that in words, which name them and the step."""

    ranks: set[int]
    text: str


class Judge:
    """Decides from signs of life, and from the time at which each was read, that the run must end.

    Args:
        silence: seconds without a new sign after which a rank counts as dead or stopped.
        standstill: seconds in which no rank gets on after which the run counts as hung; 0: never.
    """

    def __init__(self, silence: float, standstill: float) -> None:
        self.silence, self.standstill = silence, standstill
        self._signs: dict[int, Sign] = {}
        self._news: dict[int, float] = {}
        self._got_on = self._looked = time.monotonic()

    def look(self, signs: list[Sign], now: float) -> Verdict | None:
        """What is wrong; None while nothing is.

        Args:
            signs: the newest of every rank that has not ended, this one's own included.
            now: seconds on a clock that never jumps.
        """
        if now - self._looked > self.silence / 2:  # this process itself stood still: it has no right to judge
            self._news = dict.fromkeys(self._news, now)
            self._got_on = now
        self._looked = now
        if {sign.rank: sign.place for sign in signs} != {r: s.place for r, s in self._signs.items()}:
            self._got_on = now
        for sign in signs:
            if self._signs.get(sign.rank) != sign:
                self._news[sign.rank] = now
        self._signs = {sign.rank: sign for sign in signs}
        return self._silent(now) or self._standing_still(now)

    def _silent(self, now: float) -> Verdict | None:
        for rank, sign in sorted(self._signs.items()):
            if now - self._news[rank] > self.silence:
                return Verdict(
                    {rank},
                    f"{sign} has given no sign of life for {self.silence:g} s ({_state_of(sign)}), "
                    f"last seen after step {sign.step:,}",
                )
        return None

    def _standing_still(self, now: float) -> Verdict | None:
        if not self.standstill or now - self._got_on <= self.standstill or len(self._signs) < 2:
            return None
        least = min(sign.place for sign in self._signs.values())
        behind = [sign for sign in self._signs.values() if sign.place == least]
        text = f"has not got on for {self.standstill:g} s, last seen after step {least[0]:,}, though it lives"
        if len(behind) == len(self._signs):
            return Verdict(set(), f"every rank {text}: all stand at the same place")
        names = " and ".join(map(str, behind))
        return Verdict({sign.rank for sign in behind}, f"{names} {text}; the others wait for it")


class RankWatch:
    """The watch of one rank over the others, a context around the work. Alone or switched off: nothing.

    Entering is collective. Who leaves it by an exception leaves its file too: the others then end as if it
    had died, unless the exception has ended them before. An end by SystemExit is meant, and leaves none.

    Args:
        folder: of the signs, one for each rank; made if need be, on a disk that all ranks see.
        communicator: of the run.
        silence, standstill: as `Judge` takes them; silence 0: no watch at all.
        advice: ends the message: what a person can do.

    Attributes:
        step: updates made; the run sets it.
    """

    def __init__(
        self, folder: Path, communicator: Communicator, silence: float, standstill: float, advice: str = ""
    ) -> None:
        self.folder, self.communicator, self.advice = folder, communicator, advice
        self.step = 0
        self.enabled = communicator.size > 1 and silence > 0
        self._silence, self._standstill = silence, standstill
        self._own = Sign(communicator.rank, communicator.size, socket.gethostname(), os.getpid(), _machine())
        self._met: dict[int, Sign] = {}
        self._pidfds: dict[int, int] = {}

    def __enter__(self) -> RankWatch:
        if self.communicator.is_root:
            forget_signs(self.folder)
        if self.enabled:
            if self.communicator.is_root:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.communicator.barrier()
            self._file = os.open(self._path(self._own.rank), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._show()
            self.communicator.barrier()  # all files are there: one that is missing from now on has ended well
            self._wake, self._waker = os.pipe()
            self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not self.enabled:
            return
        os.close(self._waker)  # what the thread waits for
        self._thread.join()
        meant = kind is None or issubclass(kind, SystemExit)
        if not meant:
            self._own = replace(self._own, ending=True)
            self._show()
        for descriptor in (self._file, self._wake, *self._pidfds.values()):
            os.close(descriptor)
        if meant:
            with contextlib.suppress(OSError):
                self._path(self._own.rank).unlink(missing_ok=True)
                self.folder.rmdir()  # the last one finds it empty

    def _run(self) -> None:
        """The thread: show a sign, look at the others', wait; until the pipe is closed."""
        judge = Judge(self._silence, self._standstill)
        poll = select.poll()
        poll.register(self._wake, select.POLLHUP)
        while True:
            self._show()
            signs = self._look()
            verdict = self._ended_process() or judge.look(signs, time.monotonic())
            if verdict:
                self._end(verdict)
            for sign in signs:
                if self._follow(sign):
                    poll.register(self._pidfds[sign.rank], select.POLLIN)
            for descriptor, _ in poll.poll(1000 * min(1.0, self._silence / 4)):
                if descriptor == self._wake:
                    return

    def _show(self) -> None:
        own = self._own
        self._own = replace(own, count=own.count + 1, step=self.step, calls=self.communicator.calls)
        with contextlib.suppress(OSError):  # then the others will speak
            os.pwrite(self._file, json.dumps(asdict(self._own)).encode().ljust(_LENGTH), 0)

    def _look(self) -> list[Sign]:
        """The newest sign of every rank that has not ended; where one cannot be read, the one before it."""
        for rank in range(self.communicator.size):
            path = self._path(rank)
            sign = self._own if rank == self._own.rank else read_sign(path)
            if sign is not None:
                self._met[rank] = sign
            elif not path.exists():
                self._met.pop(rank, None)
        return list(self._met.values())

    def _follow(self, sign: Sign) -> bool:
        """Let the kernel tell when a process of this machine ends; False where it cannot or does already."""
        if sign.machine != self._own.machine or sign.rank in {*self._pidfds, self._own.rank}:
            return False
        try:
            self._pidfds[sign.rank] = os.pidfd_open(sign.pid)
        except (AttributeError, OSError):  # no Linux, or an old one; its silence will tell
            return False
        return True

    def _ended_process(self) -> Verdict | None:
        """The rank whose process has ended and left its file, while no rank was about to end them all."""
        ended = {rank for rank, descriptor in self._pidfds.items() if _is_readable(descriptor)}
        if not ended:
            return None
        signs = self._look()  # what they did last
        died = [sign for sign in signs if sign.rank in ended]
        if not died or any(sign.ending for sign in signs):
            return None
        return Verdict(ended, f"{died[0]} has died, last seen after step {died[0].step:,}")

    def _end(self, verdict: Verdict) -> None:
        """End this process with a message; so do the others, and the lowest rank that lives speaks first."""
        if self._own.rank != min(self._met.keys() - verdict.ranks, default=0):
            time.sleep(min(2.0 + 0.1 * self._own.rank, 5.0))  # most launchers end this process meanwhile
        advice = f"; {self.advice}" if self.advice else ""
        with contextlib.suppress(OSError):
            os.write(2, f"error: {verdict.text}; all ranks end{advice}\n".encode())
        time.sleep(0.3)  # the launcher must have the time to pass it on
        os._exit(FAILED_STATUS)

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}-of-{self.communicator.size}.json"


def read_sign(path: Path) -> Sign | None:
    """The sign of life in a file; None if there is none, or half of one."""
    try:
        fields = json.loads(path.read_bytes()[:_LENGTH])
        sign = Sign(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (sign.rank, sign.size, sign.pid, sign.count, sign.step, sign.calls)
    return sign if all(type(number) is int for number in numbers) else None


def last_signs(folder: Path) -> list[Sign]:
    """What the ranks of a run that did not end well were last seen doing, by rank; empty after a good end."""
    signs = [read_sign(path) for path in folder.glob("rank-*-of-*.json")]
    return sorted((sign for sign in signs if sign is not None), key=lambda sign: sign.rank)


def forget_signs(folder: Path) -> None:
    """Remove the files that a run left which did not end well."""
    for path in folder.glob("rank-*-of-*.json"):
        path.unlink(missing_ok=True)


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _state_of(sign: Sign) -> str:
    """What the kernel says of its process, as far as it can be asked from here."""
    if sign.machine != _machine():
        return "its machine or its process is gone or stopped"
    try:
        state = Path(f"/proc/{sign.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "its process is gone"
    return {"T": "its process is stopped", "Z": "its process has died"}.get(state, "its process stands still")


def _machine() -> str:
    """This boot of this machine and this namespace of process numbers; unlike anything else where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{os.getpid()}"
