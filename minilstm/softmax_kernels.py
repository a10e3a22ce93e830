"""The rows of a softmax on a GPU: each kernel of cuda/softmax.cu behind a function, with its NumPy twin.

The functions run their kernel on CuPy's arrays (and on NumPy's where a test emulates them, see
autograd/kernels.py), else the twin: what is built of them, minilstm/tied_softmax_cuda.py, runs anywhere.
Numbers are stored in T, the dtype of the matrices, and computed in `accumulation_dtype(T)`, here real.
Equations as in docs/lstm_backward.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.backend import accumulation_dtype, get_array_module
from autograd.kernels import KernelModule, use_kernels

SOFTMAX = KernelModule("minilstm", "softmax")
MAX_ROW_THREADS, MEAN_THREADS = 1024, 256
"""In a block of `softmax_rows`, at most, and of `mean_loss`; softmax.cu has the same."""
MAX_THREADS = 128
"""In a block of the others, at most."""
PADDING = 64
"""Words, and so the columns of the logits, are padded to a multiple: tensor cores want aligned rows."""


def padded(size: int, multiple: int = PADDING) -> int:
    """The least multiple that is no smaller than size."""
    return -(-size // multiple) * multiple


def _threads(work: int, most: int = MAX_THREADS) -> int:
    """Whole warps for so many pieces of work, one a thread while there are as many threads."""
    return min(padded(max(work, 1), 32), most)


def softmax_rows(
    logits: Any,
    columns: int,
    targets: Any,
    places: Any,
    target_logits: Any,
    target_in_block: bool,
    gradient: bool,
    scale: float = 1.0,
    shift: Any = None,
) -> tuple[Any, Any]:
    """Losses of rows of logits, and in the logits' place the gradients by them: (20) to (22), (68), (69).

    With l = logits + shift, t the target's logit and Σ over all columns but the target's own,

        S_n = exp(t_n) + Σ_v exp(l_nv)      loss_n = log S_n - t_n      slope_n = exp(t_n) / S_n - 1

    and the gradient by l_nv is exp(l_nv) / S_n, by t_n the slope. Read twice and written once.

    Args:
        logits: T (N, stride), stride a multiple of 64; overwritten.
        columns: how many of the stride count.
        targets: int32 (N); a row whose target is -1 is not scored: its loss, slope and gradient are 0.
        places: int32 (N), the target's column, or -1 if it has none.
        target_logits: real (N), t: what stands in the target's column is rounded to T, and not looked at.
        target_in_block: the slope is written into the target's column too; else 0, and the caller sees to it.
        gradient: whether gradients are wanted; without, the logits are left undefined.
        scale: of the gradients, which float16 could not tell from 0 without one.
        shift: real (stride) or None.

    Returns:
        losses, slopes: real (N).
    """
    xp, real = get_array_module(logits), target_logits.dtype
    losses, slopes = xp.empty(len(logits), real), xp.empty(len(logits), real)
    if use_kernels(logits):
        accesses = logits.shape[1] * logits.itemsize // 16
        threads = _threads(accesses // 4, MAX_ROW_THREADS)  # four each, so that a block's sum costs little
        SOFTMAX.launch(
            "softmax_rows", len(logits), threads, logits, logits.shape[1], columns, shift, targets, places,
            target_logits, target_in_block, gradient, scale, losses, slopes,
        )  # fmt: skip
        return losses, slopes
    logit, t = logits[:, :columns].astype(real), target_logits
    if shift is not None:
        logit += shift[:columns]
    scored, own = targets >= 0, np.flatnonzero((targets >= 0) & (places >= 0))
    logit[own, places[own]] = -np.inf
    highest = np.maximum(logit.max(axis=1, initial=-np.inf), t)
    e, e_target = np.exp(logit - highest[:, None]), np.exp(t - highest)  # (20)
    S = e.sum(axis=1) + e_target  # (21)
    losses[:] = np.where(scored, highest - t + np.log(S), 0)  # (22), (68)
    slopes[:] = np.where(scored, e_target / S - 1, 0)  # (69)
    if gradient:
        logits[:, columns:] = 0
        logits[:, :columns] = e * np.where(scored, real.type(scale) / S, 0)[:, None]
        if target_in_block:
            logits[own, places[own]] = slopes[own] * real.type(scale)
    return losses, slopes


def target_logits(h: Any, W: Any, targets: Any, bias: Any = None) -> Any:
    """h_n · W[targets[n]] + bias_n, summed in real and not rounded to T: real (N); 0 where the target is -1.

    Args:
        h: T (N, width). W: T (V, width).
        targets: int32 (N). bias: real (N) or None.
    """
    real = accumulation_dtype(h.dtype)
    xp = get_array_module(h)
    h, W, logits = xp.ascontiguousarray(h), xp.ascontiguousarray(W), xp.empty(len(h), real)
    if use_kernels(h):
        blocks, E = -(-len(h) // (MAX_THREADS // 32)), h.shape[1]
        SOFTMAX.launch(
            "target_logits", blocks, MAX_THREADS, h, E, W, E, E, targets, bias, len(h), logits
        )  # fmt: skip
        return logits
    logits[:] = np.einsum("ne,ne->n", h.astype(real), W[targets].astype(real))
    if bias is not None:
        logits += bias
    logits[targets < 0] = 0
    return logits


def add_target_rows(dh: Any, W: Any, targets: Any, slopes: Any) -> None:
    """dh_n += slope_n · W[targets[n]], the target's part of (70).

    Args:
        dh: real (N, at least E). W: T (V, E).
        targets: int32 (N); -1: nothing is added. slopes: real (N).
    """
    if use_kernels(dh):
        E = W.shape[1]
        SOFTMAX.launch(
            "add_target_rows", len(dh), _threads(E), dh, dh.shape[1], W, E, E, targets, slopes
        )  # fmt: skip
        return
    scored = targets >= 0
    dh[scored, : W.shape[1]] += slopes[scored, None] * W[targets[scored]]  # (70)


def mean_loss(losses: Any, targets: Any) -> tuple[Any, Any]:
    """The mean over the rows whose target is not -1, and their number, but 1 at least: each real (1,).

    Args:
        losses: real (N), 0 in the other rows. targets: int32 (N).
    """
    xp = get_array_module(losses)
    mean, count = xp.empty(1, losses.dtype), xp.empty(1, losses.dtype)
    if use_kernels(losses):
        dtype = losses.dtype  # the kernel has no array of T
        SOFTMAX.launch("mean_loss", 1, MEAN_THREADS, losses, targets, len(losses), mean, count, dtype=dtype)
    else:
        count[:] = max(np.count_nonzero(targets >= 0), 1)
        mean[:] = losses.sum(dtype=np.float64) / count
    return mean, count


def pack_rows(rows: Any, column: Any, width: int, height: int, ids: Any = None, constant: float = 0.0) -> Any:
    """Rows with a column after them, padded with zeros: T (height, width).

    The decoder's bias goes into the products in this way, as a column of W for which h has a column of ones:
    it costs no pass over the logits of its own, nor its gradient a sum over them.

    Args:
        rows: T (V, E), E < width.
        column: T (V), or None: the constant.
        ids: int32, which rows, or None: all of them.
    """
    V, E = rows.shape
    count = V if ids is None else ids.size
    xp = get_array_module(rows)
    rows, packed = xp.ascontiguousarray(rows), xp.empty((height, width), rows.dtype)
    if use_kernels(rows):
        SOFTMAX.launch(
            "pack_rows", height, _threads(width), rows, E, column, constant, ids, count, packed, width
        )  # fmt: skip
        return packed
    which = slice(None) if ids is None else ids
    packed[...] = 0
    packed[:count, :E] = rows[which]
    packed[:count, E] = constant if column is None else column[which]
    return packed


def unpack_rows(
    packed: Any,
    width: int,
    factor: Any,
    rows: tuple[Any, bool] | None,
    column: tuple[Any, bool] | None = None,
    ids: Any = None,
) -> None:
    """factor · packed, written or added to the rows and to the column that `pack_rows` has put together.

    Args:
        packed: real (at least N, more than width). width: E. factor: real (1,).
        rows, column: T (V, E) and T (V), each with whether it is unwritten, as `Function.grad_target` gives
            them; or None.
        ids: int32 (N), all different: where the rows go. None: to the first ones, all of them.
    """
    targets = [target for target in (rows, column) if target is not None]
    if not targets:
        return
    height = len(targets[0][0]) if ids is None else ids.size
    if use_kernels(packed):
        into, new_rows = rows or (None, True)
        into_column, new_column = column or (None, True)
        SOFTMAX.launch(
            "unpack_rows", height, _threads(width), packed, packed.shape[1], ids, factor, into, width,
            not new_rows, into_column, not new_column,
        )  # fmt: skip
        return
    which = slice(None) if ids is None else ids
    for given, values in ((rows, packed[:height, :width]), (column, packed[:height, width])):
        if given is not None:
            target, unwritten = given
            target[which] = values * factor[0] if unwritten else target[which] + values * factor[0]
