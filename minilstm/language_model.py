"""Embedding → LSTM layers → tied softmax; state in, state out."""

from __future__ import annotations

import math
from typing import Any

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
from autograd.functions.loss import log_softmax_array
from minilstm.config import ModelConfig
from minilstm.dropout import MaskStream
from minilstm.lstm import lstm
from minilstm.tied_softmax import tied_softmax_loss

State = list[tuple[Any, Any]]
"""(h, c) of every layer, each (B, units)."""


class LSTMLayer:
    """The weights of one layer: W_ih (4H, I), W_hh (4H, H), b (4H), gates stacked i, f, g, o."""

    def __init__(self, index: int, inputs: int, units: int, rng: np.random.Generator) -> None:
        bound = 1 / math.sqrt(units)  # as torch.nn.LSTM and AWD-LSTM start
        self.units = units
        self.W_ih = Parameter(_uniform(rng, bound, (4 * units, inputs)), name=f"lstm.{index}.weight_ih")
        self.W_hh = Parameter(_uniform(rng, bound, (4 * units, units)), name=f"lstm.{index}.weight_hh")
        self.b = Parameter(_uniform(rng, bound, (4 * units,)), name=f"lstm.{index}.bias")


def _uniform(rng: np.random.Generator, bound: float, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform in ± bound; drawn in float32 whatever the model's dtype, so that all of them start alike."""
    values = rng.random(shape, np.float32)
    values *= 2 * bound
    values -= bound
    return values


class LanguageModel:
    """A word-level LSTM language model whose decoder shares the embedding matrix.

    Args:
        config: sizes and dropouts.
        seed: of the initial weights.
        dtype: of weights and activations, float32 or float64.

    Attributes:
        flat_parameters: every weight in one 1-D array, in the order of `named_parameters`; each
            parameter's `data` is a view into it.
        masks: the dropout masks used when a call is given none; each training call draws new ones.

    Raises:
        DtypeError: a dtype that is not floating point.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, dtype: Any = np.float32) -> None:
        if np.dtype(dtype).kind != "f":
            raise DtypeError(f"model: dtype must be float32 or float64; got {np.dtype(dtype)}")
        self.config = config
        self.masks = MaskStream(seed)
        rng = np.random.default_rng(seed)
        shape = (config.vocab_size, config.embedding_size)
        self.embedding = Parameter(_uniform(rng, config.embedding_init_scale, shape), name="embedding.weight")
        self.layers = [
            LSTMLayer(k, inputs, units, rng) for k, (inputs, units) in enumerate(config.layer_sizes)
        ]
        self.decoder_bias = Parameter(np.zeros(config.vocab_size, np.float32), name="decoder.bias")
        self._flatten(np.dtype(dtype))

    def _flatten(self, dtype: np.dtype) -> None:
        parameters = [parameter for _, parameter in self.named_parameters()]
        size = sum(parameter.size for parameter in parameters)
        self.flat_parameters = np.empty(size, dtype)
        self._flat_gradients = np.empty(size, dtype)
        start = 0
        for parameter in parameters:
            part = slice(start, start + parameter.size)
            shape, start = parameter.shape, part.stop
            parameter.move_to(
                self.flat_parameters[part].reshape(shape), self._flat_gradients[part].reshape(shape)
            )

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """(name, parameter), always in this order: embedding, each layer's W_ih, W_hh, b, decoder bias."""
        lstm_parameters = [p for layer in self.layers for p in (layer.W_ih, layer.W_hh, layer.b)]
        return [(str(p.name), p) for p in (self.embedding, *lstm_parameters, self.decoder_bias)]

    @property
    def flat_gradients(self) -> Any:
        """The gradients of `flat_parameters`, zero where the last backward pass reached nothing."""
        for _, parameter in self.named_parameters():
            if parameter.grad is None:
                parameter.grad_target()[0][...] = 0
        return self._flat_gradients

    def zero_grads(self) -> None:
        """Start the next backward pass from nothing instead of adding to the last one's gradients."""
        for _, parameter in self.named_parameters():
            parameter.zero_grad()

    def initial_state(self, batch_size: int) -> State:
        """Zeros for every layer, each (batch_size, units)."""
        shapes = [(batch_size, layer.units) for layer in self.layers]
        return [(np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)) for shape in shapes]

    @property
    def dtype(self) -> np.dtype:
        return self.flat_parameters.dtype

    def __call__(
        self, inputs: Any, targets: Any, state: State | None = None, masks: MaskStream | None = None
    ) -> tuple[Variable, State]:
        """Mean negative log-likelihood of the targets, and the state after the window.

        Args:
            inputs, targets: integers (T, B); targets[t] is the word after inputs[t], or -1 if it is not
                scored.
            state: from the call before (arrays, or variables to let gradients flow on), zeros if None.
            masks: the window's dropout masks; those of `self.masks`, one window on, if None.

        Returns:
            loss, a single number in nats; state, (h, c) as variables for every layer.

        Raises:
            ShapeError, DtypeError, InputError: inputs, targets or state that do not fit the model.
        """
        inputs, targets = np.asarray(inputs), np.asarray(targets)
        if targets.shape != inputs.shape:
            raise ShapeError(
                f"model: targets must be (T, B) = {inputs.shape} as inputs are; got {targets.shape}"
            )
        if targets.dtype.kind not in "iu":
            raise DtypeError(f"model: targets must be integer word ids; got {targets.dtype}")
        h, state = self.encode(inputs, state, masks)
        flat = F.reshape(h, (-1, self.config.embedding_size))
        return tied_softmax_loss(flat, self.embedding, self.decoder_bias, targets.reshape(-1)), state

    def encode(
        self, inputs: Any, state: State | None, masks: MaskStream | None = None
    ) -> tuple[Variable, State]:
        """The last layer's outputs (T, B, E) and the state after inputs (T, B)."""
        inputs = np.asarray(inputs)
        if inputs.ndim != 2 or len(inputs) < 1:
            raise ShapeError(f"model: inputs must be (T, B) with at least one step; got {inputs.shape}")
        state = self.initial_state(inputs.shape[1]) if state is None else state
        self._check_state(state, inputs.shape[1])
        if masks is None and is_training():
            masks = self.masks = self.masks.next_window()
        dropouts = _Dropouts(self.config, masks, self.dtype) if is_training() else None

        row_scale = dropouts.word_mask() if dropouts else None
        x = F.embedding(inputs, self.embedding, row_scale)
        new_state = []
        for index, (layer, (h0, c0)) in enumerate(zip(self.layers, state, strict=True)):
            W_hh = dropouts.recurrent_weight(index, layer.W_hh) if dropouts else layer.W_hh
            x = dropouts.input(index, x) if dropouts else x
            x, h, c = lstm(x, h0, c0, layer.W_ih, W_hh, layer.b)
            x = dropouts.output(index, x) if dropouts else x
            new_state.append((h, c))
        return x, new_state

    def _check_state(self, state: State, batch_size: int) -> None:
        got = [tuple(h.shape) for h, _ in state]
        expected = [(batch_size, layer.units) for layer in self.layers]
        if got != expected:
            raise ShapeError(f"model: state must hold (h, c) of shapes {expected}, one per layer; got {got}")

    def next_log_probs(self, inputs: Any, state: State | None = None) -> tuple[Any, State]:
        """log P(next word) (B, V) in nats after the words `inputs` (B), and the new state; no gradients."""
        with no_backprop_mode(), evaluation_mode():
            h, state = self.encode(np.asarray(inputs)[None], state)
            logits = F.linear(h[0], self.embedding, self.decoder_bias)
        return log_softmax_array(logits.data), detach(state)


