"""A small language model, trained in some seconds on English that every Python carries: its help topics.

Plain gradient descent with a clipped norm, as one writes it on a first day; `train/` does it properly. No
network and no file; the same Python makes the same model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from autograd import InputError
from minilstm.config import ModelConfig
from minilstm.language_model import LanguageModel, State, detach

EOS, UNK = "<eos>", "<unk>"
MIN_COUNT = 5
BATCH, WINDOW = 20, 20
LEARNING_RATE, CLIP_NORM = 20.0, 0.25
KEEP = 0.95

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[.,;:()?]|\d+")
_TOKEN_OF_READER = re.compile(r"\w+(?:'\w+)*|[^\w\s]")  # loses nothing: what is unknown can be told


def train_first_model(
    units: int = 24,
    layers: int = 2,
    steps: int = 700,
    seed: int = 0,
    layer_norm: bool = False,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[LanguageModel, list[str]]:
    """The model and its words.

    Args:
        units: of each layer and of the embedding.
        steps: updates; each reads 20 rows of 20 words.
        layer_norm: whether its cells normalise their gates and the cell.
        progress: is told the step and its loss in nats.

    Raises:
        InputError: this Python came without its help topics.
    """
    paragraphs = list(_paragraphs())
    counts = Counter(word for paragraph in paragraphs for word in paragraph)
    vocabulary = [EOS, UNK] + [word for word, count in counts.most_common() if count >= MIN_COUNT]
    ids = {word: index for index, word in enumerate(vocabulary)}
    stream = np.array([ids.get(word, ids[UNK]) for words in paragraphs for word in [*words, EOS]])
    model = LanguageModel(_config(len(vocabulary), units, layers, layer_norm), seed)
    windows = _windows(stream)
    state: State | None = None
    for step in range(steps):
        inputs, targets, begins = next(windows)
        model.zero_grads()
        loss, new_state = model(inputs, targets, None if begins else state)
        loss.backward()
        state = detach(new_state)
        gradient = model.flat_gradients
        rate = LEARNING_RATE * (1 - step / steps) * min(1.0, CLIP_NORM / float(np.linalg.norm(gradient)))
        model.flat_parameters -= np.float32(rate) * gradient
        progress(step + 1, loss.item())
    return model, vocabulary


def words_of(text: str) -> list[str]:
    """The words and signs of a reader's text in lower case, as the model was taught to read them."""
    return _TOKEN_OF_READER.findall(text.lower().replace("’", "'"))


def _config(vocab_size: int, units: int, layers: int, layer_norm: bool) -> ModelConfig:
    """A little of every dropout, so that there is one of each to look at."""
    return ModelConfig(
        vocab_size=vocab_size,
        embedding_size=units,
        hidden_size=units,
        num_layers=layers,
        lstm_init="glorot",
        layer_norm=layer_norm,
        encoder_emb_keep_prob=0.9,
        input_weight_keep_prob=KEEP,
        recurrent_weight_keep_prob=KEEP,
        recurrent_keep_prob=KEEP,
        encoder_dp_input_keep_prob=KEEP,
        encoder_last_input_keep_prob=KEEP,
        encoder_last_output_keep_prob=KEEP,
    )


def _paragraphs() -> Iterator[list[str]]:
    """The paragraphs of the help topics that are English sentences and no code."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "anatomy: this Python lacks its help topics (pydoc_data), the text to learn from; "
            "look into a run of your own instead: python -m train.anatomy RUN"
        ) from None
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            words = _TOKEN.findall(paragraph.lower().replace("’", "'"))
            num_alphabetic = sum(word.isalpha() for word in words)
            num_letters, num_signs = len(re.findall(r"[A-Za-z]", paragraph)), len("".join(paragraph.split()))
            is_prose = num_alphabetic >= max(6, 0.75 * len(words)) and num_letters > 0.7 * num_signs
            if is_prose and ">>>" not in paragraph and "::=" not in paragraph:
                yield words


def _windows(stream: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(inputs, targets, whether the text begins anew), over and over, each (WINDOW, BATCH)."""
    length = (len(stream) - 1) // BATCH
    inputs, targets = (stream[start : start + BATCH * length].reshape(BATCH, length).T for start in (0, 1))
    while True:
        for start in range(0, length - WINDOW + 1, WINDOW):
            yield inputs[start : start + WINDOW], targets[start : start + WINDOW], start == 0
