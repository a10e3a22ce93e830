"""Types with a range, for the fields of configurations, and the check that a value is one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from autograd.errors import InputError


@dataclass(frozen=True)
class Rule:
    """What a value must be, for the message, and the test of it."""

    expected: str
    accepts: Callable[[Any], bool]


Count = Annotated[int, Rule("a whole number of at least 1", lambda n: n >= 1)]
CountOrOff = Annotated[int, Rule("a whole number of at least 0", lambda n: n >= 0)]
Seed = Annotated[int, Rule("a whole number from 0 to 2^63 - 1", lambda n: 0 <= n < 2**63)]
AboveZero = Annotated[float, Rule("a number above 0", lambda x: x > 0)]
AtLeastZero = Annotated[float, Rule("a number of at least 0", lambda x: x >= 0)]
Fraction = Annotated[float, Rule("a number in [0, 1)", lambda x: 0 <= x < 1)]
NonEmpty = Annotated[str, Rule("a text in UTF-8, not empty", lambda text: text.strip() != "")]

Sections = dict[str, dict[str, Any]]  # {"model": {key: value, …}, "train": {…}}

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in UTF-8"}


def choices_of(kind: Any) -> tuple[str, ...] | None:
    """The texts of a Literal; None for any other type."""
    return get_args(kind) if get_origin(kind) is Literal else None


def plain_type(kind: Any) -> Any:
    """int, float, bool or str: the type without its rule; str for a Literal of texts."""
    if choices_of(kind):
        return str
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`: int, float, bool, str, one of those Annotated with a Rule, or a Literal of texts.

    A whole number is taken for a float; nothing else is converted, so that "1" or true never passes for 1.

    Raises:
        InputError: another type, out of range, not finite; the message starts with `name`.
    """
    plain, choices = plain_type(kind), choices_of(kind)
    if choices:
        if not (isinstance(value, str) and value in choices):
            raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        return value
    rules = get_args(kind)[1:]
    value = _widened(value) if plain is float else value
    good = type(value) is plain and _is_sane(value) and all(rule.accepts(value) for rule in rules)
    if not good:
        expected = rules[0].expected if rules else _PLAIN[plain]
        raise InputError(f"{name} must be {expected}; got {value!r}")
    return value


def _widened(value: Any) -> Any:
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return value


def _is_sane(value: bool | int | float | str) -> bool:
    """False for what a TOML or JSON file cannot hold again: nan, infinities, halves of surrogate pairs."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, float) or math.isfinite(value)
