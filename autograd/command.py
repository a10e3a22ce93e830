"""What all commands have in common: a parser that complains in one line, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from autograd.errors import InputError

INPUT_ERROR_STATUS = 2  # as argparse exits
_LESS_MEMORY = "ask for less at a time: a smaller batch, window or number of beams"


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an InputError: one line, and told once though many ranks have it."""

    @classmethod
    def documented(cls, prog: str, doc: str | None) -> Parser:
        """A parser whose --help is a module's docstring: `title: example`, a blank line, the details."""
        title, _, details = (doc or "").partition("\n\n")
        return cls(
            prog=prog,
            description=title.partition(": ")[0].rstrip(".") + ".",
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as an InputError."""
        raise InputError(f"{message}; {self.prog} --help lists the flags")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run the `main` of a command of one process and exit with the status it returns.

    An `InputError` or a lack of memory is printed as one line, `error: …`, with status 2; Ctrl-C ends with
    status 130 and a reader that went away (`… | head`) with 141, both as a shell reports them, without a
    traceback.
    """
    message, status = outcome(main)
    if message:
        print(message, file=sys.stderr)
    sys.exit(status)


def outcome(main: Callable[[], int | None], where: Callable[[], str] = lambda: "") -> tuple[str, int]:
    """What `main` leaves to be printed on stderr, and its exit status; `where` opens an InputError's line."""
    try:
        status = main() or 0
        sys.stdout.flush()  # here, where a reader that went away is understood
        return "", status
    except InputError as error:
        return f"error: {where()}{_one_line(error)}", INPUT_ERROR_STATUS
    except BrokenPipeError:
        _discard_stdout()
        return "", 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return f"error: {error.filename}: {(error.strerror or str(error)).lower()}", INPUT_ERROR_STATUS
    except MemoryError as error:
        what = f" ({_one_line(error)})" if str(error) else ""
        return f"error: {where()}not enough memory{what}; {_LESS_MEMORY}", INPUT_ERROR_STATUS
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return "", exit.code or 0
        return str(exit.code), 1
    except KeyboardInterrupt:
        return "", 128 + signal.SIGINT


def _one_line(error: Exception) -> str:
    return " ".join(str(error).splitlines())


def _discard_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's own flush at exit does not fail once more."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
