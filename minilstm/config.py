"""What a language model is made of: sizes, cells, losses, dropouts; checked once, frozen afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from autograd.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes, cells, losses and dropouts of a `LanguageModel`.

    Two recipes share the model: the model card's `lstmlm` and the `awd` of Merity et al. 2018. Where they
    mean different things by one knob, a second knob chooses. Keep probabilities act in training only, with
    inverted scaling (what is kept is divided by the probability); 1 switches a dropout off.

    Args:
        vocab_size: words in the vocabulary, V.
        embedding_size: width of the embedding, E.
        hidden_size: units of every layer but the last, H.
        num_layers: LSTM layers, L.
        last_hidden_size: units of the last layer; 0: embedding_size, which tied weights ask for.
        tied_weights: the decoder's weight is the embedding matrix (Press & Wolf 2017); else it has its own.
        layer_norm: cells with layer normalisation instead of a bias (Ba et al. 2016), as `lstmlm` has them.
        layer_norm_epsilon: what those add to every variance; 0: 1e-12, and 1e-3 in float16, as `lstmlm`. A
            row of equal units (every word left out, no state) multiplies its gradient by 1/√ε at each
            normalisation: clip, or take 1e-5, as PyTorch does.
        residual: to the output of each layer its input is added, both of one width.

        encoder_emb_keep_prob: the embedding matrix at lookup, drawn once per window; the decoder uses the
            undropped matrix.
        encoder_emb_dropout: what of it is left out: whole "rows", that is words (Gal & Ghahramani 2016), or
            single "elements" (`lstmlm`).
        encoder_emb_output_keep_prob: what was looked up, before the first layer (AWD-LSTM's `dropouti`; the
            input knobs below reach beyond the first layer as soon as there are three).
        input_weight_keep_prob: elements of W_ih, drawn once per window.
        recurrent_weight_keep_prob: elements of W_hh, drawn once per window (DropConnect, Merity et al.
            2018).
        recurrent_keep_prob: the candidate tanh(g) before it enters the cell, drawn at every step
            (Semeniuta et al. 2016).
        encoder_dp_input_keep_prob, encoder_dp_output_keep_prob: input and output of every layer but
            the last.
        encoder_last_input_keep_prob, encoder_last_output_keep_prob: the same for the last layer.
        activation_dropout: the masks of those four and of the embedding's output: one for all steps of the
            window ("locked", Merity et al. 2018), or a new one at every step ("per_step", `lstmlm`).

        embedding_init_scale: the embedding, and a decoder's own weight, start uniform in ± this.
        lstm_init: LSTM weights start "uniform" in ± 1/√units (`awd`), or "glorot" (`lstmlm`).

        softmax: the loss in training: "full"; "sampled" (`lstmlm`), which compares with num_samples words;
            "adaptive", by bands of frequency, a distribution of its own. Evaluation is never sampled.
        num_samples: words that the sampled softmax draws.
        adaptive_bands: the first word of each band after the head, rising; of no other softmax.
        activation_regularization: α of AR, on the dropped output of the last layer (Merity et al. 2017).
        temporal_activation_regularization: β of TAR, on the changes of the undropped one.

    Raises:
        InputError: a size below 1, a keep probability outside (0, 1], an unknown choice, or knobs that
            contradict each other.
    """

    vocab_size: int
    embedding_size: int = 400
    hidden_size: int = 1024
    num_layers: int = 3
    last_hidden_size: int = 0
    tied_weights: bool = True
    layer_norm: bool = False
    layer_norm_epsilon: float = 0.0
    residual: bool = False

    encoder_emb_keep_prob: float = 1.0
    encoder_emb_dropout: Literal["rows", "elements"] = "rows"
    encoder_emb_output_keep_prob: float = 1.0
    input_weight_keep_prob: float = 1.0
    recurrent_weight_keep_prob: float = 1.0
    recurrent_keep_prob: float = 1.0
    encoder_dp_input_keep_prob: float = 1.0
    encoder_dp_output_keep_prob: float = 1.0
    encoder_last_input_keep_prob: float = 1.0
    encoder_last_output_keep_prob: float = 1.0
    activation_dropout: Literal["locked", "per_step"] = "locked"

    embedding_init_scale: float = 0.1
    lstm_init: Literal["uniform", "glorot"] = "uniform"

    softmax: Literal["full", "sampled", "adaptive"] = "full"
    num_samples: int = 8192
    adaptive_bands: tuple[int, ...] = ()
    activation_regularization: float = 0.0
    temporal_activation_regularization: float = 0.0

    def __post_init__(self) -> None:
        bands: Any = self.adaptive_bands
        if isinstance(bands, list):  # as TOML and JSON give them
            object.__setattr__(self, "adaptive_bands", tuple(bands))
        for name, kind in get_type_hints(ModelConfig).items():
            good, expected = _rule(name, kind, getattr(self, name))
            if not good:
                raise InputError(f"model: {name} must be {expected}; got {getattr(self, name)!r}")
        self._check_widths()
        self._check_softmax()

    def _check_widths(self) -> None:
        if self.tied_weights and self.output_size != self.embedding_size:
            raise InputError(
                f"model: tied_weights needs last_hidden_size = embedding_size = {self.embedding_size}; "
                f"got {self.last_hidden_size}; make them equal, or set tied_weights = false"
            )
        if self.residual and any(inputs != units for inputs, units in self.layer_sizes):
            raise InputError(
                "model: residual needs embedding_size, hidden_size and last_hidden_size to be equal; got "
                f"layers of {', '.join(f'{inputs} → {units}' for inputs, units in self.layer_sizes)}"
                "; make them equal, or set residual = false"
            )

    def _check_softmax(self) -> None:
        if self.softmax == "sampled" and self.num_samples > self.vocab_size:
            raise InputError(
                f"model: num_samples must be at most vocab_size = {self.vocab_size}; got {self.num_samples}; "
                "draw fewer, or set softmax = 'full'"
            )
        if self.softmax == "adaptive" and not self.adaptive_bands:
            raise InputError(
                "model: softmax = 'adaptive' needs adaptive_bands, the first word of each band after the "
                "most frequent words; got []; set adaptive_bands = [2000, 10000], say"
            )
        if self.softmax == "adaptive":
            check_bands(self.adaptive_bands, self.vocab_size, "model: adaptive_bands")
        elif self.adaptive_bands:
            raise InputError(
                f"model: adaptive_bands are for softmax = 'adaptive'; got {list(self.adaptive_bands)} with "
                f"softmax = {self.softmax!r}; set adaptive_bands = [], or softmax = 'adaptive'"
            )

    @property
    def output_size(self) -> int:
        """Units of the last layer: what the decoder sees."""
        return self.last_hidden_size or self.embedding_size

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """(input size, units) of each LSTM layer, first to last."""
        widths = [self.embedding_size] + [self.hidden_size] * (self.num_layers - 1) + [self.output_size]
        return list(zip(widths[:-1], widths[1:], strict=True))

    def activation_keep_probs(self, index: int) -> tuple[float, float]:
        """(input, output) keep probability of one LSTM layer."""
        if index == self.num_layers - 1:
            return self.encoder_last_input_keep_prob, self.encoder_last_output_keep_prob
        return self.encoder_dp_input_keep_prob, self.encoder_dp_output_keep_prob

    def layer_parameters(self, index: int) -> int:
        """Trained numbers of one LSTM layer: W_ih, W_hh and the bias, or gains and shifts instead of it."""
        inputs, units = self.layer_sizes[index]
        return 4 * units * (inputs + units) + (2 * (4 * units + units) if self.layer_norm else 4 * units)

    def decoder_parameters(self) -> int:
        """Trained numbers of the decoder: its bias, its weight unless tied, its vectors of the bands."""
        weights = 0 if self.tied_weights else self.vocab_size * self.output_size
        bands = len(self.adaptive_bands) if self.softmax == "adaptive" else 0
        return weights + self.vocab_size + bands * (self.output_size + 1)

    def num_parameters(self) -> int:
        """Trained numbers of the model; a tied matrix counts once."""
        layers = sum(self.layer_parameters(index) for index in range(self.num_layers))
        return self.vocab_size * self.embedding_size + layers + self.decoder_parameters()


