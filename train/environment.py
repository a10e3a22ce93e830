"""Where a run was made: the facts that a result needs to be judged and made again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from train.threads import BLAS_VARIABLES

_PACKAGES = ("numpy", "h5py", "tqdm", "mpi4py", "mpich", "openmpi", "cupy-cuda12x", "cupy-cuda13x")
_ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """Python, package versions, BLAS and its threads, git commit, machine: plain values for JSON.

    What is unknown is None. `cores` are those that this process may use; `commit` ends in "-dirty" when
    tracked files differ from it.
    """
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "blas": _blas(),
        "threads": {name: os.environ[name] for name in BLAS_VARIABLES if name in os.environ},
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the project's own checkout; an installed copy inside another repository has none."""
    if not (_ROOT / ".git").exists():
        return None
    describe = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _blas() -> str | None:
    import numpy

    try:
        blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):  # a NumPy that does not tell
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
