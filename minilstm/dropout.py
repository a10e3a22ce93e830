"""Every dropout mask of the model, drawn in one place from counter-based random streams.

A mask depends on (seed, window, place, global row of the batch) alone. So a resumed run draws the masks
that the undisturbed one would have drawn, and N ranks with B/N rows each draw those of one rank with B.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

LEVELS = 1 << 16
"""A keep probability is rounded to a multiple of 1/65536: two random bytes decide on an element."""
WORDS_PER_COUNT = 16
"""Elements from one tick of the Philox counter: 4 words of 8 bytes."""


class MaskStream:
    """The masks of one window of training, or of one after the other.

    Random numbers are Philox's (Salmon et al. 2011): a keyed function of a counter, so any part of a
    stream can be drawn without the part before it.

    Args:
        seed: of the run.
        window: the number of the window; `next_window` counts it up.
        first_row: this process's first row in the whole batch; rows before it are skipped over.
    """

    def __init__(self, seed: int, window: int = 0, first_row: int = 0) -> None:
        self.seed, self.window, self.first_row = seed, window, first_row

    def next_window(self) -> MaskStream:
        """The same stream, one window on."""
        return MaskStream(self.seed, self.window + 1, self.first_row)

    def weight_mask(
        self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32
    ) -> Any:
        """A mask over weights, the same on every rank: 0, or 1 / keep_prob with probability keep_prob."""
        return self._draw(place, 0, shape, keep_prob, dtype)

    def row_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        """A mask over activations; its first axis is this process's part of the batch."""
        return self._draw(place, self.first_row, shape, keep_prob, dtype)

    def _draw(self, place: str, first_row: int, shape: tuple[int, ...], keep_prob: float, dtype: Any) -> Any:
        size = int(np.prod(shape))
        skipped = first_row * (size // max(shape[0], 1))
        key = np.array([self.seed, zlib.crc32(place.encode())], np.uint64)
        counter = np.array([skipped // WORDS_PER_COUNT, 0, 0, self.window], np.uint64)
        offset = skipped % WORDS_PER_COUNT
        words = np.random.Philox(key=key, counter=counter).random_raw(-(-(size + offset) // 4))
        draws = words.view(np.uint16)[offset : offset + size]
        kept = draws < np.uint32(round(keep_prob * LEVELS))
        return (kept * np.asarray(1 / keep_prob, dtype)).reshape(shape)  # (30)
