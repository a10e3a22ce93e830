"""The adaptive softmax: frequent words in a head, the others in bands, whose words are scored only if needed.

Grave et al. 2017 (arXiv 1609.04309), tied as in AWD-LSTM's split cross-entropy: every word keeps its row of
the one matrix W and its bias, and each band has a vector and a bias of its own, which stand in the head as if
the band were one more word. With bands = (c_1, ..., c_K), the first word of each, and c_{K+1} = V,

    log P(v) = head(v)                  v < c_1,              head = log softmax over c_1 words and K bands
    log P(v) = head(band k) + tail_k(v) c_k <= v < c_{k+1},   tail_k = log softmax over the band's own words

which is a distribution over all V words. A row's loss is the head's cross-entropy, of its word or of its
band, plus, where it is a band, that band's: each softmax has its own rows, and each is computed by the blocks
of the tied softmax. The head has all N rows but few words, a band many words but few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd import Function, InputError, ShapeError, Variable
from autograd.backend import get_array_module
from autograd.functions.embedding import add_rows, as_ids, check_ids
from autograd.functions.loss import IGNORE, log_softmax_array
from autograd.mode import is_backprop_enabled
from minilstm.tied_softmax import _assign_or_add, _Blocks


def check_bands(bands: Sequence[int], vocab_size: int) -> None:
    """Refuse bands that do not cut the vocabulary into a head and at least one band, none of them empty.

    Args:
        bands: the first word of each band, rising.
        vocab_size: V.

    Raises:
        InputError: they are not of that kind.
    """
    whole = all(isinstance(first, int) and not isinstance(first, bool) for first in bands)
    bounds = [0, *bands, vocab_size]
    if not bands or not whole or any(low >= high for low, high in zip(bounds[:-1], bounds[1:], strict=True)):
        raise InputError(
            "adaptive softmax: bands must be whole numbers, the first word of each band, rising, above 0 and "
            f"below the {vocab_size} words of the vocabulary; got {list(bands)}"
        )


def _band_words(bands: Sequence[int], vocab_size: int) -> list[slice]:
    """The words of each band."""
    return [slice(low, high) for low, high in zip(bands, (*bands[1:], vocab_size), strict=True)]


def _head(W: Any, band_W: Any, bands: Sequence[int]) -> Any:
    """The head's matrix, or its bias: the frequent words' rows, then the bands' own."""
    return get_array_module(W).concatenate([W[: bands[0]], band_W])


class AdaptiveSoftmaxLoss(Function):
    def __init__(self, bands: Sequence[int]) -> None:
        self.bands = tuple(bands)

    def forward(self, h, W, b, band_W, band_b, targets):
        _check_shapes(self.label, h, W, b, band_W, band_b, self.bands)
        self.check_shape("targets", targets.shape, h.shape[:1], f"h is {h.shape}")
        check_ids(f"{self.label}: targets", targets, len(W), lowest=IGNORE)
        xp = get_array_module(h)
        scored = xp.flatnonzero(targets != IGNORE)
        if scored.size < targets.size:
            h, targets = h[scored], targets[scored]
        in_band = xp.searchsorted(xp.asarray(self.bands), targets, side="right") - 1  # -1: in the head
        head_targets = xp.where(in_band < 0, targets, self.bands[0] + in_band)
        head = _CrossEntropy(h, _head(W, band_W, self.bands), _head(b, band_b, self.bands), head_targets)
        losses, tails = head.losses, []
        for k, words in enumerate(_band_words(self.bands, len(W))):
            rows = xp.flatnonzero(in_band == k)
            tail = _CrossEntropy(h[rows], W[words], b[words], targets[rows] - words.start)
            losses[rows] += tail.losses
            tails.append((words, rows, tail))
        self.save(head, tails, scored)
        return xp.asarray(losses.sum(dtype="float64") / max(scored.size, 1), h.dtype)

    def backward(self, dloss):
        head, tails, scored = self.saved
        blocks, xp, frequent = head.blocks, get_array_module(dloss), slice(0, self.bands[0])
        scale = dloss / max(scored.size, 1)
        dhead_W, dhead_b = xp.empty_like(blocks.W), xp.empty_like(blocks.b)
        dh = head.gradients(scale, (dhead_W, True), (dhead_b, True))
        dW, db = (self.grad_target(index, like=dhead_W) for index in (1, 2))
        _assign_or_add(dW, frequent, dhead_W[frequent])
        _assign_or_add(db, frequent, dhead_b[frequent])
        for words, rows, tail in tails:
            dh[rows] += tail.gradients(scale, (dW[0][words], dW[1]), (db[0][words], db[1]))
        if scored.size < self.inputs[5].shape[0]:
            full = xp.zeros(self.inputs[0].shape, dh.dtype)
            full[scored] = dh
            dh = full
        return dh, dW[0], db[0], dhead_W[frequent.stop :], dhead_b[frequent.stop :], None


