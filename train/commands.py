"""How the commands of this layer end, alone or on many ranks."""

import sys
from collections.abc import Callable
from typing import NoReturn

from autograd import command
from autograd.errors import InputError
from train.signals import end_at_once, end_in_order, hear_no_more
from train.threads import launcher


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit with the status it returns; `autograd.command.run` says how.

    On many ranks every end but a good one ends all of them, whichever rank it began on: ranks that wait
    for each other must not outlive one another.
    """

    def main_in_order() -> int | None:
        end_in_order()
        return main()

    if launcher() is None:  # alone: there is nobody to join, and --help needs no NumPy
        command.run(main_in_order)
    from train.communicator import end_all_ranks, get_communicator

    end_at_once()
    try:
        get_communicator()  # joined before anything can fail: a failing rank must be able to end the others
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(command.INPUT_ERROR_STATUS)
    message, status = command.outcome(main_in_order, where=_rank_if_not_root)
    if status == 0:
        end_at_once()
        sys.exit(0)
    hear_no_more()
    end_all_ranks(message, status)


def _rank_if_not_root() -> str:
    """The root's errors are those that every rank has; another rank's are its own, and say where to look."""
    from train.communicator import describe_rank, get_communicator

    return "" if get_communicator().is_root else describe_rank()
