"""Embedding → LSTM layers → softmax, tied or not; state in, state out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

import autograd.functions as F
from autograd import (
    DtypeError,
    Parameter,
    ShapeError,
    Variable,
    evaluation_mode,
    is_training,
    no_backprop_mode,
)
from autograd.backend import get_array_module, to_host
from autograd.functions.embedding import as_ids, check_ids
from autograd.functions.loss import IGNORE, log_softmax_array
from autograd.kernels import use_kernels
from autograd.profile import span
from minilstm.adaptive_softmax import adaptive_log_probs, adaptive_softmax_loss, adaptive_token_losses
from minilstm.config import ModelConfig
from minilstm.dropout import Dropouts, MaskStream
from minilstm.dropout_cuda import KernelDropouts
from minilstm.layer_norm_lstm import layer_norm_lstm
from minilstm.lstm import F as FORGET
from minilstm.lstm import lstm
from minilstm.lstm_cell import FORGET_BIAS, epsilon_for, unrolled_layer_norm_lstm, unrolled_lstm
from minilstm.regularization import activation_regularization, temporal_activation_regularization
from minilstm.sampled_softmax import LogUniformSampler, Sample, sampled_softmax_loss
from minilstm.tied_softmax import all_logits, tied_softmax_loss, tied_token_losses
from minilstm.wavefront import Wavefront, lane_of

State = list[tuple[Any, Any]]
"""(h, c) of every layer, each (B, units)."""


class Objective(NamedTuple):
    """What a window of training yields.

    Attributes:
        objective: what is differentiated: the loss and its regularisers.
        loss: what is printed, without AR and TAR: the mean negative log-likelihood in nats, of the sampled
            softmax if the model trains with it.
        state: (h, c) of every layer after the window.
    """

    objective: Variable
    loss: Variable
    state: State


class Outputs(NamedTuple):
    """What the layers make of a window: outputs of the last one (T, B, E), dropped and not; the new state."""

    dropped: Variable
    undropped: Variable
    state: State


Run = Callable[..., tuple[Variable, Variable, Variable]]
LSTMS: dict[str, tuple[Run, Run]] = {
    "fused": (lstm, layer_norm_lstm),
    "readable": (unrolled_lstm, unrolled_layer_norm_lstm),
}
"""The two implementations: of the plain cell, and of the layer-normalised one."""


class LSTMLayer:
    """The weights of one layer, gates stacked i, f, g, o.

    Attributes:
        W_ih, W_hh: (4H, I) and (4H, H).
        vectors: the bias b (4H) alone, or, of a layer-normalised cell, gains and shifts of the gates (4H)
            and of the cell (H).
    """

    def __init__(self, index: int, config: ModelConfig, rng: np.random.Generator) -> None:
        inputs, units = config.layer_sizes[index]
        self.units = units
        glorot = config.lstm_init == "glorot"
        # As torch.nn.LSTM and AWD-LSTM start; or as TensorFlow's cells, with one kernel (I + H, 4H).
        bound = math.sqrt(6 / (inputs + units + 4 * units)) if glorot else 1 / math.sqrt(units)

        def parameter(name: str, values: Any) -> Parameter:
            return Parameter(values, name=f"lstm.{index}.{name}")

        self.W_ih = parameter("weight_ih", _uniform(rng, bound, (4 * units, inputs)))
        self.W_hh = parameter("weight_hh", _uniform(rng, bound, (4 * units, units)))
        if config.layer_norm:
            self.vectors = tuple(
                parameter(f"{of}_{name}", fill((size,), np.float32))
                for of, size in (("gate", 4 * units), ("cell", units))
                for name, fill in (("gain", np.ones), ("shift", np.zeros))
            )
        else:
            self.b = parameter("bias", _forget_bias(units) if glorot else _uniform(rng, bound, (4 * units,)))
            self.vectors = (self.b,)


def _forget_bias(units: int) -> np.ndarray:
    """(4H): zero, but FORGET_BIAS for the forget gate, which TensorFlow's cells add to it."""
    bias = np.zeros((4, units), np.float32)
    bias[FORGET] = FORGET_BIAS
    return bias.reshape(-1)


