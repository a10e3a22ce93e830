"""The facts about where a run was made."""

import json
import platform
import subprocess
from importlib import metadata

from train import environment as module
from train.environment import environment


def test_it_is_plain_and_true():
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert facts["versions"]["numpy"] == metadata.version("numpy")
    assert facts["cores"] >= 1
    assert "cupy" not in facts["versions"]


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_says_when_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    assert environment()["commit"] is None
    git(tmp_path, "init")
    assert environment()["commit"] is None
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert environment()["commit"] == head
    (tmp_path / "file").write_text("two")
    assert environment()["commit"] == f"{head}-dirty"


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None
