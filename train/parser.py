"""The command lines' parser: that of every command of this project."""

from autograd.command import Parser

__all__ = ["Parser"]
