# %% [markdown]
# # Lesson 2: write your own Function, and check it
#
# The engine knows some thirty operations. A new one takes two methods, `forward` and `backward`, and a
# check against finite differences that tells whether the second belongs to the first. Write yours into a
# file of your own, wherever you like, and run it as this one is run: `.venv/bin/python my_step.py`.

# %%
import numpy as np

import autograd.functions as F
from autograd import Function, Variable
from autograd.gradient_check import check_backward

# %% [markdown]
# ## The smallest one
#
# * `forward` gets plain arrays and returns a plain array. What `backward` will need goes into
#   `self.save(...)` and is read from `self.saved`, a tuple in the same order.
# * `backward` gets d(loss)/d(output), an array of the output's shape, and returns d(loss)/d(input), an
#   array of the input's shape.
#
# The name `dy` is short for d(loss)/dy. By the chain rule dx = dy · 3x², element by element.

# %%


class Cube(Function):
    def forward(self, x):
        self.save(x)
        return x**3

    def backward(self, dy):
        (x,) = self.saved
        return dy * 3 * x**2


# %% [markdown]
# An instance of a Function is applied once, so each call makes a new one: `Cube().apply(x)`, with both pairs
# of brackets. Put that into a function of lower case: it is what others call, and where shapes and errors
# are documented.

# %%


def cube(x):
    """x³ elementwise, for x of any shape."""
    return Cube().apply(x)


x = Variable(np.array([1.0, 2.0]))
cube(x).sum().backward()
print(f"d(x³)/dx at 1 and 2: {x.grad}")
assert x.grad.tolist() == [3.0, 12.0]

# %% [markdown]
# ## The check
#
# `check_backward` takes the function of lower case and a list of float64 arrays, one for each input. It moves
# each input by ±1e-6 along random directions and compares what the output does with what `backward` says. It
# returns the worst relative error, and raises an AssertionError above 1e-7.

# %%
rng = np.random.default_rng(0)
print(f"cube: relative error {check_backward(cube, [rng.standard_normal((3, 4))]):.1e}")

# %% [markdown]
# A check that cannot fail proves nothing. Forget a factor, and it says whose gradient is wrong:

# %%


class WrongCube(Cube):
    def backward(self, dy):
        (x,) = self.saved
        return dy * x**2


caught = ""
try:
    check_backward(lambda x: WrongCube().apply(x), [rng.standard_normal((3, 4))])
except AssertionError as error:
    caught = str(error)
    print(caught)
assert "relative error" in caught

# %% [markdown]
# ## Several inputs: a step of a plain recurrent network
#
#     h' = tanh(z),   z = x Wᵀ + h Uᵀ + b
#
# with x (B, I), h (B, H), W (H, I), U (H, H), b (H). On the way back, first through tanh, dz = dh' ∘ (1 -
# h'²), and then the rule for a product y = x Wᵀ, which is all that one needs to know about matrices:
#
#     dx = dy W      dW = dyᵀ x      db = the sum of dy's rows
#
# `backward` returns **one gradient for each input, in the order of `forward`**; None for one that has none
# (an integer array). `self.check_shape` turns a wrong size into an error in the caller's words.

# %%


class TanhStep(Function):
    def forward(self, x, h, W, U, b):
        (B, I), H = x.shape, h.shape[1]
        self.check_shape("h", h.shape, (B, H), f"x is {x.shape}")
        self.check_shape("W", W.shape, (H, I), f"x is {x.shape} and h {h.shape}")
        self.check_shape("U", U.shape, (H, H), f"h is {h.shape}")
        self.check_shape("b", b.shape, (H,), f"h is {h.shape}")
        h_new = np.tanh(x @ W.T + h @ U.T + b)
        self.save(x, h, W, U, h_new)
        return h_new

    def backward(self, dh_new):
        x, h, W, U, h_new = self.saved
        dz = dh_new * (1 - h_new**2)
        return dz @ W, dz @ U, dz.T @ x, dz.T @ h, dz.sum(axis=0)


def tanh_step(x, h, W, U, b):
    """One step of a plain recurrent network.

    Args:
        x: (B, I). h: (B, H). W: (H, I). U: (H, H). b: (H).

    Returns:
        The new h, (B, H).
    """
    return TanhStep().apply(x, h, W, U, b)


B, I, H = 2, 3, 4
sizes = {"x": (B, I), "h": (B, H), "W": (H, I), "U": (H, H), "b": (H,)}
arrays = [rng.standard_normal(shape) for shape in sizes.values()]
print(f"tanh_step: relative error {check_backward(tanh_step, arrays):.1e}")

# %% [markdown]
# If an input is wrong, the message names the Function (`TanhStep` is `tanh_step`) and the argument:

# %%
told = ""
try:
    tanh_step(arrays[0], arrays[1], arrays[3], arrays[2], arrays[4])  # W and U swapped
except ValueError as error:
    told = str(error)
    print(told)
assert told.startswith("tanh_step: W must be (4, 3)")

