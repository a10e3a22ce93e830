"""The masks of a captured graph: what differs from window to window lies in device memory.

A graph cannot be given another number, so the kernels that draw masks read the window's from an array. What
the host draws, the words of a sampled softmax, has a buffer for each graph, and is brought there before the
launch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from minilstm import MaskStream, ModelConfig

Draw = Callable[[np.random.Generator], tuple[Any, ...]]


def why_no_graph(config: ModelConfig) -> str:
    """What of a model's step depends on more than shapes and masks, in words; empty if nothing does."""
    if config.softmax == "adaptive":
        return "softmax = 'adaptive' has products whose sizes depend on a window's words"
    return ""


class GraphMasks(MaskStream):
    """The masks of one window after the other, in the same memory.

    Args:
        device: of train.device.

    Attributes:
        window: an array of one number on the device.
    """

    def __init__(self, device: Any) -> None:
        super().__init__(0)
        self._device = device
        self.window: Any = device.xp.zeros(1, np.uint64)
        self._drawn: dict[Hashable, dict[str, tuple[Draw, tuple[Any, ...]]]] = {}
        self._of_graph: dict[str, tuple[Draw, tuple[Any, ...]]] = {}
        self._masks = MaskStream(0)

    def go_to(self, masks: MaskStream, key: Hashable) -> None:
        """Let what the graph `key` reads be this window's. Seed and first row stay those of its capture."""
        self.seed, self.first_row, self._masks = masks.seed, masks.first_row, masks
        self.window[...] = masks.window
        self._of_graph = self._drawn.setdefault(key, {})
        for place, (draw, buffers) in self._of_graph.items():
            for buffer, values in zip(buffers, self._on_device(masks.arrays(place, draw)), strict=True):
                buffer[...] = values

    def for_rows_from(self, row: int) -> GraphMasks:
        part = copy.copy(self)  # the same window in the same memory
        part.first_row += row
        return part

    def arrays(self, place: str, draw: Draw) -> tuple[Any, ...]:
        if place not in self._of_graph:
            self._of_graph[place] = draw, self._on_device(self._masks.arrays(place, draw))
        return self._of_graph[place][1]

    def _on_device(self, drawn: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._device.to_device(np.atleast_1d(np.asarray(part))) for part in drawn)
