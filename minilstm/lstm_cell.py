"""READ FIRST. One LSTM step written with the engine's primitives; the engine derives its backward pass.

This is the textbook. `lstm.py` is the same five equations for a whole sequence, with the backward pass
derived by hand, `layer_norm_lstm.py` those of the layer-normalised cell; a test holds each pair equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import autograd.functions as F
from autograd import Variable

Cell = Callable[..., tuple[Variable, Variable]]
FORGET_BIAS = 1.0
"""Added to the forget gate of the layer-normalised cell after its normalisation: at first it remembers."""


def lstm_cell(
    x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any, b: Any, candidate_mask: Any = None
) -> tuple[Variable, Variable]:
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    Equation numbers as in docs/lstm_backward.md. Gates are stacked i, f, g, o as in PyTorch and cuDNN.

    Args:
        x: (B, I), the step's input.
        h, c: (B, H), output and cell of the step before.
        W_ih: (4H, I). W_hh: (4H, H). b: (4H).
        candidate_mask: (B, H), what the candidate is multiplied with, or None (Semeniuta et al. 2016).

    Returns:
        h and c of this step, each (B, H).
    """
    z = F.linear(x, W_ih) + F.linear(h, W_hh, b)  # (1)
    i, f, g, o = F.split(z, 4, axis=1)
    i, f, o = F.sigmoid(i), F.sigmoid(f), F.sigmoid(o)  # (2) how much to write, to keep, to show
    g = F.tanh(g)  # (3) what to write
    c = f * c + i * masked(g, candidate_mask)  # (4)
    h = o * F.tanh(c)  # (5)
    return h, c


def layer_norm_lstm_cell(
    x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any,
    gate_gain: Any, gate_shift: Any, cell_gain: Any, cell_shift: Any, candidate_mask: Any = None,
    epsilon: float = 0.0,
) -> tuple[Variable, Variable]:  # fmt: skip
    """One step with layer normalisation of every gate and of the cell (Ba, Kiros & Hinton 2016).

    There is no bias: `gate_shift` does its work. The normalised cell is the one that is carried on.

    Args:
        gate_gain, gate_shift: (4H), stacked as the gates are; each gate has its own mean and variance.
        cell_gain, cell_shift: (H).
        epsilon: added to every variance; 0: `epsilon_for` the precision.
        Others as for `lstm_cell`.

    Returns:
        h and c of this step, each (B, H).
    """
    a = F.linear(x, W_ih) + F.linear(h, W_hh)  # (50)
    gates = zip(F.split(a, 4, axis=1), F.split(gate_gain, 4), F.split(gate_shift, 4), strict=True)
    i, f, g, o = (normalized(*gate, epsilon) for gate in gates)  # (51)
    i, f, o = F.sigmoid(i), F.sigmoid(f + FORGET_BIAS), F.sigmoid(o)  # (2), with the 1 of (51)
    g = F.tanh(g)  # (3)
    s = f * c + i * masked(g, candidate_mask)  # (52)
    c = normalized(s, cell_gain, cell_shift, epsilon)  # (53)
    h = o * F.tanh(c)  # (5)
    return h, c


def masked(g: Variable, mask: Any) -> Variable:
    """Dropout of the candidate; the cell itself, f · c, is never masked: what it holds must last."""
    return g if mask is None else g * mask  # (35)


def normalized(x: Variable, gain: Any, shift: Any, epsilon: float = 0.0) -> Variable:
    """x (B, H) with mean 0 and variance 1 over the units, then a gain and a shift (H) that are learned."""
    return F.layer_normalization(x, gain, shift, epsilon_for(x.dtype, epsilon))


def epsilon_for(dtype: Any, epsilon: float = 0.0) -> float:
    """What is added to a variance before its root: `epsilon`, or, if it is 0, that of `lstmlm`'s cells."""
    return epsilon or (1e-3 if dtype == "float16" else 1e-12)


def unrolled_lstm(
    x: Any, h: Any, c: Any, *weights: Any, candidate_mask: Any = None, cell: Cell = lstm_cell
) -> tuple[Variable, Variable, Variable]:
    """The cell once for every step of x (T, B, I): the plain twin of `minilstm.lstm.lstm`."""
    outputs = []
    for t in range(len(x)):
        mask = None if candidate_mask is None else candidate_mask[t]
        h, c = cell(x[t], h, c, *weights, candidate_mask=mask)
        outputs.append(h)
    return F.stack(outputs), h, c


def unrolled_layer_norm_lstm(
    x: Any, h: Any, c: Any, *weights: Any, candidate_mask: Any = None, epsilon: float = 0.0
) -> tuple[Variable, Variable, Variable]:
    """The plain twin of `minilstm.layer_norm_lstm.layer_norm_lstm`."""
    cell = functools.partial(layer_norm_lstm_cell, epsilon=epsilon)
    return unrolled_lstm(x, h, c, *weights, candidate_mask=candidate_mask, cell=cell)
