"""The decoder that shares the embedding, and its loss, in blocks of the vocabulary.

The logits of a window, (N, V), are never held: at N = 21,504 and V = 267,735 they would take 23 GB in
float32. One block of them is, of a size that depends on neither: 144 MB. Threads walk through the vocabulary
in a ninth of it, a few words each at a time. Each word is multiplied out twice, once for the sums of the
softmax and once more for the gradients; but for those whose exponentials stay, in the rest of the block and
in the memory of the gradient of W, which has no other use before the backward pass fills it.

With l = h Wᵀ (without the bias), e = exp(l), and for every row n of h

    S_n = sum_v e_nv exp(b_v)                              loss_n = log S_n - l_ny - b_y
    dh_n = (sum_v e_nv exp(b_v) W_v) / S_n - W_y
    dW_v = exp(b_v) sum_n e_nv h_n / S_n - sum_{n: y_n = v} h_n
    db_v = exp(b_v) sum_n e_nv / S_n - #{n: y_n = v}

so bias and normalisation act on the thin matrices W, h and never on the wide block, whose only elementwise
operation is exp. See docs/lstm_backward.md, equations (20) to (25).

In float16 the logits and all of the above stay float32, but the gradients of the logits are rounded to
float16 for their products, and have a scale of their own there: see `SoftmaxBlocks.half_gradients`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autograd import Function, ShapeError, Variable
from autograd.backend import accumulation_dtype, get_array_module, matmul
from autograd.functions.embedding import add_rows, as_ids, check_ids
from autograd.functions.loss import IGNORE
from autograd.kernels import use_kernels
from autograd.mode import is_backprop_enabled, no_backprop_mode
from autograd.parallel import num_threads, run_parts, split_range
from autograd.variable import as_variable

Defer = Callable[[Callable[[Any], object], Sequence[Any], Callable[[], object]], None]
"""`Function.defer` of some inputs: takes work, parts and what comes last."""
BLOCK_WORDS = 512
"""Words that a thread multiplies out at a time: many enough for BLAS to run at its peak, few enough for their
logits to stay in the cache."""
WORKING_BYTES, LEAST_WORDS = 16 << 20, 64
"""All threads' logits fit in so many bytes: of many rows, or for many threads, fewer words, down to these."""
KEPT_BYTES = 128 << 20
"""The first words' exponentials stay for the backward pass while they fit in here, whatever N and V are."""
SAFE_SUMS = (1e-20, 1e20)
SAFE_BIAS = 20.0
"""While every S and |b| lie within these, exp needs no shift: what counts in S has e = exp(log S - b ± 16)
between exp(-82) and exp(66) (16 being float32's precision), and float32 holds exp(±87)."""
LOGIT_GRADIENT_SCALE = 2.0**12
"""What gradients of logits, q - [v = y] within ±1, are multiplied with while they are float16: a probability
is then told from 0 down to 2^-37, and has all its 11 bits down to 2^-26. With the mean's 1/N instead, almost
all of 268 thousand words' would round to 0."""


class TiedSoftmaxLoss(Function):
    """Cross-entropy in blocks of words: see `tied_softmax_loss`."""

    is_sum = True

    def __init__(self, block_size: int = BLOCK_WORDS) -> None:
        self.block_size = block_size

    def forward(self, h, W, b, targets):
        check_loss_inputs(self.label, h, W, b, targets)
        scored = ScoredRows(targets)
        lent = self.borrow_grad_memory(1)
        rows = CrossEntropy(scored.pick(h), W, b, scored.pick(targets), self.block_size, lent)
        self.save(rows, scored)
        return scored.mean(rows.losses)

    def backward(self, dloss):
        rows, scored = self.saved
        if not self.still_borrows(1):
            rows.blocks.forget_what_was_lent()
        dW, db = (self.grad_target(index, like) for index, like in ((1, rows.blocks.W), (2, rows.blocks.b)))
        dh = rows.gradients(dloss / scored.count, dW, db, functools.partial(self.defer, (1, 2)))
        return scored.spread(dh.astype(rows.blocks.h.dtype, copy=False)), dW[0], db[0], None


