"""Files are whole or absent, also when their writer is killed."""

import os
import signal
import subprocess
import sys

import pytest
from wikitext import names

from autograd.errors import InputError
from train.files import atomic_write, exclusive_lock


def test_a_good_end_replaces_the_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_an_exception_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_killed_writers_leftovers_go_with_the_next_write_and_a_living_ones_stay(tmp_path):
    target = tmp_path / "file"
    killed = run_python(
        "import os, signal, sys\n"
        "from train.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        target,
    )
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = names(tmp_path)
    living = leftover.replace(leftover.split(".")[-2], str(os.getppid()))
    other = leftover.replace(".file.", ".other.")
    for name in (living, other):
        (tmp_path / name).write_text("somebody else's")
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted(["file", living, other])


def test_only_one_process_holds_a_lock(tmp_path):
    target = tmp_path / "file"
    code = (
        "import sys\n"
        "from train.files import exclusive_lock\n"
        "with exclusive_lock(sys.argv[1]): print('held')\n"
    )
    with exclusive_lock(target):
        second = run_python(code, target)
    assert "InputError" in second.stderr
    assert "another process is writing file" in second.stderr
    assert run_python(code, target).stdout == "held\n"
    assert names(tmp_path) == []


def test_a_killed_process_lets_go_of_its_lock(tmp_path):
    target = tmp_path / "file"
    run_python(
        "import os, signal, sys\n"
        "from train.files import exclusive_lock\n"
        "with exclusive_lock(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n",
        target,
    )
    assert names(tmp_path) == ["file.lock"]
    with exclusive_lock(target):
        pass
    assert names(tmp_path) == []


def test_a_lock_is_refused_within_one_process_too(tmp_path):
    with (
        exclusive_lock(tmp_path / "file"),
        pytest.raises(InputError, match="wait until it has ended"),
        exclusive_lock(tmp_path / "file"),
    ):
        pass
