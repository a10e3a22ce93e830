"""`python -m autograd.check` for the Functions of the engine and of the model: python -m minilstm.check"""

from __future__ import annotations

from autograd import check
from autograd.command import run

MODULES = ("autograd.function_cases", "minilstm.function_cases")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return check.main(argv, default=MODULES, prog="python -m minilstm.check")


if __name__ == "__main__":
    run(main)
