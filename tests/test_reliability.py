"""What befalls a run that takes hours, and that nothing is lost; kills at random are in test_chaos.py."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mpi import kill, run_ranks, start_ranks
from tiny import flags, rows_of, train_tiny, write_text

from autograd.errors import InputError
from train import files, training_run
from train.checkpoint import load_checkpoint
from train.files import exclusive_lock
from train.signals import end_in_order
from train.training_run import TrainingRun
from train.wt103 import main

OLD_RUN = Path(__file__).parent / "old_run"


pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    return write_text(tmp_path / "text.txt")


KNOBS = {"evaluate_every": 6, "save_every": 4}


def begin(text, run, *more, steps=20, **knobs):
    main([*flags(text, run, **{**KNOBS, **knobs}), "--max-steps", str(steps), *more])


def go_on(run, *more):
    main(["--run-dir", str(run), "--resume", *more])


def contents(run):
    """All that a finished run leaves, but for times."""
    found = {}
    for which in ("best", "latest"):
        arrays, facts = load_checkpoint(run / "checkpoints" / f"{which}.h5")
        found |= {f"{which} {name}": array.tobytes() for name, array in arrays.items()}
        found[which] = timeless(facts)
    return found | {"metrics": timeless(rows_of(run))}


def timeless(value):
    if isinstance(value, dict):
        times = ("seconds", "tokens_per_second")
        return {key: timeless(part) for key, part in value.items() if key not in times}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def stopped(run, number, monkeypatch, at):
    """Go on, and signal this process when `at(kind, step)` of what the run begins is true: it must exit."""
    count, evaluate = TrainingRun._count, training_run.evaluate

    def count_(self, *arguments):
        if at("step", self.position.step + 1):
            os.kill(os.getpid(), number)
        return count(self, *arguments)

    def evaluate_(*arguments, **options):
        if at(options["description"], None):
            os.kill(os.getpid(), number)
        return evaluate(*arguments, **options)

    before = signal.getsignal(signal.SIGTERM)
    end_in_order()  # as every command does
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "_count", count_)
            patch.setattr(training_run, "evaluate", evaluate_)
            with pytest.raises(SystemExit) as ended:
                go_on(run)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + number


@pytest.mark.parametrize("optimizer", ["adam", "nt_asgd"])
def test_signals_in_steps_and_validations_lose_nothing(text, monkeypatch, optimizer):
    run, whole = text.parent / "run", text.parent / "whole"
    rate = {"optimizer": optimizer, "nonmono": 1, "learning_rate": 0.01 if optimizer == "adam" else 5.0}
    begin(text, whole, **rate)
    begin(text, run, steps=4, **rate)
    shutil.rmtree(run / "checkpoints")  # as if it had been ended before the first one
    (run / "checkpoints").mkdir()
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("max_steps = 4", "max_steps = 20"))

    stopped(run, signal.SIGTERM, monkeypatch, lambda what, step: what == "step" and step == 3)
    facts = load_checkpoint(run / "checkpoints" / "latest.h5")[1]
    assert facts["position"]["step"] == 4  # asked after the sum of step 3 was made
    for number in (signal.SIGINT, signal.SIGTERM):  # the same validation is cut short twice
        stopped(run, number, monkeypatch, lambda what, step: what == "scoring valid")
        facts = load_checkpoint(run / "checkpoints" / "latest.h5")[1]
        assert (facts["position"]["step"], facts["position"]["pending"]) == (6, True)
        assert all(row["kind"] == "train" for row in rows_of(run))
    stopped(run, signal.SIGTERM, monkeypatch, lambda what, step: step == 19)  # heard of by the last sum
    stopped(run, signal.SIGTERM, monkeypatch, lambda what, step: what == "scoring test")
    go_on(run)
    assert contents(run) == contents(whole)


def test_a_validation_made_once_more_has_one_row(text, monkeypatch):
    """A kill between the row of a validation and its checkpoint, when the one before was a stop's."""
    run, whole = text.parent / "run", text.parent / "whole"
    for folder in (run, whole):
        begin(text, folder, steps=10)
    go_on(whole, "--max-steps", "20")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("max_steps = 10", "max_steps = 20"))
    stopped(run, signal.SIGTERM, monkeypatch, lambda what, step: what == "scoring valid")
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_run", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go_on(run)
    assert (rows_of(run)[-1]["kind"], rows_of(run)[-1]["step"]) == ("evaluation", 12)
    go_on(run)
    assert contents(run)["metrics"] == contents(whole)["metrics"]


