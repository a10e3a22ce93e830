"""A worker in a process of its own, that works only while it is asked to.

Peak memory is a figure of a whole process, so each system that is measured gets one; to be measured side by
side they take turns. The parent writes one line for an order, the child answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autograd.errors import InputError
from train.threads import BLAS_VARIABLES

WARM_UP = 2
"""Untimed rounds: memory is touched for the first time, Adam makes its moments."""
PAUSE = 0.05
"""Seconds between turns, in which the threads of the side before stop spinning (OpenMP's take about 0.01)."""

_ROOT = Path(__file__).resolve().parent.parent


class Child:
    """The parent's side. A context manager: leaving it ends the process.

    Args:
        name: shown in errors.
        module, arguments: what `python -m` runs; it must call `serve`.
        threads: for BLAS and OpenMP in the child; None: what the environment says, else one a core.
    """

    def __init__(self, name: str, module: str, arguments: list[str], threads: int | None = None) -> None:
        self.name = name
        environment = dict(os.environ)
        if threads is not None:
            environment.update(dict.fromkeys(BLAS_VARIABLES, str(threads)))
            # The default is to spin for about a second after each product, in the others' turns.
            environment.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=_ROOT,
        )

    def ask(self, order: str) -> dict[str, Any]:
        """The answer to an order; the child is idle again when it arrives.

        Raises:
            InputError: the child has ended; what it said of it stands on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            hint = " (killed, most likely for want of memory)" if status == -9 else ""
            raise InputError(f"the process of {self.name!r} ended with status {status}{hint}")
        return json.loads(answer)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(orders: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """The child's side: carry out orders from standard input by their names until it closes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not pass for an answer
    for line in sys.stdin:
        print(json.dumps(orders[line.strip()]()), file=answers, flush=True)


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in MB (10⁶ bytes)."""
    try:
        # Not getrusage's ru_maxrss where it can be helped: that begins with the memory of the process which
        # started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
