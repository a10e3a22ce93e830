"""Which rank this process is, its threads and its memory: decided before NumPy is loaded.

Two ranks that each start a BLAS thread on every core fight over the cores and slow down many times over, so
the cores of a node are dealt out among the ranks on it. Only the standard library may be imported here.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

# What a BLAS reads.
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
# Remembers the number chosen here: a child process inherits the variables above, and must not take our choice
# for the user's (a benchmark that starts four ranks would run four times the threads).
_CHOSEN = "MINILSTM_CHOSEN_THREADS"


# Options of mallopt, as glibc's malloc.h numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class Launch(NamedTuple):
    """The place of this process among those an MPI launcher started; `local` is among those on this node."""

    rank: int
    size: int
    local_rank: int
    local_size: int


# (rank, size, rank on the node, size on the node) as each launcher names them; Slurm's size on the node is a
# list over nodes, read apart. Slurm comes last, for `mpirun` inside a Slurm job sets both; a batch script's
# own process belongs to no step, hence has no SLURM_STEP_NUM_TASKS, and counts as alone.
_LAUNCHERS = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None),
)


def launcher(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """This process's place as its MPI launcher (Open MPI, MPICH and kin, Slurm) tells it; None without one.

    Where the launcher tells nothing of the node, all ranks are taken to be on one.
    """
    for rank_name, size_name, local_rank_name, local_size_name in _LAUNCHERS:
        rank, size = _number(environment, rank_name), _number(environment, size_name)
        if rank is None or size is None:
            continue
        local_rank = _number(environment, local_rank_name, "SLURM_LOCALID")
        local_size = local_size_name and _number(environment, local_size_name)
        local_size = local_size or _slurm_local_size(environment)
        if local_rank is None or local_size is None:
            local_rank, local_size = rank, size
        return Launch(rank, size, local_rank, local_size)
    return None


def cores_per_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Cores of this node divided by the ranks on it, at least 1; under Slurm, the cores given to a task."""
    given = _number(environment, "SLURM_CPUS_PER_TASK")
    if given and _number(environment, "SLURM_STEP_NUM_TASKS"):
        return max(1, min(given, _cores()))
    place = launcher(environment)
    return max(1, _cores() // (place.local_size if place else 1))


def set_blas_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give BLAS `cores_per_rank()` threads, unless the user set a number or NumPy has been loaded already."""
    if "numpy" in sys.modules:
        return
    chosen_before = environment.get(_CHOSEN)
    if any(environment.get(name, chosen_before) != chosen_before for name in BLAS_VARIABLES):
        return
    chosen = str(cores_per_rank(environment))
    for name in (*BLAS_VARIABLES, _CHOSEN):
        environment[name] = chosen
    # OpenBLAS's idle threads spin for 2^26 cycles by default, and take the cores from all that is not BLAS.
    environment.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")


def reuse_freed_memory() -> None:
    """Tell the C library to keep what NumPy frees, and to give it out again; glibc only, else nothing.

    By default arrays of some megabytes go back to the operating system when they are freed, and every step
    pays for their pages anew: 8% of a training step.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
    set_option(_M_TRIM_THRESHOLD, 1 << 30)
    set_option(_M_ARENA_MAX, 1)  # what one thread frees, another can have


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of the variables that holds a whole number; None if none does."""
    for name in names:
        found = re.fullmatch(r"\s*(\d+)\s*", environment.get(name, ""))
        if found:
            return int(found[1])
    return None


def _slurm_local_size(environment: Mapping[str, str]) -> int | None:
    """Tasks on this node from Slurm's list over nodes: "4(x2),3" reads 4, 4, 3."""
    counts: list[int] = []
    for count, repeats in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        counts += [int(count)] * int(repeats or 1)
    node = _number(environment, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else None


def _cores() -> int:
    """Cores this process may run on: those it is bound to, no more than its container's share of time."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as limits:
            quota, period = limits.read().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit: "max" is not a number
        return cores
