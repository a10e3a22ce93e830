"""Languages whose entropy is known: a hidden Markov source, and the exact probability of what it says."""

from __future__ import annotations

from bisect import bisect
from pathlib import Path

import numpy as np


class HiddenMarkovSource:
    """Hidden states follow one another by chance; each says one symbol, by chance. Whoever hears the symbols
    alone cannot be expected to forecast them better than `log_probabilities` does.

    Args:
        transitions: (S, S), P(next state | state), rows sum to 1; every state reaches every other.
        emissions: (S, K), P(symbol | state), rows sum to 1. Symbol 0 ends a line.
    """

    def __init__(self, transitions: np.ndarray, emissions: np.ndarray) -> None:
        self.transitions, self.emissions = transitions, emissions
        self.num_symbols = emissions.shape[1]
        self.stationary = np.full(len(transitions), 1 / len(transitions))
        for _ in range(10_000):
            self.stationary = self.stationary @ transitions

    def sample(self, length: int, seed: int) -> np.ndarray:
        """Symbols that follow after the end of a line, (length); the last one ends a line too."""
        rng = np.random.default_rng(seed)
        next_state, says = _Chances(self.transitions), _Chances(self.emissions)
        state = _Chances(self._after(self.stationary, 0)[None]).pick(0, rng.random())
        symbols: list[int] = []
        while len(symbols) < length or symbols[-1] != 0:
            for state_chance, symbol_chance in rng.random((1000, 2)).tolist():
                symbols.append(says.pick(state, symbol_chance))
                state = next_state.pick(state, state_chance)
                if len(symbols) >= length and symbols[-1] == 0:
                    break
        return np.array(symbols)

    def _after(self, belief: np.ndarray, symbol: int) -> np.ndarray:
        """P(next state | all symbols) from P(state | all symbols before this one): one forward step."""
        joint = belief * self.emissions[:, symbol]
        return joint @ self.transitions / joint.sum()

    def log_probabilities(self, symbols: np.ndarray) -> np.ndarray:
        """log P(symbol | the end of a line and all symbols before it), exact, by the forward algorithm."""
        belief = self._after(self.stationary, 0)
        result = np.empty(len(symbols))
        for place, symbol in enumerate(symbols):
            result[place] = np.log(belief @ self.emissions[:, symbol])
            belief = self._after(belief, symbol)
        return result

    def perplexity(self, symbols: np.ndarray) -> float:
        """The lowest that a model of these symbols can be expected to reach, however large it is."""
        return float(np.exp(-self.log_probabilities(symbols).mean()))

    def ngram_perplexity(self, symbols: np.ndarray, n: int) -> float:
        """The lowest for a model that sees the n - 1 symbols before each one, and no more."""
        # (K, ..., K, S): the joint probability of n - 1 symbols and the state that follows them
        joint = self.stationary
        for _ in range(n - 1):
            joint = np.einsum("...s,sk,st->...kt", joint, self.emissions, self.transitions)
        context = np.maximum(joint.sum(axis=-1, keepdims=True), np.finfo(float).tiny)  # some are impossible
        conditional = joint @ self.emissions / context
        windows = tuple(symbols[k : len(symbols) - n + 1 + k] for k in range(n))
        return float(np.exp(-np.log(conditional[windows]).mean()))

    def write_text(self, path: Path, symbols: np.ndarray) -> None:
        """One word a symbol, a line for each end of a line."""
        words = ["\n"] + [f"w{symbol}" for symbol in range(1, self.num_symbols)]
        path.write_text(" ".join(words[symbol] for symbol in symbols), encoding="utf-8")


class _Chances:
    """Rows of probabilities, to pick from; plain lists, for single numbers are slow in NumPy."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.sums = probabilities.cumsum(axis=1).tolist()

    def pick(self, row: int, number: float) -> int:
        """The place in a row that a random number in [0, 1) falls on."""
        return min(bisect(self.sums[row], number), len(self.sums[row]) - 1)


def topics(num_topics: int = 4, own: int = 3, stay: float = 0.98, odds: float = 6.0) -> HiddenMarkovSource:
    """Talk that stays on one topic for long: a topic's own symbols are `odds` times as likely as the others.

    One symbol says little about the topic; who forecasts well has summed up the evidence of some dozens.
    """
    emissions = np.ones((num_topics, 1 + num_topics * own))
    for topic in range(num_topics):
        emissions[topic, 1 + topic * own : 1 + (topic + 1) * own] = odds
    emissions[:, 0] = 0.07 * emissions[:, 1:].sum(axis=1)
    transitions = np.full((num_topics, num_topics), (1 - stay) / (num_topics - 1))
    np.fill_diagonal(transitions, stay)
    return HiddenMarkovSource(transitions, emissions / emissions.sum(axis=1, keepdims=True))


def brackets(kinds: int = 3, inner: int = 4, stay: float = 0.6) -> HiddenMarkovSource:
    """Lines of an opening bracket, one inner symbol or more, and the closing bracket of the same kind.

    Nothing between them says which it was: who closes well has kept one symbol over all the others.
    """
    end, opened, inside, closed = 0, *(1 + np.arange(kinds) + k * kinds for k in range(3))
    transitions, emissions = np.zeros((1 + 3 * kinds,) * 2), np.zeros((1 + 3 * kinds, 1 + 2 * kinds + inner))
    transitions[end, opened] = 1 / kinds
    transitions[opened, inside] = 1
    transitions[inside, inside] = stay
    transitions[inside, closed] = 1 - stay
    transitions[closed, end] = 1
    emissions[end, 0] = 1
    emissions[opened, 1 + np.arange(kinds)] = 1
    emissions[inside, 1 + kinds : 1 + kinds + inner] = 1 / inner
    emissions[closed, 1 + kinds + inner + np.arange(kinds)] = 1
    return HiddenMarkovSource(transitions, emissions)