@pytest.fixture
def half(text, monkeypatch):
    """A run killed after 10 of its 20 steps, saved after 4, 6 and 8 of them, and what it is to come to."""
    run, whole = text.parent / "run", text.parent / "whole"
    begin(text, whole)
    log = TrainingRun._log

    def log_then_die(self, *arguments):
        log(self, *arguments)
        assert self.position.step != 10

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_log", log_then_die)
        with pytest.raises(AssertionError):
            begin(text, run)
    return run, contents(whole)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-3000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink])
def test_a_damaged_latest_checkpoint_is_passed_over_in_one_line(half, damage, capsys):
    run, whole = half
    latest = run / "checkpoints" / "latest.h5"
    damage(latest)
    capsys.readouterr()
    go_on(run)
    lines = [line for line in capsys.readouterr().err.splitlines() if "latest-1.h5" in line]
    assert len(lines) == 1
    assert "going on from latest-1.h5, saved after step 6" in lines[0]
    assert contents(run) == whole
    assert (run / "checkpoints" / "latest-damaged.h5").exists() == (damage is not Path.unlink)


def test_without_any_whole_checkpoint_the_run_stays_as_it_is(half):
    run, _ = half
    for name in ("latest.h5", "latest-1.h5"):
        cut_off(run / "checkpoints" / name)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"latest.h5 is not a whole checkpoint"):
        go_on(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_stay_as_are_asked_for(text, keep):
    run = text.parent / "run"
    begin(text, run, keep_checkpoints=keep)
    steps = {
        path.name: load_checkpoint(path)[1]["position"]["step"] for path in run.glob("checkpoints/latest*.h5")
    }
    assert steps == dict(list({"latest.h5": 20, "latest-1.h5": 18, "latest-2.h5": 16}.items())[:keep])


def test_a_run_of_the_first_version_goes_on(text):
    """tests/old_run was killed after step 20 of 30 by a program that wrote version 1; see its README."""
    run, whole = text.parent / "run", text.parent / "whole"
    shutil.copytree(OLD_RUN, run)
    go_on(run, "--data", str(text))
    assert load_checkpoint(run / "checkpoints" / "latest.h5")[1]["position"]["pending"] is False
    begin(text, whole, steps=30, embedding_size=4, hidden_size=5, save_every=6, evaluate_every=9)
    losses = [[(row["kind"], row["step"]) for row in rows_of(folder)] for folder in (run, whole)]
    assert losses[0] == losses[1]
    np.testing.assert_allclose(
        *([row["loss"] for row in rows_of(folder)] for folder in (run, whole)), rtol=1e-5
    )


def test_a_folder_that_vanishes_is_one_line(text, monkeypatch):
    run = text.parent / "run"
    count = TrainingRun._count

    def vanish(self, *arguments):
        ends = count(self, *arguments)
        if self.position.step == 7:
            shutil.rmtree(run)
        return ends

    monkeypatch.setattr(TrainingRun, "_count", vanish)
    with pytest.raises(
        InputError, match="cannot write the checkpoint .* the folder .* is not there any more"
    ):
        begin(text, run)
    assert not run.exists()


@contextlib.contextmanager
def read_only(folder):
    """No one may write there; root, whom rights do not hold, by a mount."""
    if os.geteuid():
        os.chmod(folder, 0o555)
    else:
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)
    try:
        yield
    finally:
        if os.geteuid():
            os.chmod(folder, 0o755)
        else:
            subprocess.run(["umount", folder], check=True)


def mount(*arguments):
    result = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"nothing can be mounted here: {result.stderr.strip()}")


def test_folders_that_may_not_be_written_are_one_line_each(half, text):
    run, whole = half
    with read_only(run / "checkpoints"), pytest.raises(InputError) as refused:
        go_on(run)
    assert f"cannot write the checkpoint {run / 'checkpoints'}" in str(refused.value)
    assert "an earlier one is as it was" in str(refused.value)
    with (
        read_only(run),
        pytest.raises(InputError, match="cannot make the run's folder: (Read-only|Permission)"),
    ):
        go_on(run)
    with read_only(text.parent), pytest.raises(InputError, match="nothing can be written there"):
        begin(text, text.parent / "new")
    go_on(run)
    assert contents(run) == whole


