"""Rows added to the rows of a matrix on a GPU: each kernel of cuda/embedding.cu, and its NumPy twin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from autograd.backend import accumulation_dtype, get_array_module
from autograd.kernels import KernelModule, use_kernels

EMBEDDING = KernelModule("autograd", "embedding")
SORT_THREADS, CHUNK = 256, 8
"""In a block of `sort_ids`, and the positions that a block of `add_rows` sums; embedding.cu has the same."""


class SortedIds(NamedTuple):
    """Ids by size: where each of them stood, and which it is; int32 (N) both."""

    order: Any
    words: Any


def sort_ids(ids: Any) -> SortedIds:
    """The ids sorted, equal ones in the order in which they stand.

    Args:
        ids: integers (N).
    """
    xp = get_array_module(ids)
    ids = xp.asarray(ids, dtype=np.int32)
    order, words = xp.empty(ids.size, np.int32), xp.empty(ids.size, np.int32)
    if use_kernels(ids):
        EMBEDDING.launch("sort_ids", -(-ids.size // SORT_THREADS), SORT_THREADS, ids, ids.size, order, words)
    else:
        order[:] = np.argsort(ids, kind="stable")
        words[:] = ids[order]
    return SortedIds(order, words)


def add_weighted_rows(
    target: Any, ids: Any, rows: Any, weights: Any = None, word_scale: Any = None, factor: Any = None
) -> None:
    """target[ids[n]] += factor · word_scale[ids[n]] · weights[n] · rows[n] for every n: (27).

    The rows of one id are summed in a fixed order, float16 in float32, and rounded once into the target:
    always the same bits. Nothing is read back from the device.

    Args:
        target: (V, E).
        ids: integers (N) below V, or what `sort_ids` makes of them; one below 0 stands for no word.
        rows: (N, E), of the target's dtype.
        weights: (N) or None, in the `accumulation_dtype`.
        word_scale: (V) or None, of the target's dtype.
        factor: (1,) or None, in the `accumulation_dtype`.
    """
    xp, real = get_array_module(target), accumulation_dtype(target.dtype)
    order, words = ids if isinstance(ids, SortedIds) else sort_ids(xp.asarray(ids))
    if not words.size:
        return
    rows, width = xp.ascontiguousarray(rows), target.shape[1]
    if use_kernels(target):
        chunks, threads = -(-words.size // CHUNK), min(-(-width // 32) * 32, 512)
        partial = xp.empty((chunks, 2, width), real)
        EMBEDDING.launch(
            "add_rows", chunks, threads, target, width, order, words, words.size, rows, rows.shape[1],
            weights, word_scale, factor, partial,
        )  # fmt: skip
        EMBEDDING.launch(
            "join_runs", chunks, threads, target, width, words, words.size, word_scale, factor, partial
        )  # fmt: skip
        return
    for word in np.unique(words[words >= 0]):
        own = order[words == word]
        weighted = rows[own].astype(real) if weights is None else rows[own] * weights[own, None]
        scale = (1 if factor is None else factor[0]) * (1 if word_scale is None else word_scale[word])
        total = np.add.reduce(weighted, axis=0, dtype=real)
        target[word] = target[word] + real.type(scale) * total  # (27)
