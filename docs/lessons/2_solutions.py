# %% [markdown]
# # Solutions to lesson 2: a gated recurrent unit, and peepholes
#
# Both are written from README and lesson 2 alone. They follow one recipe:
#
# 1. Write the equations in the order of their computation, and `forward` line by line after them.
# 2. Save what appears on the right-hand side of a derivative.
# 3. Go through the equations from the last to the first. Each one hands a gradient to everything that
#    stands on its right. What stands in several places collects a sum.
# 4. Compare with the plain twin, then with differences.

# %%
import numpy as np

import autograd.functions as F
from autograd import Function, Variable
from autograd.gradient_check import check_backward


def sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + 0.5  # cannot overflow


# %% [markdown]
# ## The gated recurrent unit (Cho et al. 2014)
#
# x (B, I), h (B, H); W (3H, I) and U (3H, H) and b (3H) hold the rows of r, u, n one below the other.
#
#     r = σ(x W_rᵀ + h U_rᵀ + b_r)                  (a)
#     u = σ(x W_uᵀ + h U_uᵀ + b_u)                  (b)
#     n = tanh(x W_nᵀ + (r ∘ h) U_nᵀ + b_n)          (c)
#     h' = u ∘ h + (1 - u) ∘ n                       (d)
#
# Backward, from (d) to (a). h stands in all four, so dh is a sum of four:
#
#     (d)  dh += dh' ∘ u     du = dh' ∘ (h - n)     dn = dh' ∘ (1 - u)
#     (c)  dz_n = dn ∘ (1 - n²)     drh = dz_n U_n     dr = drh ∘ h     dh += drh ∘ r     dU_n = dz_nᵀ (r ∘ h)
#     (b)  dz_u = du ∘ u ∘ (1 - u)     dh += dz_u U_u     dU_u = dz_uᵀ h
#     (a)  dz_r = dr ∘ r ∘ (1 - r)     dh += dz_r U_r     dU_r = dz_rᵀ h
#
# and for all three together, dz (B, 3H):  dx = dz W,  dW = dzᵀ x,  db = the sum of dz's rows.

# %%


class GRUStep(Function):
    def forward(self, x, h, W, U, b):
        (B, I), H = x.shape, h.shape[1]
        self.check_shape("h", h.shape, (B, H), f"x is {x.shape}")
        self.check_shape("W", W.shape, (3 * H, I), f"x is {x.shape} and h {h.shape}; rows are r, u, n")
        self.check_shape("U", U.shape, (3 * H, H), f"h is {h.shape}; rows are r, u, n")
        self.check_shape("b", b.shape, (3 * H,), f"h is {h.shape}")
        z = x @ W.T + b
        z[:, : 2 * H] += h @ U[: 2 * H].T
        r, u = sigmoid(z[:, :H]), sigmoid(z[:, H : 2 * H])  # (a), (b)
        n = np.tanh(z[:, 2 * H :] + (r * h) @ U[2 * H :].T)  # (c)
        self.save(x, h, W, U, r, u, n)
        return u * h + (1 - u) * n  # (d)

    def backward(self, dh_new):
        x, h, W, U, r, u, n = self.saved
        H = h.shape[1]
        U_n, U_ru = U[2 * H :], U[: 2 * H]
        dz_n = dh_new * (1 - u) * (1 - n**2)
        drh = dz_n @ U_n
        dz_r = drh * h * r * (1 - r)
        dz_u = dh_new * (h - n) * u * (1 - u)
        dz_ru = np.concatenate([dz_r, dz_u], axis=1)
        dz = np.concatenate([dz_ru, dz_n], axis=1)
        dh = dh_new * u + drh * r + dz_ru @ U_ru
        dU = np.concatenate([dz_ru.T @ h, dz_n.T @ (r * h)])
        return dz @ W, dh, dz.T @ x, dU, dz.sum(axis=0)


def gru_step(x, h, W, U, b):
    """One step of a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078).

    Args:
        x: (B, I). h: (B, H). W: (3H, I). U: (3H, H). b: (3H); rows stacked r, u, n.

    Returns:
        The new h, (B, H).

    Raises:
        ShapeError: sizes that do not fit.
    """
    return GRUStep().apply(x, h, W, U, b)


def plain_gru_step(x, h, W, U, b):
    """The same from operations whose derivative the engine knows."""
    (W_r, W_u, W_n), (U_r, U_u, U_n), (b_r, b_u, b_n) = (F.split(weights, 3) for weights in (W, U, b))
    r = F.sigmoid(F.linear(x, W_r, b_r) + F.linear(h, U_r))
    u = F.sigmoid(F.linear(x, W_u, b_u) + F.linear(h, U_u))
    n = F.tanh(F.linear(x, W_n, b_n) + F.linear(r * h, U_n))
    return u * h + (1 - u) * n


