"""The sizes at which a training step is measured, their arithmetic, and text to measure it on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autograd.errors import InputError
from minilstm.config import ModelConfig


@dataclass(frozen=True)
class Size:
    """A model without dropout and the window that it is trained on."""

    vocab_size: int  # V
    embedding_size: int  # E
    hidden_size: int  # H
    num_layers: int  # the last of them has E units
    batch_size: int  # B
    window: int  # T
    steps: int  # measured unless told otherwise

    def model_config(self) -> ModelConfig:
        """The model's configuration."""
        return ModelConfig(self.vocab_size, self.embedding_size, self.hidden_size, self.num_layers)

    @property
    def tokens(self) -> int:
        """Targets in a window."""
        return self.window * self.batch_size

    @property
    def flops(self) -> int:
        """Of one step's matrix products: 6 · (V·E + Σ 4·H_out·(H_in + H_out)) · T·B.

        6 because every weight takes part in three products, one forward and two backward, and a product
        adds and multiplies. What a program computes twice to save memory counts once.
        """
        lstm = sum(4 * units * (inputs + units) for inputs, units in self.model_config().layer_sizes)
        return 6 * (self.vocab_size * self.embedding_size + lstm) * self.tokens

    def __str__(self) -> str:
        return (
            f"V={self.vocab_size:,} E={self.embedding_size} H={self.hidden_size:,} L={self.num_layers} "
            f"B={self.batch_size} T={self.window}"
        )


SIZES = {
    "tiny": Size(500, 16, 24, 2, batch_size=4, window=5, steps=3),  # to try the benchmark out
    "small": Size(10_000, 200, 200, 2, batch_size=20, window=35, steps=30),
    "wt2": Size(33_278, 400, 1_150, 3, batch_size=20, window=70, steps=9),
    "wt103": Size(267_735, 400, 1_024, 3, batch_size=8, window=96, steps=7),
}


def add_size_flag(parser: argparse.ArgumentParser) -> None:
    """--size, one of SIZES by name; "tiny", which is there to try a benchmark out, is not shown."""
    shown = f"{{{','.join(name for name in SIZES if name != 'tiny')}}}"
    parser.add_argument("--size", choices=SIZES, default="small", metavar=shown, help="default: small")


def size_of(text: str) -> Size:
    """A size by its name, or by its numbers as `str(size)` gives them, without commas and in that order.

    Raises:
        InputError: neither.
    """
    if text in SIZES:
        return SIZES[text]
    numbers = re.fullmatch(r"V=(\d+) E=(\d+) H=(\d+) L=(\d+) B=(\d+) T=(\d+)", text.replace(",", ""))
    if numbers is None:
        raise InputError(f"size: expected {', '.join(SIZES)} or V=… E=… H=… L=… B=… T=…; got {text!r}")
    V, E, H, L, B, T = map(int, numbers.groups())
    return Size(V, E, H, L, batch_size=B, window=T, steps=1)


def zipf_ids(rng: np.random.Generator, shape: tuple[int, ...], vocab_size: int) -> np.ndarray:
    """Word ids int32 with P(k) = log((k + 2) / (k + 1)) / log(V + 1), close to Zipf's law: few words make
    most of the text, so the gradient of the lookup touches the few rows that it would touch in English."""
    # The inverse of the distribution function is a power.
    ids = (vocab_size + 1) ** rng.random(shape) - 1
    return np.minimum(ids, vocab_size - 1).astype(np.int32)


def zipf_windows(size: Size, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets), int32 (T, B) each, without end."""
    rng = np.random.default_rng(seed)
    while True:
        words = zipf_ids(rng, (size.window + 1, size.batch_size), size.vocab_size)
        yield words[:-1], words[1:]
