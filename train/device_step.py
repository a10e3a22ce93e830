"""THE step on a GPU: what `train/step.py` does, queued without the host ever waiting for a number.

Learning rate, loss scale, norm, whether the gradients are finite, and how many updates there were lie in
device memory; the kernels read them there, and decide there what the next step depends on. The host reads
loss and norm when it asks for them: a step late, when they have long arrived, or at once. It makes no
difference to what is computed. Forward and backward of a window are one CUDA graph a length of window, if
graphs are on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from autograd import detect_anomaly
from autograd.profile import span
from minilstm import MaskStream, detach
from minilstm.language_model import LanguageModel, State
from minilstm.wavefront import Wavefront
from train.communicator import Communicator
from train.cuda_graph import GraphedFunction
from train.graph_masks import GraphMasks, why_no_graph
from train.mixed_precision import LossScaler
from train.optimizers import Optimizer, add_scaled
from train.scale_kernels import DeviceScaler
from train.signals import StopRequest
from train.step import StepResult, StepUnderWay, TrainingStep, finite_state
from train.update_kernels import NAMES


class DeviceStep(TrainingStep):
    """One update of a model on a GPU from one window of text on every rank; arguments as for `TrainingStep`.

    Args:
        device: where the model lives (train.device).
        scaler: of the loss, in mixed precision; None: the model computes with its own weights. Its numbers
            are those of the last step whose result was asked for.
        check_values: as for `TrainingStep`; the host then waits for each value, and nothing is captured.
        graphs: capture forward and backward.
        wavefront: when layers run side by side: within graphs, always, or never; see `minilstm.wavefront`.
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
        wavefront: Literal["graphs", "always", "never"] = "graphs",
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__(model, optimizer, communicator, clip_norm, accumulate, l2_tied, scaler, check_values)
        self.device, xp = device, device.xp
        self._scaling = DeviceScaler(scaler, xp, accumulate, model.dtype) if scaler else None
        self._root = self._scaling.factors[0] if self._scaling else xp.full((), 1 / accumulate, model.dtype)
        # Nothing has to be added to or averaged with them: the update's kernel reads them as they are.
        self._updates_from_halves = (
            self.masters is not None and communicator.size == accumulate == 1 and not l2_tied
        )
        if self._updates_from_halves:
            model.release_gradients()
        self._graphed: GraphedFunction | None = None
        self._masks = GraphMasks(device)
        if graphs:
            if reason := self._why_no_graphs():
                tell(f"no CUDA graphs: {reason}; each kernel is launched by itself")
            else:
                self._graphed = GraphedFunction(self._window, device, tell)
        if wavefront == "always" or (wavefront == "graphs" and self._graphed):
            self._add_wavefront(tell if wavefront == "always" else None)

    def _why_no_graphs(self) -> str:
        if not self.device.is_gpu:
            return "there is no GPU"
        return "every value is looked at" if self.check_values else why_no_graph(self.model.config)

    def _add_wavefront(self, tell: Callable[[str], None] | None) -> None:
        config, layers = self.model.config, self.computing.layers
        reason = "residual connections join the layers" if config.residual else ""
        reason = "there is one layer" if len(layers) == 1 else reason
        reason = "every value is looked at" if self.check_values else reason
        if not reason:
            streams = [self.device.new_stream() for _ in layers]
            self.computing.wavefront = Wavefront(self.device.stream, streams)
        elif tell:
            tell(f"no wavefront: {reason}; layers run one after the other")

    def take_weights(self) -> None:
        super().take_weights()
        if self._scaling:
            self._scaling.load()  # who set the weights has set the scaler too

    def __call__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        state: State | None,
        masks: MaskStream,
        learning_rate: float,
        stop: StopRequest | None = None,
    ) -> StepResult:
        """As of `TrainingStep`: the host waits for the step's numbers."""
        return self.begin(inputs, targets, state, masks, learning_rate, stop).finish()

    @np.errstate(all="ignore")
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
        ids = self.computing.ids_here(inputs, targets)
        state = self.computing.initial_state(inputs.shape[1]) if state is None else state
        # Gradients that go to the masters first may not be told of as whole, nor those of other streams.
        told = None if self.masters else self.communicator.begin_mean(self.model.gradient_buffer)
        if self._graphed is None:
            with detect_anomaly(self.check_values):
                mean = None if self.computing.wavefront else told
                loss, new_state = self._in_groups(*ids, state, masks, mean)
        else:
            loss, new_state = self._as_graph(*ids, state, masks)
        gradients = self._averaged(told)
        with span("update"):
            self._update(
                gradients, learning_rate, learning_rate if rate_after_skip is None else rate_after_skip
            )
        return StepUnderWay(new_state, self._reader(loss, new_state, stop))

    def _averaged(self, told: Any) -> Any:
        """The flat gradient of all ranks."""
        if self._updates_from_halves:
            return self.computing.flat_gradients
        gradients = self.model.flat_gradients
        mean = told or self.communicator.begin_mean(gradients)
        with span("allreduce"):
            mean.finish()
        return gradients

    def _in_groups(
        self, inputs: Any, targets: Any, state: State, masks: MaskStream, mean: Any = None
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
            if self._scaling and self.masters and not self._updates_from_halves:
                self.masters.take_gradients(self._scaling.factors[1], add=first > 0)
                self.computing.zero_grads()
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
        # Zero times a loss that is not finite is no number, and so is each gradient then, on every rank.
        gradient = self._root + 0 * loss.data
        with detect_anomaly(self.check_values and not (self.scaler and self.scaler.can_be_lowered)):
            objective.backward(gradient, on_complete=self._teller(mean) if mean else None)
        return loss.data, finite_state(detach(new_state), state)

    def _as_graph(self, inputs: Any, targets: Any, state: State, masks: MaskStream) -> tuple[Any, State]:
        """The same by a graph of this length of window."""
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
        loss, new_state = self._in_groups(inputs, targets, state, self._masks)
        if self._updates_from_halves or not self.masters:
            _ = self.computing.flat_gradients  # those that nothing reached become zero inside the graph too
        return (loss, *(part for pair in new_state for part in pair))

    def _update(self, gradients: Any, rate: float, rate_after_skip: float) -> None:
        controls, halves = self.optimizer.controls, self._updates_from_halves
        scale = self._scaling.values if self._scaling and halves else None
        controls.begin(rate, rate_after_skip, self.clip_norm, scale)
        if self.l2_tied:
            if self.scaler:
                controls.measure(gradients)  # the largest element, of which L2 is no part
            W = self.model.decoder_weight
            add_scaled(W.grad.reshape(-1), W.data.reshape(-1), self.l2_tied)
        controls.measure(gradients, keep_largest=self.l2_tied > 0)
        self.optimizer.update_by_kernels(gradients, self.computing.flat_parameters if self.masters else None)
        if self._scaling:
            self._scaling.update(controls)

    def _reader(self, loss: Any, state: State, stop: StopRequest | None) -> Callable[[], StepResult]:
        """What reads this step's numbers, and the signal to stop with; to be called once, on each rank in the
        order of steps."""
        scaling = [self._scaling.values] if self._scaling else []
        numbers = self.device.begin_read(self.optimizer.controls.values, loss, *scaling)

        def finish() -> StepResult:
            values, (own_loss,), *of_scaler = numbers()
            if self._scaling:
                self._scaling.follow(*of_scaler)
            flags = stop.flags() if stop else []
            total_loss, *stops = self.communicator.allreduce_sum([own_loss, *flags]).tolist()
            norm = float(values[NAMES.index("norm")])
            mean_loss = total_loss / self.communicator.size
            return StepResult(mean_loss, norm, state, stop.agreed(stops) if stop else 0)

        return finish
