"""Rows of a matrix picked by integer ids, and the scattered gradient that goes back."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.backend import accumulation_dtype, get_array_module
from autograd.errors import DtypeError, InputError, ShapeError
from autograd.function import Function
from autograd.functions.embedding_kernels import add_weighted_rows
from autograd.kernels import use_kernels
from autograd.variable import Variable, as_variable


def as_ids(name: str, ids: Any) -> Variable:
    """Ids, of any shape, as a constant of the graph.

    Raises:
        DtypeError: not integers.
    """
    ids = as_variable(ids)
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{name} must be integer word ids; got {ids.dtype}")
    return ids


def check_ids(name: str, ids: Any, size: int, lowest: int = 0) -> None:
    """Raise an InputError unless all `ids`, of any shape, lie in [lowest, size).

    Ids on a GPU are not looked at, which would make the host wait for it: who sends them there checks them.
    """
    if get_array_module(ids) is np and ids.size and (int(ids.min()) < lowest or int(ids.max()) >= size):
        raise InputError(
            f"{name} must lie in [{lowest}, {size}); got ids from {int(ids.min())} to {int(ids.max())}: "
            "was the text prepared with another vocabulary?"
        )


def add_rows(target: Any, ids: Any, rows: Any) -> None:
    """target[ids[n]] += rows[n] for every n, where an id may come more than once; in a fixed order.

    The ids are sorted and each run of equal ones summed by one reduction, which is several times faster
    than ufunc.at and, unlike atomics on a GPU, always adds in the same order. Runs of float16 rows are summed
    in float32 and rounded once, where they join the target.

    Args:
        target: (V, E), written to. ids: (N), each in [0, V). rows: (N, E).
    """
    if not ids.size:
        return
    if use_kernels(target):
        return add_weighted_rows(target, ids, rows)
    xp = get_array_module(target)
    order = xp.argsort(ids, kind="stable")
    in_order = ids[order]
    starts = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), in_order[1:] != in_order[:-1]]))
    lengths = xp.diff(starts, append=ids.size)
    sums = rows[order[starts]].astype(accumulation_dtype(rows.dtype), copy=False)
    repeated = lengths > 1
    if repeated.any():  # a reduction takes long to begin, and most words come but once
        runs, lengths = order[xp.repeat(repeated, lengths)], lengths[repeated]
        sums[repeated] = xp.add.reduceat(rows[runs], xp.cumsum(lengths) - lengths, axis=0, dtype=sums.dtype)
    target[in_order[starts]] += sums


class Embedding(Function):
    """x_n = r · W[id_n]; dW[id_n] += r · dx_n, with r a factor of the word or 1."""

    def __init__(self, row_scale: Any = None) -> None:
        self.row_scale = row_scale

    def forward(self, ids, W):
        if W.ndim != 2:
            raise ShapeError(f"embedding: W must be (V, E); got {W.shape}")
        check_ids("embedding: ids", ids, W.shape[0])
        self.save(ids, W)
        x = W[ids]
        if self.row_scale is not None:
            x *= self.row_scale[ids][..., None]  # (26) of docs/lstm_backward.md
        return x

    def backward(self, dx):
        ids, W = self.saved
        dW, unwritten = self.grad_target(1, like=W)
        if unwritten:
            dW[...] = 0
        flat = ids.ravel()
        rows = dx.reshape(flat.size, W.shape[1])
        if use_kernels(dW):
            add_weighted_rows(dW, flat, rows, word_scale=self.row_scale)  # (27)
            return None, dW
        if self.row_scale is not None:
            rows = rows * self.row_scale[flat][:, None]
        add_rows(dW, flat, rows)  # (27), on top of what a tied decoder has written
        return None, dW


def embedding(ids: Any, W: Any, row_scale: Any = None) -> Variable:
    """W[ids]: the row of W for every id.

    Args:
        ids: integers of any shape, each in [0, V).
        W: (V, E).
        row_scale: (V,), what each row is multiplied with, or None; a mask over words goes here.

    Returns:
        The shape of ids with E appended.

    Raises:
        DtypeError: ids that are not integers.
        InputError: an id outside [0, V).
        ShapeError: W is not a matrix.
    """
    return Embedding(row_scale).apply(as_ids("embedding: ids", ids), W)
