"""One long stream of text per row of the batch, and how each epoch cuts it into windows of about T steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autograd.errors import InputError
from minilstm import MaskStream

Read = Callable[[int, int], np.ndarray]
"""read(start, stop): the token ids of a split from start to stop, as `Corpus.read` gives them."""


SHORTEST = 5
"""Steps that a window of variable length has at least, the last of an epoch excepted."""
LENGTH_DEVIATION = 5.0
"""σ of the variable length, in steps."""
FULL_LENGTH = 0.95
"""Share of the windows whose length is drawn about T; that of the others is drawn about T/2."""


@dataclass(frozen=True)
class Windows:
    """How every epoch of the streams is cut into windows: a pure function of the seed and the epoch.

    Random numbers come from streams keyed by the seed and by what is drawn, at a counter that holds the
    epoch. So all ranks cut alike, and a resumed run cuts as the undisturbed one, with nothing to save.

    Args:
        window: T, steps in a window.
        seed: of the draws.
        random_start: the epoch begins at a step drawn from [0, T - 1]; the steps before it are left out.
        variable: lengths are drawn from a normal distribution of σ = 5 about T (with p = 0.95) or T/2, and
            are at least 5 (Merity et al., arXiv 1708.02182, section 5).
        shuffled: the windows of an epoch come in random order.
    """

    window: int
    seed: int = 0
    random_start: bool = False
    variable: bool = False
    shuffled: bool = False

    @property
    def all_epochs_alike(self) -> bool:
        """Whether every epoch has the same windows, though perhaps in another order."""
        return not (self.random_start or self.variable)

    def cut(self, epoch: int, length: int) -> np.ndarray:
        """(start, stop) of each window of a stream of `length` steps, in the epoch's order, int (N, 2)."""
        return _cut(self, epoch, length)

    def count(self, epochs: int, length: int, limit: int | None = None) -> int:
        """Windows in the first `epochs` epochs together; those beyond `limit` are not counted."""
        if self.all_epochs_alike:
            counted = epochs * len(self.cut(0, length))
            return counted if limit is None else min(counted, limit)
        counted = 0
        for epoch in range(epochs):
            counted += len(self.cut(epoch, length))
            if limit is not None and counted >= limit:
                return limit
        return counted

    def rate_factor(self, steps: int) -> float:
        """By what the learning rate is multiplied for the update from a window of so many steps.

        steps / T where lengths vary: the gradient is a mean over the window, so a short one would weigh
        each of its words more. A factor of this update alone; there is nothing to restore.
        """
        return steps / self.window if self.variable else 1.0

    def _random(self, what: str, epoch: int) -> np.random.Generator:
        return MaskStream(self.seed, epoch).generator(f"windows.{what}")

    def _start(self, epoch: int, length: int) -> int:
        if not self.random_start:
            return 0
        return int(self._random("start", epoch).integers(min(self.window, length)))

    def _ends(self, epoch: int, start: int, length: int) -> np.ndarray:
        """Where each window ends, rising, the last one at `length`."""
        if not self.variable:
            return np.append(np.arange(start + self.window, length, self.window), length)
        random, last = self._random("length", epoch), np.array([start])
        ends = last
        while last[-1] < length:
            drawn = 1 + (length - last[-1]) // self.window
            mean = np.where(random.random(drawn) < FULL_LENGTH, self.window, self.window / 2)
            steps = np.maximum(SHORTEST, random.normal(mean, LENGTH_DEVIATION).astype(np.int64))
            last = last[-1] + np.cumsum(steps)
            ends = np.append(ends, last)
        return np.append(ends[1:][ends[1:] < length], length)


@lru_cache(maxsize=4)
def _cut(windows: Windows, epoch: int, length: int) -> np.ndarray:
    start = windows._start(epoch, length)
    ends = windows._ends(epoch, start, length)
    cuts = np.stack([np.append(start, ends[:-1]), ends], axis=1)
    if windows.shuffled:
        cuts = windows._random("order", epoch).permutation(cuts)
    cuts.flags.writeable = False  # one array for all who ask
    return cuts


@dataclass(frozen=True)
class RankRows:
    """Which rows of the whole batch belong to one rank: as many to each, in the order of the ranks."""

    first: int
    count: int

    @staticmethod
    def of(rank: int, size: int, batch_size: int, accumulate: int = 1) -> RankRows:
        """The rows of this rank.

        Raises:
            InputError: the batch does not divide by the number of ranks, or a rank's rows by the number of
                groups that gradients are accumulated over.
        """
        if batch_size % size:
            below, above = batch_size // size * size, (batch_size // size + 1) * size
            choices = f"{below} or {above}" if below else f"{above}"
            raise InputError(
                f"batch_size {batch_size} must be a multiple of the {size} ranks; --set batch_size={choices}"
            )
        count = batch_size // size
        if count % accumulate:
            divisors = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
            raise InputError(
                f"accumulate {accumulate} must divide the {count} rows of each rank; "
                f"--set accumulate= one of {divisors}"
            )
        return RankRows(rank * count, count)


class Batches:
    """The training split as `batch_size` contiguous streams, of which this rank holds its own rows.

    The split of N tokens is cut into batch_size pieces of (N - 1) // batch_size tokens; what is left over at
    the end is not trained on. Row r of the batch walks through piece r, about T steps at a time; the last
    window of the piece may be shorter.

    Args:
        read: gives token ids.
        num_tokens: N.
        batch_size: rows over all ranks.
        window: T, steps in a window, or how each epoch is cut into them.
        rows: those of this rank.

    Raises:
        InputError: fewer tokens than every row needs for one step.
    """

    def __init__(
        self, read: Read, num_tokens: int, batch_size: int, window: int | Windows, rows: RankRows
    ) -> None:
        length = (num_tokens - 1) // batch_size
        if length < 1:
            raise InputError(
                f"batch_size {batch_size} is larger than the data: a training split of {num_tokens} tokens "
                f"feeds at most {max(num_tokens - 1, 0)} rows; --set batch_size=N, or give more text"
            )
        self.cuts = window if isinstance(window, Windows) else Windows(window)
        self.length = length
        streams = [
            read(row * length, (row + 1) * length + 1) for row in range(rows.first, rows.first + rows.count)
        ]
        self._streams = np.ascontiguousarray(np.stack(streams, axis=1))  # (length + 1, rows): time first

    def __len__(self) -> int:
        """Windows in the first epoch, and in every other where all are cut alike."""
        return self.num_windows(0)

    def num_windows(self, epoch: int) -> int:
        """Windows in this epoch."""
        return len(self.cuts.cut(epoch, self.length))

    def windows(self, first: int = 0, epoch: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(inputs, targets) of each window of the epoch from number `first` on, int32 (T, rows).

        Targets are a step ahead of the inputs.
        """
        for start, stop in self.cuts.cut(epoch, self.length)[first:]:
            yield self._streams[start:stop], self._streams[start + 1 : stop + 1]
