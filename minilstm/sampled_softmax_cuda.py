"""The sampled softmax loss on a GPU: the drawn words' rows are gathered, and their gradients scattered back.

It is minilstm/sampled_softmax.py's loss by the kernels of the tied softmax. A target that was drawn as well,
an accidental hit, is taken out of the block: the target's own part always stands beside it, in float32. What
is added to the logits, bias - log Q, is added in float32 too. Equations as in docs/lstm_backward.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Function
from autograd.backend import accumulation_dtype, get_array_module
from autograd.functions.embedding_kernels import add_weighted_rows, sort_ids
from autograd.mode import is_backprop_enabled
from minilstm.sampled_softmax import Sample, check_sample, corrected_bias
from minilstm.softmax_kernels import (
    add_target_rows,
    mean_loss,
    pack_rows,
    padded,
    target_logits,
    unpack_rows,
)
from minilstm.tied_softmax import check_loss_inputs
from minilstm.tied_softmax_cuda import CHUNK_BYTES, SoftmaxOverRows, device_ids, packed_width


class KernelSampledSoftmaxLoss(Function):
    """`SampledSoftmaxLoss` by kernels; the loss is a number of `accumulation_dtype`: float32 for float16.

    Args:
        sample: as for `SampledSoftmaxLoss`. Its ids may be on the device, rising and different: nobody looks
            then; and its number of tries an array of one number there, so that a graph reads it anew.
    """

    label = "sampled_softmax_loss"
    is_sum = True

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def forward(self, h, W, b, targets):
        check_loss_inputs(self.label, h, W, b, targets)
        check_sample(self.label, self.sample, len(W))
        ids, targets = (device_ids(x, like=h) for x in (self.sample.ids, targets))
        xp, real, E = get_array_module(h), accumulation_dtype(h.dtype), W.shape[1]
        packed_W = pack_rows(W, None, packed_width(E, W.dtype), padded(ids.size), ids)
        shift = xp.zeros(len(packed_W), real)
        shift[: ids.size] = corrected_bias(b, ids, self.sample.num_tries)  # (67)
        own_bias = corrected_bias(b, xp.maximum(targets, 0), self.sample.num_tries)
        rows = SoftmaxOverRows(h, packed_W, ids.size, CHUNK_BYTES)
        t = target_logits(h, W, targets, own_bias)
        rows.run(targets, _places(targets, ids), t, False, is_backprop_enabled(), shift)
        if rows.dh is not None:
            add_target_rows(rows.dh, W, targets, rows.slopes)
        mean, count = mean_loss(rows.losses, targets)
        self.save(rows, count, ids, targets, h, W)
        return mean.reshape(())

    def backward(self, dloss):
        rows, count, ids, targets, h, W = self.saved
        factor = (dloss / count).astype(rows.dh.dtype, copy=False)
        dW, db = (self._cleared_target(index, like=W) for index in (1, 2))
        into = [None if target is None else (target, False) for target in (dW, db)]
        unpack_rows(rows.dW, W.shape[1], factor, into[0], into[1], ids)
        by_word = sort_ids(targets)
        if dW is not None:
            add_weighted_rows(dW, by_word, h, rows.slopes, factor=factor)
        if db is not None:
            ones = get_array_module(h).ones((targets.size, 1), h.dtype)
            add_weighted_rows(db.reshape(-1, 1), by_word, ones, rows.slopes, factor=factor)
        return rows.scaled_dh(factor, W), dW, db, None

    def _cleared_target(self, index: int, like: Any) -> Any:
        """Where the gradient of an input is added, 0 if nothing is there yet; None if nobody wants it."""
        if not self.needs_grad(index):
            return None
        target, unwritten = self.grad_target(index, like)
        if unwritten:
            target[...] = 0
        return target


def _places(targets: Any, ids: Any) -> Any:
    """int32 (N): which of the ids, rising, is the target; -1 for none of them."""
    xp = get_array_module(ids)
    places = xp.minimum(xp.searchsorted(ids, targets), ids.size - 1)
    return xp.where(ids[places] == targets, places, -1).astype(np.int32)
