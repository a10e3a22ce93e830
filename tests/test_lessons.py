"""The lessons run, each as a script that a reader starts, and each is a notebook."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import find_mpirun, rank_environment

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "lessons"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LESSONS = [path for path in SCRIPTS if not path.stem.endswith("_solutions")]
WHAT_THEY_SHOW = {  # a line of what each prints: that something is shown, and not only that nothing failed
    "1_first_gradient": "by backward:     df/dx at 2 = 7.000000",
    "2_own_function": "tanh_step: W must be (4, 3) because x is (2, 3) and h (2, 4); got (4, 4)",
    "2_solutions": "peephole_step: right also when only h or only c is used",
    "3_lstm_step": "lstm_cell: the same h and c",
    "4_through_time": "LSTM, forget gates near 0.5   1.0e+00",
    "5_fused_sequence": "lstm: 1 Functions (LSTM)",
    "6_tied_softmax": "by hand, in blocks of 7 and of 50 words: the same",
    "7_float16": "overflow: skipped",
    "8_four_ranks": "checksums after 20 steps: ",
    "9_train_look_generate": "the cats near the old tree",
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


percent = load(ROOT / "docs" / "site" / "percent.py")


@pytest.mark.long
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_lesson_runs(path, tmp_path):
    """Elsewhere than in its folder, with warnings as errors; seconds on a machine that does nothing else."""
    if path.stem == "8_four_ranks":
        find_mpirun()
    command = [sys.executable, "-W", "error", str(path)]
    environment = rank_environment({"TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"})
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    assert WHAT_THEY_SHOW[path.stem] in result.stdout
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_lesson_is_a_notebook(path):
    """It begins with its title, text and code take turns, and each cell of code stands on its own."""
    cells = percent.read_cells(path.read_text(encoding="utf-8"))
    kinds = [cell.is_text for cell in cells]
    assert kinds[0]
    assert kinds == [index % 2 == 0 for index in range(len(kinds))]
    assert len([line for cell in cells for line in cell.source.splitlines() if line.startswith("# ")]) >= 1
    assert re.match(r"# (Lesson \d: |Solutions to )", cells[0].source)
    for cell in cells:
        assert cell.source.strip()
        if not cell.is_text:
            compile(cell.source, f"{path.name}, line {cell.line}", "exec")


def test_the_path_has_no_gap_and_each_lesson_leads_on():
    assert [path.stem.split("_")[0] for path in LESSONS] == [str(number) for number in range(1, 10)]
    for path, following in zip(LESSONS, LESSONS[1:], strict=False):
        assert f"({following.name})" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("import numpy\n# %%\n", "line 1: a script begins with a cell"),
        ("# %% [markdown]\n# # A title\nx = 1\n", "line 3: in a text cell every line begins with '# '; got"),
        ("# %% [code]\nx = 1\n", "line 1: expected # %% or # %% [markdown]; got '# %% [code]'"),
    ],
)  # fmt: skip
def test_what_is_no_cell_is_refused(script, fault):
    with pytest.raises(ValueError, match=re.escape(fault)):
        percent.read_cells(script)


def test_cells_are_read():
    cells = percent.read_cells("# %% [markdown]\n# # A\n#\n# text\n\n# %%\nx = 1\n\n\ny = 2\n")
    assert cells == [(True, "# A\n\ntext", 2), (False, "x = 1\n\n\ny = 2", 7)]
