"""The fused layer-normalised LSTM against the readable cell, against differences, against its definition."""

import functools
import itertools

import numpy as np
import pytest
from lstm_examples import PATHS, SHAPES, on_its_paths, take_path

from autograd import DtypeError, Parameter, ShapeError, Variable, no_backprop_mode
from autograd.gradient_check import backward_all, check_backward, numerical_grad
from minilstm.layer_norm_lstm import layer_norm_lstm
from minilstm.lstm import lstm
from minilstm.lstm_cell import epsilon_for, layer_norm_lstm_cell, unrolled_layer_norm_lstm

NAMES = ("x", "h0", "c0", "W_ih", "W_hh", "gate_gain", "gate_shift", "cell_gain", "cell_shift")
BOTH = [layer_norm_lstm, unrolled_layer_norm_lstm]


def arrays(T, B, inputs, H, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((T, B, inputs), (B, H), (B, H), (4 * H, inputs), (4 * H, H), (4 * H,), (4 * H,), (H,), (H,))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def output_grads(T, B, H, dtype=np.float64):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((T, B, H), (B, H), (B, H))]


def candidate_mask(T, B, H, dtype=np.float64):
    return np.random.default_rng(2).integers(0, 2, (T, B, H)).astype(dtype) * dtype(2)


def values_and_gradients(function, inputs, grads, mask=None, **options):
    """y, h_T, c_T and the gradients of all nine inputs."""
    variables = [Variable(value) for value in inputs]
    outputs = function(*variables, candidate_mask=mask, **options)
    backward_all(outputs, grads)
    return [output.data for output in outputs] + [variable.grad for variable in variables]


def assert_close(ours, theirs, tolerance):
    for name, a, b in zip(("y", "h_T", "c_T") + NAMES, ours, theirs, strict=True):
        assert a.dtype == b.dtype
        scale = max(np.abs(b).max(initial=0), 1)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    take_path(monkeypatch, request.param)
    return request.param


# --- one step ---


def normalized(x, gain, shift, epsilon=1e-12):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon) * gain + shift


def textbook(x, h, c, W_ih, W_hh, gate_gain, gate_shift, cell_gain, cell_shift, mask=1.0, epsilon=1e-12):
    """One step in plain NumPy, each gate by itself."""
    sums = np.split(x @ W_ih.T + h @ W_hh.T, 4, axis=1)
    parts = zip(sums, np.split(gate_gain, 4), np.split(gate_shift, 4), strict=True)
    i, f, g, o = (normalized(*part, epsilon) for part in parts)
    i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f + 1, o))
    c = normalized(f * c + i * np.tanh(g) * mask, cell_gain, cell_shift, epsilon)
    return o * np.tanh(c), c


@pytest.mark.parametrize("dropped", [False, True])
def test_the_cell_is_the_definition(dropped):
    x, h, c, *weights = arrays(1, 3, 4, 5)
    mask = candidate_mask(1, 3, 5) if dropped else None
    expected = textbook(x[0], h, c, *weights, mask=1.0 if mask is None else mask[0])
    step = layer_norm_lstm_cell(x[0], h, c, *weights, candidate_mask=None if mask is None else mask[0])
    for got in (step, layer_norm_lstm(x, h, c, *weights, candidate_mask=mask)[1:]):
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours.data, theirs, rtol=1e-12, atol=1e-14)