# %% [markdown]
# ## Its plain twin
#
# The same step from operations that the engine has: it derives the backward pass of that by itself. Values
# and gradients of the two must agree, and only then is a hand-written backward pass worth its speed. When
# one is wrong, its twin shows which elements of it: the rows of one gate, say.
#
# On Variables + - * / ** @ and slices such as `W[:H]` work as on arrays. `F` has exp, log, tanh, sigmoid,
# relu; linear, matmul, sum, mean; concatenate, stack, split (`i, f = F.split(z, 2, axis=1)`), reshape,
# transpose; layer_normalization, log_softmax, softmax_cross_entropy, embedding, dropout. `help(F.split)` says
# what each takes.

# %%


def plain_tanh_step(x, h, W, U, b):
    return F.tanh(F.linear(x, W) + F.linear(h, U, b))  # F.linear(x, W, b) is x Wᵀ + b


def gradients(step):
    variables = [Variable(array) for array in arrays]
    step(*variables).sum().backward()
    return [variable.grad for variable in variables]


for name, ours, plain in zip(sizes, gradients(tanh_step), gradients(plain_tanh_step), strict=True):
    print(f"d{name} {ours.shape}: largest difference {abs(ours - plain).max():.1e}")
    assert np.allclose(ours, plain, rtol=1e-12, atol=1e-14)

# %% [markdown]
# ## Several outputs
#
# `forward` returns a tuple; `backward` gets one gradient for each output, in that order. **An output that
# the loss does not use has None**: here the polar coordinates of (x, y), of which somebody may want the
# radius only.

# %%


class Polar(Function):
    def forward(self, x, y):
        r, angle = np.hypot(x, y), np.arctan2(y, x)
        self.save(x, y, r)
        return r, angle

    def backward(self, dr, dangle):
        x, y, r = self.saved
        dx, dy = np.zeros_like(x), np.zeros_like(y)
        if dr is not None:
            dx += dr * x / r
            dy += dr * y / r
        if dangle is not None:
            dx -= dangle * y / r**2
            dy += dangle * x / r**2
        return dx, dy


def polar(x, y):
    """Radius and angle of points (x, y), each of one shape; undefined at the origin."""
    return Polar().apply(x, y)


points = [rng.standard_normal(5), rng.standard_normal(5)]
print(f"polar:            relative error {check_backward(polar, points):.1e}")
only_radius = check_backward(polar, points, grad_outputs=[rng.standard_normal(5), None])
print(f"the radius alone: relative error {only_radius:.1e}")

# %% [markdown]
# ## Six things that go wrong
#
# 1. **A gradient of the wrong shape.** Where NumPy repeated an input (a bias over the rows), its gradient
#    is the sum over the repeats: `autograd.functions.arithmetic.sum_to(gradient, shape)` for any
#    broadcasting.
# 2. **An output that nobody used.** Its gradient is None, and None + array is a TypeError.
# 3. **Changing what is not yours.** `forward` must not write into its inputs, nor `backward` into what it
#    gets or has saved of them: others hold the same arrays. `dc = dc + …`, not `dc += …`. The check tells.
# 4. **A kink.** At 0 relu has no derivative, and differences across it disagree: check it away from there.
# 5. **Other precision.** float32 in must give float32 out, and float32 back: write `np.zeros_like(x)` and
#    not `np.zeros(x.shape)`, or you are told so. (On a GPU arrays are CuPy's: `get_array_module(x)` of
#    `autograd.backend` stands for numpy or cupy.)
# 6. **Variables and arrays mixed up.** Inside `forward` and `backward` everything is a plain array:
#    `np.tanh`. Outside, on Variables, it is `F.tanh`; `x.data` is the array in a Variable.
#
# Work that nobody wants can be left undone: `self.needs_grad(0)` tells whether input 0 is one of a graph or
# a constant; return None for it then. Constants such as an axis are arguments of the Function's `__init__`.
#
# ## For good
#
# A Function that stays gets its case in the `function_cases.py` of its package, one line for each kind of
# shape: `python -m minilstm.check` and the tests run through them, and fail if a Function has none.
#
#     yield Case(TanhStep, tanh_step, [normal(2, 3), normal(2, 4), normal(4, 3), normal(4, 4), normal(4)])
#
# **Try it.** Write one step of a gated recurrent unit (Cho et al. 2014),
#
#     r = σ(x W_rᵀ + h U_rᵀ + b_r)          how much of h the candidate sees
#     u = σ(x W_uᵀ + h U_uᵀ + b_u)          how much of h is kept
#     n = tanh(x W_nᵀ + (r ∘ h) U_nᵀ + b_n)  the candidate
#     h' = u ∘ h + (1 - u) ∘ n
#
# as a Function with its check, or give the gates of an LSTM a look at the cell (peepholes, Gers &
# Schmidhuber 2000). On arrays σ(z) is best written `0.5 * np.tanh(0.5 * z) + 0.5`: `1 / (1 + np.exp(-z))`
# overflows where z is far below 0. Start from TanhStep: x (B, I) and h (B, H) are inputs, and so are the
# weights, stacked as W (3H, I), U (3H, H), b (3H). Both are solved in [2_solutions.py](2_solutions.py). Next:
# [lesson 3](3_lstm_step.py), the LSTM step.
