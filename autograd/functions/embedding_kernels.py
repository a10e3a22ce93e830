"""Rows added to the rows of a matrix on a GPU: each kernel of cuda/embedding.cu, and its NumPy twin."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.backend import accumulation_dtype, get_array_module
from autograd.kernels import KernelModule, use_kernels

EMBEDDING = KernelModule("autograd", "embedding")
SORT_THREADS = 256
"""In a block of `sort_ids`; embedding.cu has the same."""


def sort_ids(ids: Any) -> Any:
    """Where each id stands, in the order of the ids and, among equal ones, of their places: int32 (N).

    Args:
        ids: int32 (N).
    """
    order = get_array_module(ids).empty(ids.size, np.int32)
    if use_kernels(ids):
        EMBEDDING.launch("sort_ids", -(-ids.size // SORT_THREADS), SORT_THREADS, ids, ids.size, order)
    else:
        order[:] = np.argsort(ids, kind="stable")
    return order


def add_weighted_rows(
    target: Any, ids: Any, rows: Any, weights: Any = None, word_scale: Any = None, factor: Any = None
) -> None:
    """target[ids[n]] += factor · word_scale[ids[n]] · weights[n] · rows[n] for every n: (27).

    The rows of one id are summed in the order of n, float16 in float32, and rounded once into the target:
    always the same bits. Nothing is read back from the device.

    Args:
        target: (V, E).
        ids: integers (N), below V; one below 0 stands for no word.
        rows: (N, E), of the target's dtype.
        weights: (N) or None, in the `accumulation_dtype`.
        word_scale: (V) or None, of the target's dtype.
        factor: (1) or None, in the `accumulation_dtype`.
    """
    xp = get_array_module(target)
    ids, rows = xp.asarray(ids, dtype=np.int32), xp.ascontiguousarray(rows)
    if not ids.size:
        return
    order, width = sort_ids(ids), target.shape[1]
    if use_kernels(target):
        threads = min(-(-width // 32) * 32, 1024)
        EMBEDDING.launch(
            "add_rows", ids.size, threads, target, width, ids, order, ids.size, rows, rows.shape[1],
            weights, word_scale, factor,
        )  # fmt: skip
        return
    real = accumulation_dtype(target.dtype)
    for word in np.unique(ids[ids >= 0]):
        own = order[ids[order] == word]
        weighted = rows[own].astype(real) if weights is None else rows[own] * weights[own, None]
        scale = (1 if factor is None else factor[0]) * (1 if word_scale is None else word_scale[word])
        target[word] = target[word] + real.type(scale) * np.add.reduce(weighted, axis=0, dtype=real)
