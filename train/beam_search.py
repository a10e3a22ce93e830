"""The likeliest text instead of a drawn one: beam search."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from autograd.errors import InputError
from minilstm import LanguageModel
from minilstm.language_model import State
from train.sampling import check_log_probs, largest

LARGEST_PENALTY = 10.0


class Hypothesis(NamedTuple):
    """A text that beam search has found."""

    words: list[int]
    log_prob: float  # of all its words, in nats
    score: float  # log_prob / len(words)^length_penalty


class _Beams(NamedTuple):
    """The texts that are still growing; rows of the state are theirs, in the same order."""

    words: np.ndarray  # (K, words so far)
    log_probs: np.ndarray  # float64 (K,); -inf: no text yet


def beam_search(
    model: LanguageModel,
    prompt: list[int],
    num_words: int,
    num_beams: int,
    end: int | None = None,
    barred: int | None = None,
    length_penalty: float = 1.0,
) -> Hypothesis:
    """The best text of up to num_words words that a search over num_beams texts at a time finds.

    Each step grows every text by every word and keeps the likeliest num_beams. A text that ends leaves the
    search; it goes on until no growing text can overtake the best ended one, for adding words never makes a
    text likelier. With num_beams at least V^(num_words - 1) nothing is lost, and the best text is found.

    Args:
        model: trained.
        prompt: at least one id, fed in order first.
        num_words: the most words of a text; those that grow to it end there.
        num_beams: K, texts kept at each step; 1 is greedy search.
        end: the id that ends a text and counts as its last word; None: only num_words ends one.
        barred: an id that no text has.
        length_penalty: α of the score log P / length^α, within [0, 10]. 0: the likeliest text, which favours
            short ones; 1: the best mean per word. Without `end` all texts are equally long, and it changes
            nothing.

    Raises:
        InputError: num_words or num_beams below 1, a length_penalty out of its range, or a model that gives
            no word a probability.
    """
    if num_words < 1 or num_beams < 1:
        raise InputError(f"num_words and num_beams must each be at least 1; got {num_words} and {num_beams}")
    check_length_penalty(length_penalty)
    beams = _Beams(np.zeros((num_beams, 0), np.int64), np.full(num_beams, -np.inf))
    beams.log_probs[0] = 0.0  # the prompt; the other rows, which are equal to it, start as no text
    log_probs, state = _feed(model, prompt, num_beams)
    best: Hypothesis | None = None
    for length in range(1, num_words + 1):
        totals = _extended(beams, log_probs, barred)
        if end is not None:
            best = _better(best, *_ended(beams, totals[:, end], end), length_penalty)
            totals[:, end] = -np.inf
        beams, rows = _kept(beams, totals)
        if length == num_words:
            best = _better(best, beams.words[0], beams.log_probs[0], length_penalty)
        # The best that a growing text can come to: all words that it may still get are certain ones.
        elif best is not None and best.score >= beams.log_probs[0] / num_words**length_penalty:
            break
        else:
            state = [(h[rows], c[rows]) for h, c in state]
            log_probs, state = model.next_log_probs(beams.words[:, -1], state)
    assert best is not None  # the last step had a text, or `_extended` would have raised
    return best


def check_length_penalty(value: float) -> None:
    """Raise an InputError unless it is within [0, 10]: far beyond, length^α is no number."""
    if not 0 <= value <= LARGEST_PENALTY:
        raise InputError(f"length_penalty must be within [0, {LARGEST_PENALTY:g}]; got {value}")


def _feed(model: LanguageModel, prompt: list[int], rows: int) -> tuple[Any, State]:
    """log P(next word) (rows, V) and state after the prompt, read once and repeated in equal rows."""
    state = model.initial_state(1)
    for word in prompt:
        log_probs, state = model.next_log_probs(np.array([word]), state)
    return log_probs.repeat(rows, axis=0), [
        (h.repeat(rows, axis=0), c.repeat(rows, axis=0)) for h, c in state
    ]


def _extended(beams: _Beams, log_probs: np.ndarray, barred: int | None) -> np.ndarray:
    """Float64 (K, V): log-probability of every text with every word after it."""
    totals = beams.log_probs[:, None] + log_probs
    if barred is not None:
        totals[:, barred] = -np.inf
    check_log_probs(totals)
    return totals


def _kept(beams: _Beams, totals: np.ndarray) -> tuple[_Beams, np.ndarray]:
    """The likeliest K texts with one word more, and the rows that they grew from."""
    K, V = totals.shape
    chosen = largest(totals.reshape(-1), K)
    rows, words = chosen // V, chosen % V
    grown = np.concatenate([beams.words[rows], words[:, None]], axis=1)
    return _Beams(grown, totals[rows, words]), rows


def _ended(beams: _Beams, totals: np.ndarray, end: int) -> tuple[np.ndarray, float]:
    """Words and log-probability of the likeliest text (of K) that ends here."""
    row = int(totals.argmax())
    return np.append(beams.words[row], end), float(totals[row])


def _better(
    best: Hypothesis | None, words: np.ndarray, log_prob: float, length_penalty: float
) -> Hypothesis | None:
    """The better of two; the earlier one of equals. What is not likely at all is no text."""
    if not log_prob > -np.inf:
        return best
    found = Hypothesis(words.tolist(), float(log_prob), float(log_prob) / len(words) ** length_penalty)
    return found if best is None or found.score > best.score else best
