"""Softmax and the cross-entropy of its outcome."""

from __future__ import annotations

from typing import Any

from autograd.backend import accumulation_dtype, get_array_module
from autograd.errors import ShapeError
from autograd.function import Function
from autograd.functions.embedding import as_ids, check_ids
from autograd.variable import Variable

IGNORE = -1
"""A target that is not scored: padding, or words read only to warm up the state."""


def log_softmax_array(logits: Any) -> Any:
    """logits (…, V) - log(sum(exp(logits))) over the last axis, on plain arrays, without overflow.

    Of float16 it is float32: float16 has three digits, too few for a log-probability of some -15.
    """
    xp = get_array_module(logits)
    logits = logits.astype(accumulation_dtype(logits.dtype), copy=False)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


class LogSoftmax(Function):
    """y = x - log Σ exp(x) over the last axis; dx = dy - softmax(x) · Σ dy."""

    is_sum = True

    def forward(self, x):
        y = log_softmax_array(x)
        self.save(y)
        return y

    def backward(self, dy):
        (y,) = self.saved
        xp = get_array_module(y)
        dx = xp.exp(y)
        dx *= dy.sum(axis=-1, keepdims=True)
        xp.subtract(dy, dx, out=dx)
        return dx.astype(self.inputs[0].dtype, copy=False)


class SoftmaxCrossEntropy(Function):
    """Mean of -log softmax(logits)[target]; dlogits = (softmax(logits) - [target]) / count."""

    is_sum = True

    def forward(self, logits, targets):
        if logits.ndim < 1 or logits.shape[:-1] != targets.shape:
            raise ShapeError(
                f"softmax_cross_entropy: logits must be (…, V) and targets (…); "
                f"got {logits.shape} and {targets.shape}"
            )
        check_ids("softmax_cross_entropy: targets", targets, logits.shape[-1], lowest=IGNORE)
        xp = get_array_module(logits)
        rows = log_softmax_array(logits).reshape(targets.size, logits.shape[-1])
        flat = targets.ravel()
        scored = xp.flatnonzero(flat != IGNORE)
        self.save(rows, flat, scored)
        return -rows[scored, flat[scored]].sum() / max(scored.size, 1)

    def backward(self, dloss):
        rows, targets, scored = self.saved
        xp = get_array_module(rows)
        dlogits = xp.exp(rows)
        dlogits[targets == IGNORE] = 0
        dlogits[scored, targets[scored]] -= 1
        dlogits *= dloss / max(scored.size, 1)
        return dlogits.reshape(self.inputs[0].shape).astype(self.inputs[0].dtype, copy=False), None


def log_softmax(x: Any) -> Variable:
    """log of the softmax of x (…, V) over the last axis, of the same shape; float32 of float16."""
    return LogSoftmax().apply(x)


def softmax_cross_entropy(logits: Any, targets: Any) -> Variable:
    """Mean of -log softmax(logits)[target] over the targets that are not `IGNORE` (-1).

    Args:
        logits: (…, V), unnormalised log-probabilities.
        targets: integers (…), each in [0, V), or -1 for one that is not scored.

    Returns:
        A single number, in nats, float32 for float16 logits; 0 if nothing is scored.

    Raises:
        ShapeError, DtypeError, InputError: targets that do not fit, are not integers, or out of range.
    """
    return SoftmaxCrossEntropy().apply(logits, as_ids("softmax_cross_entropy: targets", targets))
