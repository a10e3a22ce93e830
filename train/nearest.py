"""The hint in a message about a name that is not known: the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(what: str, name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """What to append: the nearest known <what> is '…'; the empty text if none is alike enough.

    Args:
        what: key, preset, …: what the names are names of.
        cutoff: likeness from 0 (anything will do) to 1 (only the name itself).
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"the nearest known {what} is {found[0]!r}" if found else ""
