"""A split read as rows side by side, each warmed up on the text before its own part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autograd import evaluation_mode, no_backprop_mode
from autograd.backend import get_array_module
from minilstm import LanguageModel, detach
from minilstm.language_model import State
from train.batches import Read
from train.communicator import Communicator
from train.log import progress

WARM_UP = 1024
"""Tokens that each row reads before its own part, unscored: its state is then the one long stream's."""
NO_WORD = -1
"""What stands for the next word where a row has no text: before it begins, after it ends."""

Step = Callable[[np.ndarray, np.ndarray, np.ndarray, State], State]
"""step(inputs, words, scored, state), the first three (T, B): reads a window, returns the state after it.

words[t] is what really comes after inputs[t], or NO_WORD; scored[t]: whether this row is to score it."""


class Row:
    """One piece of the stream with the text that warms it up: for every step the word before and the word.

    Args:
        read: gives the split's token ids.
        start, stop: the piece.
        eos_id: stands before the first word of the split.
        warm_up: tokens before `start` to be read first, or as many as there are.
    """

    def __init__(self, read: Read, start: int, stop: int, eos_id: int, warm_up: int) -> None:
        self.warm_up = min(warm_up, start)
        first = start - self.warm_up
        self.words = read(first, stop)
        before = read(first - 1, first) if first else np.array([eos_id], self.words.dtype)
        self.inputs = np.concatenate([before, self.words[:-1]])

    def padded(self, length: int, warm_up: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, words) that start their own part at step `warm_up` and end at `length`."""
        before = warm_up - self.warm_up
        after = length - before - len(self.inputs)
        inputs = np.pad(self.inputs, (before, after), mode="edge")
        return inputs, np.pad(self.words, (before, after), constant_values=NO_WORD)


def rows_of_rank(
    read: Read,
    num_tokens: int,
    eos_id: int,
    batch_size: int,
    communicator: Communicator,
    warm_up: int | None = None,
) -> list[Row]:
    """This rank's share of a split that is cut into `batch_size` rows; warm_up is WARM_UP if None."""
    batch_size = min(batch_size, num_tokens)
    bounds = [row * num_tokens // batch_size for row in range(batch_size + 1)]
    warm_up = WARM_UP if warm_up is None else warm_up
    own = share(batch_size, communicator)
    return [Row(read, bounds[row], bounds[row + 1], eos_id, warm_up) for row in own]


def share(count: int, communicator: Communicator) -> range:
    """Which of `count` things are this rank's: contiguous, as many to each rank or one more."""
    return range(*(rank * count // communicator.size for rank in (communicator.rank, communicator.rank + 1)))


def walk(model: LanguageModel, rows: list[Row], window: int, step: Step, description: str | None) -> None:
    """Read the rows from their first word to their last, `window` steps at a time, the state carried along.

    Args:
        model: evaluated: no dropout, no gradients.
        rows: those of this rank; none: nothing is done.
        window: steps at a time, for memory and speed alone; windows are cut also where a row begins.
        step: called with each window.
        description: shown with a progress bar; None: silent.
    """
    if not rows:
        return
    warm_up = max(row.warm_up for row in rows)
    length = max(warm_up - row.warm_up + len(row.inputs) for row in rows)
    pairs = [row.padded(length, warm_up) for row in rows]
    inputs, words = (np.stack(arrays, axis=1) for arrays in zip(*pairs, strict=True))
    begins = np.array([warm_up - row.warm_up for row in rows])  # where each row's text starts
    own_part = (np.arange(length) >= warm_up)[:, None] & (words != NO_WORD)

    state = model.initial_state(len(rows))
    bar = progress(length, description or "", "steps", enabled=description is not None, leave=False)
    with no_backprop_mode(), evaluation_mode(), bar:
        for start, stop in _cuts(length, window, set(begins.tolist())):
            begun = get_array_module(state[0][0]).asarray(begins == start)
            for h, c in state:
                h[begun] = 0  # what came before was padding
                c[begun] = 0
            steps = slice(start, stop)
            state = detach(step(inputs[steps], words[steps], own_part[steps], state))
            bar.update(stop - start)


def _cuts(length: int, window: int, begins: set[int]) -> list[tuple[int, int]]:
    """Windows that cover range(length), cut also where a row begins."""
    bounds = sorted({*range(0, length, window), *begins, length})
    return list(zip(bounds[:-1], bounds[1:], strict=True))
