"""The update on a GPU: the kernels of cuda/adam.cu, and the numbers through which they speak to each other.

A number that the host would have to wait for, the norm of the gradients or whether they are finite, is left
in device memory, where the next kernel reads it. So is every number that changes from step to step: a graph
that has captured the launches goes on with the new ones.

The NumPy twins are `global_norm` and the optimizers of train/optimizers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.backend import get_array_module
from autograd.kernels import KernelModule

UPDATE = KernelModule("train", "adam")
NORM_THREADS, NORM_BLOCKS, NORM_READS = 256, 1024, 4
"""Of `sum_of_squares`: threads of a block, which adam.cu has too; blocks at most; and how many times 16 bytes
each thread reads before there are more blocks. It depends on the array alone: the same bits on every GPU."""
THREADS = 256
NAMES = ("learning_rate", "unscale", "max_norm", "norm", "largest", "finite", "updates")
"""Of the numbers, in their order in memory; adam.cu has the same."""


class UpdateControls:
    """The numbers that an update reads and that it decides, float64, where the gradients are.

    Set beforehand are `learning_rate`; `unscale`, what gradients are multiplied with first, 1 / the loss
    scale; and `max_norm`, the ceiling of their norm or 0. The kernels set `norm` and `largest`, of the
    gradients without the loss scale; `finite`, 1 or 0; and count `updates`, among which a skipped step is
    not.

    Args:
        like: an array of the device.
        updates: made so far.

    Attributes:
        values: the numbers, in the order of `NAMES`; to be read as a whole, a step late.
    """

    def __init__(self, like: Any, updates: int = 0) -> None:
        xp = get_array_module(like)
        self.values = xp.zeros(len(NAMES), np.float64)
        self._partial = xp.zeros((2, NORM_BLOCKS), np.float64)
        self.set(unscale=1.0, finite=1.0, updates=updates)

    def set(self, **numbers: float) -> None:
        """Set numbers by name; nothing waits."""
        for name, number in numbers.items():
            self.values[NAMES.index(name)] = number

    def read(self) -> dict[str, float]:
        """All numbers by name, after waiting for the device."""
        return dict(zip(NAMES, self.values.tolist(), strict=True))

    def begin(self, rate: float, rate_after_skip: float, max_norm: float, scale: Any = None) -> None:
        """Set what the host decides of an update, without knowing how the one before ended.

        Args:
            rate: the learning rate if the last `measure` found its gradients finite, or there was none.
            rate_after_skip: the learning rate if not.
            max_norm: the ceiling of the norm, or 0.
            scale: in device memory, float64, its first number the loss scale that is still in the gradients;
                None: there is none in them.
        """
        UPDATE.launch("begin_update", 1, 1, self.values, rate, rate_after_skip, max_norm, scale)

    def measure(self, gradients: Any, keep_largest: bool = False) -> None:
        """Set `norm`, `largest` and `finite` from flat gradients as they are, the loss scale in them.

        Finite is what has a finite norm, as in `global_norm`.

        Args:
            gradients: flat, float16, float32 or float64.
            keep_largest: leave `largest` as it is.
        """
        blocks, partial, dtype = norm_blocks(gradients.nbytes), self._partial, gradients.dtype
        UPDATE.launch("sum_of_squares", blocks, NORM_THREADS, gradients, gradients.size, partial)
        UPDATE.launch("finish_norm", 1, NORM_THREADS, partial, blocks, keep_largest, self.values, dtype=dtype)


def norm_blocks(num_bytes: int) -> int:
    """Blocks of `sum_of_squares` for an array of that size."""
    return max(min(-(-num_bytes // (16 * NORM_READS * NORM_THREADS)), NORM_BLOCKS), 1)


def adam_update(
    controls: UpdateControls,
    gradients: Any,
    p: Any,
    m: Any,
    v: Any,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    copy: Any = None,
) -> None:
    """One update of Adam, if the gradients are finite: `Adam` of train/optimizers.py in one pass.

    Args:
        controls: whose norm is that of these gradients.
        gradients: flat, the loss scale in them; of the dtype of p, or of the copy's.
        p, m, v: flat parameters and moments, float32 or float64.
        copy: flat, float16: the parameters that the model computes with, rounded from p; or None.
    """
    coefficients = get_array_module(p).empty(5, p.dtype)
    UPDATE.launch(
        "adam_coefficients", 1, 1, controls.values, *betas, epsilon, weight_decay, coefficients, dtype=p.dtype
    )
    UPDATE.launch(
        "adam_update", -(-p.size // THREADS), THREADS, *_by_dtype(gradients, copy), p, m, v, copy, *betas,
        coefficients, controls.values, p.size,
    )  # fmt: skip


def sgd_update(
    controls: UpdateControls,
    gradients: Any,
    p: Any,
    b: Any,
    momentum: float,
    weight_decay: float,
    average: Any = None,
    trigger: int | None = None,
    copy: Any = None,
) -> None:
    """One update of SGD, and of NT-ASGD's mean, if the gradients are finite; arguments as in `adam_update`.

    Args:
        b: the momentum's, like p, or None. average: the mean of the iterates, like p, or None.
        trigger: the updates made before the mean began; None with `average`.
    """
    coefficients = get_array_module(p).empty(4, p.dtype)
    before = -1 if trigger is None else trigger
    UPDATE.launch(
        "sgd_coefficients", 1, 1, controls.values, weight_decay, before, coefficients, dtype=p.dtype
    )
    UPDATE.launch(
        "sgd_update", -(-p.size // THREADS), THREADS, *_by_dtype(gradients, copy), p, b, average, copy,
        momentum, coefficients, controls.values, p.size,
    )  # fmt: skip


def _by_dtype(gradients: Any, copy: Any) -> tuple[Any, Any]:
    """The gradients as those of the model that computes, and as those of the masters: one of them None."""
    of_masters = copy is not None and copy.dtype != gradients.dtype
    return (None, gradients) if of_masters else (gradients, None)
