"""Do all ranks hold the same? A checksum of each rank's words, configuration and weights, compared.

Every rank makes the same update from the same averaged gradient, so the weights must be equal to the last
bit. They are not when memory or a processor is at fault, when ranks run different versions of a library, or
when the data differs between machines; the ranks then train models that drift apart, and nothing else tells.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from train.communicator import Communicator

_PIECE = 16 << 20  # bytes: the rest of the process may run between two pieces


def check_agreement(communicator: Communicator, when: str, facts: dict[str, Any]) -> None:
    """End every rank unless all hold the same facts. Collective.

    Args:
        communicator: of the run.
        when: for the message: "after step 120".
        facts: what must be equal, by the name that the message gives it: arrays, or what JSON can hold. Each
            array is read once: about a gigabyte in a second.

    Raises:
        SystemExit: they differ; its message names the facts and the ranks that differ from most others.
    """
    if communicator.size == 1:
        return
    own = np.array([[checksum(fact) for fact in facts.values()]], np.int64)
    every = communicator.gather_rows(own)
    verdict = communicator.broadcast_json(None if every is None else dissent(every, list(facts)))
    if verdict:
        raise SystemExit(
            f"error: the ranks disagree {when}: {verdict}; all ranks end. Look at that machine's memory and "
            "at the versions installed there; --resume goes on from the last checkpoint, which was whole"
        )


def dissent(checksums: np.ndarray, names: list[str]) -> str:
    """Who differs from most others, and in what; the empty string if nobody does.

    Args:
        checksums: (ranks, facts). Where no value is held by more ranks than any other, the lowest rank that
            holds one of the most frequent is taken to be right.
        names: of the facts.
    """
    parts = []
    for name, column in zip(names, checksums.T, strict=True):
        values, firsts, counts = np.unique(column, return_index=True, return_counts=True)
        best = min(range(len(values)), key=lambda k: (-counts[k], firsts[k]))
        other = np.flatnonzero(column != values[best])
        if len(other):
            ranks = ", ".join(str(rank) for rank in other[:8]) + (", …" if len(other) > 8 else "")
            who = f"rank {ranks} of {len(column)} holds" if len(other) == 1 else f"ranks {ranks} hold"
            parts.append(f"{who} other {name} than rank {int(firsts[best])}")
    return "; ".join(parts)


def checksum(fact: Any) -> int:
    """CRC-32 of an array's bytes, or of a value as JSON; one flipped bit always changes it."""
    if not hasattr(fact, "dtype"):
        return zlib.crc32(json.dumps(fact, sort_keys=True).encode())
    array = fact.get() if hasattr(fact, "get") else fact  # from a GPU
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    value = 0
    for begin in range(0, content.size, _PIECE):
        value = zlib.crc32(content[begin : begin + _PIECE].data, value)
    return value