def test_the_normalised_cell_is_the_one_that_is_carried():
    """With gain 1 and shift 0 its rows have mean 0 and variance 1, and the next step starts from them."""
    x, h, c, *weights = arrays(4, 3, 4, 50)
    weights[-2:] = np.ones(50), np.zeros(50)
    h_1, c_1 = (part.data for part in layer_norm_lstm(x[:1], h, c, *weights)[1:])
    np.testing.assert_allclose(c_1.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(c_1.var(axis=1), 1, rtol=1e-10)
    whole = layer_norm_lstm(x, h, c, *weights)
    rest = layer_norm_lstm(x[1:], h_1, c_1, *weights)
    np.testing.assert_allclose(whole[0].data[1:], rest[0].data, rtol=1e-12, atol=1e-14)


def test_at_first_the_forget_gate_is_open():
    """LN(f) is 0 where all units are equal; then f = sigmoid(1)."""
    H, c0 = 3, np.array([[-1.0, 0.5, 2.0]])
    W_ih, W_hh = np.ones((4 * H, 2)), np.zeros((4 * H, H))
    identity = [np.ones(4 * H), np.zeros(4 * H), np.ones(H), np.zeros(H)]
    for gain in (1.0, 7.0):
        identity[2] = np.full(H, gain)
        c = layer_norm_lstm(np.ones((1, 1, 2)), np.zeros((1, H)), c0, W_ih, W_hh, *identity)[2].data
        np.testing.assert_allclose(c, normalized(c0 / (1 + np.exp(-1)), gain, 0), rtol=1e-9)


def test_the_size_of_the_weights_has_no_part():
    """Both products are normalised together: twice as large weights give the same outputs."""
    x, h, c, W_ih, W_hh, *vectors = arrays(3, 2, 4, 6)
    once = layer_norm_lstm(x, h, c, W_ih, W_hh, *vectors)[0].data
    twice = layer_norm_lstm(x, h, c, 2 * W_ih, 2 * W_hh, *vectors)[0].data
    np.testing.assert_allclose(once, twice, rtol=1e-9, atol=1e-11)
    alone = layer_norm_lstm(x, h, c, 2 * W_ih, W_hh, *vectors)[0].data
    assert np.abs(alone - once).max() > 1e-3, "each product is normalised by itself"


# --- the fused sequence against its readable twin and against differences ---


@functools.cache
def of_unrolled(shape, dtype, dropped):
    """Values and gradients of the readable LSTM, for which every path is one."""
    T, B, _, H = shape
    mask = candidate_mask(T, B, H, dtype) if dropped else None
    return values_and_gradients(
        unrolled_layer_norm_lstm, arrays(*shape, dtype), output_grads(T, B, H, dtype), mask
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-4), (np.float64, 1e-12)])
@pytest.mark.parametrize("dropped", [False, True])
def test_fused_equals_unrolled(shape, dtype, tolerance, dropped, path):
    T, B, _, H = shape
    inputs, grads = arrays(*shape, dtype), output_grads(T, B, H, dtype)
    mask = candidate_mask(T, B, H, dtype) if dropped else None
    fused = values_and_gradients(layer_norm_lstm, inputs, grads, mask)
    assert_close(fused, of_unrolled(shape, dtype, dropped), tolerance)


@pytest.mark.parametrize("seed", range(10))
def test_fused_equals_unrolled_at_random_shapes(seed):
    T, B, inputs, H = (int(size) for size in np.random.default_rng(seed).integers(3, (9, 40, 12, 70)))
    given, grads = arrays(T, B, inputs, H), output_grads(T, B, H)
    assert_close(*(values_and_gradients(function, given, grads) for function in BOTH), 1e-11)


