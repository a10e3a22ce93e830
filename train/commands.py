"""What all commands have in common: how they end, alone or on many ranks."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from autograd.errors import InputError
from train.communicator import describe_rank, end_all_ranks, get_communicator

INPUT_ERROR_STATUS = 2  # as argparse exits


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit with the status it returns.

    An `InputError` is printed as one line, `error: …`, with status 2; Ctrl-C ends with status 130 and a
    reader that went away (`… | head`) with 141, both as a shell reports them, without a traceback. On many
    ranks every end but a good one ends all of them, whichever rank it began on: ranks that wait for each
    other must not outlive one another.
    """
    try:
        get_communicator()  # joined before anything can fail: a failing rank must be able to end the others
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(INPUT_ERROR_STATUS)
    message, status = _outcome(main)
    if status == 0:
        sys.exit(0)
    end_all_ranks(message, status)


def _outcome(main: Callable[[], int | None]) -> tuple[str, int]:
    """What `main` leaves to be printed on stderr, and its exit status."""
    try:
        status = main() or 0
        sys.stdout.flush()  # here, where a reader that went away is understood
        return "", status
    except InputError as error:
        return f"error: {_rank_if_not_root()}{_one_line(error)}", INPUT_ERROR_STATUS
    except BrokenPipeError:
        _discard_stdout()
        return "", 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return f"error: {error.filename}: {(error.strerror or str(error)).lower()}", INPUT_ERROR_STATUS
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return "", exit.code or 0
        return str(exit.code), 1
    except KeyboardInterrupt:
        return "", 128 + signal.SIGINT


def _one_line(error: Exception) -> str:
    return " ".join(str(error).splitlines())


def _rank_if_not_root() -> str:
    """The root's errors are those that every rank has; another rank's are its own, and say where to look."""
    return "" if get_communicator().is_root else describe_rank()


def _discard_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's own flush at exit does not fail once more."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
