"""What the tensors of an AWD-LSTM-shaped PyTorch model are called, and what they tell of its sizes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from autograd.errors import InputError

Tensors = dict[str, np.ndarray]

# Alone, in DataParallel (`module.`), or as the two parts of fastai's models (`0.`, `1.`).
_NAME = re.compile(
    r"(?:module\.|[01]\.)?"
    r"(?:(?P<matrix>encoder\.weight|encoder_dp\.emb\.weight|decoder\.(?:band_)?(?:weight|bias))"
    r"|rnns\.(?P<layer>\d{1,3})\.(?:module\.)?"
    r"(?P<part>(?:weight|bias)_[ih]h_l0|(?:gate|cell)_(?:gain|shift))(?P<raw>_raw)?)"
)
_SHARED = {"encoder_dp.emb.weight": "encoder.weight"}  # one matrix, held twice


def plain_names(tensors: Tensors, where: str) -> Tensors:
    """Float32 tensors by the names of `to_torch_state_dict`, from the names that AWD-LSTM models use.

    A weight-dropped matrix is taken from its `_raw` form, which is the trained one; what stands beside it is
    the copy with the last window's mask on.

    Raises:
        InputError: a name that no such model has, two tensors for one name, or one that is not finite.
    """
    chosen: dict[str, tuple[bool, str]] = {}  # name -> (is raw, the name it has in the file)
    for given, array in tensors.items():
        match = _NAME.fullmatch(given)
        if match is None:
            raise InputError(
                f"{where}: {given} is no weight of an AWD-LSTM; expected encoder.weight, decoder.weight, "
                "decoder.bias and rnns.0.weight_ih_l0, …: see docs/exchange.md"
            )
        name = match["matrix"] or f"rnns.{int(match['layer'])}.{match['part']}"
        name, raw = _SHARED.get(name, name), bool(match["raw"])
        if name in chosen and chosen[name][0] == raw:
            if not np.array_equal(tensors[chosen[name][1]], array):
                raise InputError(f"{where}: {given} and {chosen[name][1]} differ, and are one weight")
        elif name not in chosen or raw:
            chosen[name] = (raw, given)
    return {name: _float32(tensors[given], given, where) for name, (_, given) in chosen.items()}


def _float32(array: np.ndarray, name: str, where: str) -> np.ndarray:
    if array.dtype.kind != "f":
        raise InputError(f"{where}: {name} must be of floating point; got {array.dtype}")
    with np.errstate(over="ignore"):
        plain = array.astype(np.float32)
    if not np.isfinite(plain).all():
        raise InputError(f"{where}: {name} holds numbers that are not finite in float32")
    return plain


def model_knobs(tensors: Tensors, where: str) -> dict[str, Any]:
    """What these weights tell of their model, as fields of `ModelConfig`; those of default value left out.

    Where the bands of an adaptive softmax begin they do not tell.

    Raises:
        InputError: a tensor is missing or of other dimensions than a model could have.
    """
    vocab_size, embedding_size = _matrix(tensors, "encoder.weight", where).shape
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("rnns.")})
    if not layers or layers != list(range(len(layers))):
        raise InputError(f"{where}: layers must be rnns.0, rnns.1, … without a gap; got {layers}")
    units = [_units(tensors, f"rnns.{layer}.weight_hh_l0", where) for layer in layers]
    if len(set(units[:-1])) > 1:
        raise InputError(f"{where}: all layers but the last must be of one width; got {units}")
    knobs: dict[str, Any] = {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": units[0],
        "num_layers": len(layers),
    }
    decoder = tensors.get("decoder.weight")
    if decoder is None and units[-1] != embedding_size:
        raise InputError(f"{where}: decoder.weight is missing, and encoder.weight has not its size")
    if units[-1] != embedding_size:
        knobs["last_hidden_size"] = units[-1]
    if decoder is not None and not np.array_equal(decoder, tensors["encoder.weight"]):
        knobs["tied_weights"] = False
    if "rnns.0.gate_gain" in tensors:
        knobs["layer_norm"] = True
    return knobs


def _units(tensors: Tensors, name: str, where: str) -> int:
    rows, units = _matrix(tensors, name, where).shape
    if rows != 4 * units:
        raise InputError(f"{where}: {name} must be (4H, H); got {(rows, units)}")
    return units


def _matrix(tensors: Tensors, name: str, where: str) -> np.ndarray:
    if name not in tensors:
        raise InputError(f"{where}: {name} is missing; got {', '.join(sorted(tensors)) or 'nothing'}")
    if tensors[name].ndim != 2 or 0 in tensors[name].shape:
        raise InputError(f"{where}: {name} must be a matrix; got shape {tensors[name].shape}")
    return tensors[name]