def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_when_there_is_room(half, tmp_path):
    if os.geteuid():
        pytest.skip("only root may mount a small disk; a limit on the size of files is in test_checkpoint.py")
    run, whole = half
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "none", disk)
    try:
        shutil.copytree(run, disk / "run")
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "others").write_bytes(bytes(room - 12_000))
        with pytest.raises(InputError, match="no space left on device.*; an earlier one is as it was"):
            go_on(disk / "run")
        load_checkpoint(disk / "run" / "checkpoints" / "latest.h5")
        (disk / "others").unlink()
        go_on(disk / "run")
        assert contents(disk / "run") == whole
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_clock_that_jumps_back_changes_nothing(half, monkeypatch):
    run, whole = half
    now = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    go_on(run)
    assert contents(run) == whole
    seconds = [row["seconds"] for row in rows_of(run) if row["kind"] == "train"]
    assert seconds == sorted(seconds)


def test_a_run_of_four_ranks_goes_on_with_two_and_with_one(half, text):
    env = {"MINILSTM_DATA": str(text.parent / "prepared")}
    four = text.parent / "four"
    train_tiny(4, text, four, "--max-steps", "10", **KNOBS)
    runs = {ranks: shutil.copytree(four, text.parent / f"from four to {ranks}") for ranks in (2, 1)}
    arguments = ["--run-dir", str(runs[2]), "--resume", "--max-steps=20"]
    result = run_ranks(2, "train.wt103", *arguments, env=env)
    assert result.returncode == 0, result.stderr
    go_on(runs[1], "--max-steps=20")
    for ranks, run in runs.items():
        curves = [
            [row["loss"] for row in rows_of(folder) if row["kind"] == "train"]
            for folder in (run, text.parent / "whole")
        ]
        np.testing.assert_allclose(*curves, rtol=2e-5)
        assert json.loads((run / "result.json").read_text())["ranks"] == ranks


def test_of_two_runs_begun_at_once_one_is_told(text):
    env, run = {"MINILSTM_DATA": str(text.parent / "prepared")}, text.parent / "run"
    main(["--dry-run", *flags(text, run)])  # prepares the data
    processes = [
        start_ranks(1, "train.wt103", *flags(text, run), "--max-steps=60", env=env) for _ in range(2)
    ]
    try:
        told = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            kill(process)
    assert sorted(process.returncode for process in processes) == [0, 2]
    message = next(err for err, process in zip(told, processes, strict=True) if process.returncode)
    assert "another process is writing run (process " in message or "holds a run already" in message
    steps = [row["step"] for row in rows_of(run) if row["kind"] == "train"]
    assert steps == list(range(1, 61))


def test_a_holder_on_another_machine_is_known_by_its_touch(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_TOUCH", 0.05)
    monkeypatch.setattr(files, "_WATCH", 0.5)
    lock = tmp_path / "run.lock"
    lock.write_text("elsewhere 4711\n")
    ended = threading.Event()
    holder = threading.Thread(target=lambda: [os.utime(lock) for _ in iter(lambda: ended.wait(0.05), True)])
    holder.start()
    try:
        with (
            pytest.raises(InputError, match=r"is writing run \(process 4711 on elsewhere\); wait until"),
            exclusive_lock(tmp_path / "run"),
        ):
            pass
    finally:
        ended.set()
        holder.join()
    assert lock.read_text() == "elsewhere 4711\n"
    with exclusive_lock(tmp_path / "run"):  # a holder that lives no more is in nobody's way
        assert str(os.getpid()) in lock.read_text()
        before = lock.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not lock.exists()


def test_where_the_kernel_locks_nothing_the_touch_still_tells(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    monkeypatch.setattr(files, "_TOUCH", 0.05)
    monkeypatch.setattr(files, "_WATCH", 0.5)
    with (
        exclusive_lock(tmp_path / "run"),
        pytest.raises(InputError, match="another process"),
        exclusive_lock(tmp_path / "run"),
    ):
        pass
    with exclusive_lock(tmp_path / "run"):
        pass
