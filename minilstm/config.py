"""What a language model is made of: sizes and keep probabilities, checked once, frozen afterwards."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from autograd.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and dropouts of a `LanguageModel`.

    The embedding matrix (vocab_size, embedding_size) is also the decoder's weight, so the last LSTM
    layer has embedding_size units and every other layer hidden_size. Keep probabilities act in
    training only, with inverted scaling (what is kept is divided by the probability); 1 switches a
    dropout off.

    Args:
        vocab_size: words in the vocabulary, V.
        embedding_size: width of the embedding and of the last layer, E.
        hidden_size: units of every layer but the last, H.
        num_layers: LSTM layers, L.
        encoder_emb_keep_prob: whole rows (words) of the embedding matrix at lookup, drawn once per
            window; the decoder uses the undropped matrix (Gal & Ghahramani 2016).
        recurrent_weight_keep_prob: elements of W_hh, drawn once per window (DropConnect, Merity et al.
            2018).
        encoder_dp_input_keep_prob, encoder_dp_output_keep_prob: input and output of every layer but
            the last, one mask for all steps of the window ("locked", Merity et al. 2018).
        encoder_last_input_keep_prob, encoder_last_output_keep_prob: the same for the last layer.
        embedding_init_scale: the embedding starts uniform in ± this.

    Raises:
        InputError: a size below 1 or a keep probability outside (0, 1].
    """

    vocab_size: int
    embedding_size: int = 400
    hidden_size: int = 1024
    num_layers: int = 3
    encoder_emb_keep_prob: float = 1.0
    recurrent_weight_keep_prob: float = 1.0
    encoder_dp_input_keep_prob: float = 1.0
    encoder_dp_output_keep_prob: float = 1.0
    encoder_last_input_keep_prob: float = 1.0
    encoder_last_output_keep_prob: float = 1.0
    embedding_init_scale: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.name.endswith("_keep_prob"):
                good = number and 0 < value <= 1
                self._check(field.name, good, "a keep probability in (0, 1], that is a dropout in [0, 1)")
            elif field.name.endswith("_scale"):
                self._check(field.name, number and 0 < value < math.inf, "a finite number above 0")
            else:
                good = number and isinstance(value, int) and value >= 1
                self._check(field.name, good, "a whole number of at least 1")

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"model: {name} must be {expected}; got {getattr(self, name)!r}")

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """(input size, units) of each LSTM layer, first to last."""
        widths = [self.embedding_size] + [self.hidden_size] * (self.num_layers - 1) + [self.embedding_size]
        return list(zip(widths[:-1], widths[1:], strict=True))

    def num_parameters(self) -> int:
        """Trained numbers of the model; the tied matrix counts once."""
        lstm = sum(4 * units * (inputs + units + 1) for inputs, units in self.layer_sizes)
        return self.vocab_size * (self.embedding_size + 1) + lstm