def check_loss_inputs(name: str, h: Any, W: Any, b: Any, targets: Any, lowest: int = IGNORE) -> None:
    """Raise in the words of the caller, `name`, unless these can be scored.

    Args:
        h: must be (N, E). W: (V, E). b: (V).
        targets: must be (N), ids in [lowest, V).
    """
    check_decoder(name, h, W, b)
    if targets.shape != h.shape[:1]:
        raise ShapeError(f"{name}: targets must be {h.shape[:1]} because h is {h.shape}; got {targets.shape}")
    check_ids(f"{name}: targets", targets, len(W), lowest=lowest)


def check_decoder(name: str, h: Any, W: Any, b: Any) -> None:
    """The same of what all words are scored with."""
    if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1]:
        raise ShapeError(f"{name}: h must be (N, E) and W (V, E); got {h.shape} and {W.shape}")
    if b.shape != W.shape[:1]:
        raise ShapeError(f"{name}: b must be {W.shape[:1]} because W is {W.shape}; got {b.shape}")


class ScoredRows:
    """The rows that have a target.

    Args:
        targets: (N), a word each, or -1 for a row that is not scored.

    Attributes:
        count: how many are scored, but 1 at least, so that a mean over none is 0.
    """

    def __init__(self, targets: Any) -> None:
        self.size = targets.size
        self.rows = get_array_module(targets).flatnonzero(targets != IGNORE)
        self.count = max(self.rows.size, 1)

    def pick(self, x: Any) -> Any:
        """The scored rows of x (N, …)."""
        return x if self.rows.size == self.size else x[self.rows]

    def spread(self, dx: Any) -> Any:
        """The gradient of x from that of `pick(x)`: the other rows' is 0."""
        if self.rows.size == self.size:
            return dx
        full = get_array_module(dx).zeros((self.size, *dx.shape[1:]), dx.dtype)
        full[self.rows] = dx
        return full

    def mean(self, losses: Any) -> Any:
        """Of losses (N); summed in double precision: a split of any size keeps float32's own accuracy."""
        return get_array_module(losses).asarray(losses.sum(dtype="float64") / self.count, losses.dtype)


class CrossEntropy:
    """-log softmax(h Wᵀ + b)[target] of each row, and the gradients of their weighted sum.

    Args:
        h: (N, E). W: (words, E). b: (words).
        targets: (N), each in [0, words).
        block_size: words in a block.
        lent: as for `SoftmaxBlocks`.

    Attributes:
        losses: (N), in nats; float32 of float16.
    """

    def __init__(
        self, h: Any, W: Any, b: Any, targets: Any, block_size: int = BLOCK_WORDS, lent: Any = None
    ) -> None:
        xp = get_array_module(h)
        self.blocks, self.targets = SoftmaxBlocks(h, W, b, block_size, lent), targets
        self.sums = self.blocks.sums_of_exp(keep=is_backprop_enabled())
        target_logits = row_products(h, W[targets]) + b[targets]
        self.losses = xp.log(self.sums) - target_logits  # (22)
        if self.blocks.shift is not None:
            self.losses += self.blocks.shift

    def gradients(
        self, scale: Any, dW: tuple[Any, bool], db: tuple[Any, bool], defer: Defer | None = None
    ) -> Any:
        """scale · d(sum of losses) by h, which is returned, and by W and b.

        Args:
            scale: a number.
            dW, db: (array, unwritten) as `Function.grad_target` gives them; written or added to.
            defer: `Function.defer`, which is asked for what can wait of dW and db; None: all is made at once.

        Returns:
            dh (N, E), float32 of float16: others may still be added to it.
        """
        h, W, b = self.blocks.h, self.blocks.W, self.blocks.b
        if h.dtype == "float16":
            return self.blocks.half_gradients(self.sums, scale, dW, db, targets=self.targets)
        dh, work, blocks = self.blocks.gradients(scale / self.sums, dW, db, later=defer is not None)
        dh -= scale * W[self.targets]  # the targets' part of (23)

        def add_targets() -> None:
            add_rows(dW[0], self.targets, h * -scale)  # of (24)
            db[0][...] -= scale * get_array_module(h).bincount(self.targets, minlength=len(b))  # of (25)

        if defer is None:
            add_targets()
        else:
            defer(work, blocks, add_targets)
        return dh


