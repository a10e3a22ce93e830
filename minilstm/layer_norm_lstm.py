"""READ THIRD. The layer-normalised LSTM over a whole sequence, its backward pass derived by hand.

`lstm.py` with two normalisations: of each gate's pre-activations, and of the new cell, which is carried on
normalised. Both stand inside the recursion, so both are passed at every step, forward and backward; what
lies between them is the plain LSTM, and so is all that is computed for many steps at once. Equation numbers
are those of docs/lstm_backward.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import Function, Variable
from autograd.backend import accumulation_dtype, get_array_module
from autograd.kernels import use_kernels
from autograd.parallel import matmul_rows
from autograd.variable import as_variable
from minilstm.layer_norm_lstm_cuda import KernelLayerNormLSTM
from minilstm.lstm import F, O, checked_sizes, local_derivatives, run_backward, run_forward, sigmoid_from_tanh
from minilstm.lstm_cell import FORGET_BIAS, epsilon_for
from minilstm.lstm_kernels import Meet, RecurrentProduct, batch_parts


class LayerNormLSTM(Function):
    """A whole sequence of layer-normalised cells: see `layer_norm_lstm`."""

    def __init__(self, candidate_mask: Any = None, epsilon: float = 0.0) -> None:
        self.candidate_mask, self.epsilon = candidate_mask, epsilon

    def forward(self, x, h0, c0, W_ih, W_hh, gate_gain, gate_shift, cell_gain, cell_shift):
        vectors = {"gate_gain": (gate_gain, 4), "gate_shift": (gate_shift, 4)}
        vectors |= {"cell_gain": (cell_gain, 1), "cell_shift": (cell_shift, 1)}
        T, B, H = checked_sizes("layer_norm_lstm", x, h0, c0, W_ih, W_hh, vectors, self.candidate_mask)
        xp, mask, epsilon = get_array_module(x), self.candidate_mask, epsilon_for(x.dtype, self.epsilon)
        factor, half = sigmoid_from_tanh(xp, H, x.dtype)
        shift = gate_shift.reshape(4, H).copy()
        shift[F] += FORGET_BIAS
        halved_gain, halved_shift = gate_gain * factor, shift.reshape(-1) * factor
        wide = accumulation_dtype(x.dtype)  # statistics of float16 are taken in float32
        normal = xp.empty((T, B, 4 * H), x.dtype)  # first the pre-activations, then they, normalised
        gates, inverse_std = xp.empty_like(normal), xp.empty((T, B, 4, 1), wide)
        normal_c, c_inverse_std = xp.empty((T, B, H), x.dtype), xp.empty((T, B, 1), wide)
        tanh_c = xp.empty_like(normal_c)
        h, c = xp.empty((T + 1, B, H), x.dtype), xp.empty((T + 1, B, H), x.dtype)
        h[0], c[0] = h0, c0
        parts = batch_parts(x, B, H)
        times_W_hh = RecurrentProduct(W_hh.T, rows=-(-B // len(parts)))

        def project(steps: slice) -> None:
            matmul_rows(x[steps].reshape(-1, x.shape[2]), W_ih.T, out=normal[steps].reshape(-1, 4 * H))

        def run(rows: slice, steps: slice, meet: Meet) -> None:
            recurrent = xp.empty_like(normal[0, rows])
            workspace = times_W_hh.workspace(len(recurrent))
            scratch = xp.empty((len(recurrent), 4, H), wide)
            for t in range(steps.start, steps.stop):
                a, z, tc = normal[t, rows], gates[t, rows], tanh_c[t, rows]
                a += times_W_hh(h[t, rows], recurrent, workspace)  # (50)
                normalize(a.reshape(-1, 4, H), inverse_std[t, rows], epsilon, scratch)
                xp.multiply(a, halved_gain, out=z)
                z += halved_shift  # (51)
                xp.tanh(z, out=z)  # (3), and half of (2)
                z *= factor  # (2)
                z += half
                i, f, g, o = z[:, :H], z[:, H : 2 * H], z[:, 2 * H : 3 * H], z[:, 3 * H :]
                s = xp.multiply(f, c[t, rows], out=normal_c[t, rows])
                xp.multiply(i, g, out=tc)
                if mask is not None:
                    tc *= mask[t, rows]  # (35)
                s += tc  # (52)
                normalize(s, c_inverse_std[t, rows], epsilon, scratch[:, 0])
                c_t = xp.multiply(s, cell_gain, out=c[t + 1, rows])
                c_t += cell_shift  # (53)
                xp.tanh(c_t, out=tc)
                xp.multiply(o, tc, out=h[t + 1, rows])  # (5)

        run_forward(T, parts, project, run)
        normalized = (normal, inverse_std, gate_gain, normal_c, c_inverse_std, cell_gain)
        self.save(x, W_ih, W_hh, gates, h, c, tanh_c, *normalized)
        return h[1:], h[T], c[T]

    def backward(self, dy, dh_T, dc_T):
        x, W_ih, W_hh, gates, h, c, tanh_c, *normalized = self.saved
        normal, inverse_std, gate_gain, normal_c, c_inverse_std, cell_gain = normalized
        xp = get_array_module(x)
        T, B, H = tanh_c.shape
        dh = xp.zeros((B, H), x.dtype) if dh_T is None else dh_T.astype(x.dtype)
        dc = xp.zeros((B, H), x.dtype) if dc_T is None else dc_T.astype(x.dtype)
        da = (gates.copy() if self.saved_is_needed_again else gates).reshape(T, B, 4, H)
        normal, gate_gain = normal.reshape(da.shape), gate_gain.reshape(4, H)
        f, o_slope = local_derivatives(da, c, tanh_c, self.candidate_mask)
        # Sums over the steps, row by row: no thread waits for another.
        d_gate_gain, d_gate_shift = (xp.zeros((B, 4, H), inverse_std.dtype) for _ in range(2))
        d_cell_gain, d_cell_shift = (xp.zeros((B, H), inverse_std.dtype) for _ in range(2))
        parts = batch_parts(x, B, H)
        times_W_hh = RecurrentProduct(W_hh, rows=-(-B // len(parts)))

        def run(rows: slice, steps: slice, meet: Meet) -> None:
            dh_t, dc_t = dh[rows], dc[rows]
            through_h, scratch = xp.empty_like(dh_t), xp.empty_like(d_gate_gain[rows])
            mean, workspace = xp.empty_like(scratch[..., :1]), times_W_hh.workspace(len(dh_t))
            for t in reversed(range(steps.start, steps.stop)):
                da_t = da[t, rows]
                if dy is not None:
                    dh_t += dy[t, rows]  # (6)
                dc_t += xp.multiply(dh_t, o_slope[t, rows], out=through_h)  # (7)
                n, scale = normal_c[t, rows], c_inverse_std[t, rows]
                add_products(d_cell_gain[rows], d_cell_shift[rows], dc_t, n, scratch[:, 0])  # (54)
                undo_normalization(dc_t, n, cell_gain, scale, scratch[:, 0], mean[:, 0])  # (55): now ds
                da_t[:, :O] *= dc_t[:, None]  # (56)
                da_t[:, O] *= dh_t  # (9): now dz
                dc_t *= f[t, rows]  # (57)
                n, scale = normal[t, rows], inverse_std[t, rows]
                add_products(d_gate_gain[rows], d_gate_shift[rows], da_t, n, scratch)  # (58)
                undo_normalization(da_t, n, gate_gain, scale, scratch, mean)  # (59): now da
                times_W_hh(da_t.reshape(-1, 4 * H), dh_t, workspace)  # (60)

        dx, dW_ih, dW_hh = run_backward(self, parts, run, da, x, W_ih, h)
        sums = (d_gate_gain, d_gate_shift, d_cell_gain, d_cell_shift)
        vectors = (d.sum(axis=0).reshape(-1).astype(x.dtype) for d in sums)
        return dx, dh, dc, dW_ih, dW_hh, *vectors


def normalize(x: Any, inverse_std: Any, epsilon: float, scratch: Any) -> None:
    """(40) in place: each row of x (…, D) to mean 0 and variance 1.

    Args:
        inverse_std: (…, 1), receives 1 / √(variance + epsilon).
        scratch: of x's shape, written over.
    """
    if x.dtype != inverse_std.dtype:
        return _in_float32(x, normalize, inverse_std, epsilon, scratch)
    xp, D = get_array_module(x), x.shape[-1]
    mean = xp.add.reduce(x, axis=-1, keepdims=True, out=inverse_std)
    mean /= D
    x -= mean
    xp.multiply(x, x, out=scratch)
    variance = xp.add.reduce(scratch, axis=-1, keepdims=True, out=inverse_std)
    variance /= D
    variance += epsilon
    xp.sqrt(variance, out=inverse_std)
    xp.divide(1, inverse_std, out=inverse_std)
    x *= inverse_std  # (40)


def add_products(d_gain: Any, d_shift: Any, dy: Any, z: Any, scratch: Any) -> None:
    """(44) of one step, but for the sum over rows: gain and shift are used once at every step."""
    get_array_module(dy).multiply(dy, z, out=scratch, dtype=scratch.dtype)
    d_gain += scratch  # (44)
    d_shift += dy


def undo_normalization(dy: Any, z: Any, gain: Any, inverse_std: Any, scratch: Any, mean: Any) -> None:
    """(42) and (43) in place: from the gradient of gain · z + shift to that of what was normalised to z.

    Args:
        dy, z: (…, D). gain: what z was multiplied with. inverse_std: (…, 1), as `normalize` gave it.
        scratch: of dy's shape, mean: (…, 1), written over.
    """
    if dy.dtype != scratch.dtype:
        return _in_float32(dy, undo_normalization, z, gain, inverse_std, scratch, mean)
    xp, D = get_array_module(dy), dy.shape[-1]
    dy *= gain  # (42)
    xp.add.reduce(xp.multiply(dy, z, out=scratch), axis=-1, keepdims=True, out=mean)
    mean /= D
    xp.multiply(z, mean, out=scratch)
    xp.add.reduce(dy, axis=-1, keepdims=True, out=mean)
    mean /= D
    scratch += mean
    dy -= scratch
    dy *= inverse_std  # (43)


def _in_float32(x: Any, function: Callable[..., None], *args: Any) -> None:
    """function(x, *args) on float16 x as if it were float32: differences are taken before anything rounds."""
    wide = x.astype(np.float32)
    function(wide, *args)
    x[...] = wide


def layer_norm_lstm(
    x: Any, h0: Any, c0: Any, W_ih: Any, W_hh: Any,
    gate_gain: Any, gate_shift: Any, cell_gain: Any, cell_shift: Any, candidate_mask: Any = None,
    epsilon: float = 0.0,
) -> tuple[Variable, Variable, Variable]:  # fmt: skip
    """An LSTM over T steps with layer normalisation of every gate and of the cell (Ba et al. 2016).

    Its plain twin is `minilstm.lstm_cell.unrolled_layer_norm_lstm`.

    Args:
        x: (T, B, I), the inputs.
        h0, c0: (B, H), output and cell before the first step.
        W_ih: (4H, I). W_hh: (4H, H). Gates are stacked i, f, g, o.
        gate_gain, gate_shift: (4H), after the normalisation of each gate; there is no other bias.
        cell_gain, cell_shift: (H), after that of the cell.
        candidate_mask: as for `minilstm.lstm.lstm`.
        epsilon: added to every variance; 0: `minilstm.lstm_cell.epsilon_for` the precision.

    Returns:
        y (T, B, H), the outputs of all steps; h_T and c_T (B, H), the state after the last one.

    Raises:
        ShapeError: sizes that do not fit. DtypeError: arrays of different precision.
    """
    function: Function = LayerNormLSTM(candidate_mask, epsilon)
    if use_kernels(as_variable(x).data):
        function = KernelLayerNormLSTM(candidate_mask, epsilon)
    return function.apply(x, h0, c0, W_ih, W_hh, gate_gain, gate_shift, cell_gain, cell_shift)
