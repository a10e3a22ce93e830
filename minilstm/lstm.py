"""READ SECOND. An LSTM over a whole sequence, its backward pass through time derived by hand.

The numbers in brackets are the equations of docs/lstm_backward.md. Three things make it fast, none of them
changes an equation: the products with the inputs of all steps are one matrix product, so are the sums over
time that give the weights' gradients, and all that the backward recursion needs and that does not depend
on the arriving gradient is computed for all steps at once.

`layer_norm_lstm.py` is the same for the layer-normalised cell, from the functions at this file's end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import DtypeError, Function, ShapeError, Variable
from autograd.backend import get_array_module
from autograd.functions.linear import column_sums, matmul_into
from autograd.kernels import use_kernels
from autograd.parallel import MIN_PARALLEL_ELEMENTS, free_threads, matmul_rows, run_parts, split_range
from autograd.variable import as_variable
from minilstm.lstm_kernels import Meet, RecurrentProduct, cut, of_units, run_beside, unit_parts

GATES = ("i", "f", "g", "o")
"""Input, forget, candidate, output: how the gates are stacked on axis 0 of the weights (as PyTorch does)."""
I, F, G, O = range(4)  # noqa: E741


class LSTM(Function):
    """A whole sequence, forward and backward through time: see `lstm`."""

    def __init__(self, candidate_mask: Any = None) -> None:
        self.candidate_mask = candidate_mask

    def forward(self, x, h0, c0, W_ih, W_hh, b):
        T, B, H = checked_sizes("lstm", x, h0, c0, W_ih, W_hh, {"b": (b, 4)}, self.candidate_mask)
        xp, mask = get_array_module(x), self.candidate_mask
        factor, shift = sigmoid_from_tanh(xp, H, x.dtype)
        W_ih_T, bias = (W_ih * factor[:, None]).T, b * factor
        gates = xp.empty((T, B, 4 * H), x.dtype)
        h = xp.empty((T + 1, B, H), x.dtype)
        c = xp.empty((T + 1, B, H), x.dtype)
        tanh_c = xp.empty((T, B, H), x.dtype)
        h[0], c[0] = h0, c0
        parts = unit_parts(x, B, H)

        def project(steps: slice) -> None:
            z = gates[steps].reshape(-1, 4 * H)
            matmul_rows(x[steps].reshape(-1, x.shape[2]), W_ih_T, out=z)  # (1) but for h
            z += bias

        def run(units: slice, steps: slice, meet: Meet) -> None:
            own_factor, own_shift = (v.reshape(4, H)[:, units] for v in (factor, shift))
            times_W_hh = RecurrentProduct(of_units(W_hh, units, own_factor).T, rows=B)
            recurrent = xp.empty((B, *own_factor.shape), x.dtype)
            out, workspace = recurrent.reshape(B, own_factor.size), times_W_hh.workspace(B)
            for t in range(steps.start, steps.stop):
                z, tc = gates[t].reshape(B, 4, H)[:, :, units], tanh_c[t, :, units]
                times_W_hh(h[t], out, workspace)
                z += recurrent  # (1)
                xp.tanh(z, out=z)  # (3), and half of (2)
                z *= own_factor  # (2)
                z += own_shift
                i, f, g, o = z[:, I], z[:, F], z[:, G], z[:, O]
                c_t = xp.multiply(f, c[t, :, units], out=c[t + 1, :, units])
                xp.multiply(i, g, out=tc)
                if mask is not None:
                    tc *= mask[t, :, units]  # (35)
                c_t += tc  # (4)
                xp.tanh(c_t, out=tc)
                xp.multiply(o, tc, out=h[t + 1, :, units])  # (5)
                meet()  # the next step's product needs all of h

        run_forward(T, parts, project, run)
        self.save(x, W_ih, W_hh, gates, h, c, tanh_c)
        return h[1:], h[T], c[T]

    def backward(self, dy, dh_T, dc_T):
        x, W_ih, W_hh, gates, h, c, tanh_c = self.saved
        xp = get_array_module(x)
        T, B, H = tanh_c.shape
        dh = xp.zeros((B, H), x.dtype) if dh_T is None else dh_T.astype(x.dtype)
        dc = xp.zeros((B, H), x.dtype) if dc_T is None else dc_T.astype(x.dtype)
        # Slopes at first, in the gates' own memory; step by step the loop makes gradients of them.
        dz = (gates.copy() if self.saved_is_needed_again else gates).reshape(T, B, 4, H)
        f, o_slope = local_derivatives(dz, c, tanh_c, self.candidate_mask)
        parts = unit_parts(x, B, H)

        def run(units: slice, steps: slice, meet: Meet) -> None:
            times_W_hh = RecurrentProduct(W_hh[:, units], rows=B)
            dh_t, dc_t = dh[:, units], dc[:, units]
            through_h, workspace = xp.empty_like(dh_t), times_W_hh.workspace(B)
            for t in reversed(range(steps.start, steps.stop)):
                dz_t = dz[t, :, :, units]
                if dy is not None:
                    dh_t += dy[t, :, units]  # (6)
                dc_t += xp.multiply(dh_t, o_slope[t, :, units], out=through_h)  # (7)
                dz_t[:, :O] *= dc_t[:, None]  # (8)
                dz_t[:, O] *= dh_t  # (9)
                dc_t *= f[t, :, units]  # (10)
                meet()  # the product needs the gradients of all gates
                times_W_hh(dz[t].reshape(B, 4 * H), dh_t, workspace)  # (11)

        dx, dW_ih, dW_hh = run_backward(self, parts, run, dz, x, W_ih, h)
        return dx, dh, dc, dW_ih, dW_hh, column_sums(dz.reshape(T * B, 4 * H))  # (15)


def run_forward(
    T: int, parts: list[slice], project: Callable[[slice], None], run: Callable[[slice, slice, Meet], None]
) -> None:
    """All steps forward: `project` makes the inputs' products of some steps, `run` the time loop over them.

    Args:
        parts: of the units, or of the batch; one a thread.
        project: takes steps.
        run: takes a part, steps, which begin where those of its last call ended, and what lets threads meet.
    """
    pieces = cut(T, 0.4, parts)
    project(pieces[0])
    for steps, following in zip(pieces, [*pieces[1:], None], strict=True):
        run_beside(run, parts, steps, following and functools.partial(project, following))


def run_backward(
    function: Function,
    parts: list[slice],
    run: Callable[[slice, slice, Meet], None],
    dz: Any,
    x: Any,
    W_ih: Any,
    h: Any,
) -> tuple[Any, Any, Any]:
    """All steps backward: `run` fills dz from the last step to the first, products follow it.

    Args:
        function: whose inputs 0, 3 and 4 are x, W_ih and W_hh.
        run: as for `run_forward`.
        dz: (T, B, 4, H), once it is filled the gradient of x_t W_ihᵀ + h_{t-1} W_hhᵀ.
        h: (T + 1, B, H).

    Returns:
        dx (None if nobody wants it), dW_ih, dW_hh.
    """
    dx = get_array_module(x).empty_like(x) if function.needs_grad(0) else None

    def products(steps: slice) -> tuple[Any, Any]:
        dz_rows = dz[steps].reshape(-1, len(W_ih))
        x_rows = x[steps].reshape(-1, x.shape[2])
        h_rows = h[steps].reshape(-1, h.shape[2])  # h[t] is what goes into step t
        if dx is not None:
            matmul_rows(dz_rows, W_ih, out=dx[steps].reshape(x_rows.shape))  # (12)
        dW_ih = matmul_into(function, 3, dz_rows.T, x_rows)  # (13)
        return dW_ih, matmul_into(function, 4, dz_rows.T, h_rows)  # (14)

    pieces = cut(len(x), 0.65, parts)[::-1]
    for steps, before in zip(pieces, [None, *pieces[:-1]], strict=True):
        run_beside(run, parts, steps, before and functools.partial(products, before))
    return dx, *products(pieces[-1])


def sigmoid_from_tanh(xp: Any, H: int, dtype: Any) -> tuple[Any, Any]:
    """factor, shift (4H): one tanh serves all gates, as sigmoid(z) = tanh(z/2) / 2 + 1/2.

    With the weights of i, f and o multiplied by factor = 1/2 beforehand, a gate is
    tanh(pre-activation) · factor + shift; for the candidate g they are 1 and 0.
    """
    factor = xp.full((4, H), 0.5, dtype)
    factor[G] = 1
    return factor.reshape(-1), 1 - factor.reshape(-1)


def local_derivatives(gates: Any, c: Any, tanh_c: Any, mask: Any = None) -> tuple[Any, Any]:
    """What each step multiplies the arriving gradients with, for all steps at once.

    The gates (T, B, 4, H) are overwritten by the derivatives of c_t by the pre-activations of i, f, g
    and of h_t by that of o: (8) and (9) before dc and dh arrive. A mask (T, B, H) of the candidate
    multiplies i · g in c_t, hence both slopes.

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
        o_slope *= o  # (7) but for dh
        a[:, :, O] *= (1 - o) * tanh  # (9) but for dh
        a[:, :, I] *= (1 - i) * g  # (8) but for dc, likewise the next two
        a[:, :, F] *= (1 - f) * c[steps]  # (8): c[t] is the cell before step t
        a[:, :, G] = (1 - g * g) * i  # (8)
        if mask is not None:
            a[:, :, I] *= mask[steps]  # (36)
            a[:, :, G] *= mask[steps]

    shared = xp is np and gates.size >= MIN_PARALLEL_ELEMENTS
    run_parts(run, split_range(len(gates), free_threads() if shared else 1))
    return all_f, all_o_slope


