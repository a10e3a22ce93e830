"""A rank that dies, stops or stands still: the others end with a message that names it and its step."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mpi import ROOT, find_mpirun, kill, start_ranks
from tiny import flags, write_text

from train import wt103
from train.rank_watch import Judge, RankWatch, Sign, last_signs, read_sign
from train.training_run import TrainingRun

SIGN = Sign(0, 2, "here", 10, "machine")
OTHER = Sign(1, 2, "there", 11, "another machine")


def sign(rank, count=0, step=0, calls=0):
    return Sign(rank, 2, "host", 10 + rank, "another machine", count, step, calls)


def looks(judge, times, *ranks):
    """What a judge says at each time; each rank is a function from the time to its sign."""
    began = judge._looked
    return [judge.look([rank(time) for rank in ranks], began + time) for time in times]


def test_ranks_that_get_on_are_left_alone():
    judge = Judge(silence=10, standstill=20)
    said = looks(judge, range(100), lambda t: sign(0, t, t, t), lambda t: sign(1, t, t, t))
    assert said == [None] * 100


def test_a_silent_rank_is_named_with_its_step():
    judge = Judge(silence=10, standstill=0)
    said = looks(judge, range(20), lambda t: sign(0, t, t), lambda t: sign(1, min(t, 5), min(t, 5)))
    assert said[15] is None
    assert said[16].ranks == {1}
    assert "rank 1 of 2 (host, process 11) has given no sign of life for 10 s" in said[16].text
    assert "after step 5" in said[16].text


def test_a_rank_that_lives_but_does_not_get_on_is_named():
    """Both give signs; rank 0 has entered one more collective call, and waits in it."""
    judge = Judge(silence=10, standstill=30)
    said = looks(judge, range(50), lambda t: sign(0, t, 7, 101), lambda t: sign(1, t, 7, 100))
    assert said[30] is None
    assert said[31].ranks == {1}
    assert "rank 1 of 2" in said[31].text
    assert "has not got on for 30 s, last seen after step 7, though it lives" in said[31].text


def test_a_run_of_which_every_rank_waits_in_one_call_ends_too():
    judge = Judge(silence=10, standstill=30)
    said = looks(judge, range(50), lambda t: sign(0, t, 7, 100), lambda t: sign(1, t, 7, 100))
    assert "every rank has not got on" in said[31].text
    assert looks(Judge(10, 0), range(50), lambda t: sign(0, t), lambda t: sign(1, t)) == [None] * 50


def test_a_process_that_was_stopped_itself_does_not_judge_the_others():
    """As when a scheduler suspends a whole job for an hour: all wake up, and nobody has been silent."""
    judge = Judge(silence=10, standstill=30)
    ranks = lambda t: sign(0, t, t), lambda t: sign(1, 5 if t < 3603 else t, 5)
    assert looks(judge, [*range(6), *range(3600, 3620)], *ranks) == [None] * 26


def test_a_rank_that_ended_well_is_missed_by_nobody():
    judge = Judge(silence=10, standstill=30)
    looks(judge, range(5), lambda t: sign(0, t, t), lambda t: sign(1, t, t))
    assert looks(judge, range(5, 100), lambda t: sign(0, t, 5)) == [None] * 95


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"rank": "0"}', b"\xff" * 600, b"[" * 100_000, b"null"]
)
def test_half_a_sign_is_none(tmp_path, content):
    path = tmp_path / "rank-0-of-2.json"
    path.write_bytes(content)
    assert read_sign(path) is None
    assert last_signs(tmp_path) == []


# One rank without MPI: the other's process need not be a rank to be watched.
ONE_RANK = """
import sys, time
from pathlib import Path
from train.communicator import SingleProcess
from train.rank_watch import RankWatch

folder = Path(sys.argv[2])

class Rank(SingleProcess):
    rank, size = int(sys.argv[1]), 2
    def barrier(self):
        self.calls += 1
        (folder.parent / f"{folder.name}-{self.calls}-{self.rank}").touch()
        while not (folder.parent / f"{folder.name}-{self.calls}-{1 - self.rank}").exists():
            time.sleep(0.01)

watch = RankWatch(folder, Rank(), 1.0, 0.0, advice="do this")
watch.step = 7
with watch:
    print("in", flush=True)
    if sys.argv[3] == "raise":
        raise RuntimeError("planted")
    time.sleep(float(sys.argv[3]))
