"""The products inside the LSTM's time loop, made fast on a CPU without changing what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd.backend import accumulation_dtype, get_array_module, matmul
from autograd.parallel import (
    blas_architecture,
    can_share_work,
    free_threads,
    num_threads,
    run_in_step,
    run_parts,
    split_range,
)

PANEL_WIDTH = 32
SMALL_PRODUCT = 1_000_000
"""OpenBLAS multiplies without first copying its operands when rows · columns · depth is at most this."""
MAX_ROWS = 24
"""With more rows the copy pays for itself."""
PANEL_ARCHITECTURES = ("SkylakeX", "Cooperlake", "SapphireRapids")
"""For these, with AVX-512, OpenBLAS has kernels that leave the copy out; for others panels only cost."""
BAND_WIDTH = 256
"""Columns of a matrix that are copied at a time."""
MIN_PARALLEL_WORK = 8_000_000
"""Flops of one step's recurrent product below which a second thread for half of the rows costs more than it
brings."""
MIN_MEETING_WORK = 40_000_000
"""The same for threads that meet at every step."""


def panels_pay() -> bool:
    """Whether NumPy's BLAS reads a small panel where it lies."""
    return blas_architecture() in PANEL_ARCHITECTURES


class RecurrentProduct:
    """h @ W for one W and many small h: the shape of every recurrent step.

    With a handful of rows the time goes into reading W, and a general product reads it three times: once
    to copy it into its own layout, which is what pays for square matrices. Cut into panels of 32 columns
    (and of a depth that divides), each product is small enough for BLAS to use W where it lies; partial
    sums over the depth are added at the end. On other arrays or processors, or with more rows, it is the
    plain product. A float16 W is made float32 once, here, and not at every step; only what goes into `out` is
    rounded.

    Args:
        W: (depth, columns), copied.
        rows: of the h that will come, at most.
    """

    def __init__(self, W: Any, rows: int) -> None:
        self.columns = W.shape[1]
        on_cpu = get_array_module(W) is np
        if on_cpu:
            W = W.astype(accumulation_dtype(W.dtype), copy=False)
        skinny = on_cpu and rows <= MAX_ROWS and panels_pay()
        splits = _num_splits(W.shape[0], rows) if skinny else None
        self.panels = None if splits is None else _panels(W, splits, as_it_lies=rows <= 16)
        self.W = _row_by_row(W) if splits is None else None

    def workspace(self, rows: int) -> Any:
        """What products with so many rows need besides `out`, made once before a time loop; None: nothing."""
        if self.panels is None:
            return None
        count, splits, _, width = self.panels.shape
        if splits == 1 and count * width == self.columns:
            return None
        partial = np.empty((count, splits, rows, width), self.panels.dtype)
        return partial, partial[:, 0] if splits == 1 else np.empty_like(partial[:, 0])

    def __call__(self, h: Any, out: Any, workspace: Any = None) -> Any:
        """h @ W, written into `out` (rows, columns).

        Args:
            workspace: what `workspace(len(h))` gave; a thread needs its own.
        """
        if self.panels is None:
            return matmul(h, self.W, out=out)
        count, splits, depth, width = self.panels.shape
        if splits == 1 and count * width == self.columns:
            np.matmul(h, self.panels[:, 0], out=out.reshape(len(h), count, width).transpose(1, 0, 2))
            return out
        partial, total = workspace or self.workspace(len(h))
        np.matmul(h.reshape(len(h), splits, depth).transpose(1, 0, 2), self.panels, out=partial)
        if splits > 1:
            np.add.reduce(partial, axis=1, out=total)
        whole = self.columns // width
        wide = out[:, : whole * width].reshape(len(h), whole, width)
        wide[...] = total[:whole].transpose(1, 0, 2)
        if whole < count:
            out[:, whole * width :] = total[whole][:, : self.columns - whole * width]
        return out


