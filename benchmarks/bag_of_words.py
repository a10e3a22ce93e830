"""The rival of every text classifier: logistic regression on the words of a text, their order forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

L2 = (1e-5, 1e-4, 1e-3, 1e-2)
"""Strengths that are tried; the validation part chooses."""

Words = Sequence[str]


@dataclass(frozen=True)
class Fit:
    """A fitted bag of words: what the validation part chose, and the chosen classes of the test part."""

    l2: float
    tf_idf: bool
    valid_accuracy: float
    chosen: np.ndarray


def fit_bag_of_words(
    train: Sequence[Words],
    labels: np.ndarray,
    valid: Sequence[Words],
    valid_labels: np.ndarray,
    test: Sequence[Words],
    longest: int = 1,
) -> Fit:
    """Multinomial logistic regression on counts or tf-idf weights, each text of Euclidean length 1.

    Args:
        train, valid, test: texts as words, those of train make the vocabulary.
        labels, valid_labels: int, class numbers.
        longest: runs of up to so many words are features; 1: words alone.
    """
    texts = [[_runs(words, longest) for words in part] for part in (train, valid, test)]
    fits = []
    for tf_idf in (False, True):
        matrices = _features(texts, tf_idf)
        for l2 in L2:
            weights = _logistic_regression(matrices[0], labels, l2)
            right = matrices[1].times(weights).argmax(axis=1) == valid_labels
            fits.append(Fit(l2, tf_idf, float(right.mean()), matrices[2].times(weights).argmax(axis=1)))
    return max(fits, key=lambda fit: fit.valid_accuracy)  # of equal ones the first


def _runs(words: Words, longest: int) -> list[str]:
    return [
        " ".join(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    ]


@dataclass(frozen=True)
class _Sparse:
    """A matrix of texts × features by its elements that are not 0; the last feature is 1 for every text."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def times(self, weights: np.ndarray) -> np.ndarray:
        """(texts, classes) for weights (features, classes)."""
        return self._sums(self.rows, weights[self.columns], self.shape[0])

    def transposed_times(self, errors: np.ndarray) -> np.ndarray:
        """(features, classes) for errors (texts, classes)."""
        return self._sums(self.columns, errors[self.rows], self.shape[1])

    def _sums(self, where: np.ndarray, factors: np.ndarray, length: int) -> np.ndarray:
        products = self.values[:, None] * factors
        return np.stack([np.bincount(where, column, length) for column in products.T], axis=1)


def _features(parts: list[list[list[str]]], tf_idf: bool) -> list[_Sparse]:
    """A matrix for each part; words that train lacks are left out."""
    number = {word: k for k, word in enumerate(sorted(set(itertools.chain(*itertools.chain(parts[0])))))}
    seen = np.bincount([number[word] for words in parts[0] for word in set(words)], minlength=len(number))
    idf = np.log((1 + len(parts[0])) / (1 + seen)) + 1
    return [_matrix(texts, number, idf if tf_idf else None) for texts in parts]


def _matrix(texts: list[list[str]], number: dict[str, int], idf: np.ndarray | None) -> _Sparse:
    size = len(number) + 1
    places = [
        row * size + number[word] for row, words in enumerate(texts) for word in words if word in number
    ]
    places_once, counts = np.unique(np.array(places, np.int64), return_counts=True)
    rows, columns = np.divmod(places_once, size)
    values = counts.astype(float) if idf is None else np.log1p(counts) * idf[columns]
    lengths = np.sqrt(np.bincount(rows, values**2, len(texts)))
    values /= lengths[rows]
    every = np.arange(len(texts))
    return _Sparse(
        np.concatenate([rows, every]),
        np.concatenate([columns, np.full(len(texts), size - 1)]),
        np.concatenate([values, np.ones(len(texts))]),
        (len(texts), size),
    )


def _logistic_regression(
    x: _Sparse, labels: np.ndarray, l2: float, tolerance: float = 1e-4, steps: int = 500
) -> np.ndarray:
    """Weights (features, classes) that minimise mean cross-entropy + ½ l2 ‖W‖², the bias not shrunk.

    Accelerated gradient descent (Nesterov 1983) with the step 1 / L: rows are of length √2, the softmax's
    curvature at most ½, so L = 1 + l2; it ends when no element of the gradient exceeds the tolerance.
    Of two classes the one's weights are the other's negated, from the first step on: half the work.
    """
    classes = int(labels.max()) + 1
    columns = 1 if classes == 2 else classes
    wanted = np.eye(classes)[labels]
    weights = ahead = np.zeros((x.shape[1], columns))
    shrunk = np.ones((x.shape[1], 1))
    shrunk[-1] = 0
    momentum = 1.0
    for _ in range(steps):
        logits = _of_all_classes(x.times(ahead))
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        gradient = x.transposed_times((chances - wanted)[:, -columns:]) / len(labels) + l2 * shrunk * ahead
        if np.abs(gradient).max() < tolerance:
            break
        following = ahead - gradient / (1 + l2)
        momentum, before = (1 + np.sqrt(1 + 4 * momentum**2)) / 2, momentum
        weights, ahead = following, following + (before - 1) / momentum * (following - weights)
    return _of_all_classes(weights)


def _of_all_classes(last: np.ndarray) -> np.ndarray:
    """A column for each class: of two, the second alone is given."""
    return last if last.shape[1] > 1 else np.hstack([-last, last])
