"""The decoder that shares the embedding, and its loss, in blocks of the vocabulary.

The logits of a window, (N, V), are never held: at N = 21,504 and V = 267,735 they would take 23 GB in
float32. Each block of words is multiplied out twice instead, once for the sums of the softmax and once
more for the gradients, and nothing larger than one block lives in between.

With l = h Wᵀ (without the bias), e = exp(l), and for every row n of h

    S_n = sum_v e_nv exp(b_v)                              loss_n = log S_n - l_ny - b_y
    dh_n = (sum_v e_nv exp(b_v) W_v) / S_n - W_y
    dW_v = exp(b_v) sum_n e_nv h_n / S_n - sum_{n: y_n = v} h_n
    db_v = exp(b_v) sum_n e_nv / S_n - #{n: y_n = v}

so bias and normalisation act on the thin matrices W, h and never on the wide block, whose only elementwise
operation is exp. See docs/lstm_backward.md, equations (20) to (25).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Function, ShapeError, Variable
from autograd.backend import get_array_module
from autograd.functions.embedding import add_rows, check_ids
from autograd.functions.loss import IGNORE
from autograd.parallel import num_threads, run_parts, split_range

BLOCK_BYTES = 2 << 20
"""A block of logits about as large as a core's second-level cache."""
SAFE_SUMS = (1e-30, 1e30)
"""While every S lies between these, exp needs no shift: nothing that counts over- or underflowed."""


