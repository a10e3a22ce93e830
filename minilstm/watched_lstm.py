"""Both cells of `lstm_cell.py` with a hold on all that happens inside them; for looking, not for speed.

A model whose `run_lstm` is a `WatchedLSTM` reads as ever, and every variable of every step is kept. Each
can be moved by a little, to see what the loss does. Sizes: T steps, B rows, H units of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import autograd.functions as F
from autograd import Variable
from minilstm.lstm import GATES
from minilstm.lstm_cell import FORGET_BIAS, masked, normalized

Arrays = dict[str, Any]


class Watched(NamedTuple):
    """All variables of one layer at one step, each (B, H); what has parts, gate by gate, i, f, g, o.

    Attributes:
        x_part, h_part: x W_ihᵀ and h W_hhᵀ, the two products.
        a: the pre-activations that a layer-normalised cell normalises; those of the plain cell are its z.
        z: what the gates' sigmoid or tanh is taken of.
        gates: after it.
        s: the cell before its normalisation; that of the plain cell is its c.
        c, h: cell and output, all of their uses together.
        c_on, h_on: as the next step sees them. y: as the layers above see h.
    """

    x_part: tuple[Variable, ...]
    h_part: tuple[Variable, ...]
    a: tuple[Variable, ...]
    z: tuple[Variable, ...]
    gates: tuple[Variable, ...]
    s: Variable
    c: Variable
    h: Variable
    c_on: Variable
    h_on: Variable
    y: Variable


class WatchedLSTM:
    """Runs layer after layer in place of `lstm` or `layer_norm_lstm`; keeps all in `layers`, step by step.

    Args:
        nudge: (layer, what is added to z_i, …, c or h, or of a layer-normalised cell to a_i, … or s, at this
            layer's first step: arrays (B, H)). Nothing is kept then: there are many rows, and their loss is
            all that counts.
        forget: what every forget gate is held at; None: as the model has learned it.
    """

    def __init__(self, nudge: tuple[int, Arrays] | None = None, forget: float | None = None) -> None:
        self.nudge, self.forget = nudge, forget
        self.layers: list[list[Watched]] = []

    def __call__(
        self, x: Any, h: Any, c: Any, *weights: Any, candidate_mask: Any = None, epsilon: float = 0.0
    ) -> tuple[Variable, Variable, Variable]:
        """As `minilstm.lstm.lstm`, or with gains and shifts as `layer_norm_lstm`; equal to them."""
        layer, nudges = self.nudge or (None, {})
        steps: list[Watched] = []
        outputs = []
        for t in range(len(x)):
            mask = None if candidate_mask is None else candidate_mask[t]
            nudges_now = nudges if t == 0 and layer == len(self.layers) else {}
            step = self._step(x[t], h, c, weights, mask, epsilon, nudges_now)
            h, c = step.h_on, step.c_on
            outputs.append(step.y)
            if self.nudge is None:
                steps.append(step)
        self.layers.append(steps)
        return F.stack(outputs), h, c

    def _step(
        self, x: Any, h: Any, c: Any, weights: Sequence[Any], mask: Any, epsilon: float, nudges: Arrays
    ) -> Watched:
        """The equations of `lstm_cell` or of `layer_norm_lstm_cell`, with every value kept."""
        W_ih, W_hh, *vectors = weights
        normalizes = len(vectors) > 1

        def kept(name: str, variable: Variable) -> Variable:
            variable = variable + nudges[name] if name in nudges else variable
            variable.retain_grad()
            return variable

        def kept_gates(name: str, parts: Sequence[Variable]) -> tuple[Variable, ...]:
            return tuple(kept(f"{name}_{gate}", part) for gate, part in zip(GATES, parts, strict=True))

        x_part, h_part = F.linear(x, W_ih), F.linear(h, W_hh)
        if normalizes:
            gain, shift, cell_gain, cell_shift = vectors
            a = kept_gates("a", F.split(x_part + h_part, 4, axis=1))  # (50)
            gates = zip(a, F.split(gain, 4), F.split(shift, 4), strict=True)
            i, f, g, o = (normalized(*gate, epsilon) for gate in gates)  # (51)
            z = kept_gates("z", (i, f + FORGET_BIAS, g, o))
        else:
            z = a = kept_gates("z", F.split(x_part + h_part + vectors[0], 4, axis=1))  # (1)
        i, f, g, o = F.sigmoid(z[0]), F.sigmoid(z[1]), F.tanh(z[2]), F.sigmoid(z[3])  # (2), (3)
        if self.forget is not None:
            f = Variable(np.full_like(f.data, self.forget), requires_grad=False)
        s = f * c + i * masked(g, mask)  # (4), (52)
        if normalizes:
            s = kept("s", s)
            c = kept("c", normalized(s, cell_gain, cell_shift, epsilon))  # (53)
        else:
            s = c = kept("c", s)
        h = kept("h", o * F.tanh(c))  # (5)
        c_on, h_on, y = (kept("", F.reshape(v, v.shape)) for v in (c, h, h))
        quarters = [F.split(part, 4, axis=1) for part in (x_part, h_part)]
        return Watched(quarters[0], quarters[1], a, z, (i, f, g, o), s, c, h, c_on, h_on, y)
