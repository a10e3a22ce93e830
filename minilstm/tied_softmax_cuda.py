"""The tied softmax loss on a GPU: all words of some rows at a time, each logit multiplied out once.

minilstm/tied_softmax.py walks over blocks of words, for which a CPU has a cache, and multiplies them out
twice. A GPU has the memory for whole rows. So the rows h (N, E) are cut into chunks; the logits of one chunk,
stored in the model's dtype, become the gradients by them in their own place while the forward pass is at it,
and two more products make the chunk's parts of dh and dW of those. Backward has only to scale both.

A float16 gradient of a probability is stored times 2¹²: with 1/N in it, 99.9% of them would round to zero at
V = 267,735. The products undo it, in float32. What stands at the target's place is computed from the logit
before it was rounded.

The bias is a column of W, for which h has a column of ones, and words are padded to a multiple of 64, without
which tensor cores are not used at their full rate: both in a copy of W, 0.2 GB in float16 at V = 267,735.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Function
from autograd.backend import accumulation_dtype, get_array_module, matmul
from autograd.mode import is_backprop_enabled
from minilstm.softmax_kernels import (
    mean_loss,
    pack_rows,
    padded,
    softmax_rows,
    target_logits,
    unpack_rows,
)
from minilstm.tied_softmax import check_loss_inputs

CHUNK_BYTES = 4 << 30
"""The logits of a chunk take this much at most: of 21,504 rows and 267,735 words in float16, a third."""
CHUNK_ROWS = 128
"""A chunk has a multiple of this many rows, as tensor cores want them, and this many at least."""
GRADIENT_SCALE = 2.0**12
"""Of gradients by the logits in float16: they lie within ± 1, so that it could be up to 2¹⁵."""


class KernelTiedSoftmaxLoss(Function):
    """`TiedSoftmaxLoss` by kernels; the loss is a number of `accumulation_dtype`: float32 for float16."""

    label = "tied_softmax_loss"
    is_sum = True

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes = chunk_bytes

    def forward(self, h, W, b, targets):
        check_loss_inputs(self.label, h, W, b, targets)
        rows, targets = tied_rows(h, W, b, targets, is_backprop_enabled(), self.chunk_bytes)
        mean, count = mean_loss(rows.losses, targets)
        self.save(rows, count, W)
        return mean.reshape(())

    def backward(self, dloss):
        rows, count, W = self.saved
        factor = (dloss / count).astype(rows.dh.dtype, copy=False)
        dW, db = (self.grad_target(index, like=W) for index in (1, 2))
        unpack_rows(rows.dW, W.shape[1], factor, dW, db)
        return rows.scaled_dh(factor, W), dW[0], db[0], None


def tied_rows(
    h: Any, W: Any, b: Any, targets: Any, gradients: bool, chunk_bytes: int = CHUNK_BYTES
) -> tuple[SoftmaxOverRows, Any]:
    """The rows of h (N, E) against all words; and targets as int32 on the device."""
    targets, (V, E) = device_ids(targets, like=h), W.shape
    packed_W = pack_rows(W, b, packed_width(E, W.dtype), padded(V))
    rows = SoftmaxOverRows(h, packed_W, V, chunk_bytes)
    rows.run(targets, targets, target_logits(rows.packed_h, packed_W, targets), True, gradients)
    return rows, targets


def device_ids(ids: Any, like: Any) -> Any:
    """Ids, of any shape, as the kernels take them: int32, where `like` is."""
    return get_array_module(like).asarray(ids, dtype=np.int32)


def packed_width(width: int, dtype: Any) -> int:
    """Columns of rows with one more column, in memory: a multiple of 16 bytes."""
    return padded(width + 1, 16 // np.dtype(dtype).itemsize)


class SoftmaxOverRows:
    """Softmax, loss and gradients of rows h (N, E) against the rows of W (words, E), chunk by chunk.

    After `run`, only what its attributes name is held.

    Args:
        h: T (N, E).
        packed_W: T (a multiple of 64, packed_width(E)), W and the bias as `pack_rows` puts them together.
        columns: how many rows of it are words.
        chunk_bytes: of the logits of a chunk.

    Attributes:
        losses, slopes: real (N), as `softmax_rows` gives them.
        dh: real (N, packed_width), d(sum of losses) by h, without the targets' part if they are not in the
            block; its first E columns. None without gradients.
        dW: real, as packed_W: d(sum of losses) by each row, and in column E by its bias. None likewise.
    """

    def __init__(self, h: Any, packed_W: Any, columns: int, chunk_bytes: int) -> None:
        self.packed_W, self.columns = packed_W, columns
        self.packed_h = pack_rows(h, None, packed_W.shape[1], len(h), constant=1.0)
        self.chunks = _chunks(len(h), len(packed_W) * h.itemsize, chunk_bytes)
        self.dh: Any = None
        self.dW: Any = None

    def run(
        self,
        targets: Any,
        places: Any,
        target_logits: Any,
        target_in_block: bool,
        gradients: bool,
        shift: Any = None,
    ) -> None:
        """Everything there is; arguments as in `softmax_rows`."""
        xp, T = get_array_module(self.packed_h), self.packed_h.dtype
        real = accumulation_dtype(T)
        self.losses, self.slopes = (xp.empty(len(targets), real) for _ in range(2))
        if gradients:
            new_dW = xp.empty if self.chunks else xp.zeros
            self.dh, self.dW = xp.empty(self.packed_h.shape, real), new_dW(self.packed_W.shape, real)
        scale = GRADIENT_SCALE if T.itemsize == 2 else 1.0
        height = max((rows.stop - rows.start for rows in self.chunks), default=0)
        memory = xp.empty((height, len(self.packed_W)), T)
        for rows in self.chunks:
            logits, h = memory[: rows.stop - rows.start], self.packed_h[rows]
            matmul(h, self.packed_W.T, out=logits)
            self.losses[rows], self.slopes[rows] = softmax_rows(
                logits, self.columns, targets[rows], places[rows], target_logits[rows], target_in_block,
                gradients, scale, shift,
            )  # fmt: skip
            if gradients:
                matmul(logits, self.packed_W, out=self.dh[rows], alpha=1 / scale)  # (23)
                matmul(logits.T, h, out=self.dW, accumulate=rows.start > 0, alpha=1 / scale)  # (24), (25)
        del self.packed_h, self.packed_W

    def scaled_dh(self, factor: Any, W: Any) -> Any:
        """T (N, E): factor (1,) times dh, rounded once."""
        xp = get_array_module(W)
        dh = xp.empty((len(self.dh), W.shape[1]), W.dtype)
        unpack_rows(self.dh, W.shape[1], factor, (dh, True))
        return dh


def _chunks(size: int, row_bytes: int, chunk_bytes: int) -> list[slice]:
    """The rows of each chunk: as few chunks as the memory allows, of nearly equal sizes."""
    most = max(chunk_bytes // row_bytes // CHUNK_ROWS, 1) * CHUNK_ROWS
    height = padded(-(-size // -(-size // most)), CHUNK_ROWS) if size else CHUNK_ROWS
    return [slice(start, min(start + height, size)) for start in range(0, size, height)]


def kernel_token_losses(h: Any, W: Any, b: Any, targets: Any) -> Any:
    """`tied_token_losses` by kernels: (N) in nats, in `accumulation_dtype`."""
    return tied_rows(h, W, b, targets, gradients=False)[0].losses


def workspace_bytes(num_rows: int, vocab_size: int, width: int, dtype: Any) -> int:
    """What the loss holds at its peak besides its arguments and gradients, in bytes."""
    T, words, columns = np.dtype(dtype), padded(vocab_size), packed_width(width, dtype)
    real = accumulation_dtype(T).itemsize
    chunks = _chunks(num_rows, words * T.itemsize, CHUNK_BYTES)
    logits = max((rows.stop - rows.start for rows in chunks), default=0) * words * T.itemsize
    return logits + (words + num_rows) * columns * (T.itemsize + real)
