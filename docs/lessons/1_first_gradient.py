# %% [markdown]
# # Lesson 1: a Variable and its first gradient
#
# A gradient answers one question: if I move this number a little, how much does the result move? The engine
# answers it for every number at once. This lesson asks it of one number, then of a hundred.

# %%
import numpy as np

from autograd import Variable, no_backprop_mode


def f(x):
    return x * x + 3 * x


# %% [markdown]
# ## The question, asked by hand
#
# At x = 2, move x by a small h both ways, and divide the change of f by the change of x.

# %%
h = 1e-6
slope = (f(2 + h) - f(2 - h)) / (2 * h)
print(f"by differences:  df/dx at 2 = {slope:.6f}")

# %% [markdown]
# ## The question, asked of the engine
#
# A `Variable` is an array that remembers how it came to be. The same f runs on it, and `backward` goes back
# over what was remembered. The answer stands in `x.grad`. On paper it is 2x + 3 = 7.

# %%
x = Variable(np.array(2.0), name="x")
y = f(x)
y.backward()
print(f"by backward:     df/dx at 2 = {x.grad:.6f}")
assert x.grad == 7.0

# %% [markdown]
# ## What is remembered
#
# Each operation is a `Function`. It knows its inputs, and each input knows the function that made it, its
# `creator`. Together they are the graph; it grew while f ran, there was nothing to declare beforehand.

# %%
y = f(Variable(np.array(2.0), name="x"))


def show(node, depth=1):
    made_by = node.creator.label if node.creator else f"given: {node.name or 'a constant'}"
    print("   " * depth + made_by)
    for node_before in node.creator.inputs if node.creator else ():
        show(node_before, depth + 1)


show(y.node)

# %% [markdown]
# ## Uses add up
#
# x stands in f three times: twice in x * x, once in 3 * x. Through each use a gradient comes back, 2, 2 and
# 3, and x.grad is their sum. This one rule, applied to a weight that is used at every step of a text, is
# all of "backpropagation through time".
#
# It also means that a second backward pass *adds* to `grad`. `zero_grad` begins anew.

# %%
x = Variable(np.array(2.0))
f(x).backward()
f(x).backward()
print(f"after two passes: {x.grad}")
assert x.grad == 14.0
x.zero_grad()
assert x.grad is None

# %% [markdown]
# ## Arrays
#
# A gradient has the shape of what it belongs to: one slope for each element. What `backward` starts from is
# a single number, as a loss is. Here a vector b (4) is added to each row of x (3, 4): every element of b is
# used three times, so its gradient is a sum of three.

# %%
rng = np.random.default_rng(0)
x = Variable(rng.standard_normal((3, 4)), name="x")
b = Variable(rng.standard_normal(4), name="b")
loss = ((x + b) * (x + b)).sum()
loss.backward()
print(f"x {x.shape}: gradient {x.grad.shape};  b {b.shape}: gradient {b.grad.shape}")
assert np.allclose(x.grad, 2 * (x.data + b.data))
assert np.allclose(b.grad, x.grad.sum(axis=0))

# %% [markdown]
# ## What a gradient is for
#
# A hundred points lie near a line y = 2x - 1. The loss is the mean squared distance to the line w x + v.
# Walk against the gradient, forty times.

# %%
points = rng.uniform(-1, 1, 100)
values = 2 * points - 1 + 0.1 * rng.standard_normal(100)
w, v = Variable(np.array(0.0), name="w"), Variable(np.array(0.0), name="v")
for step in range(41):
    distance = w * points + v - values
    loss = (distance * distance).mean()
    w.zero_grad()
    v.zero_grad()
    loss.backward()
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss.item():.4f}   w {w.item():6.3f}   v {v.item():6.3f}")
    w.data -= 0.5 * w.grad
    v.data -= 0.5 * v.grad
assert abs(w.item() - 2) < 0.1
assert abs(v.item() + 1) < 0.1

# %% [markdown]
# ## Leaving things out
#
# A plain array is a constant: `points` above got no gradient, and cost nothing. `detach` makes a constant
# of a variable, and inside `no_backprop_mode` nothing is remembered at all, as when a model is only used.

# %%
x = Variable(np.array(2.0))
(x.detach() * x).backward()  # a constant 2, times x
print(f"d(2 x)/dx = {x.grad}")
assert x.grad == 2.0
with no_backprop_mode():
    assert f(x).creator is None

# %% [markdown]
# **Try it.** What is the gradient of x * x * x at 2? Of w by `(w * 0).sum()`? Why must `loss.backward()` be
# called before `w.data` is changed, and not after?
#
# The engine itself is three files, to be read in one sitting: `autograd/variable.py`,
# `autograd/function.py`, `autograd/backprop.py`. Next: [lesson 2](2_own_function.py), an operation of your
# own.
