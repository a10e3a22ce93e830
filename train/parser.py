"""The command lines' parser."""

import argparse
from typing import NoReturn

from autograd.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an InputError: one line, and told once though many ranks have it."""

    @classmethod
    def documented(cls, prog: str, doc: str | None) -> "Parser":
        """A parser whose --help is a module's docstring: `title: example`, a blank line, the details."""
        title, _, details = (doc or "").partition("\n\n")
        return cls(
            prog=prog,
            description=title.partition(": ")[0].rstrip(".") + ".",
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the flags")
