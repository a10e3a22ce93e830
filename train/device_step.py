"""THE step on a GPU: what `train/step.py` does, queued without the host ever waiting for a number.

Learning rate, loss scale, norm, whether the gradients are finite, and how many updates there were lie in
device memory; the kernels read them there. Loss and norm are read one step late, when they have long arrived.
Forward and backward of a window are one CUDA graph a length of window, if graphs are on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import Variable, detect_anomaly
from autograd.profile import span
from minilstm import MaskStream, detach
from minilstm.language_model import LanguageModel, State
from train.communicator import Communicator
from train.cuda_graph import GraphedFunction
from train.graph_masks import GraphMasks, why_no_graph
from train.mixed_precision import LossScaler
from train.optimizers import Optimizer, add_scaled
from train.signals import StopRequest
from train.step import StepResult, TrainingStep
from train.update_kernels import NAMES


class DeviceStep(TrainingStep):
    """One update of a model on a GPU from one window of text on every rank; arguments as for `TrainingStep`.

    What it returns are the numbers of the step before, and the state of this one; the first step, and the
    first after `settle`, waits for its own.

    Args:
        device: where the model lives (train.device).
        scaler: of the loss, in mixed precision; None: the model computes with its own weights.
        check_values: as for `TrainingStep`; the host then waits for each value, and nothing is captured.
        graphs: capture forward and backward.
        tell: hears one line if they cannot be captured.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        communicator: Communicator,
        device: Any,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        l2_tied: float = 0.0,
        scaler: LossScaler | None = None,
        check_values: bool = False,
        graphs: bool = True,
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__(model, optimizer, communicator, clip_norm, accumulate, l2_tied, scaler, check_values)
        self.device = device
        self._scale: Any = device.xp.ones((), np.float32 if scaler else model.dtype)
        self._unread: Callable[[], tuple[float, float, int]] | None = None
        self._graphed: GraphedFunction | None = None
        self._masks = GraphMasks(device)
        if graphs:
            if reason := self._why_no_graphs():
                tell(f"no CUDA graphs: {reason}; each kernel is launched by itself")
            else:
                self._graphed = GraphedFunction(self._window, device, tell)

    def _why_no_graphs(self) -> str:
        if not self.device.is_gpu:
            return "there is no GPU"
        if self.check_values:
            return "every value is looked at"
        return "accumulate is more than 1" if self.accumulate > 1 else why_no_graph(self.model.config)

    @np.errstate(all="ignore")
    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        learning_rate: float,
        stop: StopRequest | None = None,
    ) -> StepResult:
        """inputs, targets: int (T, rows of this rank), on the host. All ranks update, or none does.

        Whether any rank was asked to stop, `stop`, travels with the loss, one step late like it.
        """
        ids = self.computing.ids_here(inputs, targets)
        state = self.computing.initial_state(inputs.shape[1]) if state is None else state
        scale = self.scaler.scale if self.scaler else 1.0
        self._scale[...] = scale / self.accumulate
        # Float16 gradients have to be unscaled before they may be told of as whole.
        told = None if self.masters else self.communicator.begin_mean(self.model.gradient_buffer)
        if self._graphed is None:
            with detect_anomaly(self.check_values):
                loss, new_state = self._in_groups(*ids, state, masks, told)
        else:
            loss, new_state = self._as_graph(*ids, state, masks)
        gradients, unscale = self._averaged(told, scale)
        with span("update"):
            self._update(gradients, learning_rate, unscale, loss)
        unread, self._unread = self._unread, self._reader(loss, stop)
        mean_loss, norm, stop_signal = (unread or self._unread)()
        return StepResult(mean_loss, norm, new_state, stop_signal)

    def settle(self) -> None:
        """Forget the numbers that are still to come, so that a run that begins here goes on alike."""
        if self._unread is not None:
            self._unread()
        self._unread = None

    def _averaged(self, told: Any, scale: float) -> tuple[Any, float]:
        """The flat gradient of all ranks, and what it has still to be multiplied with."""
        gradients = self.computing.flat_gradients
        if self.masters and self.communicator.size == 1 and not self.l2_tied:
            return gradients, 1 / scale  # the update's kernel reads float16
        if self.masters:
            self.masters.take_gradients(1 / scale)
            gradients = self.model.flat_gradients
            told = self.communicator.begin_mean(gradients)
        with span("allreduce"):
            told.finish()
        return gradients, 1.0

    def _in_groups(
        self, inputs: Any, targets: Any, state: State, masks: MaskStream, mean: Any
    ) -> tuple[Any, State]:
        """Mean loss of this rank's rows (an array) and their new state, group by group of rows."""
        size = inputs.shape[1] // self.accumulate
        self.computing.zero_grads()
        losses, states = [], []
        for first in range(0, inputs.shape[1], size):
            rows = slice(first, first + size)
            part = [(h[rows], c[rows]) for h, c in state]
            is_last = first + size == inputs.shape[1]
            loss, new_state = self._group(
                inputs[:, rows], targets[:, rows], part, masks.for_rows_from(first), mean if is_last else None
            )
            losses.append(loss)
            states.append(new_state)
        xp = self.device.xp
        joined = [
            (xp.concatenate([h for h, _ in groups]), xp.concatenate([c for _, c in groups]))
            for groups in zip(*states, strict=True)
        ]
        return sum(losses[1:], losses[0]) / len(losses), joined if len(states) > 1 else states[0]

    def _group(
        self, inputs: Any, targets: Any, state: State, masks: MaskStream, mean: Any
    ) -> tuple[Any, State]:
        """One group of rows forward and backward; its share of the gradient is left in the model."""
        objective, loss, new_state = self.computing.objective(inputs, targets, state, masks)
        if self.masters or self.accumulate > 1:
            objective = objective * Variable(self._scale, requires_grad=False)
        with detect_anomaly(self.check_values and not (self.scaler and self.scaler.can_be_lowered)):
            objective.backward(on_complete=self._teller(mean) if mean else None)
        return loss.data, self._finite(detach(new_state), state)

    def _finite(self, new: State, old: State) -> State:
        """The new state without what is not finite, as a skipped step leaves it: there it is as before."""
        where, isfinite = self.device.xp.where, self.device.xp.isfinite
        return [
            (where(isfinite(h), h, old_h), where(isfinite(c), c, old_c))
            for (h, c), (old_h, old_c) in zip(new, old, strict=True)
        ]

    def _as_graph(self, inputs: Any, targets: Any, state: State, masks: MaskStream) -> tuple[Any, State]:
        """The same for all rows at once, by a graph of this length of window."""
        flat_state = [part for pair in state for part in pair]
        assert self._graphed is not None
        key = (inputs.shape, masks.seed, masks.first_row)
        self._masks.go_to(masks, key)
        outputs = self._graphed(key, inputs, targets, *flat_state)
        for parameter in self._ranges:  # the graph has written all gradients; Python has not seen it
            parameter.grad_target()
        loss, *parts = outputs
        return loss.copy(), list(zip(parts[::2], parts[1::2], strict=True))

    def _window(self, inputs: Any, targets: Any, *flat_state: Any) -> tuple[Any, ...]:
        """What is captured: from ids and state to loss, new state, and gradients in their buffer."""
        state = list(zip(flat_state[::2], flat_state[1::2], strict=True))
        self.computing.zero_grads()
        loss, new_state = self._group(inputs, targets, state, self._masks, None)
        _ = self.computing.flat_gradients  # those that nothing reached become zero inside the graph too
        return (loss, *(part for pair in new_state for part in pair))

    def _update(self, gradients: Any, learning_rate: float, unscale: float, loss: Any) -> None:
        if self.l2_tied:
            W = self.model.decoder_weight
            add_scaled(W.grad.reshape(-1), W.data.reshape(-1), self.l2_tied)
        controls = self.optimizer.controls
        controls.set(learning_rate=learning_rate, unscale=unscale, max_norm=self.clip_norm)
        # Ranks must decide alike: a loss is this rank's own, the averaged gradient that of all.
        controls.measure(gradients, loss if self.communicator.size == 1 else None)
        self.optimizer.update_by_kernels(gradients, self.computing.flat_parameters if self.masters else None)

    def _reader(self, loss: Any, stop: StopRequest | None) -> Callable[[], tuple[float, float, int]]:
        """What reads this step's loss and norm, and the signal to stop with; each rank calls it once a step,
        in the order of steps."""
        numbers = self.device.begin_read(self.optimizer.controls.values, loss)
        known: list[tuple[float, float, int]] = []

        def read() -> tuple[float, float, int]:
            if not known:
                values, (own_loss,) = numbers()
                controls = dict(zip(NAMES, values.tolist(), strict=True))
                flags = stop.flags() if stop else []
                total_loss, *stops = self.communicator.allreduce_sum([own_loss, *flags]).tolist()
                if self.scaler:
                    self.scaler.update(bool(controls["finite"]), controls["largest"])
                mean_loss = total_loss / self.communicator.size
                known.append((mean_loss, controls["norm"], stop.agreed(stops) if stop else 0))
            return known[0]

        return read
