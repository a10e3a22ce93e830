"""A run that fails is started again with --resume; one that was refused or asked to end is not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from mpi import ROOT, rank_environment

from autograd.errors import InputError
from train.run_folder import RunFolder
from train.supervise import main, run_dir_of, with_resume

# Fails with each status in turn, notes how it was started, and leaves what a run leaves.
COMMAND = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(exist_ok=True)
(folder / "config.toml").touch()
with open(folder / "starts", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
statuses = sys.argv[1].split(",")
sys.exit(int(statuses[len((folder / "starts").read_text().splitlines()) - 1]))
"""


def starts(tmp_path, statuses, restarts=3):
    run = tmp_path / "run"
    command = [sys.executable, "-c", COMMAND, statuses, "--run-dir", str(run)]
    status = main(["--restart-on-failure", str(restarts), "--pause", "0", "--", *command])
    return status, (run / "starts").read_text().splitlines()


def test_a_run_that_fails_goes_on_until_it_ends_well(tmp_path, capfd):
    status, lines = starts(tmp_path, "1,9,0")
    assert status == 0
    assert [line.endswith(" --resume") for line in lines] == [False, True, True]
    assert (
        "supervise: the run failed with status 9; starting again in 0 s, 1 more times at most"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    ("statuses", "expected"), [("2,0", 2), ("143,0", 143), ("130,0", 130), ("15,0", 15), ("0,1", 0)]
)
def test_what_another_try_cannot_mend_is_not_tried_again(tmp_path, statuses, expected):
    status, lines = starts(tmp_path, statuses)
    assert (status, len(lines)) == (expected, 1)


def test_after_so_many_restarts_the_failure_stands(tmp_path, capfd):
    status, lines = starts(tmp_path, "1,1,7,0", restarts=2)
    assert (status, len(lines)) == (7, 3)
    assert "no restarts are left" in capfd.readouterr().err


def test_a_run_that_is_killed_is_started_again(tmp_path, capfd):
    killed = ["sh", "-c", "kill -KILL $$", "--run-dir", str(tmp_path / "run")]
    assert main(["--restart-on-failure", "1", "--pause", "0", "--", *killed]) == 137
    assert "failed with status 137; starting again" in capfd.readouterr().err


def test_a_job_that_is_put_back_in_the_queue_goes_on(tmp_path):
    """The same line begins a run and goes on with it."""
    folder = RunFolder(tmp_path)
    assert with_resume(["train", "--resume"], folder) == ["train"]
    folder.config.touch()
    assert with_resume(["train"], folder) == ["train", "--resume"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--", "train"], "must name its folder by --run-dir"),
        ([], "expected -- and the command"),
        (["--restart-on-failure", "-1", "--", "train"], "must be at least 0; got -1"),
        (["--pause", "-1", "--", "train"], "must be within 0 and 86,400 seconds; got -1"),
        (["--pause", "nan", "--", "train"], "must be within 0 and 86,400 seconds; got nan"),
        (["--pause", "inf", "--", "train"], "must be within 0 and 86,400 seconds; got inf"),
        (["--", "no-such-program", "--run-dir", "x"], "no-such-program: cannot be started"),
    ],
)
def test_wrong_use_is_refused(argv, message):
    with pytest.raises(InputError, match=message):
        main(argv)


def test_the_folder_is_found_in_either_form():
    assert run_dir_of(["mpirun", "--run-dir", "a"]) == run_dir_of(["--run-dir=a"]) == "a"


def test_sigterm_reaches_the_run_and_ends_both(tmp_path):
    child = "import time; print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "train.supervise", "--pause", "0", "--", sys.executable, "-c", child]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=rank_environment(),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"up\n"
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10
    finally:
        process.kill()
        process.communicate()
