"""THE step: forward, backward, average over the ranks, clip, update."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minilstm import LanguageModel, MaskStream, detach
from minilstm.language_model import State
from train.communicator import Communicator
from train.optimizers import Optimizer, clip_factor, global_norm


class StepResult(NamedTuple):
    """What one step gives: the mean loss over all ranks, the norm before clipping, the state to carry on."""

    loss: float
    grad_norm: float
    state: State

    @property
    def is_finite(self) -> bool:
        """False if the step was not made because its gradient is not a number."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class TrainingStep:
    """One update of a model from one window of text on every rank.

    Args:
        model: the same weights on every rank.
        optimizer: over model.flat_parameters.
        communicator: of all ranks; each sees its own rows of the batch.
        clip_norm: ceiling of the gradients' global norm; 0: none.
    """

    def __init__(
        self, model: LanguageModel, optimizer: Optimizer, communicator: Communicator, clip_norm: float = 0.0
    ) -> None:
        self.model, self.optimizer, self.communicator = model, optimizer, communicator
        self.clip_norm = clip_norm

    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        learning_rate: float,
    ) -> StepResult:
        """inputs, targets: int (T, rows of this rank). Every rank updates alike, or none does."""
        loss, new_state = self.model(inputs, targets, state, masks)
        self.model.zero_grads()
        loss.backward()
        gradients = self.model.flat_gradients
        self.communicator.allreduce_mean_(gradients)
        mean_loss = float(self.communicator.allreduce_sum([loss.item()])[0]) / self.communicator.size
        # Of the averaged gradient: the same on every rank, and so is what follows.
        norm = global_norm(gradients)
        result = StepResult(mean_loss, norm, detach(new_state))
        if result.is_finite:
            self.optimizer.update(gradients, learning_rate, clip_factor(norm, self.clip_norm))
        return result
