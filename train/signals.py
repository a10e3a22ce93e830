"""SIGTERM and SIGINT: a scheduler's, or a person's, wish that a command ends.

Any command ends in order, with status 128 + signal, as soon as it hears of the wish (`end_in_order`). A
training run first makes its step, agrees with the other ranks on where to stop, and saves (`StopRequest`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from train.communicator import Communicator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_WISH = 0.2  # seconds: a terminal and a launcher may both pass on the same key press


class StopRequestedError(Exception):
    """All ranks alike are to stop what they do, because of `signal_number`."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(name_of(signal_number))
        self.signal_number = signal_number


def name_of(signal_number: int) -> str:
    """SIGTERM, SIGINT."""
    return signal.Signals(signal_number).name


def end_at_once() -> None:
    """From here on SIGTERM and SIGINT end the process whatever it is doing, without Python's doing anything.

    For the time in which MPI is joined or left: a rank that left it by an exception would wait in MPI's own
    end for the others, who wait for it in theirs.
    """
    _handle_both(signal.SIG_DFL)


def hear_no_more() -> None:
    """From here on SIGTERM and SIGINT do nothing: this process is ending, and its status stands."""
    _handle_both(signal.SIG_IGN)


def _handle_both(handler: signal.Handlers) -> None:
    for number in SIGNALS:
        if _may_handle(number):
            signal.signal(number, handler)


def end_in_order() -> None:
    """From here on the first SIGTERM raises SystemExit with status 143, and SIGINT KeyboardInterrupt, so that
    what is half written is removed; a second SIGTERM ends the process at once."""
    for number, handler in ((signal.SIGTERM, _raise_exit), (signal.SIGINT, signal.default_int_handler)):
        if _may_handle(number):
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, lambda number, frame: os._exit(128 + number))
    raise SystemExit(128 + number)


class StopRequest:
    """Context in which the first SIGTERM or SIGINT is a request, and the second ends the process at once.

    A request is only heard of here: the ranks decide together, by sums that they make anyway, so that all
    stop after the same step. A signal that this process was started to ignore (`nohup`, a shell's background
    job) stays ignored; outside the main thread, where Python has no signals, nothing is ever requested.

    Args:
        communicator: of all ranks.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._asked = self._told = 0
        self._handlers: dict[int, Any] = {}

    def flags(self) -> list[float]:
        """What this rank adds to a sum over all ranks: for each of SIGNALS, whether it was asked by it."""
        return [float(self._asked == number) for number in SIGNALS]

    @staticmethod
    def agreed(sums: Sequence[float]) -> int:
        """The signal that all ranks are to end with, from the sums of `flags` over them; 0: go on."""
        return next((int(number) for number, count in zip(SIGNALS, sums, strict=True) if count), 0)

    def is_wanted(self) -> bool:
        """Whether any rank is known to have been asked: then long work between two sums is to be left.

        A rank that was asked tells the others, who may be minutes away from the next sum.
        """
        if self._asked and not self._told:
            self._told = self._asked
            self._communicator.announce()
        return bool(self._asked) or self._communicator.is_announced()

    def leave_if_wanted(self) -> None:
        """Raise a StopRequestedError if this process was asked to stop: for work of one rank alone."""
        if self.is_wanted():
            raise StopRequestedError(self.agreed(self.flags()))

    def __enter__(self) -> StopRequest:
        self._handlers = {
            number: signal.signal(number, self._hear) for number in SIGNALS if _may_handle(number)
        }
        if self._handlers:
            self._watch_for_a_second()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._handlers:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # the watcher's read returns
            end.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or number

    def _watch_for_a_second(self) -> None:
        """A thread sees signals when the main one is deep in a product or waits for another rank."""
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(end is self._ends[0])
        self._wakeup_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_exit_at_the_second, args=(self._ends[0],), daemon=True).start()


def _exit_at_the_second(wakeup: socket.socket) -> None:
    first = None
    with contextlib.suppress(OSError):
        while received := wakeup.recv(1):
            if received[0] not in SIGNALS:
                continue
            first = time.monotonic() if first is None else first
            if time.monotonic() - first > _ONE_WISH:
                os._exit(128 + received[0])


def _may_handle(number: int) -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) is not signal.SIG_IGN
