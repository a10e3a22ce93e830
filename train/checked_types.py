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
LossScale = Annotated[float, Rule("a number from 1 to 65536", lambda x: 1 <= x <= 2**16)]
NonEmpty = Annotated[str, Rule("a text in UTF-8, not empty", lambda text: text.strip() != "")]
RisingCounts = Annotated[
    tuple[int, ...],
    Rule(
        "a list of rising whole numbers of at least 1",
        lambda ns: all(a < b for a, b in zip((0, *ns), ns, strict=False)),
    ),
]

Sections = dict[str, dict[str, Any]]  # {"model": {key: value, …}, "train": {…}}

_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in UTF-8",
    tuple[int, ...]: "a list of whole numbers",
}


def choices_of(kind: Any) -> tuple[str, ...] | None:
    """The texts of a Literal; None for any other type."""
    return get_args(kind) if get_origin(kind) is Literal else None


def plain_type(kind: Any) -> Any:
    """int, float, bool, str or tuple[int, ...]: the type without its rule; str for a Literal of texts."""
    if choices_of(kind):
        return str
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`: one of the plain types, one of those Annotated with a Rule, or a Literal of texts.

    A whole number is taken for a float and a list of whole numbers for a tuple of them; nothing else is
    converted, so that "1" or true never passes for 1.

    Raises:
        InputError: another type, out of range, not finite; the message starts with `name`.
    """
    plain, choices = plain_type(kind), choices_of(kind)
    if choices:
        if not (isinstance(value, str) and value in choices):
            raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        return value
    rules = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    converted = _converted(value, plain)
    if not (_is_a(converted, plain) and all(rule.accepts(converted) for rule in rules)):
        expected = rules[0].expected if rules else _PLAIN[plain]
        raise InputError(f"{name} must be {expected}; got {value!r}")
    return converted


def _converted(value: Any, plain: Any) -> Any:
    if plain is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return value
    return tuple(value) if plain == tuple[int, ...] and isinstance(value, list) else value


def _is_a(value: Any, plain: Any) -> bool:
    if plain == tuple[int, ...]:
        return type(value) is tuple and all(type(item) is int for item in value)
    return type(value) is plain and _is_sane(value)


def _is_sane(value: bool | int | float | str) -> bool:
    """False for what a TOML or JSON file cannot hold again: nan, infinities, halves of surrogate pairs."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, float) or math.isfinite(value)
