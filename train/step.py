"""THE step: forward, backward, group by group of rows; average over the ranks, L2, clip, update.

In mixed precision a float16 copy of the model computes, and a scale on the loss keeps its gradients within
float16; the numbers in brackets are the steps of train/mixed_precision.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from autograd import Variable, detect_anomaly
from autograd.backend import get_array_module
from autograd.profile import span
from minilstm import LanguageModel, MaskStream, detach
from minilstm.language_model import State
from train.communicator import Communicator
from train.exchange import OverlappedMean
from train.mixed_precision import LossScaler, MasterWeights, largest_of
from train.optimizers import Optimizer, add_scaled, clip_factor, global_norm
from train.signals import StopRequest


class StepResult(NamedTuple):
    """What one step gives: the mean loss over all ranks, the norm before clipping, the state to carry on.

    The loss is the model's own, without what regularises it (AR, TAR, L2). `stop_signal` is the signal by
    which some rank was asked to stop before this step's end, the same on every rank; 0: none was.
    """

    loss: float
    grad_norm: float
    state: State
    stop_signal: int = 0

    @property
    def is_finite(self) -> bool:
        """False if the step was not made because its gradient is not a number, or overflowed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class StepUnderWay(NamedTuple):
    """A step that was begun: the state to carry on, and what waits for its result, to be called once."""

    state: State
    finish: Callable[[], StepResult]