def _row_by_row(W: Any) -> Any:
    """W (depth, columns) in memory of its own.

    NumPy copies a transposed matrix column by column, each of whose numbers lies in a cache line of its own:
    of a band of columns those lines stay in the cache.
    """
    if get_array_module(W) is not np:
        return W.copy(order="C")
    copy = np.empty(W.shape, W.dtype)
    for first in range(0, W.shape[1], BAND_WIDTH):
        band = slice(first, first + BAND_WIDTH)
        copy[:, band] = W[:, band]
    return copy


def _num_splits(depth: int, rows: int) -> int | None:
    """Into how many equal pieces the depth must be cut to keep each product small; None if it can't."""
    fitting = (s for s in (1, 2, 4) if depth % s == 0 and depth // s * rows * PANEL_WIDTH <= SMALL_PRODUCT)
    return next(fitting, None)


def _panels(W: Any, splits: int, as_it_lies: bool) -> Any:
    """W (depth, columns) as (panels, splits, depth / splits, 32), the last panel padded with zeros.

    With `as_it_lies`, the panels of a transposed matrix keep its rows as rows, and are read as transposes;
    with more than 16 rows to multiply, BLAS is faster on panels that are contiguous.
    """
    depth, columns = W.shape
    width, count = PANEL_WIDTH, -(-columns // PANEL_WIDTH)
    if as_it_lies and W.T.flags.c_contiguous and splits == 1:
        rows = np.zeros((count * width, depth), W.dtype)
        rows[:columns] = W.T
        return rows.reshape(count, 1, width, depth).transpose(0, 1, 3, 2)
    padded = np.zeros((depth, count * width), W.dtype)
    padded[:, :columns] = W
    return np.ascontiguousarray(padded.reshape(splits, -1, count, width).transpose(2, 0, 1, 3))


def batch_parts(x: Any, B: int, H: int) -> list[slice]:
    """The rows of x (T, B, I) that each thread takes through all steps; rows never meet inside an LSTM."""
    worthwhile = get_array_module(x) is np and 2 * B * 4 * H * H >= MIN_PARALLEL_WORK
    return split_range(B, num_threads() if worthwhile else 1)


def unit_parts(x: Any, B: int, H: int) -> list[slice]:
    """The units of a layer over x (T, B, I) whose gates and cells each thread computes, step by step.

    Units meet in the recurrent product alone: each thread multiplies by its own share of W_hh, and reads no
    more of it, but must wait at every step until the others have their share of h, or of the gates.
    """
    worthwhile = get_array_module(x) is np and 2 * B * 4 * H * H >= MIN_MEETING_WORK
    return split_range(H, num_threads() if worthwhile and can_share_work() else 1)


def of_units(W: Any, units: slice, factor: Any) -> Any:
    """The rows of W (4H, I) that belong to these units, times factor (4, units): (4 · units, I)."""
    own = W.reshape(len(factor), -1, W.shape[1])[:, units] * factor[:, :, None]
    return own.reshape(-1, W.shape[1])


def cut(T: int, share: float, parts: list[slice]) -> list[slice]:
    """All steps; in two pieces, the first with this share of them, if the time loop leaves a core idle that
    has nothing else to do.

    The products with the inputs, or those for the weights, can then be made for one piece while the loop,
    which is too small for two threads, runs over the other.
    """
    middle = round(T * share)
    if len(parts) > 1 or free_threads() == 1 or not 0 < middle < T:
        return [slice(0, T)]
    return [slice(0, middle), slice(middle, T)]


Meet = Callable[[], object]
"""What a thread calls to wait for the others of its time loop."""


def run_beside(
    run: Callable[[slice, slice, Meet], None],
    parts: list[slice],
    steps: slice,
    task: Callable[[], Any] | None = None,
) -> None:
    """run(part, steps, meet) for all parts of a layer; `task` beside the only one; all have ended then."""
    if task is None:
        run_in_step(lambda part, meet: run(part, steps, meet), parts)
        return
    (part,) = parts
    works: list[Callable[[], Any]] = [functools.partial(run, part, steps, lambda: None), task]
    run_parts(lambda work: work(), works)
