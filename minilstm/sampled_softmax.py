"""The sampled softmax: cross-entropy against some thousands of drawn words instead of against all V.

Words are drawn by a law of frequency, and the log of how often a word is to be expected among them is taken
from its logit (Jean et al. 2015, arXiv 1412.2007, section 3). It is the tied softmax over the drawn words'
rows, each row of h weighed, and computed by the same blocks; a target that was drawn as well (an accidental
hit) stands there once. See docs/lstm_backward.md, equations (65) to (70).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from autograd import Function, InputError, Variable
from autograd.backend import accumulation_dtype, get_array_module
from autograd.functions.embedding import add_rows, as_ids, check_ids
from autograd.kernels import use_kernels
from autograd.mode import is_backprop_enabled
from autograd.variable import as_variable
from minilstm.tied_softmax import ScoredRows, SoftmaxBlocks, check_loss_inputs, row_products

MAX_DRAWS = 1 << 20
"""Draws made at once, so that the memory stays bounded when almost every word is asked for."""


class Sample(NamedTuple):
    """Different words, int64 (S,), rising; and how many draws, repeated ones counted, have found them."""

    ids: Any
    num_tries: int


class LogUniformSampler:
    """Draws words whose ids go by falling frequency: P(k) = log((k+2) / (k+1)) / log(V+1).

    Args:
        vocab_size: V, words to draw from.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._log_range = np.log(vocab_size + 1.0)

    def probability(self, ids: Any) -> Any:
        """P of each id, the probability that one draw gives it; float64, shaped as `ids`."""
        xp = get_array_module(ids)
        return xp.log1p(1 / (ids + xp.float64(1))) / self._log_range  # (65)

    def expected_count(self, ids: Any, num_tries: int) -> Any:
        """Q of each id, the probability that it is among `num_tries` draws; float64, shaped as `ids`."""
        xp = get_array_module(ids)
        with np.errstate(divide="ignore"):  # the only word of a vocabulary: P = 1
            return -xp.expm1(num_tries * xp.log1p(-self.probability(ids)))  # (66)

    def sample(self, num_samples: int, generator: np.random.Generator) -> Sample:
        """Draw until `num_samples` different words are found: always the same ones from an equal generator.

        Raises:
            InputError: fewer than one sample, or more than there are words.
        """
        if not 1 <= num_samples <= self.vocab_size:
            raise InputError(
                f"sampled softmax: num_samples must be in [1, {self.vocab_size}], the number of words; "
                f"got {num_samples}; lower num_samples, or take softmax 'full'"
            )
        drawn = np.zeros(self.vocab_size, bool)
        missing, num_tries, count = num_samples, 0, num_samples
        while True:
            count = min(2 * count, MAX_DRAWS)  # rare words need ever more draws
            draws = self._draw(count, generator)
            new = _first_places(draws, drawn)[:missing]
            drawn[draws[new]] = True
            missing -= len(new)
            if missing == 0:
                return Sample(np.flatnonzero(drawn), num_tries + int(new[-1]) + 1)
            num_tries += len(draws)

    def _draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Independent draws, repetitions included, by the inverse of P's sum, log(k+2) / log(V+1)."""
        words = np.exp(generator.random(count) * self._log_range).astype(np.int64) - 1
        return np.minimum(words, self.vocab_size - 1, out=words)  # exp may round up to V + 1


