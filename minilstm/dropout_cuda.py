"""The model's dropouts by kernels: no mask but the candidate's and the words' is ever held in memory.

Backward draws again what forward drew. The masks are those of `dropout.py` bit for bit, from the same keys
and counters; the equations are those of docs/lstm_backward.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from autograd import Function
from autograd.backend import get_array_module
from autograd.kernels import KernelModule
from minilstm.dropout import ELEMENTS_PER_COUNT, Dropouts, MaskStream, kept_levels
from minilstm.wavefront import current_lane, written_gradient

KERNELS = KernelModule("minilstm", "dropout")
THREADS = 128


class KernelDropouts(Dropouts):
    """As `Dropouts`, for a model whose arrays kernels can work on."""

    def word_mask(self, place, V, keep):
        return Draws.of(self.stream, place, keep).mask((1, V), self.like).reshape(V)  # (30)

    def step_mask(self, place, shape, keep):
        draws = Draws.of(self.stream, place, keep, rows_size=shape[2], per_step=True)
        return draws.mask(shape, self.like)  # (30)

    def times_lookup_mask(self, place, x, ids, keep):
        return KernelLookupDropout(Draws.of(self.stream, place, keep), ids).apply(x)  # (34)

    def times_weight_mask(self, place, W, keep):
        return KernelWeightDropout(Draws.of(self.stream, place, keep), steps=1).apply(W)  # (31)

    def times_row_mask(self, place, x, keep):
        draws = Draws.of(self.stream, place, keep, rows_size=x.shape[2])
        return KernelDropout(draws, steps=len(x.data)).apply(x)  # (32)

    def times_step_mask(self, place, x, keep):
        draws = Draws.of(self.stream, place, keep, rows_size=x.shape[2], per_step=True)
        return KernelDropout(draws, steps=len(x.data)).apply(x)  # (32)


class Draws(NamedTuple):
    """Where in the random streams a mask lies, and how it is made of what is drawn there.

    Attributes:
        window: its number, or an array of it in device memory, for a graph.
        skipped: elements of one step's mask that belong to the ranks before.
    """

    window: Any
    seed: int
    place: int
    skipped: int
    keep_prob: float
    per_step: bool

    @classmethod
    def of(
        cls, stream: MaskStream, place: str, keep_prob: float, rows_size: int = 0, per_step: bool = False
    ) -> Draws:
        """`rows_size`: elements of a row of the batch, 0 for a mask that is the same on every rank."""
        seed, key = stream.key(place)
        return cls(stream.window, seed, key, stream.first_row * rows_size, keep_prob, per_step)

    def mask(self, shape: tuple[int, ...], like: Any) -> Any:
        """The mask itself, (steps, …), of the kind and dtype of the array `like`."""
        mask = get_array_module(like).empty(shape, like.dtype)
        self.into(None, mask, shape[0])
        return mask

    def times_rows(self, x: Any, ids: Any) -> Any:
        """x (…, width) times the rows `ids` (…) of a mask over a table."""
        xp = get_array_module(x)
        x, ids = xp.ascontiguousarray(x), xp.ascontiguousarray(ids, dtype=np.int64)
        y, width = xp.empty_like(x), x.shape[-1]
        blocks = -(-ids.size * ticks(width) // THREADS)
        KERNELS.launch("lookup_dropout", blocks, THREADS, x, y, ids, ids.size, width, *self._numbers(x))
        return y

    def into(self, x: Any, y: Any, steps: int, first_step: int = 0) -> None:
        """y ← x times the mask of so many steps, or without x the mask; both (steps, elements), or flat."""
        elements = y.size // max(steps, 1)
        offset = self.skipped % ELEMENTS_PER_COUNT
        blocks = -(-ticks(elements + offset) // THREADS) if y.size else 0
        KERNELS.launch(
            "dropout", (blocks, steps), THREADS, x, y, elements, self.per_step, first_step,
            self.skipped, *self._numbers(y),
        )  # fmt: skip

    def _numbers(self, like: Any) -> tuple[Any, ...]:
        """What both kernels end with; the scale is rounded as an element of the mask is."""
        levels, scale = kept_levels(self.keep_prob)
        window = self.window
        if not hasattr(window, "dtype"):
            window = get_array_module(like).array([window], np.uint64)
        return window, self.seed, self.place, levels, float(np.asarray(scale, like.dtype))


def ticks(elements: int) -> int:
    """Ticks of the Philox counter for so many elements."""
    return math.ceil(elements / ELEMENTS_PER_COUNT)


class KernelDropout(Function):
    """x times a mask that is drawn as it is used.

    Args:
        steps: into how many equal parts x falls, each with the elements of one step's mask.
    """

    label = "dropout"
    needs_kernels = True

    def __init__(self, draws: Draws, steps: int) -> None:
        self.draws, self.steps, self.lane = draws, steps, current_lane()

    def forward(self, x):
        return self._times_mask(x, self.lane.chunks(self.steps))

    def backward(self, dy):
        with self.lane:
            return self._times_mask(dy, self.lane.chunks(self.steps)[::-1])

    def _times_mask(self, x: Any, chunks: list[slice]) -> Any:
        x = get_array_module(x).ascontiguousarray(x)
        y = get_array_module(x).empty_like(x)
        given, made = x.reshape(self.steps, -1), y.reshape(self.steps, -1)
        for steps in chunks:
            self.lane.needs(x, steps)
            self.draws.into(given[steps], made[steps], steps.stop - steps.start, steps.start)
            self.lane.has(y, steps)
        return y


class KernelWeightDropout(KernelDropout):
    """A matrix times a mask of its shape."""

    def backward(self, dy):
        with self.lane:
            return written_gradient(self, 0, self._times_mask(dy, self.lane.chunks(self.steps)))


class KernelLookupDropout(Function):
    """The rows x (…, E) of words, times each word's row of a mask over all words."""

    label = "dropout"
    needs_kernels = True

    def __init__(self, draws: Draws, ids: Any) -> None:
        self.draws, self.ids = draws, ids

    def forward(self, x):
        return self.draws.times_rows(x, self.ids)

    def backward(self, dy):
        return self.draws.times_rows(dy, self.ids)
