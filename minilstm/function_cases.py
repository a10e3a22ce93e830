"""Calls of every Function of the model, as autograd/function_cases.py has them for the engine's own."""

# One loop runs over shapes of many lengths and Functions of many kinds, which mypy takes for mistakes.
# mypy: disable-error-code="arg-type, assignment, operator"

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from autograd import Function
from autograd.function_cases import Case, ids, normal
from minilstm.adaptive_softmax import AdaptiveSoftmaxLoss, adaptive_softmax_loss
from minilstm.layer_norm_lstm import LayerNormLSTM, layer_norm_lstm
from minilstm.lstm import LSTM, lstm
from minilstm.regularization import (
    ActivationRegularization,
    TemporalActivationRegularization,
    activation_regularization,
    temporal_activation_regularization,
)
from minilstm.sampled_softmax import Sample, SampledSoftmaxLoss, sampled_softmax_loss
from minilstm.sampled_softmax_cuda import KernelSampledSoftmaxLoss
from minilstm.tied_softmax import TiedSoftmaxLoss, tied_softmax_loss
from minilstm.tied_softmax_cuda import KernelTiedSoftmaxLoss

SAMPLE = Sample(np.array([0, 3, 6]), 9)
SAFE_NO_MORE = 60.0
"""Times h, it makes logits whose exponentials overflow unless each row's maximum is taken from them."""


def tied_losses() -> Iterator[Case]:
    """With blocks narrower and wider than the vocabulary, rows that are not scored, and a shift."""
    large = [normal(4, 3) * SAFE_NO_MORE, normal(5, 3), normal(5), ids(5, 4)]
    yield Case(TiedSoftmaxLoss, functools.partial(tied_softmax_loss, block_size=2), large)
    for targets in (np.array([1, -1, 0, 4]), np.full(4, -1)):
        yield Case(TiedSoftmaxLoss, tied_softmax_loss, [normal(4, 3), normal(5, 3), normal(5), targets])
    for (n, e, v), block_size in itertools.product(((4, 3, 7), (1, 1, 2), (0, 3, 5), (3, 1, 2)), (2, 512)):
        blocks = functools.partial(tied_softmax_loss, block_size=block_size)
        yield Case(TiedSoftmaxLoss, blocks, [normal(n, e), normal(v, e, seed=1), normal(v), ids(v, n)])


def sampled_examples() -> Iterator[tuple[Sample, list[np.ndarray]]]:
    """With no, some and all targets among the drawn words, rows that are not scored, and a shift."""
    yield SAMPLE, [normal(4, 3) * SAFE_NO_MORE, normal(7, 3, seed=1), normal(7), ids(7, 4)]
    for (n, e, v), drawn in (
        ((4, 3, 7), [5]), ((4, 3, 7), [0, 3, 6]), ((1, 1, 2), [0, 1]), ((0, 3, 5), [1, 2]),
        ((3, 2, 4), range(4)),
    ):  # fmt: skip
        sample, arrays = Sample(np.array(drawn), 9), [normal(n, e), normal(v, e, seed=1), normal(v)]
        for targets in (ids(v, n), np.where(np.arange(n) % 2, -1, 0), np.full(n, -1)):
            yield sample, [*arrays, targets]


def sampled_losses() -> Iterator[Case]:
    """The sampled softmax loss on several samples."""
    for sample, arrays in sampled_examples():
        yield Case(SampledSoftmaxLoss, functools.partial(sampled_softmax_loss, sample=sample), arrays)


def losses_by_kernels() -> Iterator[Case]:
    """The same cases for the Functions of a GPU, on the NumPy twins of their kernels."""
    for case in tied_losses():
        yield Case(KernelTiedSoftmaxLoss, lambda *x: KernelTiedSoftmaxLoss().apply(*x), case.inputs)
    for sample, arrays in sampled_examples():
        loss = lambda *x, sample=sample: KernelSampledSoftmaxLoss(sample).apply(*x)  # noqa: E731
        yield Case(KernelSampledSoftmaxLoss, loss, arrays)


def adaptive_losses() -> Iterator[Case]:
    """Targets in every part, in the head alone, in one band alone, rows not scored, and a shift."""
    shapes = ((4, 4), (9, 4), (9,), (2, 4), (2,))
    large = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    large[0] *= SAFE_NO_MORE
    loss = functools.partial(adaptive_softmax_loss, bands=(3, 5))
    yield Case(AdaptiveSoftmaxLoss, loss, [*large, np.array([0, 6, 3, 8])])
    for bands, targets in (
        ((3, 5), [0, 6, 3, 4, 8, 2]), ((3, 5), [0, 2]), ((3, 5, 8), [6, 5]), ((1,), [8]),
        ((3, 5), [-1, 6, -1, 0]), ((3, 5), [-1, -1]), ((3, 5), []),
    ):  # fmt: skip
        loss = functools.partial(adaptive_softmax_loss, bands=bands)
        shapes = ((len(targets), 4), (9, 4), (9,), (len(bands), 4), (len(bands),))
        arrays = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
        yield Case(AdaptiveSoftmaxLoss, loss, [*arrays, np.array(targets, int)])


def regularizers() -> Iterator[Case]:
    """AR and TAR, of one step and of many."""
    for shape in ((1,), (4, 3), (4, 2, 3), (1, 2, 3), (2, 1, 1), (5, 0, 3)):
        penalty = functools.partial(activation_regularization, alpha=0.7)
        yield Case(ActivationRegularization, penalty, [normal(*shape)])
        penalty = functools.partial(temporal_activation_regularization, beta=0.7)
        yield Case(TemporalActivationRegularization, penalty, [normal(*shape)])


def lstms() -> Iterator[Case]:
    """Both cells over sizes of none, one and more, with the candidate masked and not."""
    for T, B, inputs, H in ((1, 1, 1, 1), (3, 2, 4, 5), (4, 1, 2, 3), (2, 0, 3, 2)):
        shapes = [(T, B, inputs), (B, H), (B, H), (4 * H, inputs), (4 * H, H)]
        for kind, function, vectors in (
            (LSTM, lstm, [(4 * H,)]),
            (LayerNormLSTM, layer_norm_lstm, [(4 * H,), (4 * H,), (H,), (H,)]),
        ):
            arrays = [normal(*shape, seed=k) for k, shape in enumerate(shapes + vectors)]
            yield Case(kind, function, arrays)
            yield Case(kind, functools.partial(with_candidates_dropped, function), arrays)


def with_candidates_dropped(function: Callable[..., Any], x: Any, h0: Any, *rest: Any) -> Any:
    """A cell's function with a mask (T, B, H) of the candidate."""
    mask = np.random.default_rng(0).integers(0, 3, (*x.shape[:2], h0.shape[1])) * 0.75
    return function(x, h0, *rest, candidate_mask=mask.astype(x.dtype))


CASES = [
    *tied_losses(),
    *sampled_losses(),
    *losses_by_kernels(),
    *adaptive_losses(),
    *regularizers(),
    *lstms(),
]
PLOTTED: list[type[Function]] = [LSTM, LayerNormLSTM, TiedSoftmaxLoss]