# %% [markdown]
# ## Peepholes (Gers & Schmidhuber 2000)
#
# The gates of an LSTM see the cell itself, not only what it shows: the input and the forget gate the old
# cell, the output gate the new one. The weights p (3, H) are one number a unit and gate. With z (B, 4H),
# the pre-activations as `minilstm/lstm_cell.py` computes them, the Function is all that is elementwise:
#
#     i = σ(z_i + p_i ∘ c)     f = σ(z_f + p_f ∘ c)     g = tanh(z_g)       (a)
#     c' = f ∘ c + i ∘ g                                                    (b)
#     o = σ(z_o + p_o ∘ c')                                                 (c)
#     h' = o ∘ tanh(c')                                                     (d)
#
# c' is used in (d), in (c) and by the next step, so dc' is a sum of three, and needs dz_o first:
#
#     (d)  do = dh' ∘ tanh(c')     dc' += dh' ∘ o ∘ (1 - tanh²(c'))
#     (c)  dz_o = do ∘ o ∘ (1 - o)     dc' += dz_o ∘ p_o     dp_o = the sum over rows of dz_o ∘ c'
#     (b)  di = dc' ∘ g     df = dc' ∘ c     dg = dc' ∘ i     dc += dc' ∘ f
#     (a)  dz_i = di ∘ i ∘ (1 - i)     dc += dz_i ∘ p_i     dp_i = the sum over rows of dz_i ∘ c
#          dz_f = df ∘ f ∘ (1 - f)     dc += dz_f ∘ p_f     dp_f = the sum over rows of dz_f ∘ c

# %%


class PeepholeStep(Function):
    def forward(self, z, c, p):
        B, H = c.shape
        self.check_shape("z", z.shape, (B, 4 * H), f"c is {c.shape}; columns are i, f, g, o")
        self.check_shape("p", p.shape, (3, H), f"c is {c.shape}; rows are i, f, o")
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        i, f, g = sigmoid(z_i + p[0] * c), sigmoid(z_f + p[1] * c), np.tanh(z_g)  # (a)
        c_new = f * c + i * g  # (b)
        o = sigmoid(z_o + p[2] * c_new)  # (c)
        tanh_c = np.tanh(c_new)
        self.save(c, p, i, f, g, o, c_new, tanh_c)
        return o * tanh_c, c_new  # (d)

    def backward(self, dh_new, dc_new):
        c, p, i, f, g, o, c_new, tanh_c = self.saved
        dc_new = np.zeros_like(c) if dc_new is None else dc_new  # the last step's cell goes nowhere
        dz_o = np.zeros_like(c)
        if dh_new is not None:
            dz_o = dh_new * tanh_c * o * (1 - o)
            dc_new = dc_new + dh_new * o * (1 - tanh_c**2) + dz_o * p[2]
        dz_i, dz_f = dc_new * g * i * (1 - i), dc_new * c * f * (1 - f)
        dz = np.concatenate([dz_i, dz_f, dc_new * i * (1 - g**2), dz_o], axis=1)
        dc = dc_new * f + dz_i * p[0] + dz_f * p[1]
        dp = np.stack([(dz_i * c).sum(axis=0), (dz_f * c).sum(axis=0), (dz_o * c_new).sum(axis=0)])
        return dz, dc, dp


def peephole_step(z, c, p):
    """One step of an LSTM whose gates see the cell (Gers & Schmidhuber 2000), from its pre-activations.

    Args:
        z: (B, 4H), x W_ihᵀ + h W_hhᵀ + b; columns stacked i, f, g, o. c: (B, H). p: (3, H), rows i, f, o.

    Returns:
        The new h and c, each (B, H).

    Raises:
        ShapeError: sizes that do not fit.
    """
    return PeepholeStep().apply(z, c, p)


def plain_peephole_step(z, c, p):
    """The same from operations whose derivative the engine knows."""
    z_i, z_f, z_g, z_o = F.split(z, 4, axis=1)
    i, f, g = F.sigmoid(z_i + p[0] * c), F.sigmoid(z_f + p[1] * c), F.tanh(z_g)
    c = f * c + i * g
    return F.sigmoid(z_o + p[2] * c) * F.tanh(c), c


# %% [markdown]
# ## The proof
#
# Each Function against its twin, and against differences, also where a batch or a width is 1, where a batch
# is empty, and where only one of two outputs is used.

# %%


def gradients(step, arrays):
    """The outputs of a step, and the gradients of their sum."""
    variables = [Variable(array) for array in arrays]
    outputs = step(*variables)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.sum() for output in outputs).backward()
    return [output.data for output in outputs] + [variable.grad for variable in variables]


def prove(step, twin, *shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    for ours, plain in zip(gradients(step, arrays), gradients(twin, arrays), strict=True):
        assert np.allclose(ours, plain, rtol=1e-12, atol=1e-13)
    error = check_backward(step, arrays)
    print(f"{step.__name__:13} {' '.join(map(str, shapes))}: relative error {error:.1e}")


for B, I, H in ((2, 3, 4), (1, 1, 1), (3, 5, 1), (0, 2, 3)):
    prove(gru_step, plain_gru_step, (B, I), (B, H), (3 * H, I), (3 * H, H), (3 * H,))
    prove(peephole_step, plain_peephole_step, (B, 4 * H), (B, H), (3, H))

rng = np.random.default_rng(1)
arrays = [rng.standard_normal(shape) for shape in ((2, 12), (2, 3), (3, 3))]
for grad_outputs in ([None, rng.standard_normal((2, 3))], [rng.standard_normal((2, 3)), None]):
    check_backward(peephole_step, arrays, grad_outputs)
print("peephole_step: right also when only h or only c is used")

# %% [markdown]
# ## Five steps in a row
#
# Nothing more is needed for a sequence: the engine sends each step's gradients to the step before, and adds
# up what the weights get from all of them.

# %%


def gru(x, h, *weights):
    """`gru_step` for each step of x (T, B, I)."""
    for t in range(x.shape[0]):
        h = gru_step(x[t], h, *weights)
    return h


shapes = (5, 2, 3), (2, 4), (12, 3), (12, 4), (12,)
error = check_backward(gru, [rng.standard_normal(shape) for shape in shapes])
print(f"five steps of gru_step: relative error {error:.1e}")