class SoftmaxBlocks:
    """The products of h with W, one block of words at a time, shared out among threads.

    Args:
        h: (N, E). W: (V, E). b: (V).
        block_size: words in a block.
        lent: (V, E), memory of the gradient by W, for exponentials that `KEPT_BYTES` has no room for. Each
            thread keeps those of its first words there, and replaces them by gradients from front to back. A
            word's gradient takes E numbers, its exponentials N: none reaches what is yet to be read. None, or
            of another dtype, fewer rows than E, or a GPU's: nothing is lent.

    Attributes:
        dtype: of logits, exponentials and sums: h's, but float32 for float16.
        shift: (N) subtracted from each row of logits before exp, or None while none is needed.
    """

    def __init__(self, h: Any, W: Any, b: Any, block_size: int = BLOCK_WORDS, lent: Any = None) -> None:
        self.h, self.W, self.b, self.dtype = h, W, b, accumulation_dtype(h.dtype)
        fits = lent is not None and lent.dtype == self.dtype and len(h) >= h.shape[1]
        self.lent: Any = lent if fits and get_array_module(h) is np else None
        self._in_lent: set[int] = set()  # first words of the blocks whose exponentials are there
        threads = num_threads() if get_array_module(h) is np else 1
        self.block_size = words_at_a_time(len(h), threads, self.dtype.itemsize, block_size)
        self.shift: Any = None
        self._kept: dict[int, Any] = {}  # exponentials by the first word of their block
        self.parts = split_range(len(W), threads, multiple=self.block_size)

    def sums_of_exp(self, keep: bool = False) -> Any:
        """S (N): the sums over all words of exp(logit - shift); a shift is chosen only if it must be.

        With `keep`, exponentials stay for `gradients` as far as `KEPT_BYTES` goes.
        """
        xp = get_array_module(self.h)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            sums = self._sums(keep)
        low, high = SAFE_SUMS
        safe = xp.all((sums > low) & (sums < high)) & xp.all(xp.abs(self.b) < SAFE_BIAS)
        if len(sums) and not bool(safe):
            self._kept.clear()
            self._in_lent.clear()
            self.shift = self._row_maxima()
            sums = self._sums(keep)
        return sums

    def _sums(self, keep: bool) -> Any:
        def part_sums(part: slice) -> Any:
            total = get_array_module(self.h).zeros(len(self.h), self.dtype)
            for words, e in self._exponentials(part, keep):
                total += matmul(e, self._exp_bias(words))  # (21)
            return total

        return sum(run_parts(part_sums, self.parts))

    def _row_maxima(self) -> Any:
        """The largest logit of each row, bias included."""
        xp = get_array_module(self.h)
        highest = xp.full(len(self.h), -np.inf, self.dtype)
        for words in self._words(slice(0, len(self.W))):
            logits = all_logits(self.h, self.W[words], self.b[words])
            xp.maximum(highest, logits.max(axis=1), out=highest)
        return highest

    def forget_what_was_lent(self) -> None:
        """Others have written there since, or will: these exponentials are computed anew."""
        for start in self._in_lent:
            del self._kept[start]
        self._in_lent.clear()

    def gradients(
        self, row_scale: Any, dW: tuple[Any, bool], db: tuple[Any, bool], later: bool = False
    ) -> tuple[Any, Callable[[slice], None], list[slice]]:
        """The softmax's part of dh, dW and db, without the targets'.

        Args:
            row_scale: (N), d(root)/d(loss of the row) / S.
            dW, db: (array, unwritten) as `Function.grad_target` gives them; written or added to.
            later: leave out dW and db of the blocks of words whose exponentials are kept.

        Returns:
            dh (N, E); what makes dW and db of a block, and the blocks that were left out.
        """
        xp, scaled_h = get_array_module(self.h), self.h * row_scale[:, None]

        def weight_gradients(words: slice, e: Any) -> None:
            exp_b = self._exp_bias(words)
            assign_or_add(db, words, matmul(row_scale, e) * exp_b)  # (25)
            if dW[1]:
                # A first block's e may lie where the product goes; NumPy then copies e.
                block = matmul(e.T, scaled_h, out=dW[0][words])  # (24)
                block *= exp_b[:, None]
            else:
                dW[0][words] += matmul(e.T, scaled_h) * exp_b[:, None]  # (24)

        def part_gradients(part: slice) -> Any:
            dh, product = xp.zeros_like(self.h), xp.empty_like(self.h)
            for words, e in self._exponentials(part):
                dh += matmul(e, self.W[words] * self._exp_bias(words)[:, None], out=product)  # (23)
                if words.start not in waiting:
                    weight_gradients(words, e)
            return dh

        waiting = set(self._kept) - self._in_lent if later else set()
        dh = sum(run_parts(part_gradients, self.parts))
        dh *= row_scale[:, None]
        every = [words for part in self.parts for words in self._words(part)]
        left_out = [words for words in every if words.start in waiting]
        return dh, lambda words: weight_gradients(words, self._kept[words.start]), left_out

    def half_gradients(
        self,
        sums: Any,
        scale: Any,
        dW: tuple[Any, bool],
        db: tuple[Any, bool],
        weights: Any = None,
        targets: Any = None,
    ) -> Any:
        """`gradients` for float16, from the gradients of the logits as tensor cores want them: in float16.

        For row n and word v that is G_nv = K w_n (q_nv - [v = y_n]), with q the probabilities and K the
        `LOGIT_GRADIENT_SCALE`; the products with G are summed in float32, and there scale / K comes in.

        Args:
            sums: (N), as `sums_of_exp` gave them.
            scale: d(root)/d(loss of a row), a number; the loss scale and the mean's 1/N are in it.
            dW, db: (array, unwritten) as for `gradients`.
            weights: w (N), within [0, 1]; None: all of them 1.
            targets: y (N); None: the caller sees to them.

        Returns:
            dh (N, E), float32.
        """
        xp, alpha = get_array_module(self.h), float(scale) / LOGIT_GRADIENT_SCALE
        row_scale = LOGIT_GRADIENT_SCALE / sums
        if weights is not None:
            row_scale *= weights
        order = None if targets is None else xp.argsort(targets, kind="stable")
        ones = xp.ones(len(self.h), self.h.dtype)

        def part_gradients(part: slice) -> Any:
            dh = xp.zeros(self.h.shape, self.dtype)
            for words, e in self._exponentials(part):
                G = e * row_scale[:, None]
                G *= self._exp_bias(words)
                if order is not None:
                    self._subtract_targets(G, words, targets, order)
                G = G.astype(self.h.dtype)  # (77)
                matmul(G, self.W[words], out=dh, accumulate=True)  # (23)
                matmul(G.T, self.h, out=dW[0][words], accumulate=not dW[1], alpha=alpha)  # (24)
                matmul(ones, G, out=db[0][words], accumulate=not db[1], alpha=alpha)  # (25)
            return dh

        dh = sum(run_parts(part_gradients, self.parts))
        dh *= alpha
        return dh

    def _words(self, part: slice) -> list[slice]:
        starts = range(part.start, part.stop, self.block_size)
        return [slice(start, min(start + self.block_size, part.stop)) for start in starts]

    def _exponentials(self, part: slice, keep: bool = False) -> Any:
        """(words, exp(h W[words]ᵀ - shift)) for each block; unless kept, the array is reused by the next."""
        xp, rows = get_array_module(self.h), len(self.h)
        lent, kept = self._words_kept(part) if keep else (0, 0)
        # Two large arrays and not one a block: the operating system gives them large pages.
        own, reused = (xp.empty(rows * width, self.dtype) for width in (kept, self.block_size))
        for words in self._words(part):
            e = self._kept.get(words.start)
            if e is None:
                begin, end = words.start - part.start, words.stop - part.start
                memory = reused
                if end <= lent:
                    memory = self.lent[part].reshape(-1)[begin * rows :]
                    self._in_lent.add(words.start)
                elif end <= lent + kept:
                    memory = own[(begin - lent) * rows :]
                e = memory[: rows * (end - begin)].reshape(rows, end - begin)
                self._exponentiate(words, out=e)
                if memory is not reused:
                    self._kept[words.start] = e
            yield words, e

    def _words_kept(self, part: slice) -> tuple[int, int]:
        """How many of a part's first words stay in what is lent, in whole blocks, and how many of the next in
        its share of `KEPT_BYTES`."""
        rows, words = max(len(self.h), 1), part.stop - part.start
        kept = min(KEPT_BYTES // len(self.parts) // (rows * self.dtype.itemsize), words)
        if self.lent is None:
            return 0, kept
        needed, there_is = words - kept, words * self.h.shape[1] // rows
        return min(-(-needed // self.block_size), there_is // self.block_size) * self.block_size, kept

    def _exponentiate(self, words: slice, out: Any) -> None:
        xp = get_array_module(self.h)
        matmul(self.h, self.W[words].T, out=out)
        if self.shift is not None:
            out -= self.shift[:, None]
            out += self.b[words]
        xp.exp(out, out=out)  # (20)

    def _exp_bias(self, words: slice) -> Any:
        """exp(b), or ones where a shift made the bias part of the exponent."""
        xp, b = get_array_module(self.b), self.b[words].astype(self.dtype, copy=False)
        return xp.exp(b) if self.shift is None else xp.ones_like(b)

    def _subtract_targets(self, G: Any, words: slice, targets: Any, order: Any) -> None:
        """K off G where a row's target is among a block's words; `order` sorts the targets."""
        xp = get_array_module(targets)
        first, last = xp.searchsorted(targets[order], xp.asarray([words.start, words.stop]))
        rows = order[int(first) : int(last)]
        G[rows, targets[rows] - words.start] -= LOGIT_GRADIENT_SCALE


def words_at_a_time(rows: int, threads: int, itemsize: int, most: int = BLOCK_WORDS) -> int:
    """Into how many words' logits of so many rows each thread may multiply at a time."""
    fitting = WORKING_BYTES // max(threads * rows * itemsize, 1)
    return min(most, max(fitting // LEAST_WORDS, 1) * LEAST_WORDS)


def row_products(x: Any, y: Any) -> Any:
    """x_n · y_n (N) for x, y (N, E); float32 of float16."""
    return get_array_module(x).einsum("ne,ne->n", x, y, dtype=accumulation_dtype(x.dtype))


def all_logits(h: Any, W: Any, b: Any) -> Any:
    """h Wᵀ + b (N, V), whole; float32 of float16."""
    logits = get_array_module(h).empty((len(h), len(W)), accumulation_dtype(h.dtype))
    matmul(h, W.T, out=logits)
    logits += b
    return logits


def assign_or_add(target: tuple[Any, bool], index: slice, values: Any) -> None:
    """array[index] = values if it is unwritten, else +=; target as `Function.grad_target` gives it."""
    array, unwritten = target
    if unwritten:
        array[index] = values
    else:
        array[index] += values


def tied_softmax_loss(h: Any, W: Any, b: Any, targets: Any, block_size: int = BLOCK_WORDS) -> Variable:
    """Mean cross-entropy of softmax(h Wᵀ + b), W being the embedding matrix.

    Tied weights: Press & Wolf 2017 (arXiv 1608.05859), Inan et al. 2017 (arXiv 1611.01462).

    Equal to `softmax_cross_entropy(linear(h, W, b), targets)` to rounding, in 144 MB for logits and what
    becomes of them, forward and backward, whatever N and V are; more only where 64 words a thread are more.

    Args:
        h: (N, E), outputs of the last layer.
        W: (V, E), the embedding matrix.
        b: (V), the decoder's bias.
        targets: (N) integers, each in [0, V), or -1 for a row that is not scored.
        block_size: words that a thread takes at a time, at most; a GPU takes all words of some rows.

    Returns:
        The mean over the scored rows, in nats, float32 of float16; 0 if there are none.

    Raises:
        ShapeError, DtypeError, InputError: sizes that do not fit, targets that are no ids or out of range.
    """
    targets = as_ids("tied_softmax_loss: targets", targets)
    if use_kernels(as_variable(W).data):
        from minilstm.tied_softmax_cuda import KernelTiedSoftmaxLoss  # which is built on this module

        return KernelTiedSoftmaxLoss().apply(h, W, b, targets)
    return TiedSoftmaxLoss(block_size).apply(h, W, b, targets)


def tied_token_losses(h: Any, W: Any, b: Any, targets: Any, block_size: int = BLOCK_WORDS) -> Any:
    """-log softmax(h Wᵀ + b) at the targets, token by token; no gradients.

    Their mean is `tied_softmax_loss`, from the same blocks of words and in the same memory: the (N, V)
    logits are never held.

    Args:
        h: array (N, E), outputs of the last layer.
        W: array (V, E). b: array (V).
        targets: integers (N), each in [0, V).
        block_size: words in a block.

    Returns:
        (N) in nats, of h's dtype; float32 of float16.

    Raises:
        ShapeError, InputError: sizes that do not fit, targets out of range.
    """
    check_loss_inputs("tied_token_losses", h, W, b, targets, lowest=0)
    if use_kernels(W):
        from minilstm.tied_softmax_cuda import kernel_token_losses

        return kernel_token_losses(h, W, b, targets)
    with no_backprop_mode():
        return CrossEntropy(h, W, b, targets, block_size).losses