@on_its_paths(*BOTH)
@pytest.mark.parametrize("dropped", [False, True])
def test_both_equal_differences_element_by_element(function, dropped, path):
    inputs, grads = arrays(3, 2, 2, 3), output_grads(3, 2, 3)
    mask = candidate_mask(3, 2, 3) if dropped else None

    def outputs():
        with no_backprop_mode():
            return [output.data for output in function(*inputs, candidate_mask=mask)]

    numerical = numerical_grad(outputs, inputs, grads)
    analytic = values_and_gradients(function, inputs, grads, mask)[3:]
    for name, ours, theirs in zip(NAMES, analytic, numerical, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_its_paths(*BOTH)
def test_both_equal_differences_along_random_directions(function, shape, path):
    assert check_backward(function, arrays(*shape)) <= 1e-7


@pytest.mark.parametrize("used", [used for used in itertools.product((False, True), repeat=3) if any(used)])
def test_outputs_without_gradient(used, path):
    shape = T, B, _, H = (3, 4, 3, 5)
    grads = [grad if wanted else None for grad, wanted in zip(output_grads(T, B, H), used, strict=True)]
    assert_close(*(values_and_gradients(function, arrays(*shape), grads) for function in BOTH), 1e-12)


def test_a_retained_pass_run_twice_gives_equal_bits(path):
    variables = [Variable(value) for value in arrays(3, 4, 3, 5)]
    y, h, c = layer_norm_lstm(*variables, candidate_mask=candidate_mask(3, 4, 5))
    kept = [output.data.copy() for output in (y, h, c)]
    total = (y * y).sum() + h.sum() * c.sum()
    passes = []
    for retain_graph in (True, True, False):
        for variable in variables:
            variable.zero_grad()
        total.backward(retain_graph=retain_graph)
        passes.append([variable.grad.tobytes() for variable in variables])
    assert passes[0] == passes[1] == passes[2]
    for output, array in zip((y, h, c), kept, strict=True):
        np.testing.assert_array_equal(output.data, array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_come_out_again(dtype, path):
    T, B, inputs, H = shape = (5, 6, 20, 40)
    inputs, grads = arrays(*shape, dtype), output_grads(T, B, H, dtype)
    kept = [value.tobytes() for value in inputs]
    runs = [[a.tobytes() for a in values_and_gradients(layer_norm_lstm, inputs, grads)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert [value.tobytes() for value in inputs] == kept, "an input was written to"


def test_rows_of_the_batch_do_not_meet():
    x, h0, c0, *weights = arrays(4, 5, 3, 4)
    y = layer_norm_lstm(x, h0, c0, *weights)[0].data
    rows = [slice(row, row + 1) for row in range(5)]
    alone = [layer_norm_lstm(x[:, row], h0[row], c0[row], *weights)[0].data for row in rows]
    np.testing.assert_allclose(y, np.concatenate(alone, 1), rtol=1e-11)


def test_only_what_is_asked_for_gets_a_gradient():
    x, h0, c0, W_ih, *rest = arrays(2, 3, 4, 5)
    constant, parameters = Variable(W_ih, requires_grad=False), [Parameter(value) for value in rest]
    layer_norm_lstm(x, h0, c0, constant, *parameters)[0].sum().backward()
    assert constant.grad is None
    expected = values_and_gradients(
        layer_norm_lstm, [x, h0, c0, W_ih, *rest], [np.ones((2, 3, 5)), None, None]
    )
    for parameter, grad in zip(parameters, expected[-5:], strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


def test_weights_gradients_are_added_to_what_is_there(path):
    inputs, grads = arrays(2, 3, 4, 5), output_grads(2, 3, 5)
    parameters = [Parameter(value) for value in inputs]
    for _ in range(2):
        backward_all(layer_norm_lstm(*parameters), grads)
    once = values_and_gradients(layer_norm_lstm, inputs, grads)[3:]
    for parameter, grad in zip(parameters, once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * grad, rtol=1e-12, atol=1e-13)


# --- precision ---


def test_epsilon_is_that_of_the_precision():
    assert [epsilon_for(np.dtype(kind)) for kind in ("f2", "f4", "f8")] == [1e-3, 1e-12, 1e-12]
    assert [epsilon_for(np.dtype(kind), 1e-5) for kind in ("f2", "f4", "f8")] == [1e-5] * 3


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_a_given_epsilon_is_added_to_every_variance(epsilon):
    x, h, c, *weights = arrays(1, 3, 4, 5)
    expected = textbook(x[0], h, c, *weights, epsilon=epsilon)
    for function in BOTH:
        for ours, theirs in zip(function(x, h, c, *weights, epsilon=epsilon)[1:], expected, strict=True):
            np.testing.assert_allclose(ours.data, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", BOTH)
def test_statistics_of_float16_are_taken_in_float32(function):
    """Squares of deviations beyond 256 are infinite in float16; so are sums beyond 65504."""
    x, h, c, W_ih, W_hh, *vectors = arrays(2, 2, 4, 64, np.float16)
    big = [x * np.float16(100), h, c * np.float16(100), W_ih * np.float16(10), W_hh, *vectors]
    exact = [value.astype(np.float64) for value in big]
    for ours, theirs in zip(function(*big), unrolled_layer_norm_lstm(*exact), strict=True):
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours.data, theirs.data, atol=0.02, rtol=0.02)


def test_float16_agrees_with_its_twin_in_values_and_gradients():
    T, B, _, H = shape = (3, 4, 5, 16)
    inputs, grads = arrays(*shape, np.float16), output_grads(T, B, H, np.float16)
    assert_close(*(values_and_gradients(function, inputs, grads) for function in BOTH), 0.02)


def rows_of_equal_units(dtype, value):
    """No state, inputs and shifts the same for all units: every row that is normalised is constant."""
    T, B, _, H = shape = (1, 3, 4, 5)
    given = arrays(*shape, dtype)
    given[0][...], given[6][...] = value, 0.1
    given[1][...] = given[2][...] = 0
    if value:
        given[3][...] = 0.3
    return given, output_grads(T, B, H, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-3), (np.float64, 1e-12)])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_rows_of_equal_units_are_the_same_in_both(dtype, tolerance, value):
    """Of zeros, and of a number whose mean over the units is rounded."""
    given, grads = rows_of_equal_units(dtype, value)
    fused, plain = (values_and_gradients(function, given, grads, epsilon=1e-5) for function in BOTH)
    largest = max(np.abs(array).max() for array in plain)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_rows_of_equal_units_have_the_derivative_that_differences_find(function, value):
    given, grads = rows_of_equal_units(np.float64, value)
    layer = functools.partial(function, epsilon=0.01)
    check_backward(layer, given, grads, tolerance=1e-4)  # where units cancel, differences are all rounding


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("W_ih", (20, 5), "layer_norm_lstm: W_ih must be (4H, I) = (20, 4) because x is (3, 2, 4) and h0"),
        ("gate_gain", (5,), "gate_gain must be (4H) = (20,) because x is (3, 2, 4) and h0 is (2, 5)"),
        ("gate_shift", (4, 5), "gate_shift must be (4H) = (20,)"),
        ("cell_gain", (20,), "cell_gain must be (H) = (5,)"),
        ("cell_shift", (1,), "cell_shift must be (H) = (5,)"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_named(name, shape, message):
    inputs = arrays(3, 2, 4, 5)
    inputs[NAMES.index(name)] = np.zeros(shape)
    with pytest.raises(ShapeError) as raised:
        layer_norm_lstm(*inputs)
    assert message in str(raised.value)
    assert str(raised.value).startswith("layer_norm_lstm: ")
    assert ("Gates are stacked" in str(raised.value)) == (not name.startswith("cell"))


def test_two_precisions_do_not_meet():
    inputs = arrays(3, 2, 4, 5)
    inputs[7] = inputs[7].astype(np.float32)
    with pytest.raises(DtypeError, match="float64, float32"):
        layer_norm_lstm(*inputs)
    with pytest.raises(DtypeError, match="candidate_mask must be float64 because x is; got float32"):
        layer_norm_lstm(*arrays(3, 2, 4, 5), candidate_mask=candidate_mask(3, 2, 5, np.float32))


def test_without_normalisation_it_would_be_another_function():
    """Guards the tests above: the two cells are not the same up to a shift."""
    x, h, c, W_ih, W_hh, _, gate_shift, *_ = arrays(3, 2, 4, 5)
    plain = lstm(x, h, c, W_ih, W_hh, gate_shift)[0].data
    identity = functools.partial(layer_norm_lstm, x, h, c, W_ih, W_hh, np.ones(20), gate_shift)
    assert np.abs(identity(np.ones(5), np.zeros(5))[0].data - plain).max() > 0.1
