"""The LSTM whose pointwise work is one kernel a step: what `lstm.py` computes, on a GPU.

The equations are those of docs/lstm_backward.md; `cuda/lstm.cu` has those of a step, the products are here.
The recursion's products, (1) and (11), are not rounded to float16 on their way into a kernel, nor is the
cell's gradient from step to step: of float16 arrays only what is kept is float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Function
from autograd.backend import get_array_module, matmul
from autograd.functions.linear import column_sums, matmul_into
from autograd.kernels import KernelModule
from minilstm.lstm import checked_sizes
from minilstm.wavefront import Lane, current_lane, written_gradient

KERNELS = KernelModule("minilstm", "lstm")
THREADS = 256
"""Of a block in pointwise kernels."""


class KernelLSTM(Function):
    """As `minilstm.lstm.LSTM`; tanh(c) is not kept but computed again.

    Steps go chunk by chunk, so that layers may follow each other as a wavefront.
    """

    label = "lstm"
    needs_kernels = True

    def __init__(self, candidate_mask: Any = None) -> None:
        self.candidate_mask, self.lane = candidate_mask, current_lane()

    def forward(self, x, h0, c0, W_ih, W_hh, b):
        T, B, H = checked_sizes("lstm", x, h0, c0, W_ih, W_hh, {"b": (b, 4)}, self.candidate_mask)
        xp, masks = get_array_module(x), per_step(self.candidate_mask, T)
        gates = xp.empty((T, B, 4 * H), x.dtype)
        h, c = first_states(h0, T), first_states(c0, T)
        b, recurrent = xp.ascontiguousarray(b), xp.empty((B, 4 * H), wide_dtype(x))
        for steps in self.lane.chunks(T):
            self.lane.needs(x, steps)
            input_products(x[steps], W_ih, gates[steps])
            for t in range(steps.start, steps.stop):
                matmul(h[t], W_hh.T, out=recurrent)  # (1)
                arrays = gates[t], recurrent, b, c[t], masks[t], c[t + 1], h[t + 1]
                KERNELS.launch("lstm_forward", -(-B * H // THREADS), THREADS, *arrays, B, H)
            self.lane.has(h[1:], steps)
        self.save(x, W_ih, W_hh, gates, h, c)
        return h[1:], h[T], c[T]

    def backward(self, dy, dh_T, dc_T):
        with self.lane:
            return self._backward(dy, dh_T, dc_T)

    def _backward(self, dy, dh_T, dc_T):
        x, W_ih, W_hh, gates, h, c = self.saved
        xp, (T, B, _) = get_array_module(x), x.shape
        H, masks, dys = h.shape[2], per_step(self.candidate_mask, T), per_step(dy, T)
        dh, dc = arriving(dh_T, h[0]), arriving(dc_T, c[0])
        dz = xp.empty_like(gates) if self.saved_is_needed_again else gates
        dx = xp.empty_like(x) if self.needs_grad(0) else None
        for steps in reversed(self.lane.chunks(T)):
            if dy is not None:
                self.lane.needs(dy, steps)
            for t in reversed(range(steps.start, steps.stop)):
                arrays = gates[t], dz[t], c[t], c[t + 1], masks[t], dys[t], dh, dc
                KERNELS.launch("lstm_backward", -(-B * H // THREADS), THREADS, *arrays, B, H)
                matmul(dz[t], W_hh, out=dh)  # (11)
            input_gradients(self.lane, dz, W_ih, dx, steps)
        dW_ih, dW_hh = weight_products(self, self.lane, dz, x, h)
        db = written_gradient(self, 5, column_sums(dz.reshape(T * B, 4 * H)))  # (15)
        return dx, dh.astype(x.dtype), dc.astype(x.dtype), dW_ih, dW_hh, db


def wide_dtype(x: Any) -> np.dtype:
    """What kernels calculate in for arrays like x, of any shape."""
    return np.promote_types(x.dtype, np.float32)


def per_step(array: Any, T: int) -> Any:
    """The array, contiguous, or T times None."""
    return [None] * T if array is None else get_array_module(array).ascontiguousarray(array)


def first_states(state: Any, T: int) -> Any:
    """(T + 1, B, H), of which the first is `state` and the others are yet to come."""
    states = get_array_module(state).empty((T + 1, *state.shape), state.dtype)
    states[0] = state
    return states


def arriving(gradient: Any, like: Any) -> Any:
    """What arrives at a state from behind the last step, in the kernels' precision; zeros if nothing does."""
    xp, dtype = get_array_module(like), wide_dtype(like)
    return xp.zeros(like.shape, dtype) if gradient is None else xp.array(gradient, dtype, order="C")


def input_products(x: Any, W_ih: Any, out: Any) -> None:
    """out ← x_t W_ihᵀ of some steps, (steps, B, 4H), in one product, of (1)."""
    matmul(x.reshape(-1, x.shape[2]), W_ih.T, out=out.reshape(-1, len(W_ih)))  # (1)


def input_gradients(lane: Lane, dz: Any, W_ih: Any, dx: Any, steps: slice) -> None:
    """The same steps of dx (T, B, I), unless it is None, from dz (T, B, 4H)."""
    if dx is not None:
        matmul(dz[steps].reshape(-1, len(W_ih)), W_ih, out=dx[steps].reshape(-1, dx.shape[2]))  # (12)
        lane.has(dx, steps)


def weight_products(function: Function, lane: Lane, dz: Any, x: Any, h: Any) -> tuple[Any, Any]:
    """dW_ih and dW_hh from dz (T, B, 4H); inputs 3 and 4 of `function`."""
    lane.holds(x)
    dz_rows = dz.reshape(-1, dz.shape[2])
    x_rows, h_rows = x.reshape(-1, x.shape[2]), h[:-1].reshape(-1, h.shape[2])
    dW_ih = matmul_into(function, 3, dz_rows.T, x_rows)  # (13)
    return dW_ih, matmul_into(function, 4, dz_rows.T, h_rows)  # (14)
