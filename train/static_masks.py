"""Masks on a GPU, and masks in memory that stays: what a captured graph reads must be drawn before it runs.

A graph cannot draw anew: all it knows was fixed when it was captured. So each mask of a window has a buffer,
made when it is first asked for, and drawn into again before every launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from minilstm import MaskStream, ModelConfig

Draw = Callable[[MaskStream], Any]


def why_not_static(config: ModelConfig) -> str:
    """What of a model's masks depends on more than shapes, in words; empty if a graph can read them."""
    if config.encoder_emb_keep_prob < 1 and config.encoder_emb_dropout == "elements":
        return "encoder_emb_dropout = 'elements' draws masks for the words of each window"
    if config.softmax == "adaptive":
        return "softmax = 'adaptive' sorts the words of each window into bands"
    return ""


class DeviceMasks(MaskStream):
    """The masks of a window, brought to where the model is.

    Args:
        masks: draws them.
        device: of train.device.
    """

    def __init__(self, masks: MaskStream, device: Any) -> None:
        super().__init__(masks.seed, masks.window, masks.first_row)
        self._device = device

    def for_rows_from(self, row: int) -> DeviceMasks:
        return DeviceMasks(super().for_rows_from(row), self._device)

    def weight_mask(
        self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32
    ) -> Any:
        draw: Draw = lambda masks: masks.weight_mask(place, shape, keep_prob, dtype)  # noqa: E731
        return self._drawn((place, shape), draw)

    def row_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        draw: Draw = lambda masks: masks.row_mask(place, shape, keep_prob, dtype)  # noqa: E731
        return self._drawn((place, shape), draw)

    def step_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        draw: Draw = lambda masks: masks.step_mask(place, shape, keep_prob, dtype)  # noqa: E731
        return self._drawn((place, shape), draw)

    def lookup_mask(self, place: str, ids: Any, width: int, keep_prob: float, dtype: Any = np.float32) -> Any:
        on_host = self._device.to_host(ids)
        return self._device.to_device(super().lookup_mask(place, on_host, width, keep_prob, dtype))

    def arrays(self, place: str, draw: Callable[[np.random.Generator], tuple[Any, ...]]) -> tuple[Any, ...]:
        return self._drawn((place, "arrays"), lambda masks: masks.arrays(place, draw))

    def _plain(self) -> MaskStream:
        return MaskStream(self.seed, self.window, self.first_row)

    def _drawn(self, name: Hashable, draw: Draw) -> Any:
        return self._on_device(draw(self._plain()))

    def _on_device(self, drawn: Any) -> Any:
        if isinstance(drawn, tuple):
            return tuple(self._device.to_device(np.asarray(part)) for part in drawn)
        return self._device.to_device(drawn)


class StaticMasks(DeviceMasks):
    """The masks of one window after the other, those of a graph always in the same memory."""

    def __init__(self, device: Any) -> None:
        super().__init__(MaskStream(0), device)
        self._kept: dict[Hashable, dict[Hashable, tuple[Draw, Any]]] = {}
        self._current: dict[Hashable, tuple[Draw, Any]] = {}

    def go_to(self, masks: MaskStream, key: Hashable) -> None:
        """Draw all masks that the graph `key` has asked for anew, those of this window."""
        self.seed, self.window, self.first_row = masks.seed, masks.window, masks.first_row
        self._current = self._kept.setdefault(key, {})
        for draw, buffers in self._current.values():
            drawn = self._on_device(draw(self._plain()))
            pairs = zip(buffers, drawn, strict=True) if isinstance(buffers, tuple) else [(buffers, drawn)]
            for buffer, values in pairs:
                buffer[...] = values

    def _drawn(self, name: Hashable, draw: Draw) -> Any:
        if name not in self._current:
            self._current[name] = draw, self._on_device(draw(self._plain()))
        return self._current[name][1]
