# %% [markdown]
# # Lesson 4: through time
#
# A text is read step by step, with the same weights at every step. What happens to a gradient on its way
# back through all of them?

# %%
import numpy as np

import autograd.functions as F
from autograd import Variable
from minilstm.lstm_cell import lstm_cell

T, B, I, H = 35, 4, 8, 16
rng = np.random.default_rng(0)
x = rng.standard_normal((T, B, I))
zeros = np.zeros((B, H))


def weights(forget_bias=1.0):
    """W_ih, W_hh and b as nn.LSTM starts them, the forget gate's bias as given."""
    bound = 1 / np.sqrt(H)
    W_ih, W_hh = rng.uniform(-bound, bound, (4 * H, I)), rng.uniform(-bound, bound, (4 * H, H))
    return W_ih, W_hh, np.repeat([0.0, forget_bias, 0.0, 0.0], H)


# %% [markdown]
# ## One weight, T uses
#
# A weight stands in every step, and uses add up (lesson 1). To see the single uses, give each step a copy
# of the weights of its own: the gradients of the copies add up to that of the shared one.

# %%
W_ih, W_hh, b = weights()
shared = Variable(W_hh)
copies = [Variable(W_hh) for _ in range(T)]


def last_output(recurrent_weights):
    h, c = zeros, zeros
    for t in range(T):
        h, c = lstm_cell(x[t], h, c, W_ih, recurrent_weights[t], b)
    return h


last_output([shared] * T).sum().backward()
last_output(copies).sum().backward()
sum_of_copies = sum(copy.grad for copy in copies)
print(f"sum over {T} steps against the shared weight: {abs(sum_of_copies - shared.grad).max():.1e}")
assert np.allclose(sum_of_copies, shared.grad, rtol=1e-10, atol=1e-12)

# %% [markdown]
# ## Who remembers?
#
# How much of the gradient of the last output arrives at step t? Keep the gradient of every h and c on the
# way (`retain_grad`), and look at its length. Beside it a plain recurrent network, h' = tanh(x Wᵀ + h Uᵀ),
# whose gradient has to pass the matrix U and the slope of a tanh at every step.

# %%


def lstm_lengths(forget_bias):
    """The norm of the gradient that arrives at the cell after each step, from the sum of the last cell."""
    W_ih, W_hh, b = weights(forget_bias)
    h, c, cells = zeros, zeros, []
    for t in range(T):
        h, c = lstm_cell(x[t], h, c, W_ih, W_hh, Variable(b))
        c.retain_grad()
        cells.append(c)
    c.sum().backward()
    return [np.linalg.norm(cell.grad) for cell in cells]


def plain_lengths():
    W, _, _ = weights()
    U = rng.standard_normal((H, H))
    U *= 0.9 / np.linalg.norm(U, ord=2)  # no direction grows by more than 0.9
    h, outputs = zeros, []
    for t in range(T):
        h = F.tanh(F.linear(x[t], W[:H]) + F.linear(h, Variable(U)))
        h.retain_grad()
        outputs.append(h)
    h.sum().backward()
    return [np.linalg.norm(output.grad) for output in outputs]


curves = {
    "plain network": plain_lengths(),
    "LSTM, forget gates near 0.5": lstm_lengths(0.0),
    "LSTM, forget gates near 0.88": lstm_lengths(2.0),
    "LSTM, forget gates near 1": lstm_lengths(8.0),
}
print("what is left of the gradient, steps back:  0        10        20        30")
for name, lengths in curves.items():
    left = [lengths[T - 1 - back] / lengths[T - 1] for back in (0, 10, 20, 30)]
    print(f"{name:>40}  " + "  ".join(f"{part:8.1e}" for part in left))
assert curves["plain network"][4] < 1e-6
assert curves["LSTM, forget gates near 1"][4] > 0.1

# %% [markdown]
# The plain network's gradient is gone after twenty steps, whatever it would like to learn. The LSTM's dies
# or lives with its forget gates, and those are learned: a unit can decide how long it remembers. (The last
# row grows: beside the cell's own way there is the way through h and the gates, which passes a matrix as
# ever, and which is why training clips the length of the gradient.)
#
# ## What truncation cuts
#
# A text of a million words cannot be kept whole for one backward pass. It is read in windows; the state
# goes on from one to the next as plain numbers, `detach`ed: values pass, gradients do not.

# %%


def two_windows(cut, length=5):
    """The gradients that arrive at the inputs of two windows, from the last output of the second."""
    inputs = [Variable(step) for step in x[: 2 * length]]
    W_ih, W_hh, b = fixed
    h, c = zeros, zeros
    for t, step in enumerate(inputs):
        if t == length and cut:
            h, c = h.detach(), c.detach()
        h, c = lstm_cell(step, h, c, W_ih, W_hh, b)
    h.sum().backward()
    return h.data, [0.0 if step.grad is None else np.linalg.norm(step.grad) for step in inputs]


fixed = weights(2.0)
(h_whole, whole), (h_cut, cut) = two_windows(cut=False), two_windows(cut=True)
for name, lengths in (("whole", whole), ("cut in two", cut)):
    print(f"{name:>12}: " + "  ".join(f"{length:.3f}" for length in lengths))
assert np.array_equal(h_whole, h_cut)
assert cut[:5] == [0.0] * 5
assert np.allclose(whole[5:], cut[5:])

# %% [markdown]
# The output is the same to the bit, and so are the gradients within the second window; only what would have
# reached the first one is missing. That is all that truncated backpropagation through time truncates.
#
# **Try it.** What does the table say for a forget bias of -2? For a plain network whose matrix may grow by
# 1.5? Next: [lesson 5](5_fused_sequence.py), the same in one piece, and faster.
