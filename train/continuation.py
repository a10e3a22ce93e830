"""Texts that go on from prompts: many drawn side by side, or searched for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from autograd import evaluation_mode, no_backprop_mode
from autograd.errors import InputError
from minilstm import LanguageModel, detach
from train.beam_search import beam_search
from train.corpus import Vocabulary
from train.sampling import Sampling

ROWS = 8
"""Texts written side by side unless told otherwise: the matrices are read once for all of them."""


MOST_ROWS = 1 << 16
"""More than that the command does not write side by side: a row of the softmax alone is the vocabulary."""


class Piece(NamedTuple):
    """The next words of one of many texts: one when they are drawn, all of them after a search."""

    text: int  # which
    words: list[int]  # ids
    log_prob: float  # of these words together, in nats, by the model itself: before temperature and cuts
    is_last: bool  # of its text


class Text:
    """What one text goes on from, and how far it is."""

    def __init__(self, number: int, prompt: list[int], seed: int, sample: int) -> None:
        self.number = number
        self.unread = deque(prompt)
        self.num_words = 0
        # Keyed by what the text is, not by where it stands: company does not change it. The prompt is in
        # the key so that different prompts do not get the same luck.
        self.rng = np.random.default_rng([seed, sample, len(prompt) - 1, *prompt[1:]])


def generate_many(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompts: list[list[int]],
    num_words: int,
    sampling: Sampling,
    seed: int = 0,
    num_samples: int = 1,
    allow_unk: bool = False,
    until_eos: bool = False,
    batch_size: int = ROWS,
) -> Iterator[Piece]:
    """Texts that go on from many prompts, written side by side.

    A text depends on its prompt, the seed and the number of its sample alone: not on the other prompts, nor
    on its place among them. Its draws are seeded by all three, and the batch has batch_size rows whatever
    there is to write, so that every matrix product is made in the same way. Another batch_size rounds them
    differently (about 1e-7), which can, rarely, turn one word and what follows it.

    Args:
        model, vocabulary, num_words, seed, allow_unk: as in `generate`.
        prompts: each a list of ids; `<eos>` is fed before it.
        sampling: how words are drawn.
        num_samples: texts for each prompt.
        until_eos: a text ends with its first `<eos>`, if that comes before num_words.
        batch_size: texts written at a time.

    Returns:
        an iterator over the words as they are drawn. Those of different texts come mixed, those of one in
        order; text = prompt's index · num_samples + sample's index. A text is begun when one before it ends.

    Raises:
        InputError: num_words, num_samples or batch_size below 1.
    """
    for name, value in (("num_words", num_words), ("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
    texts = (
        Text(index * num_samples + sample, [vocabulary.eos_id, *prompt], seed, sample)
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    )
    barred = None if allow_unk else vocabulary.unk_id
    end = vocabulary.eos_id if until_eos else None
    return _write(model, texts, num_words, sampling, barred, end, batch_size)


def _write(
    model: LanguageModel,
    waiting: Iterator[Text],
    num_words: int,
    sampling: Sampling,
    barred: int | None,
    end: int | None,
    batch_size: int,
) -> Iterator[Piece]:
    """Each step reads one word in every row: the next of the text's prompt, else the last one drawn.

    So rows with prompts of different lengths need no padding, and one that ends makes room for another.
    """
    rows: list[Text | None] = [None] * batch_size
    inputs, state = np.zeros(batch_size, np.int64), model.initial_state(batch_size)
    while True:
        for row, text in enumerate(rows):
            if text is None and (begun := next(waiting, None)):
                rows[row] = begun
                for part in (part for pair in state for part in pair):
                    part[row] = 0
        if not any(rows):
            return
        for row, text in enumerate(rows):
            if text is not None and text.unread:
                inputs[row] = text.unread.popleft()
        drawing = [(row, text) for row, text in enumerate(rows) if text is not None and not text.unread]
        if not drawing:
            state = _read(model, inputs, state)
            continue
        log_probs, state = model.next_log_probs(inputs, state)
        for row, text in drawing:
            allowed = log_probs[row].astype(np.float64)
            if barred is not None:
                allowed[barred] = -np.inf
            word = inputs[row] = sampling.draw(allowed, text.rng)
            text.num_words += 1
            is_last = text.num_words == num_words or word == end
            yield Piece(text.number, [word], float(log_probs[row, word]), is_last)
            if is_last:
                rows[row] = None


def _read(model: LanguageModel, inputs: np.ndarray, state: Any) -> Any:
    """The state after the words `inputs` (B), where nobody asks what follows: no softmax."""
    with no_backprop_mode(), evaluation_mode():
        return detach(model.encode(inputs[None], state)[1])


def search_many(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompts: list[list[int]],
    num_words: int,
    num_beams: int,
    length_penalty: float = 1.0,
    allow_unk: bool = False,
    until_eos: bool = False,
) -> Iterator[Piece]:
    """The best text that `beam_search` finds after each prompt, one prompt after the other.

    Arguments are those of `beam_search` and of `generate_many`; text = prompt's index.
    """
    barred = None if allow_unk else vocabulary.unk_id
    end = vocabulary.eos_id if until_eos else None
    for index, prompt in enumerate(prompts):
        fed = [vocabulary.eos_id, *prompt]
        best = beam_search(model, fed, num_words, num_beams, end, barred, length_penalty)
        yield Piece(index, best.words, best.log_prob, is_last=True)


def in_order(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The first text's pieces as they come, then the second's, …: each as soon as those before it ended."""
    held: dict[int, list[Piece]] = {}
    current = 0
    for piece in pieces:
        held.setdefault(piece.text, []).append(piece)
        while current in held:
            ready = held.pop(current)
            yield from ready
            if not ready[-1].is_last:
                break
            current += 1