def checked_sizes(
    label: str, x: Any, h0: Any, c0: Any, W_ih: Any, W_hh: Any, vectors: dict[str, tuple[Any, int]], mask: Any
) -> tuple[int, int, int]:
    """T, B, H, once all sizes fit; `vectors` by name, each with its length in multiples of H.

    Args:
        x, h0, c0, W_ih, W_hh: must be shaped as in `lstm`. mask: (T, B, H), or None.
        label: the caller's name, for errors.

    Raises:
        ShapeError: they do not. DtypeError: a mask of another precision.
    """
    if x.ndim != 3 or len(x) < 1:
        raise ShapeError(f"{label}: x must be (T, B, I) with at least one step; got {x.shape}")
    if h0.ndim != 2 or len(h0) != x.shape[1]:
        raise ShapeError(
            f"{label}: h0 must be (B, H) with B = {x.shape[1]} because x is {x.shape}; got {h0.shape}"
        )
    T, B, inputs = x.shape
    H = h0.shape[1]
    expected: list[tuple[str, Any, tuple[int, ...], str]] = [
        ("c0", c0, (B, H), "(B, H)"),
        ("W_ih", W_ih, (4 * H, inputs), "(4H, I)"),
        ("W_hh", W_hh, (4 * H, H), "(4H, H)"),
    ]
    for name, (vector, multiple) in vectors.items():
        expected.append((name, vector, (multiple * H,), "(4H)" if multiple == 4 else "(H)"))
    if mask is not None:
        expected.append(("candidate_mask", mask, (T, B, H), "(T, B, H)"))
    for name, array, shape, sizes in expected:
        if array.shape != shape:
            stacked = f". Gates are stacked {', '.join(GATES)} on axis 0." if sizes.startswith("(4H") else ""
            raise ShapeError(
                f"{label}: {name} must be {sizes} = {shape} because x is {x.shape} and h0 is {h0.shape}; "
                f"got {array.shape}{stacked}"
            )
    if mask is not None and mask.dtype != x.dtype:
        raise DtypeError(f"{label}: candidate_mask must be {x.dtype} because x is; got {mask.dtype}")
    return T, B, H


def lstm(
    x: Any, h0: Any, c0: Any, W_ih: Any, W_hh: Any, b: Any, candidate_mask: Any = None
) -> tuple[Variable, Variable, Variable]:
    """A long short-term memory over T steps (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        x: (T, B, I), the inputs.
        h0, c0: (B, H), output and cell before the first step.
        W_ih: (4H, I). W_hh: (4H, H). b: (4H). Gates are stacked i, f, g, o, as in torch.nn.LSTM.
        candidate_mask: an array (T, B, H), what the candidate of each step is multiplied with before it
            enters the cell (Semeniuta et al. 2016), or None.

    Returns:
        y (T, B, H), the outputs of all steps; h_T and c_T (B, H), the state after the last one.

    Raises:
        ShapeError: sizes that do not fit. DtypeError: arrays of different precision.
    """
    if use_kernels(as_variable(x).data):
        from minilstm.lstm_cuda import KernelLSTM  # made from parts of this module

        return KernelLSTM(candidate_mask).apply(x, h0, c0, W_ih, W_hh, b)
    return LSTM(candidate_mask).apply(x, h0, c0, W_ih, W_hh, b)
