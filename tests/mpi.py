"""Start Python code on several MPI ranks, as a person would with mpirun."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.threads import BLAS_VARIABLES

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_PLOTS = ROOT / "tests" / "without_plots"  # on PYTHONPATH: runs draw nothing, which takes longer


def run_ranks(
    ranks: int,
    code_or_module: str,
    *arguments: str,
    timeout: float = 60,
    env: dict[str, str | None] | None = None,
    plots: bool = False,
) -> subprocess.CompletedProcess:
    """Run what `start_ranks` starts to its end; kills it and fails the test after `timeout` seconds."""
    process = start_ranks(ranks, code_or_module, *arguments, env=env, plots=plots)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        pytest.fail(f"{ranks} ranks still ran after {timeout} s\n{out}\n{err}")
    finally:
        kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_ranks(
    ranks: int,
    code_or_module: str,
    *arguments: str,
    env: dict[str, str | None] | None = None,
    plots: bool = False,
) -> subprocess.Popen:
    """Start code (`python -c`) or a module named with dots (`python -m`) on some ranks; 1 needs no launcher.

    Standard output and error come as text through pipes. Skips the calling test where there is no mpirun or
    no mpi4py. Whoever calls this ends it: `kill`. Without `plots` conftest.py's session
    has no matplotlib for them.
    """
    kind = "-m" if re.fullmatch(r"[\w.]+", code_or_module) else "-c"
    command = [sys.executable, kind, code_or_module, *arguments]
    if ranks > 1:
        command = [find_mpirun(), "-np", str(ranks), *command]
    environment = rank_environment(env)
    if plots:
        path = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part != str(WITHOUT_PLOTS))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    """Kill the launcher and its ranks where they still run; MPICH's ranks die with their launcher."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def find_mpirun() -> str:
    """The mpirun installed beside this Python, else the one on the path; skips the test without one."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun: neither beside this Python nor on the path (pip install mpich)")
    return found


def rank_environment(changes: dict[str, str | None] | None = None) -> dict[str, str]:
    """The environment of a fresh run: the project importable, no launcher's variables, one thread for BLAS.

    More of them would spin beside the other tests' while they wait for each other. A change to None takes a
    variable out.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in BLAS_VARIABLES
        and not name.startswith(("MINILSTM_", "PMI_", "MPI_LOCAL", "OMPI_COMM_", "SLURM_"))
    }
    # Open MPI refuses root, and more ranks than cores, unless told otherwise; MPICH does not look at these.
    open_mpi = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH")]))
    given = {**inherited, **open_mpi, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **(changes or {})}
    return {name: value for name, value in given.items() if value is not None}
