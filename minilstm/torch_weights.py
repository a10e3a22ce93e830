"""Weights to and from the names of PyTorch modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autograd import InputError, ShapeError
from minilstm.language_model import LanguageModel

_IN_TORCH = {"weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0", "bias": "bias_ih_l0"}


def to_torch_state_dict(model: LanguageModel) -> dict[str, np.ndarray]:
    """The weights by the names of a PyTorch model with Embedding `encoder`, LSTMs `rnns`, Linear `decoder`.

    Matrices go over by renaming alone. torch.nn.LSTM has two biases where one suffices: ours becomes
    bias_ih and bias_hh is zero. What PyTorch has no module for keeps its name: gains and shifts of
    layer-normalised cells in `rnns`, the bands of an adaptive softmax in `decoder`.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[_torch_name(name)] = parameter.data
        if second := _second_bias(name):
            tensors[second] = np.zeros_like(parameter.data)
    tensors["decoder.weight"] = model.decoder_weight.data
    return tensors


def from_torch_state_dict(model: LanguageModel, tensors: dict[str, Any]) -> None:
    """Copy weights named as by `to_torch_state_dict` into the model; the two LSTM biases are added.

    Raises:
        InputError: a name that is missing or that the model has no place for, or a decoder's weight that is
            not the encoder's for a model that ties them.
        ShapeError: a tensor of another size. Nothing is copied then.
    """
    surplus = sorted(set(tensors) - set(to_torch_state_dict(model)))
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

    values = []
    for name, parameter in model.named_parameters():
        values.append(take(_torch_name(name), parameter.shape))
        if second := _second_bias(name):
            values[-1] = values[-1] + take(second, parameter.shape)
    if model.decoder_weight is model.embedding and not np.array_equal(
        values[0], np.asarray(tensors.get("decoder.weight", values[0]))
    ):
        raise InputError(
            "from_torch_state_dict: decoder.weight must equal encoder.weight, which the model ties; "
            "got two matrices; set tied_weights = false"
        )
    for (_, parameter), value in zip(model.named_parameters(), values, strict=True):
        parameter.data[...] = value


def _torch_name(name: str) -> str:
    """What a parameter of the model is called there."""
    owner, _, part = name.rpartition(".")
    if owner == "embedding":
        return f"encoder.{part}"
    kind, _, index = owner.partition(".")
    return f"rnns.{index}.{_IN_TORCH.get(part, part)}" if kind == "lstm" else name


def _second_bias(name: str) -> str | None:
    """Of a layer's bias, the other one that torch.nn.LSTM adds to it."""
    first = _torch_name(name)
    return first.replace("bias_ih", "bias_hh") if first.endswith("bias_ih_l0") else None
