"""From a distribution over the next word to one word: temperature, top-k, top-p, or the likeliest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autograd.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How a word is drawn; the cuts act in this order, each on what the one before has left.

    Args:
        temperature: log-probabilities are divided by it; 0 takes the likeliest word each time (greedy).
        top_k: only the k likeliest words can be drawn (Fan et al. 2018); 0: all of them.
        top_p: only the nucleus can be drawn, the fewest likeliest words that together have at least this
            probability (Holtzman et al. 2020); 1: all words.

    Raises:
        InputError: a temperature below 0, a top_k below 0, a top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a number of at least 0; got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 1, or 0 for all words; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be a probability in (0, 1]; got {self.top_p}")

    def draw(self, log_probs: np.ndarray, rng: np.random.Generator) -> int:
        """One word id after log-probabilities (V,); -inf bars a word. The greedy draw leaves `rng` as it is.

        Raises:
            InputError: no word can be drawn: none has a probability, or all are barred.
        """
        check_log_probs(log_probs)
        if self.temperature == 0:
            return int(log_probs.argmax())
        # Gumbel's trick: the largest of log-weight + noise is a draw from the weights' distribution.
        return int((self.log_weights(log_probs) + rng.gumbel(size=log_probs.shape)).argmax())

    def log_weights(self, log_probs: np.ndarray) -> np.ndarray:
        """Float64 (V,): what words are drawn in proportion to the exponential of; -inf for those cut off."""
        weights = log_probs.astype(np.float64)
        weights -= weights.max()  # first, so that no temperature makes the likeliest word's overflow
        with np.errstate(over="ignore"):  # to -inf: beside a weight of 1, this one is 0
            weights /= self.temperature
        if 0 < self.top_k < len(weights):
            weights = _only(weights, largest(weights, self.top_k))
        return weights if self.top_p == 1 else _only(weights, nucleus(weights, self.top_p))


def check_log_probs(log_probs: np.ndarray) -> None:
    """Raise an InputError unless all of `log_probs` (V) are numbers and one at least is above -inf."""
    highest = log_probs.max()
    if not highest > -np.inf:  # so is a maximum that is not a number
        raise InputError(
            f"the model must give some word a probability; the highest log-probability is {highest}: "
            "its weights are damaged or diverged, use another checkpoint"
        )


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Indices (k) of the k largest of `values` (V), largest first; of equal ones those that stand first."""
    if k < len(values):
        least = np.partition(values, -k)[-k]
        above = np.flatnonzero(values > least)
        equal = np.flatnonzero(values == least)[: k - len(above)]
        kept = np.sort(np.concatenate([above, equal]))
    else:
        kept = np.arange(len(values))
    return kept[np.argsort(-values[kept], kind="stable")]


def nucleus(log_weights: np.ndarray, p: float) -> np.ndarray:
    """Indices of the fewest largest of exp(log_weights (V)) with at least `p` of their sum, largest first."""
    weights = np.exp(log_weights - log_weights.max())
    needed = p * weights.sum()
    # All words below the mean of what may be missing weigh less than that together: the nucleus has none of
    # them, and the rest is quick to sort.
    candidates = np.flatnonzero(weights >= (1 - p) * weights.sum() / len(weights))
    candidates = candidates[np.argsort(-weights[candidates], kind="stable")]
    size = int(np.searchsorted(np.cumsum(weights[candidates]), needed)) + 1
    return candidates[:size]


def _only(log_weights: np.ndarray, kept: np.ndarray) -> np.ndarray:
    cut = np.full_like(log_weights, -np.inf)
    cut[kept] = log_weights[kept]
    return cut
