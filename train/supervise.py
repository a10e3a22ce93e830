"""Start a training command again when it fails: python -m train.supervise --restart-on-failure 3 -- COMMAND

COMMAND is the whole command of the run, its launcher included, with --run-dir in it:

    python -m train.supervise --restart-on-failure 3 -- \\
        mpirun -np 4 python -m train.wt103 --preset wt103 --run-dir runs/long

Before every start, the first included, --resume is added where the run's folder holds a run already: the same
line begins a run, goes on with one that was preempted, and goes on after a failure. A run that ends well (0),
that was refused for what it was given (2), or that was asked to end, by Ctrl-C or a scheduler's SIGTERM (130
or 143; 15 from MPICH's mpirun), is not started again; one that was killed (137) is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from autograd.command import INPUT_ERROR_STATUS, Parser
from autograd.errors import InputError
from train.rank_watch import last_signs
from train.run_folder import RunFolder

LONGEST_PAUSE = 86_400
"""Seconds: a day."""
# The last is what MPICH's mpirun makes of ranks that SIGTERM met before they had anything to save.
_ASKED_TO_END = {128 + signal.SIGINT, 128 + signal.SIGTERM, int(signal.SIGTERM)}


def main(argv: list[str] | None = None) -> int:
    """The command; returns the last start's exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, command = _parser().parse_args(arguments[:end]), arguments[end + 1 :]
    if not command:
        raise InputError("expected -- and the command to start after the flags; --help shows an example")
    if args.restart_on_failure < 0:
        raise InputError(f"--restart-on-failure: must be at least 0; got {args.restart_on_failure}")
    if not 0 <= args.pause <= LONGEST_PAUSE:  # so that what is no number is refused too
        raise InputError(f"--pause: must be within 0 and {LONGEST_PAUSE:,} seconds; got {args.pause:g}")
    folder = RunFolder(run_dir_of(command))
    for restarts_left in range(args.restart_on_failure, -1, -1):
        status = _run(with_resume(command, folder))
        if status in (0, INPUT_ERROR_STATUS) or status in _ASKED_TO_END:
            break
        for sign in last_signs(folder.signs):
            _say(f"{sign} was last seen after step {sign.step:,}")
        what = f"starting again in {args.pause:g} s, {restarts_left - 1} more times at most"
        _say(f"the run failed with status {status}; " + (what if restarts_left else "no restarts are left"))
        if restarts_left:
            time.sleep(args.pause)
    return status


def run_dir_of(command: list[str]) -> str:
    """The value of --run-dir in a training command; InputError without one."""
    for flag, value in zip(command, [*command[1:], ""], strict=True):
        if flag.startswith("--run-dir="):
            return flag.partition("=")[2]
        if flag == "--run-dir" and value:
            return value
    raise InputError("the command must name its folder by --run-dir RUN, so that it can go on there")


def with_resume(command: list[str], folder: RunFolder) -> list[str]:
    """The command with --resume exactly if there is a run to go on with."""
    plain = [part for part in command if part != "--resume"]
    return [*plain, "--resume"] if folder.config.is_file() else plain


def _run(command: list[str]) -> int:
    """Run a command to its end; SIGTERM and SIGINT are passed on to it, and no restart follows them.

    Returns:
        its exit status; of a command that a signal ended 128 + its number, as a shell has it.
    """
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise InputError(
            f"{command[0]}: cannot be started: {(error.strerror or str(error)).lower()}"
        ) from None
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and status:
        return 128 + received[0]
    return status if status >= 0 else 128 - status


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


def _parser() -> Parser:
    parser = Parser.documented("python -m train.supervise", __doc__)
    parser.add_argument(
        "--restart-on-failure", type=int, default=3, metavar="N", help="starts after the first (default: 3)"
    )
    parser.add_argument(
        "--pause", type=float, default=10.0, metavar="SECONDS", help="before each of them (default: 10)"
    )
    return parser


if __name__ == "__main__":
    from autograd.command import run

    run(main)
