"""Who may know what, from the sources' imports: tests, benchmarks → train → minilstm → autograd → numpy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autograd

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "autograd": {"autograd"},
    "minilstm": {"autograd", "minilstm"},
    "train": {"autograd", "minilstm", "train"},
}
# The only files that may import a package from outside, and they do it inside functions. matplotlib has two:
# the engine's gradient check draws its own error, and the engine may not import train.
DOORS = {
    "cupy": {"autograd/backend.py"},
    "threadpoolctl": {"autograd/parallel.py"},
    "h5py": {"train/corpus.py", "train/prepare.py", "train/checkpoint.py", "train/hdf5.py"},
    "matplotlib": {"train/plot.py", "autograd/check_plot.py"},
    "mpi4py": {"train/communicator.py"},
    "tqdm": {"train/log.py"},
    "torch": {"train/weight_files.py"},
    "safetensors": {"train/weight_files.py"},
}
ANYWHERE = {"numpy", "tomli", *sys.stdlib_module_names}  # tomli: tomllib, before Python 3.11
CODE_FROM_FILES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# mpi4py's methods with lower-case names, which pickle what they send.
PICKLING_CALLS = {"bcast", "reduce", "allreduce", "gather", "allgather", "scatter", "alltoall"}
PICKLING_CALLS |= {"send", "recv", "isend", "irecv", "sendrecv", "ssend", "bsend", "exscan", "scan"}


def violations(path, source):
    """What a file imports and calls against the rules above, a line each; `path` is relative to the root."""
    tree = ast.parse(source, path)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return [
        f"{path}:{node.lineno}: {fault}"
        for node in ast.walk(tree)
        for fault in (*import_faults(path, node, parents), *pickle_faults(path, node))
    ]


def import_faults(path, node, parents):
    own = LAYERS[path.split("/")[0]]
    for package in imported_packages(node):
        if package in CODE_FROM_FILES:
            yield f"{package} runs code from the files that it reads"
        elif package in DOORS:
            if path not in DOORS[package]:
                yield f"{package} is imported only in {', '.join(sorted(DOORS[package]))}"
            elif not is_deferred(node, parents):
                yield f"{package} is imported inside functions, so that this module loads without it"
        elif package not in own | ANYWHERE:
            yield f"{path.split('/')[0]} must not know {package}"


def imported_packages(node):
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["a relative module" if node.level else node.module.split(".")[0]]
    return []


def is_deferred(node, parents):
    """Inside a function, or read by type checkers alone."""
    while node := parents.get(node):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return True
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return True
    return False


def pickle_faults(path, node):
    if not isinstance(node, ast.Call):
        return
    if any(
        keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
    ):
        yield "allow_pickle runs code from the files that it reads"
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if path in DOORS["mpi4py"] and method in PICKLING_CALLS:
        yield f"mpi4py's {method} pickles what it sends; {method.capitalize()} sends an array"


def sources():
    return sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


def test_imports_point_one_way():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sources()}
    assert len(texts) > 100
    assert [fault for path, text in texts.items() for fault in violations(path, text)] == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("autograd/variable.py", "from minilstm import LanguageModel", "autograd must not know minilstm"),
        ("minilstm/lstm.py", "def f():\n  import train.step", "minilstm must not know train"),
        ("train/step.py", "import tests", "train must not know tests"),
        ("train/step.py", "import torch", "torch is imported only in train/weight_files.py"),
        ("train/step.py", "from . import config", "train must not know a relative module"),
        ("train/step.py", "def f():\n  import cupy", "cupy is imported only in autograd/backend.py"),
        ("train/log.py", "from tqdm.auto import tqdm", "tqdm is imported inside functions"),
        ("train/corpus.py", "try:\n  import h5py\nexcept ImportError: pass", "h5py is imported inside"),
        ("train/checkpoint.py", "def f():\n  import pickle", "pickle runs code"),
        ("train/checkpoint.py", "numpy.load(path, allow_pickle=True)", "allow_pickle runs code"),
        ("train/communicator.py", "comm.bcast(x)", "mpi4py's bcast pickles what it sends; Bcast"),
    ],
)
def test_a_breach_is_seen(path, source, fault):
    found = violations(path, source)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "train/step.py",
            "import os\nimport numpy as np\nfrom minilstm import x\nimport autograd.functions as F",
        ),
        ("train/log.py", "def f():\n  from tqdm import tqdm"),
        ("train/corpus.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import h5py"),
        ("train/communicator.py", "comm.Allreduce(x)\ncomm.allreduce_mean_(x)"),
        ("train/checkpoint.py", "numpy.load(path, allow_pickle=False)"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


def test_every_door_exists():
    assert [path for paths in DOORS.values() for path in paths if not (ROOT / path).is_file()] == []


def test_the_engine_is_ours():
    """PyPI has another package named autograd."""
    assert Path(autograd.__file__) == ROOT / "autograd" / "__init__.py"


def test_tests_are_no_package():
    """A tests/autograd/ with an __init__.py would shadow the engine."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def loaded_by(script):
    """What a fresh Python has imported at the end of a script."""
    script += "\nimport sys; print(*filter(sys.modules.get, sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stderr.split()}


def test_the_model_loads_with_numpy_alone():
    loaded = loaded_by("import minilstm; minilstm.LanguageModel")
    assert "numpy" in loaded
    assert loaded & (set(DOORS) | {"tomli", "train"}) == set()


def test_help_starts_without_what_it_does_not_need():
    """Not even NumPy, whose import takes longer than all the rest."""
    train = "import runpy, sys\nsys.argv = ['wt103', '--help']\n"
    train += "try: runpy.run_module('train.wt103', run_name='__main__')\nexcept SystemExit: pass"
    loaded = loaded_by(train)
    assert "train" in loaded
    assert loaded & {*DOORS, "numpy", "minilstm", "ssl", "multiprocessing"} == set()


def test_variables_have_their_operators_whatever_is_imported_first():
    """Each module of the engine in a Python of its own would take long: modules are forgotten in between."""
    modules = sorted(path.stem for path in (ROOT / "autograd").glob("*.py") if path.stem != "__init__")
    loaded_by(
        f"import importlib, sys\nfor first in {modules}:\n"
        "    for name in [name for name in sys.modules if name.split('.')[0] == 'autograd']:\n"
        "        del sys.modules[name]\n"
        "    importlib.import_module(f'autograd.{first}')\n"
        "    from autograd.variable import Variable\n"
        "    x = Variable(1.0)\n"
        "    assert (x * x + 2).data == 3, first"
    )


def test_the_engine_has_all_that_it_names():
    """Each is looked for when it is first asked for, so nothing else would tell of one that is not there."""
    assert [name for name in autograd.__all__ if not hasattr(autograd, name)] == []
    with pytest.raises(AttributeError, match="module 'autograd' has no attribute 'nothing'"):
        autograd.nothing  # noqa: B018
