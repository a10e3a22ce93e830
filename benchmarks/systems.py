"""The two sides of every comparison behind one face: MiniLSTM here, PyTorch in `torch_system`."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import numpy as np

from autograd.errors import InputError
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.language_model import State
from train.batches import Read
from train.communicator import Communicator, SingleProcess
from train.config import TrainConfig
from train.evaluate import evaluate
from train.plan import make_optimizer
from train.step import TrainingStep

LOSS_TOLERANCE = 1e-4
"""Nats by which two ways to compute the same loss may differ."""


class System(Protocol):
    """A language model with its optimizer. From one seed, every system starts with the same weights."""

    def start_stream(self) -> None:
        """Forget the state: the next window begins a new text."""

    def step(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """One update from a window, int (T, B) each; returns its loss in nats. The state is carried on."""

    def score(self, tokens: np.ndarray, eos_id: int) -> float:
        """Mean negative log-likelihood (nats) of a text (N,), its first word after `<eos>`; no dropout."""


class OurSystem:
    """MiniLSTM, made of the same pieces as `train.wt103`; on one rank of many if `communicator` says so."""

    def __init__(
        self, config: ModelConfig, train: TrainConfig, seed: int, communicator: Communicator | None = None
    ) -> None:
        self.model = LanguageModel(config, seed)
        optimizer = make_optimizer(self.model, train)
        self._step = TrainingStep(self.model, optimizer, communicator or SingleProcess(), train.clip_norm)
        self._learning_rate = train.learning_rate
        self._masks = MaskStream(seed)
        self._state: State | None = None

    def start_stream(self) -> None:
        self._state = None

    def step(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        result = self._step(inputs, targets, self._state, self._masks, self._learning_rate)
        self._state, self._masks = result.state, self._masks.next_window()
        return result.loss

    def score(self, tokens: np.ndarray, eos_id: int) -> float:
        read: Read = lambda start, stop: tokens[start:stop]  # noqa: E731
        return evaluate(self.model, read, len(tokens), eos_id, SingleProcess())["loss"]


def make_system(
    name: str, config: ModelConfig, train: TrainConfig, seed: int, one_bias: bool = False
) -> System:
    """The system called `ours` or `torch`.

    Args:
        config: sizes and dropouts.
        train: learning rate, Adam's constants and clipping norm are taken from it.
        seed: of the initial weights, which are the same in both, and of the masks, which are not.
        one_bias: hold the second bias of nn.LSTM at zero, where it starts. Both sides then train the same
            numbers, and their losses agree step after step; left free, as it comes, it doubles the pace at
            which Adam moves the sum of the two.

    Raises:
        InputError: PyTorch is asked for and is not installed, or lacks something in `config`.
    """
    if name == "ours":
        return OurSystem(config, train, seed)
    require_torch()
    from benchmarks.torch_system import TorchSystem

    return TorchSystem(config, train, seed, one_bias)


def require_torch() -> None:
    """Raise an InputError if PyTorch is not installed; it is not loaded here."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "the comparison with PyTorch needs the package torch, which is not installed; pip install torch"
        )
