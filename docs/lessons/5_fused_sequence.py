# %% [markdown]
# # Lesson 5: the fused sequence, and why it is faster
#
# `minilstm/lstm.py` computes the whole sequence as one Function, its backward pass derived by hand. It is
# the equations of lesson 3 and nothing else, in another order of work. This lesson takes the three ideas
# one by one.

# %%
import time

import numpy as np

from autograd import Variable
from autograd.check import kinds_behind
from autograd.gradient_check import check_backward
from minilstm.lstm import lstm
from minilstm.lstm_cell import unrolled_lstm

T, B, I, H = 35, 20, 64, 64
rng = np.random.default_rng(0)


def arrays_of(T, B, I, H, dtype=np.float64):
    shapes = (T, B, I), (B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,)
    return [0.3 * rng.standard_normal(shape).astype(dtype) for shape in shapes]


arrays = arrays_of(T, B, I, H)
x, h0, c0, W_ih, W_hh, b = arrays

# %% [markdown]
# ## The same numbers
#
# The readable cell, T times, against the fused Function: outputs, state, and every gradient.

# %%


def run(implementation, arrays):
    variables = [Variable(array) for array in arrays]
    y, h, c = implementation(*variables)
    (y * y).sum().backward()
    return [y.data, h.data, c.data, *(variable.grad for variable in variables)]


names = ["y", "h_T", "c_T", "dx", "dh_0", "dc_0", "dW_ih", "dW_hh", "db"]
for name, fused, readable in zip(names, run(lstm, arrays), run(unrolled_lstm, arrays), strict=True):
    print(f"{name:>6}: largest difference {abs(fused - readable).max() / abs(readable).max():.1e}")
    assert np.allclose(fused, readable, rtol=1e-9, atol=1e-12 * abs(readable).max())
print(f"fused, against differences: {check_backward(lstm, arrays_of(3, 2, 4, 5)):.1e}")

# %% [markdown]
# ## Idea 1: the inputs' products wait for nobody
#
# Of z_t = x_t W_ihᵀ + h_{t-1} W_hhᵀ + b only the second product has to wait for the step before. So the
# rows of all steps go through the first one together: one matrix of T·B rows instead of T of B rows.

# %%
step_by_step = np.stack([x[t] @ W_ih.T for t in range(T)])
at_once = (x.reshape(T * B, I) @ W_ih.T).reshape(T, B, 4 * H)
assert np.allclose(step_by_step, at_once, rtol=1e-12, atol=1e-13)

# %% [markdown]
# ## Idea 2: a sum over time is one product
#
# dW_ih is the sum over steps of dz_tᵀ x_t, and each of these is itself a sum over the rows of its step. A
# sum over all pairs of step and row is one product with a long inner side.

# %%
dz = rng.standard_normal((T, B, 4 * H))
sum_over_time = sum(dz[t].T @ x[t] for t in range(T))
one_product = dz.reshape(T * B, 4 * H).T @ x.reshape(T * B, I)
assert np.allclose(sum_over_time, one_product, rtol=1e-10, atol=1e-11)


def milliseconds(function, repeats=20):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


slow = milliseconds(lambda: sum(dz[t].T @ x[t] for t in range(T)))
fast = milliseconds(lambda: dz.reshape(T * B, 4 * H).T @ x.reshape(T * B, I))
print(f"dW_ih step by step {slow:.2f} ms, as one product {fast:.2f} ms (this machine, now)")

# %% [markdown]
# Step by step, each of the T products reads and writes the whole of dW_ih for the sake of B rows; together
# it is written once. The multiplications are the same.
#
# ## Idea 3: what needs no gradient is done before the gradient comes
#
# In dz_i = dc ∘ g ∘ i ∘ (1 - i), all but dc is known since the forward pass. So g ∘ i ∘ (1 - i) is computed
# for all steps in one stroke; in the loop back through time one multiplication is left. The order of
# factors is free, so nothing changes but rounding.
#
# ## What it comes to
#
# The engine's graph of the readable sequence has some fifteen Functions a step, each with its arrays; that
# of the fused one is a single node. Less to remember, less to walk through.

# %%
variables = [Variable(array) for array in arrays_of(T, B, I, H, np.float32)]


def count_functions(variable):
    found, open_ones = set(), [variable.node]
    while open_ones:
        creator = open_ones.pop().creator
        if creator is not None and creator not in found:
            found.add(creator)
            open_ones += creator.inputs
    return len(found)


for implementation in (unrolled_lstm, lstm):
    y, _, _ = implementation(*variables)
    kinds = sorted(kind.__name__ for kind in kinds_behind([y]))
    print(f"{implementation.__name__}: {count_functions(y)} Functions ({', '.join(kinds)})")
y, _, _ = lstm(*variables)
assert count_functions(y) == 1


def training_pass(implementation):
    y, _, _ = implementation(*variables)
    y.sum().backward()


slow, fast = (milliseconds(lambda run=run: training_pass(run), 5) for run in (unrolled_lstm, lstm))
print(f"forward and backward: readable {slow:.1f} ms, fused {fast:.1f} ms (this machine, now)")

# %% [markdown]
# Times are printed and nothing is asserted of them: they belong to a machine and a moment. Those of the
# README come from `python -m benchmarks.training_step`, measured beside PyTorch in one run.
#
# **Try it.** Why can (11), dh_{t-1} = dz_t W_hh, not be gathered into one product? Read `LSTM.backward` in
# `minilstm/lstm.py` with the equations beside it: it fits on a screen. Next: [lesson 6](6_tied_softmax.py),
# a softmax over every word there is.
