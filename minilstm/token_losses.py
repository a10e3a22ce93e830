"""The loss of each token by itself, where the mean is not enough."""

from __future__ import annotations

from typing import Any

from autograd import ShapeError
from autograd.backend import get_array_module
from autograd.functions.embedding import check_ids
from minilstm.tied_softmax import BLOCK_WORDS, _Blocks


def tied_token_losses(h: Any, W: Any, b: Any, targets: Any, block_size: int = BLOCK_WORDS) -> Any:
    """-log softmax(h Wᵀ + b) at the targets, token by token; no gradients.

    Their mean is `tied_softmax_loss`, from the same blocks of words and in the same memory: the (N, V)
    logits are never held.

    Args:
        h: array (N, E), outputs of the last layer.
        W: array (V, E). b: array (V).
        targets: integers (N), each in [0, V).
        block_size: words in a block.

    Returns:
        (N) in nats, of h's dtype.

    Raises:
        ShapeError, InputError: sizes that do not fit, targets out of range.
    """
    if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1]:
        raise ShapeError(f"token_losses: h must be (N, E) and W (V, E); got {h.shape} and {W.shape}")
    if targets.shape != h.shape[:1] or b.shape != W.shape[:1]:
        raise ShapeError(
            f"token_losses: targets must be (N) = {h.shape[:1]} and b (V) = {W.shape[:1]}; "
            f"got {targets.shape} and {b.shape}"
        )
    check_ids("token_losses: targets", targets, W.shape[0])
    xp = get_array_module(h)
    blocks = _Blocks(h, W, b, block_size)
    log_sums = xp.log(blocks.sums_of_exp())
    if blocks.shift is not None:
        log_sums += blocks.shift
    return log_sums - xp.einsum("ne,ne->n", h, W[targets]) - b[targets]


def token_losses(model: Any, h: Any, targets: Any) -> Any:
    """-log P(target) (N) after outputs h (N, E) of the model's last layer, whatever its softmax is."""
    own = getattr(model, "token_losses", None)
    if own is not None:
        return own(h, targets)
    return tied_token_losses(h, model.embedding.data, model.decoder_bias.data, targets)
