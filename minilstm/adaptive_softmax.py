"""The adaptive softmax: frequent words in a head, the others in bands, whose words are scored only if needed.

Grave et al. 2017 (arXiv 1609.04309), tied as in AWD-LSTM's split cross-entropy: every word keeps its row of
the one matrix W and its bias, and each band has a vector and a bias of its own in the head. Head and bands
are each computed by the blocks of the tied softmax. See docs/lstm_backward.md, equations (71) to (73).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd import Function, ShapeError, Variable
from autograd.backend import accumulation_dtype, get_array_module
from autograd.functions.embedding import as_ids
from autograd.functions.loss import log_softmax_array
from autograd.mode import no_backprop_mode
from minilstm.config import check_bands
from minilstm.tied_softmax import (
    CrossEntropy,
    ScoredRows,
    all_logits,
    assign_or_add,
    check_decoder,
    check_loss_inputs,
)


def _band_words(bands: Sequence[int], vocab_size: int) -> list[slice]:
    """The words of each band."""
    return [slice(low, high) for low, high in zip(bands, (*bands[1:], vocab_size), strict=True)]


def _head(W: Any, band_W: Any, bands: Sequence[int]) -> Any:
    """The head's matrix, or its bias: the frequent words' rows, then the bands' own."""
    return get_array_module(W).concatenate([W[: bands[0]], band_W])


class AdaptiveSoftmaxLoss(Function):
    is_sum = True

    def __init__(self, bands: Sequence[int]) -> None:
        self.bands = tuple(bands)

    def forward(self, h, W, b, band_W, band_b, targets):
        check_loss_inputs(self.label, h, W, b, targets)
        _check_bands_fit(self.label, W, band_W, band_b, self.bands)
        scored = ScoredRows(targets)
        rows = _AdaptiveCrossEntropy(scored.pick(h), W, b, band_W, band_b, scored.pick(targets), self.bands)
        self.save(rows, scored)
        return scored.mean(rows.losses)

    def backward(self, dloss):
        rows, scored = self.saved
        frequent, blocks = slice(0, self.bands[0]), rows.head.blocks
        dhead_W, dhead_b = (get_array_module(array).empty_like(array) for array in (blocks.W, blocks.b))
        scale = dloss / scored.count
        dh = rows.head.gradients(scale, (dhead_W, True), (dhead_b, True))
        dW, db = (self.grad_target(index, like=dhead_W) for index in (1, 2))
        assign_or_add(dW, frequent, dhead_W[frequent])
        assign_or_add(db, frequent, dhead_b[frequent])
        for words, where, tail in rows.tails:
            dh[where] += tail.gradients(scale, (dW[0][words], dW[1]), (db[0][words], db[1]))  # (73)
        dh = scored.spread(dh.astype(dhead_W.dtype, copy=False))
        return dh, dW[0], db[0], dhead_W[frequent.stop :], dhead_b[frequent.stop :], None


class _AdaptiveCrossEntropy:
    """-log P(target) of each row: the head's cross-entropy, and for rows of a band that band's.

    Attributes:
        losses: (N), in nats.
        head: of all rows. tails: (words, which rows, their cross-entropy) of every band.
    """

    def __init__(
        self, h: Any, W: Any, b: Any, band_W: Any, band_b: Any, targets: Any, bands: Sequence[int]
    ) -> None:
        xp = get_array_module(h)
        in_band = xp.searchsorted(xp.asarray(bands), targets, side="right") - 1  # -1: in the head
        head_targets = xp.where(in_band < 0, targets, bands[0] + in_band)
        self.head = CrossEntropy(h, _head(W, band_W, bands), _head(b, band_b, bands), head_targets)
        self.losses, self.tails = self.head.losses.copy(), []
        for k, words in enumerate(_band_words(bands, len(W))):
            where = xp.flatnonzero(in_band == k)
            tail = CrossEntropy(h[where], W[words], b[words], targets[where] - words.start)
            self.losses[where] += tail.losses  # (72)
            self.tails.append((words, where, tail))


def _check_bands_fit(name: str, W: Any, band_W: Any, band_b: Any, bands: Sequence[int]) -> None:
    """Raise in the words of the caller, `name`, unless the bands and what belongs to them fit W."""
    (V, E), K = W.shape, len(bands)
    check_bands(bands, V, f"{name}: bands")
    for what, array, shape in (("band_W", band_W, (K, E)), ("band_b", band_b, (K,))):
        if array.shape != shape:
            raise ShapeError(
                f"{name}: {what} must be {shape} because W is {W.shape} and there are {K} bands; "
                f"got {array.shape}"
            )


def adaptive_softmax_loss(
    h: Any, W: Any, b: Any, band_W: Any, band_b: Any, targets: Any, bands: Sequence[int]
) -> Variable:
    """Mean negative log-likelihood of the targets under the adaptive softmax.

    Rows meet the words of the head, and those of the band that their target is in; no other product is made,
    and never are more logits held than some blocks. It is a distribution over all V words, so what it gives
    is a perplexity.

    Args:
        h: (N, E), outputs of the last layer.
        W: (V, E), the decoder's weight, words by falling frequency. b: (V), its bias.
        band_W: (K, E), the vector of each band. band_b: (K), its bias.
        targets: (N) integers, each in [0, V), or -1 for a row that is not scored.
        bands: the first word of each of the K bands, rising.

    Returns:
        The mean over the scored rows, in nats; 0 if there are none.

    Raises:
        ShapeError, DtypeError, InputError: sizes or bands that do not fit, targets that are no ids or out of
            range.
    """
    ids = as_ids("adaptive_softmax_loss: targets", targets)
    return AdaptiveSoftmaxLoss(bands).apply(h, W, b, band_W, band_b, ids)


def adaptive_token_losses(
    h: Any, W: Any, b: Any, band_W: Any, band_b: Any, targets: Any, bands: Sequence[int]
) -> Any:
    """-log P(target) (N) in nats, token by token, for arrays as in `adaptive_softmax_loss`; no gradients.

    Raises:
        ShapeError, InputError: sizes or bands that do not fit, targets out of range.
    """
    check_loss_inputs("adaptive_token_losses", h, W, b, targets, lowest=0)
    _check_bands_fit("adaptive_token_losses", W, band_W, band_b, bands)
    with no_backprop_mode():
        return _AdaptiveCrossEntropy(h, W, b, band_W, band_b, targets, bands).losses


def adaptive_log_probs(h: Any, W: Any, b: Any, band_W: Any, band_b: Any, bands: Sequence[int]) -> Any:
    """log P (N, V) in nats of every word after every row of h, for arrays as in `adaptive_softmax_loss`.

    Raises:
        ShapeError, InputError: sizes or bands that do not fit.
    """
    check_decoder("adaptive_log_probs", h, W, b)
    _check_bands_fit("adaptive_log_probs", W, band_W, band_b, bands)
    log_probs = get_array_module(h).empty((len(h), len(W)), accumulation_dtype(h.dtype))
    head = log_softmax_array(all_logits(h, _head(W, band_W, bands), _head(b, band_b, bands)))
    log_probs[:, : bands[0]] = head[:, : bands[0]]
    for k, words in enumerate(_band_words(bands, len(W))):  # (71)
        in_band = log_softmax_array(all_logits(h, W[words], b[words]))
        log_probs[:, words] = in_band + head[:, bands[0] + k, None]
    return log_probs
