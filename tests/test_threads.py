"""BLAS threads per rank: cores by ranks, decided before NumPy is loaded and only where the user did not."""

import json
import os

import pytest
from mpi import run_ranks

from train import threads
from train.threads import BLAS_VARIABLES, Launch, cores_per_rank, launcher

HYDRA = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SLURM = {
    "SLURM_PROCID": "6",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}
OPEN = dict.fromkeys(BLAS_VARIABLES)  # nothing is chosen by who starts the ranks
SHOW = "import json, os, sys, train\nassert 'numpy' not in sys.modules\n"
SHOW += f"print(json.dumps([os.environ.get(name) for name in {BLAS_VARIABLES}]))"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (HYDRA, Launch(5, 8, 1, 4)),
        (OPEN_MPI, Launch(3, 4, 1, 2)),
        (SLURM, Launch(6, 7, 2, 3)),
        ({**SLURM, "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2),5(x1)"}, Launch(6, 7, 2, 5)),
        ({**SLURM, **OPEN_MPI}, Launch(3, 4, 1, 2)),  # mpirun inside a Slurm job
        ({**SLURM, "PMI_RANK": "6", "PMI_SIZE": "7"}, Launch(6, 7, 2, 3)),  # srun --mpi=pmi2
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch(1, 2, 1, 2)),  # nothing said of the node
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # the batch script itself, which no srun started
        ({"PMI_RANK": "", "PMI_SIZE": "x"}, None),
    ],
)
def test_the_launcher_is_read_from_its_variables(environment, expected):
    assert launcher(environment) == expected


def test_the_real_launcher_is_read():
    code = "import sys\nfrom train.threads import launcher\nsys.stdout.write(str(tuple(launcher())) + '\\n')"
    result = run_ranks(3, code)
    assert sorted(result.stdout.splitlines()) == [f"({rank}, 3, {rank}, 3)" for rank in range(3)], (
        result.stderr
    )


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 1), (8, 2), (11, 2), (64, 16)])
def test_cores_are_dealt_out_to_the_ranks_of_the_node(monkeypatch, cores, expected):
    monkeypatch.setattr(threads, "_cores", lambda: cores)
    assert cores_per_rank(HYDRA) == expected  # 4 of the 8 ranks are here
    assert cores_per_rank({}) == cores


def test_slurm_tells_each_tasks_cores(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 6)  # the task is bound to its own
    assert cores_per_rank({**SLURM, "SLURM_CPUS_PER_TASK": "6"}) == 6
    assert cores_per_rank({**SLURM, "SLURM_CPUS_PER_TASK": "8"}) == 6


def test_there_is_at_least_one_core():
    assert 1 <= threads._cores() <= (os.cpu_count() or 1)


def test_import_train_decides_before_numpy_is_loaded():
    chosen = str(cores_per_rank({}))
    assert json.loads(run_ranks(1, SHOW, env=OPEN).stdout) == [chosen] * 3


def test_many_ranks_have_one_thread_each():
    result = run_ranks(4, SHOW.replace("print(", "sys.stdout.write(").replace("]))", "]) + '\\n')"), env=OPEN)
    share = str(max(1, threads._cores() // 4))
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[share] * 3] * 4, result.stderr


@pytest.mark.parametrize("name", BLAS_VARIABLES)
def test_the_users_choice_is_left_alone(name):
    expected = ["3" if other == name else None for other in BLAS_VARIABLES]
    assert json.loads(run_ranks(1, SHOW, env={**OPEN, name: "3"}).stdout) == expected


def test_our_choice_is_not_taken_for_the_users_by_a_child_process(monkeypatch):
    monkeypatch.delitem(threads.sys.modules, "numpy")
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    environment: dict[str, str] = {}
    threads.set_blas_threads(environment)
    assert environment["OPENBLAS_NUM_THREADS"] == "8"
    child = {**environment, **HYDRA}
    threads.set_blas_threads(child)
    assert child["OPENBLAS_NUM_THREADS"] == "2"
    set_by_user = {**environment, **HYDRA, "OMP_NUM_THREADS": "3"}
    threads.set_blas_threads(set_by_user)
    assert set_by_user["OPENBLAS_NUM_THREADS"] == "8"
    assert set_by_user["OMP_NUM_THREADS"] == "3"


def test_nothing_is_done_once_numpy_is_loaded():
    code = SHOW.replace("train\n", "numpy, train\n").replace("assert 'numpy' not", "assert 'numpy'")
    assert json.loads(run_ranks(1, code, env=OPEN).stdout) == [None] * 3


def test_numpys_blas_obeys():
    pytest.importorskip("threadpoolctl")
    code = "import train, numpy\nfrom threadpoolctl import threadpool_info\n"
    code += "print([library['num_threads'] for library in threadpool_info()])"
    environment = {**OPEN, "PMI_RANK": "0", "PMI_SIZE": "1000"}  # more ranks than cores on any node
    assert run_ranks(1, code, env=environment).stdout == "[1]\n"