class TrainingStep:
    """One update of a model from one window of text on every rank.

    Args:
        model: the same weights on every rank.
        optimizer: over model.flat_parameters.
        communicator: of all ranks; each sees its own rows of the batch.
        clip_norm: ceiling of the gradients' global norm; 0: none.
        accumulate: groups into which each rank's rows are cut. They go forward and backward one after the
            other and their gradients add up, so that the activations of one group alone are in memory. Masks
            belong to rows of the whole batch: the update is that of the undivided batch, to rounding.
        l2_tied: adds ½ · l2_tied · ‖W‖² of the tied matrix to what is minimised, by its gradient l2_tied · W,
            which is clipped with the rest; the loss that is returned is without it.
        scaler: of the loss, in mixed precision; None: the model computes with its own weights.
        check_values: raise an AnomalyError that names where the first value arose that is not finite; in
            the backward pass only once the loss scale cannot be lowered: until then overflows belong to it.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        communicator: Communicator,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        l2_tied: float = 0.0,
        scaler: LossScaler | None = None,
        check_values: bool = False,
    ) -> None:
        self.model, self.optimizer, self.communicator = model, optimizer, communicator
        self.clip_norm, self.accumulate, self.l2_tied = clip_norm, accumulate, l2_tied
        self.check_values = check_values
        self.scaler, self.masters = scaler, MasterWeights(model) if scaler else None
        self.computing = self.masters.half if self.masters else model
        self._ranges: dict[Variable, range] = dict(self.computing.parameter_ranges())

    def take_weights(self) -> None:
        """To be called when the model's weights were set by others: a copy that computes follows them."""
        if self.masters:
            self.masters.round_down()

    @property
    def dtype(self) -> np.dtype:
        """Of what is computed with: a state must be of it."""
        return self.computing.dtype

    def begin(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        learning_rate: float,
        stop: StopRequest | None = None,
        rate_after_skip: float | None = None,
    ) -> StepUnderWay:
        """The same in two parts, between which a GPU works; on a CPU the first is all there is.

        Args:
            inputs, targets, state, masks, learning_rate, stop: as for a call; ids are (T, rows of this rank).
            rate_after_skip: the learning rate instead if the step before, whose end was not waited for, made
                no update; None: it was.
        """
        result = self(inputs, targets, state, masks, learning_rate, stop)
        return StepUnderWay(result.state, lambda: result)

    @np.errstate(all="ignore")  # a run that diverges is told of by its loss and its norm
    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        learning_rate: float,
        stop: StopRequest | None = None,
    ) -> StepResult:
        """inputs, targets: int (T, rows of this rank). Every rank updates alike, or none does.

        Whether any rank was asked to stop, `stop`, travels with the loss.
        """
        mean = self.communicator.begin_mean(self.model.gradient_buffer)
        with detect_anomaly(self.check_values):
            loss, new_state = self._backward(inputs, targets, state, masks, mean)
        gradients = self.model.flat_gradients
        with span("allreduce"):
            mean.finish()  # (4)
            total_loss, *stops = self.communicator.allreduce_sum([loss, *(stop.flags() if stop else ())])
            mean_loss = float(total_loss) / self.communicator.size
        with span("update"):
            # Of the averaged gradient: the same on every rank, and so is what follows.
            largest = largest_of(gradients) if self.scaler else 0.0
            if self.l2_tied:
                W = self.model.decoder_weight
                add_scaled(W.grad.reshape(-1), W.data.reshape(-1), self.l2_tied)
            norm = global_norm(gradients)
            new_state = finite_state(new_state, state)
            result = StepResult(mean_loss, norm, new_state, stop.agreed(stops) if stop else 0)
            if result.is_finite:  # (5)
                self.optimizer.update(gradients, learning_rate, clip_factor(norm, self.clip_norm))  # (7)
                self.take_weights()
            if self.scaler:
                self.scaler.update(result.is_finite, largest)  # (6)
        return result

    def _backward(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        mean: OverlappedMean,
    ) -> tuple[float, State]:
        """Mean loss of this rank's rows and their new state; their mean gradient is left in the model.

        `mean` is told of each parameter's gradient as it becomes whole, with the last group of rows; not of
        float16 gradients, which go to the masters when all of them are there.
        """
        computing = self.masters.half if self.masters else self.model
        scale = self.scaler.scale if self.scaler else 1.0
        factor = scale / self.accumulate
        size = inputs.shape[1] // self.accumulate
        computing.zero_grads()
        losses, states = [], []
        for first in range(0, inputs.shape[1], size):
            rows = slice(first, first + size)
            part = None if state is None else [(h[rows], c[rows]) for h, c in state]
            own_masks = masks.for_rows_from(first)
            objective, loss, new_state = computing.objective(
                inputs[:, rows], targets[:, rows], part, own_masks
            )
            if factor != 1:
                objective = objective * factor  # (2); (74) of docs/lstm_backward.md
            is_whole = self.masters is None and first + size == inputs.shape[1]
            with detect_anomaly(self.check_values and not (self.scaler and self.scaler.can_be_lowered)):
                objective.backward(on_complete=self._teller(mean) if is_whole else None)
            if self.masters:
                self.masters.take_gradients(1 / scale, add=first > 0)  # (3)
                computing.zero_grads()
            losses.append(loss.item())
            states.append(detach(new_state))
        return sum(losses) / len(losses), _joined(states)

    def _teller(self, mean: OverlappedMean) -> Callable[[Variable], None]:
        """What tells `mean` which part of the flat gradient a parameter's own is."""
        return lambda parameter: mean.completed(self._ranges[parameter])


def finite_state(new: State, old: State | None) -> State:
    """The state to carry on: rows that are not finite are as they were before the step.

    Else a row that has overflowed would spoil the windows that follow, to the end of the epoch.

    Args:
        new: what the step left, (h, c) of shapes (B, H) per layer.
        old: what it began with; None: zeros. Each row decides for itself, in all layers at once, so that it
            does not matter how the rows are dealt out among ranks.
    """
    xp = get_array_module(new[0][0])
    good: Any = True
    for part in (part for pair in new for part in pair):
        good = good & xp.isfinite(part).all(axis=1, keepdims=True)
    if xp is np and good.all():  # a GPU is not asked
        return new
    before = [(xp.zeros_like(h), xp.zeros_like(c)) for h, c in new] if old is None else old
    return [
        (xp.where(good, h, old_h), xp.where(good, c, old_c))
        for (h, c), (old_h, old_c) in zip(new, before, strict=True)
    ]


def _joined(states: list[State]) -> State:
    """The states of groups of rows as that of all of them."""
    if len(states) == 1:
        return states[0]
    layers = zip(*states, strict=True)
    return [
        (np.concatenate([h for h, _ in groups]), np.concatenate([c for _, c in groups])) for groups in layers
    ]
