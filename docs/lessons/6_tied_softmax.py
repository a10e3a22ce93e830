# %% [markdown]
# # Lesson 6: the tied softmax, in blocks
#
# To predict the next word, the last output h is compared with every word of the vocabulary. With 267,735
# words the table of scores, the logits, would be gigabytes large. It is never made.

# %%
import tracemalloc

import numpy as np

import autograd.functions as F
from autograd import Variable
from autograd.gradient_check import check_backward
from minilstm.tied_softmax import tied_softmax_loss

N, V, E = 256, 30_000, 32  # N = T · B rows, V words, E numbers a word
rng = np.random.default_rng(0)
h = rng.standard_normal((N, E)).astype(np.float32)
W = 0.1 * rng.standard_normal((V, E)).astype(np.float32)  # the embedding matrix: a row for each word
b = np.zeros(V, np.float32)
targets = rng.integers(0, V, N)

# %% [markdown]
# ## The plain way
#
# Logits l = h Wᵀ + b, a softmax over each row, and minus the logarithm of the probability at the target.
# This is `softmax_cross_entropy(linear(h, W, b), targets)`, and it holds (N, V) numbers more than once.

# %%


def plain_loss(h, W, b, targets):
    return F.softmax_cross_entropy(F.linear(h, W, b), targets)


def measured(loss_function):
    variables = [Variable(array) for array in (h, W, b)]
    tracemalloc.start()
    loss = loss_function(*variables, targets)
    loss.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return loss.item(), [variable.grad for variable in variables], peak / 1e6


plain, plain_grads, plain_peak = measured(plain_loss)
blocks, block_grads, block_peak = measured(tied_softmax_loss)
print(f"logits (N, V) are {4 * N * V / 1e6:.0f} MB; a blind guess costs ln V = {np.log(V):.3f}")
print(f"plain:     loss {plain:.5f}, at most {plain_peak:5.0f} MB")
print(f"in blocks: loss {blocks:.5f}, at most {block_peak:5.0f} MB")
assert abs(plain - blocks) < 1e-4
for ours, theirs in zip(block_grads, plain_grads, strict=True):
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
assert block_peak < plain_peak / 2

# %% [markdown]
# The same loss, the same gradients. What is left of the memory does not grow with N · V: one block of
# 144 MB at most for logits and their exponentials, and the gradients themselves.
#
# ## How
#
# Of a row's logits the loss needs one number, the sum S of their exponentials, and a sum can be collected
# block by block of words. The gradients need S as well, and after that each block alone: so the blocks are
# gone through twice, and multiplied out anew the second time. Equations (20) to (25) of
# `docs/lstm_backward.md`:

# %%


def by_hand(h, W, targets, block=1000):
    """Loss and gradients without a bias; no array is larger than (N, block)."""
    S = np.zeros(len(h))
    for first in range(0, len(W), block):
        S += np.exp(h @ W[first : first + block].T).sum(axis=1)  # (20), (21)
    loss = (np.log(S) - (h * W[targets]).sum(axis=1)).mean()  # (22)
    s = 1 / len(h)
    dh, dW = np.zeros_like(h), np.zeros_like(W)
    for first in range(0, len(W), block):
        words = slice(first, first + block)
        p = np.exp(h @ W[words].T) / S[:, None]  # probabilities of these words
        dh += s * p @ W[words]  # (23): every block adds its part
        dW[words] = s * p.T @ h  # (24): every block writes its own rows
    dh -= s * W[targets]  # the targets' parts of (23) and (24)
    np.subtract.at(dW, targets, s * h)
    return loss, dh, dW


small_h, small_W = rng.standard_normal((6, 4)), rng.standard_normal((50, 4))
small_targets = rng.integers(0, 50, 6)
variables = Variable(small_h), Variable(small_W)
loss = tied_softmax_loss(*variables, np.zeros(50), small_targets)
loss.backward()
for block in (7, 50):
    ours = by_hand(small_h, small_W, small_targets, block)
    assert np.allclose(ours[0], loss.item(), rtol=1e-12)
    assert np.allclose(ours[1], variables[0].grad, rtol=1e-10, atol=1e-13)
    assert np.allclose(ours[2], variables[1].grad, rtol=1e-10, atol=1e-13)
print("by hand, in blocks of 7 and of 50 words: the same")

# %% [markdown]
# ## Tied: one matrix, two uses
#
# W is also the table from which the inputs are looked up. Uses add up: its gradient is the decoder's part
# plus the lookup's part. Forget one and every shape is still right, only a check tells.

# %%
words = np.array([3, 1, 4, 1, 5])
following = np.array([1, 4, 1, 5, 9])


def tied(W):
    """Predict each next word straight from the embedding of the last one: no LSTM between."""
    return tied_softmax_loss(F.tanh(F.embedding(words, W)), W, np.zeros(10), following)


W10 = rng.standard_normal((10, 4))
as_decoder, as_table = Variable(W10), Variable(W10)
tied_softmax_loss(F.tanh(F.embedding(words, as_table)), as_decoder, np.zeros(10), following).backward()
both = Variable(W10)
tied(both).backward()
print(f"length of the decoder's part {np.linalg.norm(as_decoder.grad):.3f}, ", end="")
print(f"of the lookup's {np.linalg.norm(as_table.grad):.3f}, of their sum {np.linalg.norm(both.grad):.3f}")
assert np.allclose(as_decoder.grad + as_table.grad, both.grad, rtol=1e-12, atol=1e-14)
assert not np.any(as_table.grad[2])  # word 2 was never an input …
assert np.all(as_decoder.grad[2])  # … but every word was a candidate
print(f"tied, against differences: {check_backward(tied, [W10]):.1e}")

# %% [markdown]
# **Try it.** Which row of dW is largest, and why? What does a target of -1 do? And what if all logits are
# near 1000: does `by_hand` survive it, does `tied_softmax_loss`? Next: [lesson 7](7_float16.py), numbers of
# half the size.
