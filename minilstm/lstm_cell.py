"""READ FIRST. One LSTM step written with the engine's primitives; the engine derives its backward pass.

This is the textbook. `lstm.py` is the same five equations for a whole sequence, with the backward pass
derived by hand; a test holds both equal.
"""

from __future__ import annotations

from typing import Any

import autograd.functions as F
from autograd import Variable


def lstm_cell(x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any, b: Any) -> tuple[Variable, Variable]:
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    Equation numbers as in docs/lstm_backward.md. Gates are stacked i, f, g, o as in PyTorch and cuDNN.

    Args:
        x: (B, I), the step's input.
        h, c: (B, H), output and cell of the step before.
        W_ih: (4H, I). W_hh: (4H, H). b: (4H).

    Returns:
        h and c of this step, each (B, H).
    """
    z = F.linear(x, W_ih) + F.linear(h, W_hh, b)  # (1)
    i, f, g, o = F.split(z, 4, axis=1)
    i, f, o = F.sigmoid(i), F.sigmoid(f), F.sigmoid(o)  # (2) how much to write, to keep, to show
    g = F.tanh(g)  # (3) what to write
    c = f * c + i * g  # (4)
    h = o * F.tanh(c)  # (5)
    return h, c


def unrolled_lstm(
    x: Any, h: Any, c: Any, W_ih: Any, W_hh: Any, b: Any
) -> tuple[Variable, Variable, Variable]:
    """The cell once for every step of x (T, B, I): the plain twin of `minilstm.lstm.lstm`."""
    outputs = []
    for t in range(len(x)):
        h, c = lstm_cell(x[t], h, c, W_ih, W_hh, b)
        outputs.append(h)
    return F.stack(outputs), h, c