def check_bands(bands: Sequence[int], vocab_size: int, name: str) -> None:
    """Refuse bands that do not cut the vocabulary into a head and at least one band, none of them empty.

    Args:
        bands: the first word of each band, rising.
        vocab_size: V.
        name: what the caller calls them.

    Raises:
        InputError: they are not of that kind.
    """
    bounds = [0, *bands, vocab_size]
    whole = all(_is_whole(first, 1) for first in bands)
    if not bands or not whole or any(low >= high for low, high in pairwise(bounds)):
        raise InputError(
            f"{name} must be whole numbers, the first word of each band, rising, above 0 and below the "
            f"{vocab_size} words of the vocabulary; got {list(bands)}"
        )


def _rule(name: str, kind: Any, value: Any) -> tuple[bool, str]:
    """Whether the value suits the field of this name and type, and what the field must be."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
    if kind is bool:
        return isinstance(value, bool), "true or false"
    if get_origin(kind) is tuple:
        good = isinstance(value, tuple) and all(_is_whole(first, 1) for first in value)
        return good, "whole numbers of at least 1"
    if kind is int:
        lowest = 0 if name == "last_hidden_size" else 1
        return _is_whole(value, lowest), f"a whole number of at least {lowest}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name.endswith("_keep_prob"):
        return number and 0 < value <= 1, "a keep probability in (0, 1], that is a dropout in [0, 1)"
    if name.endswith("_scale"):
        return number and 0 < value < math.inf, "a finite number above 0"
    return number and 0 <= value < math.inf, "a finite number of at least 0"


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest
