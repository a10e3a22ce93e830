"""READ SECOND. An LSTM over a whole sequence, its backward pass through time derived by hand.

The numbers in brackets are the equations of docs/lstm_backward.md. Three things make it fast, none of them
changes an equation: the products with the inputs of all steps are one matrix product, so are the sums over
time that give the weights' gradients, and all that the backward recursion needs and that does not depend
on the arriving gradient is computed for all steps at once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from autograd import Function, ShapeError, Variable
from autograd.backend import get_array_module
from autograd.functions.linear import column_sums, matmul_into
from autograd.parallel import matmul_rows, num_threads, run_parts, split_range
from minilstm.lstm_kernels import RecurrentProduct, batch_parts, cut, run_beside

GATES = ("i", "f", "g", "o")
"""Input, forget, candidate, output: how the gates are stacked on axis 0 of the weights (as PyTorch does)."""
I, F, G, O = range(4)  # noqa: E741


class LSTM(Function):
    def forward(self, x, h0, c0, W_ih, W_hh, b):
        T, B, H = _checked_sizes(x, h0, c0, W_ih, W_hh, b)
        xp = get_array_module(x)
        factor, shift = _sigmoid_from_tanh(xp, H, x.dtype)
        W_ih_T, bias = (W_ih * factor[:, None]).T, b * factor
        gates = xp.empty((T, B, 4 * H), x.dtype)
        h = xp.empty((T + 1, B, H), x.dtype)
        c = xp.empty((T + 1, B, H), x.dtype)
        tanh_c = xp.empty((T, B, H), x.dtype)
        h[0], c[0] = h0, c0
        parts = batch_parts(x, B, H)
        times_W_hh = RecurrentProduct((W_hh * factor[:, None]).T, rows=-(-B // len(parts)))

        def project(steps: slice) -> None:
            z = gates[steps].reshape(-1, 4 * H)
            matmul_rows(x[steps].reshape(-1, x.shape[2]), W_ih_T, out=z)
            z += bias

        def run(rows: slice, steps: slice) -> None:
            recurrent = xp.empty_like(gates[0, rows])
            for t in range(steps.start, steps.stop):
                z, tc = gates[t, rows], tanh_c[t, rows]
                z += times_W_hh(h[t, rows], out=recurrent)  # (1)
                xp.tanh(z, out=z)  # (3), and half of (2)
                z *= factor  # (2)
                z += shift
                i, f, g, o = z[:, :H], z[:, H : 2 * H], z[:, 2 * H : 3 * H], z[:, 3 * H :]
                c_t = xp.multiply(f, c[t, rows], out=c[t + 1, rows])
                c_t += xp.multiply(i, g, out=tc)  # (4)
                xp.tanh(c_t, out=tc)
                xp.multiply(o, tc, out=h[t + 1, rows])  # (5)

        pieces = cut(T, 0.4, parts)
        project(pieces[0])
        for steps, following in zip(pieces, [*pieces[1:], None], strict=True):
            run_beside(run, parts, steps, following and functools.partial(project, following))
        self.save(x, W_ih, W_hh, gates, h, c, tanh_c)
        return h[1:], h[T], c[T]

    def backward(self, dy, dh_T, dc_T):
        x, W_ih, W_hh, gates, h, c, tanh_c = self.saved
        xp = get_array_module(x)
        T, B, H = tanh_c.shape
        dh = xp.zeros((B, H), x.dtype) if dh_T is None else dh_T.astype(x.dtype)
        dc = xp.zeros((B, H), x.dtype) if dc_T is None else dc_T.astype(x.dtype)
        dz = (gates.copy() if self.saved_is_needed_again else gates).reshape(T, B, 4, H)
        f, o_slope = _local_derivatives(dz, c, tanh_c)
        parts = batch_parts(x, B, H)
        times_W_hh = RecurrentProduct(W_hh, rows=-(-B // len(parts)))

        def run(rows: slice, steps: slice) -> None:
            dh_t, dc_t = dh[rows], dc[rows]
            through_h = xp.empty_like(dh_t)
            for t in reversed(range(steps.start, steps.stop)):
                dz_t = dz[t, rows]
                if dy is not None:
                    dh_t += dy[t, rows]  # (6)
                dc_t += xp.multiply(dh_t, o_slope[t, rows], out=through_h)  # (7)
                dz_t[:, :O] *= dc_t[:, None]  # (8)
                dz_t[:, O] *= dh_t  # (9)
                dc_t *= f[t, rows]  # (10)
                times_W_hh(dz_t.reshape(-1, 4 * H), out=dh_t)  # (11)

        dx = xp.empty_like(x) if self.needs_grad(0) else None

        def products(steps: slice) -> tuple[Any, Any]:
            dz_rows = dz[steps].reshape(-1, 4 * H)
            x_rows = x[steps].reshape(-1, x.shape[2])
            h_rows = h[steps].reshape(-1, H)  # h[t] is what goes into step t
            if dx is not None:
                matmul_rows(dz_rows, W_ih, out=dx[steps].reshape(x_rows.shape))  # (12)
            dW_ih = matmul_into(self, 3, dz_rows.T, x_rows)  # (13)
            return dW_ih, matmul_into(self, 4, dz_rows.T, h_rows)  # (14)

        pieces = cut(T, 0.65, parts)[::-1]
        for steps, before in zip(pieces, [None, *pieces[:-1]], strict=True):
            run_beside(run, parts, steps, before and functools.partial(products, before))
        dW_ih, dW_hh = products(pieces[-1])
        return dx, dh, dc, dW_ih, dW_hh, column_sums(dz.reshape(T * B, 4 * H))  # (15)


def _sigmoid_from_tanh(xp: Any, H: int, dtype: Any) -> tuple[Any, Any]:
    """factor, shift (4H): one tanh serves all gates, as sigmoid(z) = tanh(z/2) / 2 + 1/2.

    With the weights of i, f and o multiplied by factor = 1/2 beforehand, a gate is
    tanh(pre-activation) · factor + shift; for the candidate g they are 1 and 0.
    """
    factor = xp.full((4, H), 0.5, dtype)
    factor[G] = 1
    return factor.reshape(-1), 1 - factor.reshape(-1)


def _local_derivatives(gates: Any, c: Any, tanh_c: Any) -> tuple[Any, Any]:
    """What each step multiplies the arriving gradients with, for all steps at once.

    The gates (T, B, 4, H) are overwritten by the derivatives of c_t by the pre-activations of i, f, g
    and of h_t by that of o: (8) and (9) before dc and dh arrive.

    Returns:
        f (T, B, H): the forget gate, which is the derivative of c_t by c_{t-1}.
        o_slope (T, B, H): o · (1 - tanh(c)²), the derivative of h_t by c_t.
    """
    xp = get_array_module(gates)
    all_f, all_o_slope = xp.empty_like(tanh_c), xp.empty_like(tanh_c)

    def run(steps: slice) -> None:
        a, tanh, f, o_slope = gates[steps], tanh_c[steps], all_f[steps], all_o_slope[steps]
        i, g, o = a[:, :, I].copy(), a[:, :, G].copy(), a[:, :, O]
        f[...] = a[:, :, F]
        xp.multiply(tanh, tanh, out=o_slope)
        xp.subtract(1, o_slope, out=o_slope)
        o_slope *= o
        a[:, :, O] *= (1 - o) * tanh
        a[:, :, I] *= (1 - i) * g
        a[:, :, F] *= (1 - f) * c[steps]  # c[t] is the cell before step t
        a[:, :, G] = (1 - g * g) * i

    run_parts(run, split_range(len(gates), num_threads() if xp is np else 1))
    return all_f, all_o_slope


def _checked_sizes(x: Any, h0: Any, c0: Any, W_ih: Any, W_hh: Any, b: Any) -> tuple[int, int, int]:
    if x.ndim != 3 or len(x) < 1:
        raise ShapeError(f"lstm: x must be (T, B, I) with at least one step; got {x.shape}")
    if h0.ndim != 2 or len(h0) != x.shape[1]:
        raise ShapeError(
            f"lstm: h0 must be (B, H) with B = {x.shape[1]} because x is {x.shape}; got {h0.shape}"
        )
    T, B, inputs = x.shape
    H = h0.shape[1]
    for name, array, shape, sizes in (
        ("c0", c0, (B, H), "(B, H)"),
        ("W_ih", W_ih, (4 * H, inputs), "(4H, I)"),
        ("W_hh", W_hh, (4 * H, H), "(4H, H)"),
        ("b", b, (4 * H,), "(4H)"),
    ):
        if array.shape != shape:
            raise ShapeError(
                f"lstm: {name} must be {sizes} = {shape} because x is {x.shape} and h0 is {h0.shape}; "
                f"got {array.shape}. Gates are stacked {', '.join(GATES)} on axis 0."
            )
    return T, B, H


def lstm(x: Any, h0: Any, c0: Any, W_ih: Any, W_hh: Any, b: Any) -> tuple[Variable, Variable, Variable]:
    """A long short-term memory over T steps (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        x: (T, B, I), the inputs.
        h0, c0: (B, H), output and cell before the first step.
        W_ih: (4H, I). W_hh: (4H, H). b: (4H). Gates are stacked i, f, g, o, as in torch.nn.LSTM.

    Returns:
        y (T, B, H), the outputs of all steps; h_T and c_T (B, H), the state after the last one.

    Raises:
        ShapeError: sizes that do not fit. DtypeError: arrays of different precision.
    """
    return LSTM().apply(x, h0, c0, W_ih, W_hh, b)
