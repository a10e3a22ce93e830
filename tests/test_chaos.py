"""Kills at random moments, the short form of `make chaos`: nothing may be lost."""

import random
import shutil

import pytest
from mpi import find_mpirun

from autograd.errors import InputError
from benchmarks.chaos import _shares, chaos, faults_found, main, table, write_table
from benchmarks.faults import Run, damage
from benchmarks.tiny import write_text
from train.checkpoint import load_newest


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_kills_lose_nothing(kills, tmp_path):
    find_mpirun()
    # A kill while a plot is drawn: test_wt103.py.
    result = chaos(kills, ranks=[1, 2, 4], seed=1, folder=tmp_path, steps=80)
    assert faults_found(result) == []
    assert len(result["faults"]) == kills
    assert {fault["ranks"] for fault in result["faults"]} == {1, 2, 4}
    assert sum(run["faults"] for run in result["runs"]) == kills
    text = table(result, "command")
    assert text.count("| nothing |") == len({(f["what"], f["target"]) for f in result["faults"]}) + len(
        {fault["damage"] for fault in result["faults"]} - {None}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    write_text(folder / "text.txt")
    run = Run(folder / "run", folder / "text.txt", 1, 22)
    run.finish()
    return run


@pytest.fixture
def runs(finished, tmp_path):
    """The finished run, and a copy of it."""
    copy = shutil.copytree(finished.folder.path, tmp_path / "copy")
    return finished, Run(copy, tmp_path, 1, 22)


def test_what_differs_is_seen(runs):
    """The comparison itself: one bit, one row, one figure."""
    run, other = runs
    assert run.differences(other) == []
    rows = other.folder.metrics.read_text().replace('"step": 7,', '"step": 7, "more": 1,', 1)
    other.folder.metrics.write_text(rows)
    other.folder.result.write_text(other.folder.result.read_text().replace('"seed": 0', '"seed": 1', 1))
    latest = other.folder.checkpoint("latest")
    latest.write_bytes(other.folder.checkpoint("best").read_bytes())
    assert {"metrics.jsonl", "result.json", "latest.h5: optimizer/m"} <= set(run.differences(other))


@pytest.mark.parametrize("how", ["cut off", "one bit flipped", "removed"])
def test_damage_leads_to_the_checkpoint_before(runs, how):
    run, rng = runs[1], random.Random(0)
    while not damage(run, how, rng):
        pass  # a bit that carries nothing
    assert load_newest(run.folder.checkpoint("latest")).path.name == "latest-1.h5"
    assert run.step_saved() == 21


def test_a_fault_that_lost_something_is_told():
    fault = {"what": "SIGTERM", "target": "one rank", "moment": "training", "ranks": 2, "damage": None}
    fault |= {"seconds": 11.0, "again": 3, "in_write": False, "wrong": "3 steps were not saved"}
    runs = [{"run": "run0 on 2", "faults": 1, "differences": ["metrics.jsonl"]}]
    result = {"faults": [fault], "runs": runs, "steps": 80, "seconds": 60.0, "environment": {"commit": "abc"}}
    text = table(result, "command")
    assert "| SIGTERM | one rank | 1 | 0 | 0 | 0 | 11.0 | 3 | see below |" in text
    assert "- SIGTERM of one rank (training, on 2): 3 steps were not saved" in text
    assert "0 of 1 runs ended with the bits of the undisturbed one." in text
    assert "- run0 on 2: metrics.jsonl" in text


def test_kills_are_shared_out():
    assert _shares(200, [1, 2, 4]) == [(1, 114), (2, 57), (4, 29)]
    assert _shares(3, [1, 2, 4]) == [(1, 1), (2, 1), (4, 1)]


def test_the_table_replaces_the_one_before(tmp_path):
    document = tmp_path / "reliability.md"
    document.write_text("before\n<begin>\nold\n<end>\nafter\n")
    write_table(document, "new\n", "<begin>", "<end>")
    assert document.read_text() == "before\n<begin>\n\nnew\n\n<end>\nafter\n"
    with pytest.raises(InputError, match="expected the marks"):
        write_table(document, "new\n")


@pytest.mark.parametrize(
    "flags", [["--ranks", "two"], ["--kills", "0"], ["--kills", "2", "--ranks", "1,2,4"]]
)
def test_flags_that_mean_nothing_are_told(flags):
    with pytest.raises(InputError, match="--kills|--ranks"):
        main(flags)
