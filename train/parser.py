"""The command lines' parser."""

import argparse
from typing import NoReturn

from autograd.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an InputError: one line, and told once though many ranks have it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the flags")