class _Dropouts:
    """Which masks act where in one window of training."""

    def __init__(self, config: ModelConfig, masks: MaskStream | None, dtype: Any) -> None:
        assert masks is not None
        self.config, self.masks, self.dtype = config, masks, dtype

    def word_mask(self) -> Any:
        """(V): 0 for the words left out of this window."""
        keep = self.config.encoder_emb_keep_prob
        shape = (self.config.vocab_size,)
        return None if keep == 1 else self.masks.weight_mask("embedding", shape, keep, self.dtype)

    def recurrent_weight(self, index: int, W_hh: Parameter) -> Variable:
        keep = self.config.recurrent_weight_keep_prob
        if keep == 1:
            return W_hh
        # (31): one mask for all steps of the window
        return W_hh * self.masks.weight_mask(f"recurrent_weight.{index}", W_hh.shape, keep, self.dtype)

    def input(self, index: int, x: Variable) -> Variable:
        config, last = self.config, index == self.config.num_layers - 1
        return self._locked(
            f"input.{index}",
            x,
            config.encoder_last_input_keep_prob if last else config.encoder_dp_input_keep_prob,
        )

    def output(self, index: int, x: Variable) -> Variable:
        config, last = self.config, index == self.config.num_layers - 1
        return self._locked(
            f"output.{index}",
            x,
            config.encoder_last_output_keep_prob if last else config.encoder_dp_output_keep_prob,
        )

    def _locked(self, place: str, x: Variable, keep_prob: float) -> Variable:
        """One mask (B, units) for all steps of x (T, B, units) (Gal & Ghahramani 2016)."""
        if keep_prob == 1:
            return x
        return x * self.masks.row_mask(place, x.shape[1:], keep_prob, self.dtype)  # (32)


def detach(state: State) -> State:
    """The state as plain arrays: gradients do not flow back into the window before.

    They are copies, for the variables are views into the arrays of the whole window, which can then go.
    """
    return [(_plain(h), _plain(c)) for h, c in state]


def _plain(part: Any) -> Any:
    return (part.data if isinstance(part, Variable) else part).copy()
