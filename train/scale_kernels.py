"""The scale of the loss on a GPU: the kernels of cuda/loss_scale.cu, and the numbers that they keep.

The host hears of a step while the next one runs. A scaler there would lower the scale one step late, and the
step between would overflow too. So its numbers lie in device memory, where the update has left what it found
out; the host's scaler, which is logged and saved, follows them.

The NumPy twins are the scalers of train/mixed_precision.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.kernels import KernelModule
from train.mixed_precision import LARGEST_EXPONENT, LOWEST_SCALE, Backoff, LogMax, LossScaler
from train.update_kernels import UpdateControls

LOSS_SCALE = KernelModule("train", "loss_scale")
NUMBERS = {
    "backoff": ("scale", "overflows_at_lowest", "clean_steps"),
    "log_max": ("scale", "overflows_at_lowest", "steps", "mean", "slow_mean", "square"),
}
"""What each scaler holds, in its order in memory; loss_scale.cu has the same."""


class DeviceScaler:
    """The numbers of a `LossScaler` where the gradients are.

    Args:
        scaler: the host's.
        xp: the array module of the device.
        parts: into which a step's rows are cut; the gradient of each begins with scale / parts.
        dtype: of the masters.

    Attributes:
        values: float64, in the order of `NUMBERS`; to be read as a whole, a step late.
        factors: of the masters' dtype: scale / parts, and 1 / scale.
    """

    def __init__(self, scaler: LossScaler, xp: Any, parts: int = 1, dtype: Any = np.float32) -> None:
        self._scaler, self._xp, self._parts = scaler, xp, parts
        self._names = NUMBERS[scaler.name]
        self.values = xp.empty(len(self._names), np.float64)
        self.factors = xp.empty(2, dtype)
        self.load()

    def load(self) -> None:
        """Go on from the numbers that the host's scaler has."""
        scaler, asarray = self._scaler, self._xp.asarray
        self.values[...] = asarray(np.array([getattr(scaler, name) for name in self._names], np.float64))
        factors = np.array([scaler.scale / self._parts, 1 / scaler.scale], self.factors.dtype)
        self.factors[...] = asarray(factors)

    def follow(self, values: np.ndarray) -> None:
        """Let the host's scaler have the numbers that were read from here, shaped as `values` is."""
        for name, value in zip(self._names, values.tolist(), strict=True):
            setattr(self._scaler, name, type(getattr(self._scaler, name))(value))

    def update(self, controls: UpdateControls) -> None:
        """Choose the next scale, as `LossScaler.update`, from what `controls` says of this step."""
        scaler = self._scaler
        before = (controls.values, self.values, LOWEST_SCALE, scaler.HIGHEST_SCALE)
        after = (float(self._parts), self.factors)
        if isinstance(scaler, Backoff):
            kernel, rule = "backoff_scale", [float(scaler.growth_steps)]
        else:
            assert isinstance(scaler, LogMax)
            kernel = "log_max_scale"
            rule = [scaler.BETA_MEAN, scaler.BETA_DEVIATION, scaler.DEVIATIONS, float(LARGEST_EXPONENT)]
        LOSS_SCALE.launch(kernel, 1, 1, *before, *rule, *after, dtype=self.factors.dtype)