"""


def start_pair(folder, first, second):
    command = [sys.executable, "-c", ONE_RANK]
    pair = []
    for rank, what in enumerate((first, second)):
        pair.append(
            subprocess.Popen(
                [*command, str(rank), str(folder), what],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return pair


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGKILL, "has died"), (signal.SIGSTOP, "no sign of life for 1 s (its process is stopped)")],
)
def test_the_others_of_a_dead_or_stopped_rank_end_by_themselves(tmp_path, number, message):
    pair = start_pair(tmp_path / "ranks", "60", "60")
    try:
        for process in pair:
            assert process.stdout.readline() == "in\n"
        time.sleep(1.5)  # signs have been read
        pair[1].send_signal(number)
        began = time.monotonic()
        _, error = pair[0].communicate(timeout=30)
        assert time.monotonic() - began < 15
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert pair[0].returncode == 1
    assert error.count("\n") == 1
    assert f"rank 1 of 2 ({os.uname().nodename}, process {pair[1].pid})" in error
    assert message in error
    assert "last seen after step 7; all ranks end; do this" in error


def test_a_good_end_leaves_no_file_and_an_exception_leaves_its_own(tmp_path):
    pair = start_pair(tmp_path / "good", "0.1", "1.5")
    assert [process.communicate(timeout=30)[1] for process in pair] == ["", ""]
    assert [process.returncode for process in pair] == [0, 0]
    assert not (tmp_path / "good").exists()

    pair = start_pair(tmp_path / "bad", "4", "raise")
    error = pair[0].communicate(timeout=30)[1]
    assert pair[1].communicate(timeout=30)[0] == "in\n"
    assert pair[1].returncode == 1
    assert "has died, last seen" not in error, "who ends by an exception ends the others itself"
    assert "rank 1 of 2" in error, "and if it does not, its silence does"


def test_alone_or_switched_off_nothing_is_watched(tmp_path):
    from one_rank import OneRank

    for communicator, silence in ((OneRank(0, 1), 5.0), (OneRank(0, 4), 0.0)):
        with RankWatch(tmp_path / "ranks", communicator, silence, 5.0):
            assert not (tmp_path / "ranks").exists()


def test_the_watch_knows_the_step_during_its_validation_and_from_the_start_of_a_resumed_run(
    tmp_path, monkeypatch
):
    text, run, seen = write_text(tmp_path / "text.txt", lines=60), tmp_path / "run", []
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr(RankWatch, "__enter__", lambda watch: seen.append(watch.step))
    monkeypatch.setattr(RankWatch, "__exit__", lambda *exception: None)
    validate = TrainingRun._validate
    monkeypatch.setattr(
        TrainingRun, "_validate", lambda self, due: (seen.append(self.watch.step), validate(self, due))
    )
    for steps, more in ((2, []), (4, ["--resume"])):
        knobs = {"max_steps": steps, "evaluate_every": 2}
        assert wt103.main([*flags(text, run, **knobs), *more]) == 0
    assert seen == [0, 2, 2, 4]


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_real_run_of_two_ranks_ends_and_names_the_rank(tmp_path, number):
    text, run = write_text(tmp_path / "text.txt"), tmp_path / "run"
    env = {"MINILSTM_DATA": str(tmp_path / "prepared")}
    knobs = {"epochs": 100_000, "save_every": 20, "rank_timeout": 2, "log_every": 1000}
    ranks = [find_mpirun(), "-np", "2", sys.executable, "-m", "train.wt103", *flags(text, run, **knobs)]
    process = start_ranks(1, "train.supervise", "--restart-on-failure", "0", "--", *ranks, env=env)
    try:
        deadline = time.monotonic() + 60
        sign_file = run / "ranks" / "rank-1-of-2.json"
        while not ((sign := read_sign(sign_file)) and sign.step > 20) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(json.loads(sign_file.read_bytes())["pid"], number)
        began = time.monotonic()
        _, error = process.communicate(timeout=60)
        assert time.monotonic() - began < 30
    finally:
        kill(process)
    assert process.returncode != 0
    if number == signal.SIGSTOP:
        assert "error: rank 1 of 2" in error
        assert "its process is stopped), last seen after step" in error
    # The launcher of MPICH ends the others of a killed rank faster than they can speak, and names the process
    # alone; who that was and what it was doing is kept, and supervise tells.
    left = {sign.rank: sign for sign in last_signs(run / "ranks")}
    assert left[1].pid == sign.pid
    assert left[1].step >= sign.step
    assert f"supervise: {left[1]} was last seen after step {left[1].step:,}" in error
