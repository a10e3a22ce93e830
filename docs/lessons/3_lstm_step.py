# %% [markdown]
# # Lesson 3: the LSTM step
#
# One step of a long short-term memory reads an input x and carries two things on: the cell c, which
# remembers, and the output h, which is what the cell shows. Five equations; numbers in brackets are those
# of `docs/lstm_backward.md` and stand in the code of `minilstm/lstm_cell.py` as well.

# %%
import numpy as np

from autograd import Variable
from autograd.gradient_check import check_backward
from minilstm.lstm_cell import lstm_cell


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# %% [markdown]
# ## Forward, in NumPy
#
# B rows of a batch, I inputs, H units. The weights of the four gates lie one below the other, in the order
# i, f, g, o, so that one product computes them all.

# %%
B, I, H = 1, 3, 2
rng = np.random.default_rng(0)
x, h, c = rng.standard_normal((B, I)), rng.standard_normal((B, H)), rng.standard_normal((B, H))
W_ih, W_hh = rng.standard_normal((4 * H, I)), rng.standard_normal((4 * H, H))
b = np.repeat([0.0, 1.0, 0.0, 0.0], H)  # 1 for the forget gate: at first, remember

z = x @ W_ih.T + h @ W_hh.T + b  # (1)
z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)  # (2)
g = np.tanh(z_g)  # (3)
c_new = f * c + i * g  # (4)
h_new = o * np.tanh(c_new)  # (5)


def show(**arrays):
    for name, array in arrays.items():
        print(f"{name:>14}  " + "  ".join(f"{value:7.4f}" for value in array.ravel()))


print("                 unit 1   unit 2")
show(i=i, f=f, g=g, o=o, c=c, c_new=c_new, h_new=h_new)

# %% [markdown]
# Read a column from top to bottom: i says how much of the candidate g is written into the cell, f how much
# of the old cell is kept, o how much of the new one is shown. All three lie between 0 and 1.
#
# The engine's own cell, written with its primitives, gives the same:

# %%
variables = [Variable(array) for array in (x, h, c, W_ih, W_hh, b)]
their_h, their_c = lstm_cell(*variables)
assert np.allclose(their_h.data, h_new, rtol=1e-12)
assert np.allclose(their_c.data, c_new, rtol=1e-12)
print("lstm_cell: the same h and c")

# %% [markdown]
# ## What a gate does
#
# Push the bias of the forget gate up and the cell keeps what it has; push the input gate down and nothing
# new comes in. Both at once make a memory: a hundred steps of noise, and it still knows.

# %%


def after_noise(forget_bias, input_bias, steps=100):
    cell, output, noise = np.full((1, H), 0.7), np.zeros((1, H)), np.random.default_rng(1)
    bias = np.repeat([input_bias, forget_bias, 0.0, 0.0], H)
    for _ in range(steps):
        output, cell = lstm_cell(noise.standard_normal((1, I)), output, cell, W_ih, W_hh, bias)
    return cell.data


show(no_bias=after_noise(0, 0), a_memory=after_noise(30, -30))
assert np.allclose(after_noise(30, -30), 0.7, atol=1e-6)

# %% [markdown]
# ## Backward, gate by gate
#
# Let the loss be the sum of the new h, so that dh = 1, and let nobody use the new cell. Go through the five
# equations from the last to the first. Two rules do it all: in a product, each factor gets the arriving
# gradient times the other factor; through a squashing function, it is multiplied by the slope, which is o(1
# - o) for a sigmoid and 1 - g² for a tanh.

# %%
dh = np.ones((B, H))
dc = dh * o * (1 - np.tanh(c_new) ** 2)  # (7): through (5) into the cell
dz_i = dc * g * i * (1 - i)  # (8): (4), then the slope of (2)
dz_f = dc * c * f * (1 - f)
dz_g = dc * i * (1 - g**2)
dz_o = dh * np.tanh(c_new) * o * (1 - o)  # (9)
dc_before = dc * f  # (10): to the cell of the step before
dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
dh_before = dz @ W_hh  # (11): to the output of the step before
dx = dz @ W_ih  # (12)
dW_ih, dW_hh, db = dz.T @ x, dz.T @ h, dz.sum(axis=0)  # (13), (14), (15) for a single step
show(dc=dc, dz_i=dz_i, dz_f=dz_f, dz_g=dz_g, dz_o=dz_o)

# %% [markdown]
# The engine derived the same from the graph that grew in `lstm_cell`, without knowing any of these
# equations:

# %%
their_h.sum().backward()
by_hand = {"x": dx, "h": dh_before, "c": dc_before, "W_ih": dW_ih, "W_hh": dW_hh, "b": db}
for (name, ours), variable in zip(by_hand.items(), variables, strict=True):
    print(f"d{name:5} {ours.shape}: largest difference {abs(ours - variable.grad).max():.1e}")
    assert np.allclose(ours, variable.grad, rtol=1e-12, atol=1e-14)

# %% [markdown]
# Two derivations could share a mistake; differences share none with either.

# %%
error = check_backward(lstm_cell, [x, h, c, W_ih, W_hh, b])
print(f"against differences: relative error {error:.1e}")

# %% [markdown]
# Look at (10) once more: the cell's gradient goes to the step before by one multiplication with f. No
# matrix, no slope of a squashing function. With f near 1 it arrives whole, and that is the idea of the
# whole thing.
#
# **Try it.** Which gradient is zero if the candidate g is 0? If the cell before was 0? Draw the graph of
# the step: `python -m minilstm.draw cell --out cell.svg`. Next: [lesson 4](4_through_time.py), many steps.
