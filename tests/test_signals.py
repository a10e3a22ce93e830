"""SIGTERM and SIGINT: heard of once, agreed on by all ranks, and at once the second time."""

import os
import signal
import time

import numpy as np
import pytest
from mpi import kill, run_ranks, start_ranks

from minilstm import LanguageModel, ModelConfig
from train.communicator import SingleProcess
from train.evaluate import evaluate
from train.signals import StopRequest, StopRequestedError

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_inside_and_what_it_was_before_outside(number):
    before = signal.getsignal(number)
    with StopRequest(SingleProcess()) as stop:
        assert stop.agreed(stop.flags()) == 0
        assert not stop.is_wanted()
        os.kill(os.getpid(), number)
        assert stop.is_wanted()
        assert stop.agreed(stop.flags()) == number
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_ranks_with_different_signals_agree():
    assert StopRequest.agreed([1.0, 1.0]) == StopRequest.agreed([2.0, 0.0]) == signal.SIGTERM
    assert StopRequest.agreed([0.0, 3.0]) == signal.SIGINT


def test_what_was_ignored_from_the_start_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(SingleProcess()) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.is_wanted()
    finally:
        signal.signal(signal.SIGINT, before)


IN_C = """
import ctypes, time
from train.communicator import SingleProcess
from train.signals import StopRequest
with StopRequest(SingleProcess()) as stop:
    print("ready", flush=True)
    libc, until = ctypes.CDLL(None), time.monotonic() + {seconds}
    while time.monotonic() < until:
        libc.usleep(100_000)  # no Python between two looks at the clock
print(stop.agreed(stop.flags()), flush=True)
"""


def test_a_second_signal_ends_the_process_at_once():
    process = start_ranks(1, IN_C.format(seconds=60))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        kill(process)
    assert process.returncode == 128 + signal.SIGINT


def test_one_wish_may_come_twice():
    """From the terminal and from the launcher."""
    process = start_ranks(1, IN_C.format(seconds=1))
    assert process.stdout is not None
    try:
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        kill(process)
    assert (process.returncode, out) == (0, f"{int(signal.SIGTERM)}\n")


def test_another_ranks_announcement_is_heard_while_no_sum_is_made():
    result = run_ranks(
        2,
        "import time\n"
        "from train.communicator import get_communicator\n"
        "own = get_communicator()\n"
        "if own.rank == 1: own.announce()\n"
        "deadline = time.monotonic() + 30\n"
        "while own.rank == 0 and not own.is_announced(): assert time.monotonic() < deadline\n"
        "assert own.is_announced() == (own.rank == 0)\n"
        "own.barrier()\n",
    )
    assert result.returncode == 0, result.stderr


class Announced(SingleProcess):
    """One of two ranks; the other was asked to end by SIGTERM, and has said so."""

    size = 2

    def is_announced(self):
        return True

    def allreduce_sum(self, values):
        self.given = np.array(values, np.float64)
        return self.given + np.array([9.0, 9, 1, 0])


@pytest.mark.parametrize("protocol", ["carried", "zero"])
def test_an_evaluation_is_left_at_once_and_by_all(protocol):
    tokens, read = np.arange(4000, dtype=np.int32) % 7, []

    def reader(start, stop):
        read.append(stop - start)
        return tokens[start:stop]

    class Model(LanguageModel):
        def forward(self, *arguments):
            raise AssertionError("a window was scored")

        __call__ = encode = forward

    model, other = (
        Model(ModelConfig(vocab_size=7, embedding_size=4, hidden_size=4, num_layers=1)),
        Announced(),
    )
    with pytest.raises(StopRequestedError) as raised:
        evaluate(model, reader, len(tokens), 0, other, 4, 10, protocol=protocol, stop=StopRequest(other))
    assert raised.value.signal_number == signal.SIGTERM
    assert other.given.tolist() == [0, 0, 0, 0]


def test_a_command_that_is_told_to_end_leaves_nothing_half_written(tmp_path):
    """Training is not the only long work: preparing a data set takes minutes."""
    target = tmp_path / "made" / "file"
    process = start_ranks(
        1,
        "import sys, time\n"
        "from pathlib import Path\n"
        "from train.commands import run\n"
        "from train.files import atomic_write, exclusive_lock, made_folder\n"
        "def main():\n"
        f"    target = Path({str(target)!r})\n"
        "    with made_folder(target.parent), exclusive_lock(target), atomic_write(target) as temporary:\n"
        "        temporary.write_text('half')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "run(main)",
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    finally:
        kill(process)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == []


SIGNALLED_WHILE_JOINING = """
import os, signal
from train import communicator
from train.commands import run
load = communicator._load_mpi
def load_then_signal(place):
    loaded = load(place)
    if place.rank == 1:
        os.kill(os.getpid(), signal.{name})  # rank 0 will wait for this one to join
    return loaded
communicator._load_mpi = load_then_signal
run(lambda: 0)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_rank_that_is_signalled_while_the_ranks_join_ends_them_all(name):
    """It once waited in MPI's end for the others, and they for it."""
    assert run_ranks(2, SIGNALLED_WHILE_JOINING.format(name=name), timeout=30).returncode != 0
