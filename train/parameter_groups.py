"""Fine-tuning layer by layer: groups of parameters, each with its own learning rate, frozen or not.

From Howard & Ruder 2018, arXiv 1801.06146: discriminative fine-tuning (section 3.2: each lower layer learns
more slowly, by the factor 2.6 there) and gradual unfreezing (section 3.3: first the top layer alone, each
epoch one more).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from autograd import Parameter
from train.classifier import Classifier
from train.optimizers import Adam, clip_factor, global_norm

Group = dict[str, Parameter]
"""Parameters by name."""


def depth_groups(classifier: Classifier) -> list[Group]:
    """The head, then the LSTM layers from last to first, then the embedding; each parameter in one group."""
    names = ["head.", *(f"lstm.{k}." for k in reversed(range(len(classifier.encoder.layers)))), "embedding."]
    named = classifier.named_parameters()
    return [{name: p for name, p in named.items() if name.startswith(prefix)} for prefix in names]


class GroupedAdam:
    """Adam over groups of parameters, of which the first ones are trained and the others frozen.

    Each parameter has an Adam of its own over its own memory, so the moments of a frozen one are as small as
    nothing, and its count of updates begins when it thaws. A frozen parameter wants no gradient, so that the
    backward pass ends above it.

    Args:
        groups: top first.
        layer_decay: group k learns with the learning rate / layer_decay^k.
        clip_norm: ceiling of the global norm over all trained parameters; 0: none.
        weight_decay: decoupled, as in `Adam`.
    """

    def __init__(
        self, groups: list[Group], layer_decay: float, clip_norm: float, weight_decay: float = 0.0
    ) -> None:
        self.groups, self.layer_decay = groups, layer_decay
        self.clip_norm, self.weight_decay = clip_norm, weight_decay
        self._adams: dict[str, Adam] = {}
        self.thaw(len(groups))

    def thaw(self, count: int) -> None:
        """Train the first `count` groups, and freeze the rest."""
        self.trained = self.groups[:count]
        for index, group in enumerate(self.groups):
            for parameter in group.values():
                parameter.node.requires_grad = index < count

    def zero_grads(self) -> None:
        """Start the next backward pass from nothing."""
        for group in self.groups:
            for parameter in group.values():
                parameter.zero_grad()

    def update(self, learning_rate: float) -> float:
        """One update from the gradients of the last backward pass; returns their norm before clipping.

        Without one if the norm is not finite.
        """
        reached = [
            (index, name, parameter)
            for index, group in enumerate(self.trained)
            for name, parameter in group.items()
            if parameter.grad is not None
        ]
        norm = math.hypot(*(global_norm(parameter.grad.reshape(-1)) for _, _, parameter in reached))
        if math.isfinite(norm):
            factor = clip_factor(norm, self.clip_norm)
            for index, name, parameter in reached:
                rate = learning_rate / self.layer_decay**index
                self._adam(name, parameter).update(parameter.grad.reshape(-1), rate, factor)
        return norm

    def _adam(self, name: str, parameter: Parameter) -> Adam:
        if name not in self._adams:
            flat = parameter.data.reshape(-1)
            assert np.shares_memory(flat, parameter.data)
            self._adams[name] = Adam(flat, weight_decay=self.weight_decay)
        return self._adams[name]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Moments by `PARAMETER/m` and `PARAMETER/v`, and each parameter's count of updates."""
        arrays: dict[str, np.ndarray] = {}
        counts: dict[str, int] = {}
        for name, adam in self._adams.items():
            slots = adam.state()
            counts[name] = slots.pop("t")
            arrays |= {f"{name}/{slot}": array for slot, array in slots.items()}
        return arrays, counts

    def load_state(self, arrays: Mapping[str, np.ndarray], counts: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        named = {name: parameter for group in self.groups for name, parameter in group.items()}
        for name, count in counts.items():
            slots = {slot: arrays[f"{name}/{slot}"] for slot in ("m", "v")}
            self._adam(name, named[name]).load_state({"t": count, **slots})
