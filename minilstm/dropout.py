"""Every dropout mask of the model, drawn in one place from counter-based random streams.

A mask depends on (seed, window, place, step, global row of the batch) alone, or for weights on (seed, window,
place, row of the weights). So a resumed run draws the masks that the undisturbed one would have drawn, and N
ranks with B/N rows each draw those of one rank with B.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import InputError, Variable
from minilstm.config import ModelConfig

LEVELS = 1 << 16
"""A keep probability is rounded to a multiple of 1/65536: two random bytes decide on an element."""
ELEMENTS_PER_COUNT = 16
"""From one tick of the Philox counter: 4 words of 8 bytes."""


class MaskStream:
    """The masks of one window of training, or of one after the other.

    Random numbers are Philox's (Salmon et al. 2011): a keyed function of a counter, so any part of a
    stream can be drawn without the part before it. The key is (seed, place); of the counter's four words
    the last is the window, the second the step within it, and the first counts.

    Args:
        seed: of the run.
        window: the number of the window; `next_window` counts it up.
        first_row: this process's first row in the whole batch; rows before it are skipped over.

    Raises:
        InputError: a negative seed.
    """

    def __init__(self, seed: int, window: int = 0, first_row: int = 0) -> None:
        if seed < 0:
            raise InputError(f"masks: seed must be a whole number from 0; got {seed}")
        self.seed, self.window, self.first_row = seed, window, first_row

    def next_window(self) -> MaskStream:
        """The same stream, one window on."""
        return MaskStream(self.seed, self.window + 1, self.first_row)

    def for_rows_from(self, row: int) -> MaskStream:
        """The same window's masks for a part of this process's rows that begins with its `row`."""
        return MaskStream(self.seed, self.window, self.first_row + row)

    def weight_mask(
        self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32
    ) -> Any:
        """A mask over weights, the same on every rank: 0, or 1 / keep_prob with that probability."""
        return self._mask(place, 0, shape, keep_prob, dtype)

    def row_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        """A mask over activations; its first axis is this process's part of the batch."""
        return self._mask(place, self.first_row, shape, keep_prob, dtype)

    def step_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        """A mask over activations, (T, B, units), drawn anew at every step; B is this process's part.

        A step's mask does not depend on how many steps there are.
        """
        count, words, own = self._draws(self.first_row, shape[1:])
        bits = np.empty((shape[0], words), np.uint64)
        source, ticks = self._philox(place, count), -(-words // 4)
        for row in bits:  # one generator for all: making another takes longer than drawing
            row[:] = source.random_raw(words)
            source.advance((1 << 64) - ticks)  # to where the next step's counter begins
        return _scaled(bits.view(np.uint16)[:, own].reshape(shape), keep_prob, dtype)

    def lookup_mask(self, place: str, ids: Any, width: int, keep_prob: float, dtype: Any = np.float32) -> Any:
        """The rows `ids` of a mask over a table of weights: ids.shape + (width,), the same on every rank.

        Of the table's mask only these rows are drawn, each from ticks of the counter that are its own. All
        of it would be 107 million elements a window at V = 267,735 and E = 400, more than a window of the
        training itself; a window holds some thousands of different words.
        """
        words, where = np.unique(np.asarray(ids).ravel(), return_inverse=True)
        ticks = -(-width // ELEMENTS_PER_COUNT)
        bits = np.empty((len(words), ticks * ELEMENTS_PER_COUNT // 4), np.uint64)
        source, position = self._philox(place), 0
        for row, word in zip(bits, words.tolist(), strict=True):
            source.advance((word - position) * ticks)
            row[:] = source.random_raw(len(row))
            position = word + 1
        mask = _scaled(bits.view(np.uint16)[:, :width], keep_prob, dtype)
        return mask[where].reshape(*np.shape(ids), width)

    def generator(self, place: str) -> np.random.Generator:
        """Random numbers of any kind for this window, the same on every rank."""
        return np.random.Generator(self._philox(place))

    def arrays(self, place: str, draw: Callable[[np.random.Generator], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What `draw` makes of this window's random numbers, as `generator` gives them."""
        return draw(self.generator(place))

    def _mask(self, place: str, first_row: int, shape: tuple[int, ...], keep_prob: float, dtype: Any) -> Any:
        count, words, own = self._draws(first_row, shape)
        bits = self._philox(place, count).random_raw(words)
        return _scaled(bits.view(np.uint16)[own].reshape(shape), keep_prob, dtype)

    @staticmethod
    def _draws(first_row: int, shape: tuple[int, ...]) -> tuple[int, int, slice]:
        """Where a mask of this shape lies that begins `first_row` rows into its stream.

        Returns:
            the counter at its first draw, how many 64-bit words to draw, which of their 16-bit parts are its.
        """
        size = int(np.prod(shape))
        skipped = first_row * (size // max(shape[0], 1))
        offset = skipped % ELEMENTS_PER_COUNT
        return skipped // ELEMENTS_PER_COUNT, -(-(size + offset) // 4), slice(offset, offset + size)

    def key(self, place: str) -> tuple[int, int]:
        """Of the Philox generator whose counter begins at zero for every step of every window."""
        return self.seed, zlib.crc32(place.encode())

    def _philox(self, place: str, count: int = 0) -> np.random.Philox:
        key = np.array(self.key(place), np.uint64)
        return np.random.Philox(key=key, counter=np.array([count, 0, 0, self.window], np.uint64))


def kept_levels(keep_prob: float) -> tuple[int, float]:
    """How many of the 65,536 values of a draw say `kept`, and what a kept element is scaled by.

    Below 256 of the levels their rounding would be felt in the mean, so the scale follows it.
    """
    levels = max(round(keep_prob * LEVELS), 1)
    return levels, 1 / keep_prob if levels >= 256 else LEVELS / levels


def _scaled(draws: Any, keep_prob: float, dtype: Any) -> Any:
    """1 / keep_prob where a draw of 16 bits says `kept`, else 0."""
    levels, scale = kept_levels(keep_prob)
    return (draws < np.uint32(levels)) * np.asarray(scale, dtype)  # (30)


class Dropouts:
    """Which masks act where in one window.

    Args:
        config: what is dropped, and how.
        masks: where masks are drawn from; None in evaluation, where nothing is dropped.
        like: an array of the model, for its dtype.
    """

    def __init__(self, config: ModelConfig, masks: MaskStream | None, like: Any) -> None:
        self.config, self.masks, self.like = config, masks, like

    def embedding(self, inputs: Any, W: Variable) -> Variable:
        """Rows of the masked W (V, E) for inputs (T, B), masked once more where they enter the layers."""
        keep = self.config.encoder_emb_output_keep_prob
        return self._activation("embedding_output", self._lookup(inputs, W), keep)

    def _lookup(self, inputs: Any, W: Variable) -> Variable:
        """A word has one mask, wherever in the window it stands."""
        keep = self.config.encoder_emb_keep_prob
        if not self._acts(keep):
            return F.embedding(inputs, W)
        if self.config.encoder_emb_dropout == "rows":
            return F.embedding(inputs, W, self.word_mask("embedding", len(W.data), keep))
        x = F.embedding(inputs, W)  # before the mask: it checks the ids
        return self.times_lookup_mask("embedding", x, inputs, keep)

    def input_weight(self, index: int, W_ih: Variable) -> Variable:
        """W_ih (4H, I) of a layer, masked."""
        return self._weight(f"input_weight.{index}", W_ih, self.config.input_weight_keep_prob)

    def recurrent_weight(self, index: int, W_hh: Variable) -> Variable:
        """W_hh (4H, H) of a layer, masked."""
        return self._weight(f"recurrent_weight.{index}", W_hh, self.config.recurrent_weight_keep_prob)

    def candidate_mask(self, index: int, shape: tuple[int, ...]) -> Any:
        """(T, B, units), what the candidates of a layer are multiplied with, or None."""
        keep = self.config.recurrent_keep_prob
        return self.step_mask(f"candidate.{index}", shape, keep) if self._acts(keep) else None

    def input(self, index: int, x: Variable) -> Variable:
        """What goes into a layer, (T, B, I), masked."""
        return self._activation(f"input.{index}", x, self.config.activation_keep_probs(index)[0])

    def output(self, index: int, x: Variable) -> Variable:
        """What comes out of a layer, (T, B, units), masked."""
        return self._activation(f"output.{index}", x, self.config.activation_keep_probs(index)[1])

    def _acts(self, keep: float) -> bool:
        return keep != 1 and self.masks is not None

    def _weight(self, place: str, W: Variable, keep: float) -> Variable:
        return self.times_weight_mask(place, W, keep) if self._acts(keep) else W

    def _activation(self, place: str, x: Variable, keep: float) -> Variable:
        """x (T, B, units) times one mask (B, units) for all steps (Gal & Ghahramani 2016), or one a step."""
        if not self._acts(keep):
            return x
        if self.config.activation_dropout == "per_step":
            return self.times_step_mask(place, x, keep)
        return self.times_row_mask(place, x, keep)

    # What follows draws, and is all that `dropout_cuda.KernelDropouts` does otherwise.

    @property
    def stream(self) -> MaskStream:
        """Where masks are drawn from; only asked where something is dropped."""
        assert self.masks is not None
        return self.masks

    def word_mask(self, place: str, V: int, keep: float) -> Any:
        """A mask (V) over words."""
        return self.stream.weight_mask(place, (V,), keep, self.like.dtype)

    def step_mask(self, place: str, shape: tuple[int, ...], keep: float) -> Any:
        """A mask (T, B, units), another at every step."""
        return self.stream.step_mask(place, shape, keep, self.like.dtype)

    def times_lookup_mask(self, place: str, x: Variable, ids: Any, keep: float) -> Variable:
        """x (T, B, E) times the rows `ids` (T, B) of a mask over the table of words."""
        return x * self.stream.lookup_mask(place, ids, x.shape[-1], keep, self.like.dtype)  # (34)

    def times_weight_mask(self, place: str, W: Variable, keep: float) -> Variable:
        """W (4H, I) or (4H, H) times a mask of its shape."""
        return W * self.stream.weight_mask(place, W.shape, keep, self.like.dtype)  # (31): one for all steps

    def times_row_mask(self, place: str, x: Variable, keep: float) -> Variable:
        """x (T, B, units) times one mask (B, units) for all steps."""
        return x * self.stream.row_mask(place, x.shape[1:], keep, self.like.dtype)  # (32)

    def times_step_mask(self, place: str, x: Variable, keep: float) -> Variable:
        """x (T, B, units) times a mask of its shape, another at every step."""
        return x * self.stream.step_mask(place, x.shape, keep, self.like.dtype)  # (32)