def _check_shapes(name: str, h: Any, W: Any, b: Any, band_W: Any, band_b: Any, bands: Sequence[int]) -> None:
    if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1]:
        raise ShapeError(f"{name}: h must be (N, E) and W (V, E); got {h.shape} and {W.shape}")
    (V, E), K = W.shape, len(bands)
    check_bands(bands, V)
    for what, array, shape in (("b", b, (V,)), ("band_W", band_W, (K, E)), ("band_b", band_b, (K,))):
        if array.shape != shape:
            raise ShapeError(
                f"{name}: {what} must be {shape} because W is {W.shape} and there are {K} bands; "
                f"got {array.shape}"
            )


class _CrossEntropy:
    """-log softmax(h Wᵀ + b)[target] of each row, of the head's words or of one band's.

    Args:
        h: (N, E). W: (words, E). b: (words). targets: (N).

    Attributes:
        losses: (N), in nats.
    """

    def __init__(self, h: Any, W: Any, b: Any, targets: Any) -> None:
        xp = get_array_module(h)
        self.blocks, self.targets = _Blocks(h, W, b), targets
        self.sums = self.blocks.sums_of_exp(keep=is_backprop_enabled())
        self.losses = xp.log(self.sums) - xp.einsum("ne,ne->n", h, W[targets]) - b[targets]
        if self.blocks.shift is not None:
            self.losses += self.blocks.shift

    def gradients(self, scale: Any, dW: tuple[Any, bool], db: tuple[Any, bool]) -> Any:
        """scale · d(sum of losses) by h, returned, and by W and b, written over what is unwritten or added.

        Args:
            scale: a number.
            dW, db: (array, whether it is unwritten).
        """
        h, W, b = self.blocks.h, self.blocks.W, self.blocks.b
        dh = self.blocks.gradients(h * (scale / self.sums)[:, None], scale / self.sums, dW, db)
        dh -= scale * W[self.targets]
        add_rows(dW[0], self.targets, h * -scale)
        db[0][...] -= scale * get_array_module(b).bincount(self.targets, minlength=len(b))
        return dh


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


def adaptive_log_probs(h: Any, W: Any, b: Any, band_W: Any, band_b: Any, bands: Sequence[int]) -> Any:
    """log P (N, V) in nats of every word after every row of h, for arrays as in `adaptive_softmax_loss`.

    Raises:
        ShapeError, InputError: sizes or bands that do not fit.
    """
    _check_shapes("adaptive_log_probs", h, W, b, band_W, band_b, bands)
    log_probs = get_array_module(h).empty((len(h), len(W)), h.dtype)
    head = log_softmax_array(h @ _head(W, band_W, bands).T + _head(b, band_b, bands))
    log_probs[:, : bands[0]] = head[:, : bands[0]]
    for k, words in enumerate(_band_words(bands, len(W))):
        log_probs[:, words] = log_softmax_array(h @ W[words].T + b[words]) + head[:, bands[0] + k, None]
    return log_probs
