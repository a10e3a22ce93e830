"""The dropout masks that a model draws for one window of training, remembered to be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import no_backprop_mode
from minilstm.dropout import MaskStream
from minilstm.language_model import LanguageModel

MOST_MASKED = 96
"""Rows and columns of a mask that are shown."""


class RecordedMasks(MaskStream):
    """A mask stream that remembers what it has drawn: (place, keep probability, mask)."""

    def __init__(self, seed: int, window: int = 0, first_row: int = 0) -> None:
        super().__init__(seed, window, first_row)
        self.drawn: list[tuple[str, float, Any]] = []

    def weight_mask(
        self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32
    ) -> Any:
        return self._remembered(place, keep_prob, super().weight_mask(place, shape, keep_prob, dtype))

    def row_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().row_mask(place, shape, keep_prob, dtype))

    def step_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().step_mask(place, shape, keep_prob, dtype))

    def lookup_mask(self, place: str, ids: Any, width: int, keep_prob: float, dtype: Any = np.float32) -> Any:
        return self._remembered(place, keep_prob, super().lookup_mask(place, ids, width, keep_prob, dtype))

    def _remembered(self, place: str, keep_prob: float, mask: Any) -> Any:
        self.drawn.append((place, keep_prob, mask))
        return mask


def drawn_masks(model: LanguageModel, inputs: Any, targets: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Every mask that the model drew for one window of training on the sentence, in their order.

    Returns:
        for each its place, keep probability and shape, the share that was dropped, and `rows`: texts of
        "1" (kept) and "0", at most `MOST_MASKED` each way; of words' masks a column for each input, of
        activations' masks a row for each step.
    """
    masks = RecordedMasks(seed)
    with no_backprop_mode():
        model.objective(inputs, targets, masks=masks)
    found = []
    for place, keep_prob, mask in masks.drawn:
        kept = mask != 0
        if place == "embedding":
            rows = kept[inputs[:, 0]][None] if kept.ndim == 1 else kept[:, 0]
        elif "weight" in place:
            rows = kept
        else:  # (T, 1, H), or (1, H) for all steps
            rows = kept[:, 0] if kept.ndim == 3 else np.repeat(kept, len(inputs), axis=0)
        found.append(
            {
                "place": place,
                "keep_prob": keep_prob,
                "shape": list(mask.shape),
                "dropped": float(1 - kept.mean()),
                "rows": [
                    "".join("01"[k] for k in row[:MOST_MASKED].astype(int)) for row in rows[:MOST_MASKED]
                ],
            }
        )
    return found
