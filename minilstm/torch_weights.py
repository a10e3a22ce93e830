"""Weights to and from the names of PyTorch modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autograd import InputError, ShapeError
from minilstm.language_model import LanguageModel


def to_torch_state_dict(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights by the names of a PyTorch model with Embedding `encoder`, LSTMs `rnns`, Linear `decoder`.

    Matrices go over by renaming alone. torch.nn.LSTM has two biases where one suffices: ours becomes
    bias_ih and bias_hh is zero.

    Raises:
        InputError: layer-normalised cells or an adaptive softmax, which those modules do not have.
    """
    _check_exportable("to_torch_state_dict", model)
    tensors = {"encoder.weight": model.embedding.data, "decoder.weight": model.decoder_weight.data}
    tensors["decoder.bias"] = model.decoder_bias.data
    for index, layer in enumerate(model.layers):
        arrays = (layer.W_ih.data, layer.W_hh.data, layer.b.data, np.zeros_like(layer.b.data))
        tensors |= dict(zip(_torch_names(index), arrays, strict=True))
    return tensors


def from_torch_state_dict(model: LanguageModel, tensors: dict[str, Any]) -> None:
    """Copy weights named as by `to_torch_state_dict` into the model; the two LSTM biases are added.

    Raises:
        InputError: a name that is missing or that the model has no place for, a decoder's weight that is not
            the encoder's for a model that ties them, or a model that `to_torch_state_dict` refuses.
        ShapeError: a tensor of another size. Nothing is copied then.
    """
    _check_exportable("from_torch_state_dict", model)
    surplus = sorted(set(tensors) - _names(model))
    if surplus:
        raise InputError(
            f"from_torch_state_dict: {', '.join(surplus)} must not be there; the model has "
            f"{len(model.layers)} layers; leave them out, or take the model they belong to"
        )

    def take(name: str, shape: Sequence[int]) -> np.ndarray:
        if name not in tensors:
            raise InputError(f"from_torch_state_dict: {name} is missing; got {', '.join(sorted(tensors))}")
        array = np.asarray(tensors[name])
        if array.shape != tuple(shape):
            raise ShapeError(f"from_torch_state_dict: {name} must be {tuple(shape)}; got {array.shape}")
        return array

    values = [take("encoder.weight", model.embedding.shape)]
    for index, layer in enumerate(model.layers):
        w_ih, w_hh, b_ih, b_hh = _torch_names(index)
        values += [take(w_ih, layer.W_ih.shape), take(w_hh, layer.W_hh.shape)]
        values += [take(b_ih, layer.b.shape) + take(b_hh, layer.b.shape)]
    if model.decoder_weight is not model.embedding:
        values += [take("decoder.weight", model.decoder_weight.shape)]
    elif not np.array_equal(values[0], np.asarray(tensors.get("decoder.weight", values[0]))):
        raise InputError(
            "from_torch_state_dict: decoder.weight must equal encoder.weight, which the model ties; "
            "got two matrices; set tied_weights = false"
        )
    values += [take("decoder.bias", model.decoder_bias.shape)]
    for (_, parameter), value in zip(model.named_parameters(), values, strict=True):
        parameter.data[...] = value


def _check_exportable(function: str, model: LanguageModel) -> None:
    """Raise in the words of `function` unless those names tell all about the model."""
    if model.config.layer_norm:
        raise InputError(f"{function}: torch.nn.LSTM has no layer normalisation; got a model with layer_norm")
    if model.config.softmax == "adaptive":
        raise InputError(
            f"{function}: an adaptive softmax is no Linear decoder's distribution; other programs would "
            "compute another perplexity: take a model with another softmax"
        )


def _names(model: LanguageModel) -> set[str]:
    layers = range(len(model.layers))
    return {"encoder.weight", "decoder.weight", "decoder.bias"}.union(*map(_torch_names, layers))


def _torch_names(index: int) -> list[str]:
    parts = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [f"rnns.{index}.{part}" for part in parts]