def _uniform(rng: np.random.Generator, bound: float, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform in ± bound; drawn in float32 whatever the model's dtype, so that all of them start alike."""
    values = rng.random(shape, np.float32)
    values *= 2 * bound
    values -= bound
    return values


def _table(rng: np.random.Generator, config: ModelConfig, width: int, name: str) -> Parameter:
    """A row of `width` for every word, uniform in ± embedding_init_scale."""
    return Parameter(_uniform(rng, config.embedding_init_scale, (config.vocab_size, width)), name=name)


class LanguageModel:
    """A word-level LSTM language model whose decoder may share the embedding matrix.

    Args:
        config: sizes, cells, losses and dropouts.
        seed: of the initial weights.
        dtype: of weights and activations: float32, float64, or float16, whose sums, softmax, statistics of
            layer normalisation and losses are made in float32. Gradients in float16 want a scaled loss:
            `train.mixed_precision`.

    Attributes:
        flat_parameters: every weight in one 1-D array, in the order of `named_parameters`; each
            parameter's `data` is a view into it.
        masks: the dropout masks used when a call is given none; each training call draws new ones.
        implementation: which LSTM runs, "fused", or "readable": the cell, step by step; both are equal.
        run_lstm: what runs each layer instead, called as these two are; `minilstm.dissection` watches so.
        wavefront: on a GPU, the streams on which the layers train side by side; None: one after the other.
            Not for residual connections.

    Raises:
        DtypeError: another dtype.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, dtype: Any = np.float32) -> None:
        if np.dtype(dtype) not in (np.float16, np.float32, np.float64):
            raise DtypeError(f"model: dtype must be float16, float32 or float64; got {np.dtype(dtype)}")
        self.config = config
        self.masks = MaskStream(seed)
        self.implementation: Literal["fused", "readable"] = "fused"
        self.run_lstm: Run | None = None
        self.wavefront: Wavefront | None = None
        rng = np.random.default_rng(seed)
        self.embedding = _table(rng, config, config.embedding_size, "embedding.weight")
        self.layers = [LSTMLayer(index, config, rng) for index in range(config.num_layers)]
        self.decoder_weight = self.embedding
        if not config.tied_weights:
            self.decoder_weight = _table(rng, config, config.output_size, "decoder.weight")
        self.decoder_bias = Parameter(np.zeros(config.vocab_size, np.float32), name="decoder.bias")
        self.bands: tuple[Parameter, ...] = ()
        if config.softmax == "adaptive":
            count = len(config.adaptive_bands)
            self.bands = (
                Parameter(np.zeros((count, config.output_size), np.float32), name="decoder.band_weight"),
                Parameter(np.zeros(count, np.float32), name="decoder.band_bias"),
            )
        self._flatten(np.dtype(dtype))

    def copy(self, dtype: Any) -> LanguageModel:
        """The same function of the same weights, rounded to a dtype, in memory of its own.

        The epsilon of layer normalisation, where it is left to the precision, is this model's.
        """
        config = self.config
        if config.layer_norm:
            epsilon = epsilon_for(self.dtype, config.layer_norm_epsilon)
            config = dataclasses.replace(config, layer_norm_epsilon=epsilon)
        other = LanguageModel(config, dtype=dtype)
        other.move_to(get_array_module(self.flat_parameters))
        other.flat_parameters[...] = self.flat_parameters
        other.masks, other.implementation = self.masks, self.implementation
        return other

    def move_to(self, xp: Any) -> None:
        """Let the weights live where this array module's arrays do; what is computed from them does too."""
        if xp is get_array_module(self.flat_parameters):
            return
        weights = self.flat_parameters if xp is np else xp.asarray(self.flat_parameters)
        for parameter, own in self.parameter_ranges():
            parameter.data = weights[own.start : own.stop].reshape(parameter.shape)
        self._flatten(self.dtype, xp)

    def _flatten(self, dtype: np.dtype, xp: Any = np) -> None:
        parameters = [parameter for _, parameter in self.named_parameters()]
        size = sum(parameter.size for parameter in parameters)
        self.flat_parameters = xp.empty(size, dtype)
        self._flat_gradients = xp.empty(size, dtype)
        start = 0
        for parameter in parameters:
            part = slice(start, start + parameter.size)
            shape, start = parameter.shape, part.stop
            values, gradients = self.flat_parameters[part], self._flat_gradients[part]
            parameter.move_to(values.reshape(shape), gradients.reshape(shape))

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """(name, parameter), always in this order: embedding; a layer's W_ih, W_hh, vectors; decoder."""
        parameters = [self.embedding]
        for layer in self.layers:
            parameters += [layer.W_ih, layer.W_hh, *layer.vectors]
        if self.decoder_weight is not self.embedding:
            parameters.append(self.decoder_weight)
        return [(str(p.name), p) for p in (*parameters, self.decoder_bias, *self.bands)]

    @property
    def flat_gradients(self) -> Any:
        """The gradients of `flat_parameters`, zero where the last backward pass reached nothing."""
        for _, parameter in self.named_parameters():
            if parameter.grad is None:
                parameter.grad_target()[0][...] = 0
        return self._flat_gradients

    @property
    def gradient_buffer(self) -> Any:
        """Where `flat_gradients` lie, whether they are written yet or not."""
        return self._flat_gradients

    def release_gradients(self) -> None:
        """Give back the memory of the gradients, of a model in whose place another one goes backward."""
        self._flat_gradients = self._flat_gradients[:0].copy()
        for _, parameter in self.named_parameters():
            parameter.grad = parameter.grad_buffer = None

    def parameter_ranges(self) -> list[tuple[Parameter, range]]:
        """Each parameter, and which part of `flat_parameters` and `flat_gradients` is its own."""
        parameters = [parameter for _, parameter in self.named_parameters()]
        stops = itertools.accumulate(parameter.size for parameter in parameters)
        return [(p, range(stop - p.size, stop)) for p, stop in zip(parameters, stops, strict=True)]

    def zero_grads(self) -> None:
        """Start the next backward pass from nothing instead of adding to the last one's gradients."""
        for _, parameter in self.named_parameters():
            parameter.zero_grad()

    def initial_state(self, batch_size: int) -> State:
        """Zeros for every layer, each (batch_size, units)."""
        shapes = [(batch_size, layer.units) for layer in self.layers]
        xp = get_array_module(self.flat_parameters)
        return [(xp.zeros(shape, self.dtype), xp.zeros(shape, self.dtype)) for shape in shapes]

    @property
    def dtype(self) -> np.dtype:
        """Of weights and activations."""
        return self.flat_parameters.dtype

    def __call__(
        self, inputs: Any, targets: Any, state: State | None = None, masks: MaskStream | None = None
    ) -> tuple[Variable, State]:
        """Mean negative log-likelihood of the targets, and the state after the window.

        Args:
            inputs, targets: integers (T, B); targets[t] is the word after inputs[t], or -1 if it is not
                scored.
            state: from the call before (arrays, or variables to let gradients flow on), zeros if None.
            masks: the window's dropout masks and samples; those of `self.masks`, one window on, if None.

        Returns:
            loss, a single number in nats, in evaluation always that of the full distribution;
            state, (h, c) as variables for every layer.

        Raises:
            ShapeError, DtypeError, InputError: inputs, targets or state that do not fit the model.
        """
        outputs, loss = self._outputs_and_loss(inputs, targets, state, masks)
        return loss, outputs.state

    def objective(
        self, inputs: Any, targets: Any, state: State | None = None, masks: MaskStream | None = None
    ) -> Objective:
        """What training differentiates, beside what calling the model returns; arguments as there."""
        outputs, loss = self._outputs_and_loss(inputs, targets, state, masks)
        alpha = self.config.activation_regularization
        beta = self.config.temporal_activation_regularization
        objective = loss
        with span("regularization"):
            if is_training() and alpha:
                objective = objective + activation_regularization(outputs.dropped, alpha)
            if is_training() and beta:
                objective = objective + temporal_activation_regularization(outputs.undropped, beta)
        return Objective(objective, loss, outputs.state)

    def encode(
        self, inputs: Any, state: State | None, masks: MaskStream | None = None
    ) -> tuple[Variable, State]:
        """The last layer's outputs (T, B, E) as the decoder sees them, and the state after inputs (T, B)."""
        outputs = self._encode(inputs, state, self._masks_of_window(masks))
        return outputs.dropped, outputs.state

    def _masks_of_window(self, masks: MaskStream | None) -> MaskStream | None:
        """The given masks, or the model's own next ones; None in evaluation."""
        if not is_training():
            return None
        if masks is None:
            masks = self.masks = self.masks.next_window()
        return masks

    def _outputs_and_loss(
        self, inputs: Any, targets: Any, state: State | None, masks: MaskStream | None
    ) -> tuple[Outputs, Variable]:
        inputs, targets = self.ids_here(inputs, targets)
        if targets.shape != inputs.shape:
            raise ShapeError(
                f"model: targets must be (T, B) = {inputs.shape} as inputs are; got {targets.shape}"
            )
        if targets.dtype.kind not in "iu":
            raise DtypeError(f"model: targets must be integer word ids; got {targets.dtype}")
        masks = self._masks_of_window(masks)
        outputs = self._encode(inputs, state, masks)
        with span("softmax"):
            h = F.reshape(outputs.dropped, (-1, self.config.output_size))
            return outputs, self._loss(h, targets.reshape(-1), masks)

    def _encode(self, inputs: Any, state: State | None, masks: MaskStream | None) -> Outputs:
        inputs = self._here("embedding: ids", inputs)
        if inputs.ndim != 2 or len(inputs) < 1:
            raise ShapeError(f"model: inputs must be (T, B) with at least one step; got {inputs.shape}")
        state = self.initial_state(inputs.shape[1]) if state is None else state
        self._check_state(state, inputs.shape[1])
        run_lstm = self.run_lstm or LSTMS[self.implementation][self.config.layer_norm]
        if self.config.layer_norm:
            run_lstm = functools.partial(run_lstm, epsilon=self.config.layer_norm_epsilon)
        kind = KernelDropouts if use_kernels(self.flat_parameters) else Dropouts
        dropouts = kind(self.config, masks, self.flat_parameters)

        wavefront = self.wavefront if is_training() else None
        with span("embedding"):
            x = dropouts.embedding(inputs, self.embedding)
            x = wavefront.lower_end(x) if wavefront else x
        new_state: State = []
        for index, (layer, (h0, c0)) in enumerate(zip(self.layers, state, strict=True)):
            with span(f"layer {index + 1}"):
                with lane_of(wavefront, index):
                    W_ih = dropouts.input_weight(index, layer.W_ih)
                    W_hh = dropouts.recurrent_weight(index, layer.W_hh)
                    mask = dropouts.candidate_mask(index, (*inputs.shape, layer.units))
                    below, given = x, dropouts.input(index, x)
                    y, h, c = run_lstm(given, h0, c0, W_ih, W_hh, *layer.vectors, candidate_mask=mask)
                if wavefront and layer is self.layers[-1]:
                    y, wavefront = wavefront.upper_end(y), None
                with lane_of(wavefront, index):
                    x = self._connected(dropouts.output(index, y), below)
                new_state.append((h, c))
        return Outputs(x, self._connected(y, below), new_state)

    def _connected(self, y: Variable, below: Variable) -> Variable:
        """A layer's output, with what came from below it added if there are residual connections."""
        return y + below if self.config.residual else y  # (16)

    def _loss(self, h: Variable, targets: Any, masks: MaskStream | None) -> Variable:
        """The mean over targets (N) of what the words after outputs h (N, E) cost."""
        config, W, b = self.config, self.decoder_weight, self.decoder_bias
        if config.softmax == "adaptive":
            band_W, band_b = self.bands
            return adaptive_softmax_loss(h, W, b, band_W, band_b, targets, config.adaptive_bands)
        if config.softmax == "sampled" and masks is not None:
            sampler = LogUniformSampler(config.vocab_size)
            draw = functools.partial(sampler.sample, config.num_samples)
            return sampled_softmax_loss(h, W, b, targets, Sample(*masks.arrays("sampled_softmax", draw)))
        return tied_softmax_loss(h, W, b, targets)

    def ids_here(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Ids (T, B) of words and targets as arrays where the weights are; checked if they go there."""
        return self._here("embedding: ids", inputs), self._here("targets", targets, lowest=IGNORE)

    def _here(self, name: str, ids: Any, lowest: int = 0) -> Any:
        """Ids as an array where the weights are; on their way to a GPU they are checked, not there."""
        xp, ids = get_array_module(self.flat_parameters), ids if hasattr(ids, "dtype") else np.asarray(ids)
        if xp is np or get_array_module(ids) is xp:
            return ids
        as_ids(f"model: {name}", ids)
        check_ids(f"model: {name}", ids, self.config.vocab_size, lowest)
        return xp.asarray(ids)

    def _check_state(self, state: State, batch_size: int) -> None:
        expected = [(batch_size, layer.units) for layer in self.layers]
        for index, name in enumerate("hc"):
            got = [tuple(parts[index].shape) for parts in state]
            if got != expected:
                raise ShapeError(
                    f"model: state must hold (h, c) of shapes {expected}, one per layer; got {name} of {got}"
                )

    def next_log_probs(self, inputs: Any, state: State | None = None) -> tuple[Any, State]:
        """log P(next word) (B, V) in nats after the words `inputs` (B), and the new state; no gradients.

        The probabilities come to the host, wherever the weights are; the state stays with those.
        """
        with no_backprop_mode(), evaluation_mode():
            h, state = self.encode(np.asarray(inputs)[None], state)
            return to_host(self.log_probs(h.data[0])), detach(state)

    def token_losses(self, h: Any, targets: Any) -> Any:
        """-log P(target) (N) in nats, after outputs h (N, E) of the last layer; arrays, no gradients.

        Raises:
            ShapeError, InputError: sizes that do not fit, targets out of range.
        """
        W, b = self.decoder_weight.data, self.decoder_bias.data
        if self.config.softmax == "adaptive":
            band_W, band_b = (parameter.data for parameter in self.bands)
            return adaptive_token_losses(h, W, b, band_W, band_b, targets, self.config.adaptive_bands)
        return tied_token_losses(h, W, b, targets)

    def log_probs(self, h: Any) -> Any:
        """log P(word) (N, V) in nats, after outputs h (N, E) of the last layer; arrays, no gradients."""
        W, b = self.decoder_weight.data, self.decoder_bias.data
        if self.config.softmax == "adaptive":
            band_W, band_b = (parameter.data for parameter in self.bands)
            return adaptive_log_probs(h, W, b, band_W, band_b, self.config.adaptive_bands)
        return log_softmax_array(all_logits(h, W, b))


def detach(state: State) -> State:
    """The state as plain arrays: gradients do not flow back into the window before.

    They are copies, for the variables are views into the arrays of the whole window, which can then go.
    """
    return [(_plain(h), _plain(c)) for h, c in state]


def _plain(part: Any) -> Any:
    return (part.data if isinstance(part, Variable) else part).copy()