def _first_places(draws: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Where in `draws` a word comes for the first time that was not `drawn` (V, bool) before; rising."""
    places = np.flatnonzero(~drawn[draws])
    _, first = np.unique(draws[places], return_index=True)
    return np.sort(places[first])


def check_sorted_by_frequency(counts: Any) -> None:
    """Refuse a vocabulary whose ids do not go by falling frequency.

    The log-uniform sampler takes it so, and so do the bands of the adaptive softmax.

    Args:
        counts: (V), how often each word stands in the training text, by id.

    Raises:
        InputError: a word is more frequent than the one before it.
    """
    rising = np.flatnonzero(counts[1:] > counts[:-1])
    if len(rising):
        word = int(rising[0])
        raise InputError(
            "sampled and adaptive softmax: word ids must go by falling frequency; "
            f"word {word} stands {counts[word]} times, word {word + 1} {counts[word + 1]} times; "
            "prepare the text with train.prepare, or take softmax 'full'"
        )


class SampledSoftmaxLoss(Function):
    """Cross-entropy of each target among drawn words: see `sampled_softmax_loss`."""

    is_sum = True

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def forward(self, h, W, b, targets):
        check_loss_inputs(self.label, h, W, b, targets)
        check_sample(self.label, self.sample, len(W))
        xp, scored = get_array_module(h), ScoredRows(targets)
        h, targets = scored.pick(h), scored.pick(targets)
        ids, tries = xp.asarray(self.sample.ids), self.sample.num_tries
        blocks = SoftmaxBlocks(h, W[ids], corrected_bias(b, ids, tries))
        sums = blocks.sums_of_exp(keep=is_backprop_enabled())
        target_rows = W[targets]
        d = xp.log(sums) - row_products(h, target_rows) - corrected_bias(b, targets, tries)
        if blocks.shift is not None:
            d += blocks.shift
        hit = xp.isin(targets, ids)
        losses = xp.where(hit, d, xp.logaddexp(0, d))  # (68)
        slope = xp.where(hit, 1, xp.exp(d - losses)).astype(sums.dtype)  # (69)
        self.save(blocks, sums, slope, ids, targets, target_rows, scored)
        return scored.mean(losses.astype(sums.dtype, copy=False))

    def backward(self, dloss):
        blocks, sums, slope, ids, targets, target_rows, scored = self.saved
        xp, h = get_array_module(sums), blocks.h
        drawn_dW, drawn_db = (xp.empty(array.shape, blocks.dtype) for array in (blocks.W, blocks.b))
        drawn, scale = ((drawn_dW, True), (drawn_db, True)), dloss / scored.count
        if h.dtype == "float16":
            dh = blocks.half_gradients(sums, scale, *drawn, weights=slope)
        slope = slope * scale
        if h.dtype != "float16":
            dh, *_ = blocks.gradients(slope / sums, *drawn)
        dh -= slope[:, None] * target_rows  # (70)
        dW = self._scatter(1, ids, drawn_dW, targets, h * -slope[:, None])
        db = self._scatter(2, ids, drawn_db, targets, -slope)
        return scored.spread(dh.astype(h.dtype, copy=False)), dW, db, None

    def _scatter(self, index: int, ids: Any, drawn: Any, targets: Any, of_targets: Any) -> Any:
        """The gradient of the matrix or of the bias: only the rows of drawn words and targets are not 0."""
        if not self.needs_grad(index):
            return None
        target, unwritten = self.grad_target(index, like=self.saved[0].h)
        if unwritten:
            target[...] = 0
        target[ids] += drawn  # each id stands once
        add_rows(target, targets, of_targets)
        return target


def corrected_bias(b: Any, ids: Any, num_tries: Any) -> Any:
    """(len(ids)): the bias of these words, less the log of their expected counts; float32 of a float16 bias.

    Args:
        b: (V). ids: integers in [0, V).
        num_tries: a number, or an array of one.
    """
    counts = LogUniformSampler(len(b)).expected_count(ids, num_tries)
    return b[ids] - get_array_module(b).log(counts).astype(accumulation_dtype(b.dtype))  # (67)


def check_sample(name: str, sample: Sample, vocab_size: int) -> None:
    """Raise in the words of the caller, `name`, unless it is a sample of these words; a GPU's is not read."""
    ids, num_tries = sample
    if get_array_module(ids) is not np:
        return
    check_ids(f"{name}: sampled ids", ids, vocab_size)
    if not 0 < len(np.unique(ids)) == len(ids) <= num_tries:
        raise InputError(
            f"{name}: sampled ids must be different words, at least one and at most one a try; "
            f"got {len(ids)} ids, {len(np.unique(ids))} different, in {num_tries} tries"
        )


def sampled_softmax_loss(h: Any, W: Any, b: Any, targets: Any, sample: Sample) -> Variable:
    """Mean cross-entropy of each target among itself and the sampled words, log Q taken from each logit.

    Its memory is blocks of (N, num_samples) and the drawn rows of W; W's gradient is written in place.
    A loss to train with: the perplexity of a text is that of the full softmax, `tied_softmax_loss`.

    Args:
        h: (N, E), outputs of the last layer.
        W: (V, E), the decoder's weight, words by falling frequency.
        b: (V), the decoder's bias.
        targets: (N) integers, each in [0, V), or -1 for a row that is not scored.
        sample: words that `LogUniformSampler(V).sample` has drawn, the same for all rows.

    Returns:
        The mean over the scored rows, in nats; 0 if there are none.

    Raises:
        ShapeError, DtypeError, InputError: sizes that do not fit, targets or samples that are no ids or out
            of range, a sample that holds a word twice.
    """
    targets = as_ids("sampled_softmax_loss: targets", targets)
    if use_kernels(as_variable(W).data):
        from minilstm.sampled_softmax_cuda import KernelSampledSoftmaxLoss  # which is built on this module

        return KernelSampledSoftmaxLoss(sample).apply(h, W, b, targets)
    return SampledSoftmaxLoss(sample).apply(h, W, b, targets)
