"""A text classifier on a language model: the LSTM reads a text, a small head judges its last state.

The texts of a batch have different lengths, and no padding is ever read: they lie longest first, the LSTM
runs until the shortest text ends, hands over the state of those that end there, and goes on with the rest.
So every text gets, bit for bit of the mathematics, what it would get alone: last output h, last cell c, mean
and maximum over its own words.

Read in this order: `text_features`, `Head`, `Classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import Parameter, Variable, evaluation_mode, is_training, no_backprop_mode
from autograd.errors import InputError
from autograd.functions.loss import log_softmax_array
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.language_model import State
from train.checkpoint import load_checkpoint
from train.corpus import Vocabulary

FEATURES = ("h", "c", "mean", "max")
"""Last output and last cell of the last layer; mean and maximum of its outputs over the text."""


@dataclass(frozen=True)
class HeadConfig:
    """What stands on the encoder: [features] → dropout → (linear, ReLU → dropout →) linear → softmax.

    Args:
        classes: their names.
        features: of `FEATURES`, side by side in the order given.
        hidden_size: units of a hidden layer; 0: none.
        keep_prob: dropout before each linear layer.

    Raises:
        InputError: fewer than two classes, or features that are not known or come twice.
    """

    classes: tuple[str, ...]
    features: tuple[str, ...] = ("h", "c")
    hidden_size: int = 0
    keep_prob: float = 1.0

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"classifier: expected two classes at least; got {', '.join(self.classes)}")
        check_features(self.features)


def check_features(features: Sequence[str]) -> None:
    """Raise an InputError unless these are some of `FEATURES`, each once."""
    if not features or len(set(features)) < len(features) or not set(features) <= set(FEATURES):
        raise InputError(
            f"features: expected some of {', '.join(FEATURES)}, each once; got {', '.join(features)}"
        )


def text_features(
    encoder: LanguageModel,
    texts: Sequence[np.ndarray],
    features: Sequence[str] = ("h", "c"),
    masks: MaskStream | None = None,
) -> Variable:
    """The chosen features of every text, side by side: (B, E · number of features).

    Args:
        encoder: reads the texts, each from a state of zeros.
        texts: B of them, word ids, each at least one.
        features: of `FEATURES`.
        masks: the encoder's dropout masks in training; a text keeps its masks to its end.
    """
    if masks is None and is_training():
        masks = encoder.masks = encoder.masks.next_window()
    lengths = np.array([len(text) for text in texts])
    longest_first = np.argsort(-lengths, kind="stable")
    ids = np.zeros((lengths.max(), len(texts)), np.int32)  # beyond a text's end never read
    for column, index in enumerate(longest_first):
        ids[: lengths[index], column] = texts[index]
    ends = np.unique(lengths)
    state: State | None = None
    pools = _Pools(features)
    finished = []
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        running = int((lengths > start).sum())
        masks_here = None if masks is None else _LaterMasks(masks, int(start))
        outputs, state = encoder.encode(ids[start:stop, :running], _rows(state, slice(running)), masks_here)
        pools.add(outputs)
        going_on = int((lengths > stop).sum())
        found = dict(zip("hc", state[-1], strict=True)) | pools.found()
        finished.append(F.concatenate([found[name][going_on:] for name in features], axis=1))
        pools.keep(going_on)
    return F.concatenate(finished[::-1])[np.argsort(longest_first)]


def _rows(state: State | None, rows: slice) -> State | None:
    return None if state is None else [(h[rows], c[rows]) for h, c in state]


class _LaterMasks(MaskStream):
    """The masks of a window from one of its steps on: its pieces draw what the whole window would.

    Masks over weights, words and rows hold for all steps; those that change from step to step go on.
    """

    def __init__(self, masks: MaskStream, first_step: int) -> None:
        super().__init__(masks.seed, masks.window, masks.first_row)
        self.first_step = first_step

    def step_mask(self, place: str, shape: tuple[int, ...], keep_prob: float, dtype: Any = np.float32) -> Any:
        from_first = (self.first_step + shape[0], *shape[1:])
        return super().step_mask(place, from_first, keep_prob, dtype)[self.first_step :]


class _Pools:
    """Mean and maximum over time of outputs that come piece by piece; only what the features ask for."""

    def __init__(self, features: Sequence[str]) -> None:
        self.features = features
        self.steps = 0
        self.total: Any = None
        self.highest: Any = None

    def add(self, outputs: Variable) -> None:
        """Take in outputs (T, rows, E)."""
        self.steps += len(outputs)
        if "mean" in self.features:
            total = F.sum(outputs, axis=0)
            self.total = total if self.total is None else self.total + total
        if "max" in self.features:
            highest = _highest(outputs)
            self.highest = highest if self.highest is None else _larger(self.highest, highest)

    def found(self) -> dict[str, Variable]:
        """Each pool that is asked for, (rows, E)."""
        mean = {} if self.total is None else {"mean": self.total / float(self.steps)}
        return mean if self.highest is None else mean | {"max": self.highest}

    def keep(self, rows: int) -> None:
        """Go on with the first rows alone."""
        self.total = None if self.total is None else self.total[:rows]
        self.highest = None if self.highest is None else self.highest[:rows]


def _highest(x: Variable) -> Variable:
    """The maximum over axis 0 of (T, B, E); its gradient goes to the first step that reaches it."""
    rows, units = np.indices(x.shape[1:], sparse=True)
    return x[x.data.argmax(axis=0), rows, units]


def _larger(x: Variable, y: Variable) -> Variable:
    """The larger of two, element by element."""
    first = (x.data >= y.data).astype(x.dtype)
    return x * first + y * (1 - first)


class Head:
    """The layers after the encoder.

    Attributes:
        parameters: in order, first layer to last: weight (O, I) and bias (O).
    """

    def __init__(self, config: HeadConfig, inputs: int, seed: int, dtype: Any) -> None:
        self.config = config
        sizes = [inputs, *([config.hidden_size] if config.hidden_size else []), len(config.classes)]
        rng = np.random.default_rng(seed)
        self.parameters = []
        for k, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = 1 / math.sqrt(fan_in)  # as torch.nn.Linear starts
            weight = rng.uniform(-bound, bound, (fan_out, fan_in)).astype(dtype)
            self.parameters.append(Parameter(weight, name=f"head.{k}.weight"))
            self.parameters.append(Parameter(np.zeros(fan_out, dtype), name=f"head.{k}.bias"))

    def __call__(self, x: Variable, masks: MaskStream | None) -> Variable:
        """Logits (B, classes) of features (B, inputs)."""
        for k in range(0, len(self.parameters), 2):
            if k:
                x = F.relu(x)
            keep = self.config.keep_prob
            if is_training() and masks is not None and keep < 1:
                x = x * masks.row_mask(f"head.{k // 2}", x.shape, keep, x.dtype)
            x = F.linear(x, *self.parameters[k : k + 2])
        return x


class Classifier:
    """Encoder and head.

    Args:
        encoder: a language model; its decoder is not used.
        config: of the head.
        seed: of the head's initial weights.

    Attributes:
        encoder, head: the two parts.
    """

    def __init__(self, encoder: LanguageModel, config: HeadConfig, seed: int = 0) -> None:
        self.encoder, self.config = encoder, config
        units = encoder.layers[-1].units
        self.head = Head(config, units * len(config.features), seed, encoder.dtype)

    def named_parameters(self) -> dict[str, Parameter]:
        """All that is trained, by name: the encoder's embedding and LSTM layers, and the head."""
        encoder = {name: p for name, p in self.encoder.named_parameters() if not name.startswith("decoder.")}
        return encoder | {str(p.name): p for p in self.head.parameters}

    def logits(self, texts: Sequence[np.ndarray], masks: MaskStream | None = None) -> Variable:
        """Unnormalised log-probabilities (B, classes) of texts of word ids."""
        return self.head(text_features(self.encoder, texts, self.config.features, masks), masks)

    def loss(
        self,
        texts: Sequence[np.ndarray],
        labels: np.ndarray,
        masks: MaskStream,
        class_weights: np.ndarray | None = None,
    ) -> Variable:
        """Mean cross-entropy in nats; class weights (classes,) multiply each text's by its class's weight.

        Args:
            texts: ids (length) each. labels: (N), a class for each text.

        The mean is over the texts, not over their weights: a batch without the rare class weighs little.
        """
        logits = self.logits(texts, masks)
        if class_weights is None:
            return F.softmax_cross_entropy(logits, labels)
        chosen = F.log_softmax(logits)[np.arange(len(labels)), labels]
        return -F.mean(chosen * class_weights[labels].astype(logits.dtype))

    def log_probs(
        self,
        texts: Sequence[np.ndarray],
        batch_size: int = 64,
        before_each: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """log P(class) (N, classes), float64, of N texts; no dropout, texts of like length side by side.

        `before_each` is called before each batch, and may leave by an exception.
        """
        result = np.empty((len(texts), len(self.config.classes)))
        by_length = np.argsort([-len(text) for text in texts], kind="stable")
        with no_backprop_mode(), evaluation_mode():
            for start in range(0, len(texts), batch_size):
                before_each()
                chosen = by_length[start : start + batch_size]
                logits = self.logits([texts[k] for k in chosen])
                result[chosen] = log_softmax_array(logits.data.astype(np.float64))
        return result

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says about the classifier beside its weights; `load_classifier` reads it."""
        return {"model": asdict(self.encoder.config), "head": asdict(self.config)}

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name, as a checkpoint holds them."""
        return {f"weights/{name}": parameter.data for name, parameter in self.named_parameters().items()}

    def load_arrays(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `arrays` gave; InputError, naming the file, if it does not fit."""
        for name, parameter in self.named_parameters().items():
            found = arrays.get(f"weights/{name}")
            if found is None or found.shape != parameter.shape:
                raise InputError(f"{path}: must hold {name} of shape {parameter.shape}; it does not")
            parameter.data[...] = found


def load_classifier(path: Path, vocabulary: Vocabulary) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that a checkpoint holds, and the checkpoint's facts.

    Raises:
        InputError: no checkpoint, one of something else, or of another vocabulary.
    """
    arrays, facts = load_checkpoint(path)
    try:
        model = ModelConfig(**_tuples(facts["model"]))
        head = HeadConfig(**_tuples(facts["head"]))
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: is no checkpoint of a classifier; make one: python -m train.classify"
        ) from None
    if facts.get("vocabulary") != vocabulary.fingerprint():
        raise InputError(f"{path}: was made with another vocabulary than the vocabulary.txt beside it")
    classifier = Classifier(LanguageModel(model), head)
    classifier.load_arrays(path, arrays)
    return classifier, facts


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
