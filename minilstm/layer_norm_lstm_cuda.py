"""The layer-normalised LSTM whose steps are one kernel each: what `layer_norm_lstm.py` computes, on a GPU.

The equations are those of docs/lstm_backward.md; `cuda/layer_norm_lstm.cu` has those of a step, the matrix
products are here. What is float16 and what is not is as in `lstm_cuda.py`.
"""

from __future__ import annotations

from typing import Any

from autograd import Function, ShapeError
from autograd.backend import get_array_module, matmul
from autograd.functions.linear import column_sums
from autograd.kernels import KernelModule
from minilstm.lstm import checked_sizes
from minilstm.lstm_cell import epsilon_for
from minilstm.lstm_cuda import (
    arriving,
    first_states,
    input_gradients,
    input_products,
    per_step,
    weight_products,
    wide_dtype,
)
from minilstm.wavefront import current_lane, written_gradient

KERNELS = KernelModule("minilstm", "layer_norm_lstm")
MAX_THREADS = 256
SHARED_BYTES = (48 << 10) - 2048
"""A block has 48 KB on every GPU; sums over it take some, the gates of a row of the batch lie in the rest."""


class KernelLayerNormLSTM(Function):
    """As `minilstm.layer_norm_lstm.LayerNormLSTM`; tanh(c) is computed again."""

    label = "layer_norm_lstm"
    needs_kernels = True

    def __init__(self, candidate_mask: Any = None, epsilon: float = 0.0) -> None:
        self.candidate_mask, self.epsilon, self.lane = candidate_mask, epsilon, current_lane()

    def forward(self, x, h0, c0, W_ih, W_hh, gate_gain, gate_shift, cell_gain, cell_shift):
        vectors = {"gate_gain": (gate_gain, 4), "gate_shift": (gate_shift, 4)}
        vectors |= {"cell_gain": (cell_gain, 1), "cell_shift": (cell_shift, 1)}
        T, B, H = checked_sizes("layer_norm_lstm", x, h0, c0, W_ih, W_hh, vectors, self.candidate_mask)
        xp, wide, masks = get_array_module(x), wide_dtype(x), per_step(self.candidate_mask, T)
        normal = xp.empty((T, B, 4 * H), x.dtype)
        gates, inverse_std = xp.empty_like(normal), xp.empty((T, B, 4), wide)
        normal_c, c_inverse_std = xp.empty((T, B, H), x.dtype), xp.empty((T, B), wide)
        h, c = first_states(h0, T), first_states(c0, T)
        recurrent = xp.empty((B, 4 * H), wide)
        gains = [xp.ascontiguousarray(v) for v in (gate_gain, gate_shift, cell_gain, cell_shift)]
        epsilon = epsilon_for(x.dtype, self.epsilon)
        for steps in self.lane.chunks(T):
            self.lane.needs(x, steps)
            input_products(x[steps], W_ih, normal[steps])
            for t in range(steps.start, steps.stop):
                matmul(h[t], W_hh.T, out=recurrent)  # (50)
                given = normal[t], recurrent, *gains, c[t], masks[t]
                made = gates[t], inverse_std[t], normal_c[t], c_inverse_std[t], c[t + 1], h[t + 1]
                launch("layer_norm_lstm_forward", x, H, *given, *made, epsilon)
            self.lane.has(h[1:], steps)
        normalized = normal, inverse_std, normal_c, c_inverse_std, gains[0], gains[2]
        self.save(x, W_ih, W_hh, gates, h, c, *normalized)
        return h[1:], h[T], c[T]

    def backward(self, dy, dh_T, dc_T):
        with self.lane:
            return self._backward(dy, dh_T, dc_T)

    def _backward(self, dy, dh_T, dc_T):
        x, W_ih, W_hh, gates, h, c, normal, inverse_std, normal_c, c_inverse_std, *gains = self.saved
        xp, (T, B, _) = get_array_module(x), x.shape
        H, masks, dys = h.shape[2], per_step(self.candidate_mask, T), per_step(dy, T)
        dh, dc = arriving(dh_T, h[0]), arriving(dc_T, c[0])
        sums = [xp.zeros((B, size), dh.dtype) for size in (4 * H, 4 * H, H, H)]
        da = xp.empty_like(gates) if self.saved_is_needed_again else gates
        dx = xp.empty_like(x) if self.needs_grad(0) else None
        for steps in reversed(self.lane.chunks(T)):
            if dy is not None:
                self.lane.needs(dy, steps)
            for t in reversed(range(steps.start, steps.stop)):
                normalized = normal[t], inverse_std[t], normal_c[t], c_inverse_std[t]
                arrays = gates[t], da[t], *normalized, *gains, c[t], c[t + 1], masks[t], dys[t], dh, dc, *sums
                launch("layer_norm_lstm_backward", x, H, *arrays)
                matmul(da[t], W_hh, out=dh)  # (60)
            input_gradients(self.lane, da, W_ih, dx, steps)
        dW_ih, dW_hh = weight_products(self, self.lane, da, x, h)
        vectors = (
            written_gradient(self, 5 + index, column_sums(d).astype(x.dtype)) for index, d in enumerate(sums)
        )
        return dx, dh.astype(x.dtype), dc.astype(x.dtype), dW_ih, dW_hh, *vectors


def launch(kernel: str, x: Any, H: int, *args: Any) -> None:
    """One block a row of x (T, B, I), with room for the four gates of the row.

    Raises:
        ShapeError: more units than that.
    """
    shared_bytes = 4 * H * wide_dtype(x).itemsize
    if shared_bytes > SHARED_BYTES:
        most = SHARED_BYTES // (4 * wide_dtype(x).itemsize)
        raise ShapeError(f"layer_norm_lstm: H must be at most {most:,} on a GPU; got {H:,}")
    threads = min(MAX_THREADS, -(-H // 32) * 32)
    KERNELS.launch(kernel, x.shape[1], threads, *args, H, shared_bytes=shared_bytes)
