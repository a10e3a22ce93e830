"""The gradient check itself: it passes what is right and catches every slip that a derivation makes."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import Function, ShapeError, Variable
from autograd.gradient_check import backward_all, check_backward, numerical_grad

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3))


class Product(Function):
    """tanh(x) Wᵀ and the sum of W, whose derivative the tests replace by wrong ones."""

    slip = "none"

    def forward(self, x, W):
        y = np.tanh(x)
        self.save(y, W)
        return y @ W.T, W.sum()

    def backward(self, dz, dtotal):
        y, W = self.saved
        dx, dW = np.zeros_like(y), np.zeros_like(W)
        if dz is not None:
            dx, dW = dz @ W * (1 - y * y), dz.T @ y
        return SLIPS[self.slip](dx, dW if dtotal is None else dW + dtotal)


def with_one_changed(array, change):
    array = array.copy()
    array[1, 2] = change(array[1, 2])
    return array


SLIPS = {
    "none": lambda dx, dW: (dx, dW),
    "wrong sign": lambda dx, dW: (-dx, dW),
    "missing factor": lambda dx, dW: (dx, 2 * dW),
    "a factor close to one": lambda dx, dW: (dx * (1 + 1e-5), dW),
    "one wrong sign among the elements": lambda dx, dW: (with_one_changed(dx, lambda g: -g), dW),
    "one wrong element": lambda dx, dW: (dx, with_one_changed(dW, lambda g: g * 1.001)),
    "missing transposition": lambda dx, dW: (dx, dW.T.reshape(dW.shape)),
    "swapped rows": lambda dx, dW: (dx[::-1], dW),
    "no gradient": lambda dx, dW: (dx, None),
    "no gradients at all": lambda dx, dW: (None, None),
    "zero": lambda dx, dW: (0 * dx, 0 * dW),
    "not a number": lambda dx, dW: (dx * np.nan, dW),
    "one that is not a number": lambda dx, dW: (dx, with_one_changed(dW, lambda _: np.nan)),
    "infinite": lambda dx, dW: (dx, dW * np.inf),
}


def product(slip):
    def apply(x, W):
        function = Product()
        function.slip = slip
        return function.apply(x, W)

    return apply


def test_a_right_derivative_passes():
    assert 0 < check_backward(product("none"), [X, W]) <= 1e-8


@pytest.mark.parametrize("slip", [slip for slip in SLIPS if slip != "none"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_wrong_derivative_is_caught(slip, seed):
    with pytest.raises(AssertionError, match="relative error .* is above 1e-07.* backward says"):
        check_backward(product(slip), [X, W], seed=seed)


def test_the_input_with_the_wrong_gradient_is_named():
    with pytest.raises(AssertionError, match=r"along one direction of input 1 \(W\), of shape \(2, 3\), "):
        check_backward(product("missing factor"), [X, W])
    with pytest.raises(AssertionError, match=r"along one direction of input 1, of shape \(2, 3\), "):
        check_backward(lambda *inputs: product("missing factor")(*inputs), [X, W])  # tells no names


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_function_that_writes_into_its_input_is_caught(method):
    class Writes(Function):
        def forward(self, x):
            self.save(x)
            return np.multiply(x, 2, out=x) if method == "forward" else 2 * x

        def backward(self, dy):
            if method == "backward":
                self.saved[0][...] = 0
            return 2 * dy

    with pytest.raises(AssertionError, match=r"input 0 \(x\) was changed by forward or backward"):
        check_backward(lambda x: Writes().apply(x), [X.copy()])


def test_a_backward_that_writes_into_what_it_is_given_is_caught():
    class Writes(Function):
        def forward(self, x):
            return x, 2 * x

        def backward(self, dy, dz):
            dz *= 2
            return dz if dy is None else dy + dz

    with pytest.raises(AssertionError, match="backward wrote into the gradient of output 1"):
        check_backward(lambda x: Writes().apply(x), [X], [None, np.ones_like(X)])


def test_one_gradient_for_each_output():
    with pytest.raises(ValueError, match="grad_outputs must have .* each of the 2 outputs; got 1"):
        check_backward(product("none"), [X, W], [np.ones((4, 2))])
    with pytest.raises(ShapeError, match=r"grad_outputs\[0\] must be \(4, 2\) as output 0 is; got \(2,\)"):
        check_backward(product("none"), [X, W], [np.ones(2), None])


@pytest.mark.parametrize(
    ("function", "inputs", "told"),
    [
        (Product, [X, W], r"must apply it, lambda \*inputs: Product\(\).apply\(\*inputs\); got the class"),
        (F.exp, X, "inputs must be a list of arrays; got one ndarray"),
        (F.exp, [Variable(X)], "inputs must be arrays; got a Variable; give its .data"),
        (F.exp, [], "differences need float64; got no inputs"),
    ],
)
def test_what_is_no_check_is_told(function, inputs, told):
    with pytest.raises(TypeError, match=told):
        check_backward(function, inputs)


def test_a_large_gradient_does_not_hide_a_small_one():
    """One wrong element of W beside an x whose gradient is a million times larger."""
    slip = product("one wrong element")
    with pytest.raises(AssertionError):
        check_backward(lambda x, W: slip(1e6 * x, W), [1e-6 * X, W])


def test_a_forgotten_activation_is_caught():
    """The derivative of the product alone, as if tanh were not there."""

    class Forgotten(Product):
        def backward(self, dz, dtotal):
            y, W = self.saved
            return dz @ W, dz.T @ y + dtotal

    with pytest.raises(AssertionError):
        check_backward(lambda x, W: Forgotten().apply(x, W), [X, W])


def test_outputs_are_weighted_as_told():
    """A slip in what one output sends back is seen exactly when that output gets a gradient."""

    class Half(Product):
        def backward(self, dz, dtotal):
            return super().backward(dz, None)  # the total is forgotten

    def half(x, W):
        return Half().apply(x, W)

    dz, dtotal = RNG.standard_normal((4, 2)), np.array(2.0)
    check_backward(half, [X, W], [dz, None])
    with pytest.raises(AssertionError):
        check_backward(half, [X, W], [dz, dtotal])
    with pytest.raises(AssertionError):
        check_backward(half, [X, W], [None, dtotal])


def test_numerical_grad_of_a_known_function():
    """sum(a · sin(x) y): a cos(x) y by x, a sin(x) by y; and by hand where an output is left out."""
    x, y, a = (RNG.standard_normal((2, 3)) for _ in range(3))
    kept = x.copy(), y.copy()
    dx, dy = numerical_grad(lambda: (np.sin(x) * y, x), [x, y], [a, None])
    np.testing.assert_allclose(dx, a * np.cos(x) * y, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(dy, a * np.sin(x), rtol=1e-8, atol=1e-9)
    assert (x.tobytes(), y.tobytes()) == (kept[0].tobytes(), kept[1].tobytes()), "inputs must be restored"


def test_both_ways_of_differentiating_agree():
    dz = RNG.standard_normal((4, 2))
    x, w = Variable(X.copy()), Variable(W.copy())
    backward_all(product("none")(x, w), [dz, np.array(1.0)])

    def arrays():
        return [output.data for output in product("none")(x, w)]

    numerical = numerical_grad(arrays, [x.data, w.data], [dz, np.array(1.0)])
    for variable, expected in zip((x, w), numerical, strict=True):
        np.testing.assert_allclose(variable.grad, expected, rtol=1e-8, atol=1e-8)


def test_only_float64_inputs_are_differentiated():
    ids = np.array([0, 2, 2])
    check_backward(lambda ids, x: F.embedding(ids, x), [ids, X])
    with pytest.raises(TypeError, match="differences need float64; got int64, float32"):
        check_backward(lambda ids, x: F.embedding(ids, x), [ids, X.astype(np.float32)])


def test_empty_inputs_pass():
    assert check_backward(F.exp, [np.zeros((0, 3))]) == 0


def test_the_tolerance_decides():
    slip = product("a factor close to one")
    assert 1e-7 < check_backward(slip, [X, W], tolerance=1e-3) < 1e-4
    with pytest.raises(AssertionError):
        check_backward(slip, [X, W], tolerance=1e-6)
