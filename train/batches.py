"""One long stream of text per row of the batch, cut into windows of T steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from autograd.errors import InputError

Read = Callable[[int, int], np.ndarray]
"""read(start, stop): the token ids of a split from start to stop, as `Corpus.read` gives them."""


@dataclass(frozen=True)
class RankRows:
    """Which rows of the whole batch belong to one rank: as many to each, in the order of the ranks."""

    first: int
    count: int

    @staticmethod
    def of(rank: int, size: int, batch_size: int) -> RankRows:
        """The rows of this rank.

        Raises:
            InputError: the batch does not divide by the number of ranks.
        """
        if batch_size % size:
            below, above = batch_size // size * size, (batch_size // size + 1) * size
            choices = f"{below} or {above}" if below else f"{above}"
            raise InputError(
                f"batch_size {batch_size} must be a multiple of the {size} ranks; --set batch_size={choices}"
            )
        count = batch_size // size
        return RankRows(rank * count, count)


class Batches:
    """The training split as `batch_size` contiguous streams, of which this rank holds its own rows.

    The split of N tokens is cut into batch_size pieces of (N - 1) // batch_size tokens; what is left over at
    the end is not trained on. Row r of the batch walks through piece r, `window` steps at a time; the last
    window of an epoch may be shorter.

    Args:
        read: gives token ids.
        num_tokens: N.
        batch_size: rows over all ranks.
        window: T, steps in a window.
        rows: those of this rank.

    Raises:
        InputError: fewer tokens than every row needs for one step.
    """

    def __init__(self, read: Read, num_tokens: int, batch_size: int, window: int, rows: RankRows) -> None:
        length = (num_tokens - 1) // batch_size
        if length < 1:
            raise InputError(
                f"batch_size {batch_size} is larger than the data: a training split of {num_tokens} tokens "
                f"feeds at most {max(num_tokens - 1, 0)} rows; --set batch_size=N, or give more text"
            )
        self.window, self.length = window, length
        streams = [
            read(row * length, (row + 1) * length + 1) for row in range(rows.first, rows.first + rows.count)
        ]
        self._streams = np.ascontiguousarray(np.stack(streams, axis=1))  # (length + 1, rows): time first

    def __len__(self) -> int:
        """Windows in an epoch."""
        return -(-self.length // self.window)

    def windows(self, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(inputs, targets) of each window from number `first` on, int32 (T, rows), targets a step ahead."""
        for start in range(first * self.window, self.length, self.window):
            stop = min(start + self.window, self.length)
            yield self._streams[start:stop], self._streams[start + 1 : stop + 1]