def block_size_for(rows: int, itemsize: int) -> int:
    """Words in a block of logits of this many rows: as many as the cache holds, 256 to 4,096."""
    fitting = BLOCK_BYTES // (max(rows, 1) * itemsize)
    return min(max(fitting // 64 * 64, 256), 4096)


class TiedSoftmaxLoss(Function):
    def __init__(self, block_size: int | None = None) -> None:
        self.block_size = block_size

    def forward(self, h, W, b, targets):
        self._check(h, W, b, targets)
        xp = get_array_module(h)
        scored = xp.flatnonzero(targets != IGNORE)
        if scored.size < targets.size:
            h, targets = h[scored], targets[scored]
        blocks = _Blocks(h, W, b, self.block_size)
        sums = blocks.sums_of_exp()
        target_logits = xp.einsum("ne,ne->n", h, W[targets]) + b[targets]
        losses = xp.log(sums) - target_logits
        if blocks.shift is not None:
            losses += blocks.shift
        self.save(blocks, sums, targets, scored)
        # summed in double precision: a split of any size keeps float32's own accuracy
        return xp.asarray(losses.sum(dtype="float64") / max(scored.size, 1), h.dtype)

    def backward(self, dloss):
        blocks, sums, targets, scored = self.saved
        h, W, b = blocks.h, blocks.W, blocks.b
        xp = get_array_module(h)
        scale = dloss / max(scored.size, 1)
        dW, db = (self.grad_target(index, like) for index, like in ((1, W), (2, b)))
        dh = blocks.gradients(h * (scale / sums)[:, None], scale / sums, dW, db)
        dh -= scale * W[targets]
        add_rows(dW[0], targets, h * -scale)
        add_rows(db[0], targets, xp.full(targets.shape, -scale, b.dtype))
        if scored.size < self.inputs[3].shape[0]:
            full = xp.zeros(self.inputs[0].shape, h.dtype)
            full[scored] = dh
            dh = full
        return dh, dW[0], db[0], None

    def _check(self, h: Any, W: Any, b: Any, targets: Any) -> None:
        if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1]:
            raise ShapeError(f"tied_softmax_loss: h must be (N, E) and W (V, E); got {h.shape} and {W.shape}")
        self.check_shape("b", b.shape, W.shape[:1], f"W is {W.shape}")
        self.check_shape("targets", targets.shape, h.shape[:1], f"h is {h.shape}")
        check_ids("targets", targets, W.shape[0], lowest=IGNORE)


class _Blocks:
    """The products of h with W, one block of words at a time, shared out among threads.

    Args:
        h: (N, E). W: (V, E). b: (V).
        block_size: words in a block; by default as many as keep it within `BLOCK_BYTES`.

    Attributes:
        shift: (N) subtracted from each row of logits before exp, or None while none is needed.
    """

    def __init__(self, h: Any, W: Any, b: Any, block_size: int | None = None) -> None:
        self.h, self.W, self.b = h, W, b
        self.block_size = block_size or block_size_for(len(h), h.itemsize)
        self.shift: Any = None
        threads = num_threads() if get_array_module(h) is np else 1
        self.parts = split_range(len(W), threads, multiple=self.block_size)

    def sums_of_exp(self) -> Any:
        """S (N): the sums over all words of exp(logit - shift); a shift is chosen only if it must be."""
        xp = get_array_module(self.h)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            sums = self._sums()
        low, high = SAFE_SUMS
        if len(sums) and not bool(xp.all((sums > low) & (sums < high))):
            self.shift = self._row_maxima()
            sums = self._sums()
        return sums

    def _sums(self) -> Any:
        def part_sums(part: slice) -> Any:
            total = get_array_module(self.h).zeros(len(self.h), self.h.dtype)
            for words, e in self._exponentials(part):
                total += e @ self._exp_bias(words)
            return total

        return sum(run_parts(part_sums, self.parts))

    def _row_maxima(self) -> Any:
        """The largest logit of each row, bias included."""
        xp = get_array_module(self.h)
        highest = xp.full(len(self.h), -np.inf, self.h.dtype)
        for words in self._words(slice(0, len(self.W))):
            xp.maximum(highest, (self.h @ self.W[words].T + self.b[words]).max(axis=1), out=highest)
        return highest

    def gradients(self, scaled_h: Any, row_scale: Any, dW: tuple[Any, bool], db: tuple[Any, bool]) -> Any:
        """The softmax's part of dh (returned), dW and db, without the targets'.

        Args:
            scaled_h: (N, E), h · row_scale.
            row_scale: (N), d(root)/d(loss of the row) / S.
            dW, db: (array, unwritten) as `Function.grad_target` gives them; written or added to.
        """

        def part_gradients(part: slice) -> Any:
            xp = get_array_module(self.h)
            dh, product = xp.zeros_like(self.h), xp.empty_like(self.h)
            for words, e in self._exponentials(part):
                exp_b = self._exp_bias(words)
                dh += xp.matmul(e, self.W[words] * exp_b[:, None], out=product)
                _assign_or_add(db, words, (row_scale @ e) * exp_b)
                if dW[1]:
                    block = xp.matmul(e.T, scaled_h, out=dW[0][words])
                    block *= exp_b[:, None]
                else:
                    dW[0][words] += (e.T @ scaled_h) * exp_b[:, None]
            return dh

        dh = sum(run_parts(part_gradients, self.parts))
        dh *= row_scale[:, None]
        return dh

    def _words(self, part: slice) -> list[slice]:
        starts = range(part.start, part.stop, self.block_size)
        return [slice(start, min(start + self.block_size, part.stop)) for start in starts]

    def _exponentials(self, part: slice) -> Any:
        """(words, exp(h W[words]ᵀ - shift)) for each block; the array is reused by the next one."""
        xp = get_array_module(self.h)
        memory = xp.empty(len(self.h) * self.block_size, self.h.dtype)
        for words in self._words(part):
            width = words.stop - words.start
            logits = memory[: len(self.h) * width].reshape(len(self.h), width)
            xp.matmul(self.h, self.W[words].T, out=logits)
            if self.shift is not None:
                logits -= self.shift[:, None]
                logits += self.b[words]
            yield words, xp.exp(logits, out=logits)

    def _exp_bias(self, words: slice) -> Any:
        """exp(b), or ones where a shift made the bias part of the exponent."""
        xp = get_array_module(self.b)
        return xp.exp(self.b[words]) if self.shift is None else xp.ones_like(self.b[words])


def _assign_or_add(target: tuple[Any, bool], index: slice, values: Any) -> None:
    array, unwritten = target
    if unwritten:
        array[index] = values
    else:
        array[index] += values


def tied_softmax_loss(h: Any, W: Any, b: Any, targets: Any, block_size: int | None = None) -> Variable:
    """Mean cross-entropy of softmax(h Wᵀ + b), W being the embedding matrix.

    Tied weights: Press & Wolf 2017 (arXiv 1608.05859), Inan et al. 2017 (arXiv 1611.01462).

    Equal to `softmax_cross_entropy(linear(h, W, b), targets)` to rounding, in the memory of one block.

    Args:
        h: (N, E), outputs of the last layer.
        W: (V, E), the embedding matrix.
        b: (V), the decoder's bias.
        targets: (N) integers, each in [0, V), or -1 for a row that is not scored.
        block_size: words in a block; chosen by cache size if not given.

    Returns:
        The mean over the scored rows, in nats; 0 if there are none.

    Raises:
        ShapeError, DtypeError, InputError: sizes that do not fit, targets that are no ids or out of range.
    """
    return TiedSoftmaxLoss(block_size).apply(h, W, b, targets)
