"""The fused LSTM against the readable cell, against differences, and against torch.nn.LSTM."""

import functools
import itertools

import numpy as np
import pytest
from lstm_examples import PATHS, SHAPES, on_its_paths, take_path

from autograd import DtypeError, Parameter, ShapeError, Variable, no_backprop_mode
from autograd.gradient_check import backward_all, check_backward, numerical_grad
from minilstm import lstm_kernels
from minilstm.lstm import GATES, lstm
from minilstm.lstm_cell import lstm_cell, unrolled_lstm

NAMES = ("x", "h0", "c0", "W_ih", "W_hh", "b")


def arrays(T, B, inputs, H, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((T, B, inputs), (B, H), (B, H), (4 * H, inputs), (4 * H, H), (4 * H,))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def output_grads(T, B, H, dtype=np.float64):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((T, B, H), (B, H), (B, H))]


def values_and_gradients(function, inputs, grads):
    """y, h_T, c_T and the gradients of all six inputs."""
    variables = [Variable(value) for value in inputs]
    outputs = function(*variables)
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


def test_the_paths_are_those_of_large_sizes(path):
    x, B, H = np.zeros((1, 4, 4)), 4, 5
    assert len(lstm_kernels.unit_parts(x, B, H)) == (3 if "threads" in path else 1)
    product = lstm_kernels.RecurrentProduct(np.zeros((4 * H, H)), B)
    assert (product.panels is None) == (path == "plain product")
    assert path == "plain product" or product.panels.shape[1] == (4 if "split" in path else 1)


# --- one step ---


def test_the_cell_is_the_textbooks():
    x, h, c, W_ih, W_hh, b = arrays(1, 2, 3, 4)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    i, f, g, o = np.split(x[0] @ W_ih.T + h @ W_hh.T + b, 4, axis=1)
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    new_h = sigmoid(o) * np.tanh(new_c)
    for step in (lambda: lstm_cell(x[0], h, c, W_ih, W_hh, b), lambda: lstm(x, h, c, W_ih, W_hh, b)[1:]):
        got_h, got_c = step()
        np.testing.assert_allclose(got_h.data, new_h, rtol=1e-13)
        np.testing.assert_allclose(got_c.data, new_c, rtol=1e-13)
    assert GATES == ("i", "f", "g", "o")


def test_the_outputs_end_in_the_state():
    y, h_T, _ = lstm(*arrays(4, 2, 3, 5))
    np.testing.assert_array_equal(y.data[-1], h_T.data)


# --- the fused sequence against its readable twin and against differences ---


@functools.cache
def of_unrolled(shape, dtype, dropped):
    """Values and gradients of the readable LSTM, for which every path is one."""
    T, B, _, H = shape
    mask = candidate_mask(T, B, H, dtype) if dropped else None
    function = functools.partial(unrolled_lstm, candidate_mask=mask)
    return values_and_gradients(function, arrays(*shape, dtype), output_grads(T, B, H, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_fused_equals_unrolled(shape, dtype, tolerance, path):
    T, B, _, H = shape
    inputs, grads = arrays(*shape, dtype), output_grads(T, B, H, dtype)
    assert_close(values_and_gradients(lstm, inputs, grads), of_unrolled(shape, dtype, False), tolerance)


@pytest.mark.parametrize("seed", range(10))
def test_fused_equals_unrolled_at_random_shapes(seed):
    T, B, inputs, H = (int(size) for size in np.random.default_rng(seed).integers(1, (9, 40, 12, 70)))
    given, grads = arrays(T, B, inputs, H), output_grads(T, B, H)
    assert_close(
        values_and_gradients(lstm, given, grads), values_and_gradients(unrolled_lstm, given, grads), 1e-12
    )


@on_its_paths(lstm, unrolled_lstm)
def test_both_equal_differences_element_by_element(function, path):
    inputs, grads = arrays(3, 3, 2, 2), output_grads(3, 3, 2)

    def outputs():
        with no_backprop_mode():
            return [output.data for output in function(*inputs)]

    numerical = numerical_grad(outputs, inputs, grads)
    analytic = values_and_gradients(function, inputs, grads)[3:]
    for name, ours, theirs in zip(NAMES, analytic, numerical, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@on_its_paths(lstm, unrolled_lstm)
def test_both_equal_differences_along_random_directions(function, shape, path):
    assert check_backward(function, arrays(*shape)) <= 1e-7


@pytest.mark.parametrize("used", [used for used in itertools.product((False, True), repeat=3) if any(used)])
def test_outputs_without_gradient(used, path):
    shape = T, B, _, H = (3, 4, 3, 5)
    grads = [grad if wanted else None for grad, wanted in zip(output_grads(T, B, H), used, strict=True)]
    fused, unrolled = (values_and_gradients(f, arrays(*shape), grads) for f in (lstm, unrolled_lstm))
    assert_close(fused, unrolled, 1e-13)


def test_gradients_of_a_chain_of_windows():
    """State given as variables: two windows, one after the other, are one long one."""
    x, h0, c0, *weights = arrays(6, 2, 3, 4)

    def in_two(x, h, c, *weights):
        first, h, c = lstm(x[:4], h, c, *weights)
        second, h, c = lstm(x[4:], h, c, *weights)
        return first, second, h, c

    dy, dh, dc = output_grads(6, 2, 4)
    halves = values_and_gradients(in_two, [x, h0, c0, *weights], [dy[:4], dy[4:], dh, dc])
    whole = values_and_gradients(lstm, [x, h0, c0, *weights], [dy, dh, dc])
    assert_close([np.concatenate(halves[:2]), *halves[2:]], whole, 1e-13)


def test_a_retained_pass_run_twice_gives_equal_bits(path):
    variables = [Variable(value) for value in arrays(3, 4, 3, 5)]
    y, h, c = lstm(*variables)
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
    runs = [[a.tobytes() for a in values_and_gradients(lstm, inputs, grads)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert [value.tobytes() for value in inputs] == kept, "an input was written to"


def test_rows_of_the_batch_do_not_meet():
    x, h0, c0, *weights = arrays(4, 5, 3, 4)
    y = lstm(x, h0, c0, *weights)[0].data
    alone = np.concatenate(
        [lstm(x[:, r : r + 1], h0[r : r + 1], c0[r : r + 1], *weights)[0].data for r in range(5)], 1
    )
    np.testing.assert_allclose(y, alone, rtol=1e-12)


@pytest.mark.parametrize("size", [1e3, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturated_gates_are_finite(size, dtype):
    inputs = arrays(3, 2, 4, 5, dtype)
    inputs[0] *= dtype(size)
    for result in values_and_gradients(lstm, inputs, output_grads(3, 2, 5, dtype)):
        assert np.isfinite(result).all()


def test_only_what_is_asked_for_gets_a_gradient():
    x, h0, c0, W_ih, W_hh, b = arrays(2, 3, 4, 5)
    weights = [Parameter(W_hh)]
    constant = Variable(W_ih, requires_grad=False)
    lstm(x, h0, c0, constant, weights[0], b)[0].sum().backward()
    assert constant.grad is None
    expected = values_and_gradients(lstm, [x, h0, c0, W_ih, W_hh, b], [np.ones((2, 3, 5)), None, None])
    np.testing.assert_array_equal(weights[0].grad, expected[3 + NAMES.index("W_hh")])


def test_weights_gradients_are_added_to_what_is_there(path):
    inputs, grads = arrays(2, 3, 4, 5), output_grads(2, 3, 5)
    parameters = [Parameter(value) for value in inputs]
    for _ in range(2):
        backward_all(lstm(*parameters), grads)
    once = values_and_gradients(lstm, inputs, grads)[3:]
    for parameter, grad in zip(parameters, once, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * grad, rtol=1e-13, atol=1e-14)


# --- recurrent dropout ---


def candidate_mask(T, B, H, dtype=np.float64):
    """Zeros and other factors; it need not be a dropout's."""
    return np.random.default_rng(2).integers(0, 4, (T, B, H)).astype(dtype) * dtype(0.75)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_with_candidates_dropped_fused_equals_unrolled(shape, dtype, tolerance, path):
    T, B, _, H = shape
    inputs, grads, mask = arrays(*shape, dtype), output_grads(T, B, H, dtype), candidate_mask(T, B, H, dtype)
    fused = values_and_gradients(functools.partial(lstm, candidate_mask=mask), inputs, grads)
    assert_close(fused, of_unrolled(shape, dtype, True), tolerance)


@on_its_paths(lstm, unrolled_lstm)
def test_with_candidates_dropped_both_equal_differences(function, path):
    mask = candidate_mask(3, 4, 5)
    assert check_backward(functools.partial(function, candidate_mask=mask), arrays(3, 4, 2, 5)) <= 1e-7


@pytest.mark.parametrize("function", [lstm, unrolled_lstm])
def test_what_the_cell_holds_is_never_dropped(function):
    """With every candidate dropped the cell only fades, by its forget gate."""
    x, h0, c0, W_ih, W_hh, b = arrays(1, 2, 3, 4)
    c = function(x, h0, c0, W_ih, W_hh, b, candidate_mask=np.zeros((1, 2, 4)))[2].data
    forget = 1 / (1 + np.exp(-(x[0] @ W_ih.T + h0 @ W_hh.T + b)[:, 4:8]))
    np.testing.assert_allclose(c, forget * c0, rtol=1e-13)


def test_a_mask_of_ones_is_none_to_the_bit(path):
    shape = T, B, _, H = (3, 4, 3, 5)
    ones = functools.partial(lstm, candidate_mask=np.ones((T, B, H)))
    both = [values_and_gradients(f, arrays(*shape), output_grads(T, B, H)) for f in (lstm, ones)]
    assert [a.tobytes() for a in both[0]] == [a.tobytes() for a in both[1]]


def test_a_mask_is_left_alone_and_the_pass_can_be_run_again():
    mask = candidate_mask(3, 4, 5)
    kept = mask.copy()
    variables = [Variable(value) for value in arrays(3, 4, 3, 5)]
    total = lstm(*variables, candidate_mask=mask)[0].sum()
    passes = []
    for retain_graph in (True, False):
        for variable in variables:
            variable.zero_grad()
        total.backward(retain_graph=retain_graph)
        passes.append([variable.grad.tobytes() for variable in variables])
    assert passes[0] == passes[1]
    np.testing.assert_array_equal(mask, kept)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((2, 5)), ShapeError, "candidate_mask must be (T, B, H) = (3, 2, 5) because x is (3, 2, 4)"),
        (np.ones((3, 2, 5), np.float32), DtypeError, "must be float64 because x is; got float32"),
        (np.ones((3, 2, 5), bool), DtypeError, "candidate_mask must be float64 because x is; got bool"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_named(mask, error, message):
    with pytest.raises(error) as raised:
        lstm(*arrays(3, 2, 4, 5), candidate_mask=mask)
    assert message in str(raised.value)


# --- against PyTorch ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("seed", range(8))
def test_equal_to_torch(seed, dtype, tolerance):
    torch = pytest.importorskip("torch")
    sizes = np.random.default_rng(100 + seed).integers(1, (10, 30, 40, 50))
    T, B, inputs, H = (int(size) for size in sizes)
    x, h0, c0, *weights = given = arrays(T, B, inputs, H, dtype, seed)
    for weight in weights:
        weight /= np.sqrt(H).astype(dtype)
    grads = output_grads(T, B, H, dtype)

    peer = torch.nn.LSTM(inputs, H, dtype=getattr(torch, np.dtype(dtype).name))
    W_ih, W_hh, b = weights
    state_dict = {"weight_ih_l0": W_ih, "weight_hh_l0": W_hh, "bias_ih_l0": b, "bias_hh_l0": np.zeros_like(b)}
    peer.load_state_dict({name: torch.tensor(value) for name, value in state_dict.items()})
    leaves = [torch.tensor(value, requires_grad=True) for value in (x, h0[None], c0[None])]
    y, (h_T, c_T) = peer(leaves[0], (leaves[1], leaves[2]))
    torch.autograd.backward([y, h_T[0], c_T[0]], [torch.tensor(grad) for grad in grads])
    leaves += [peer.weight_ih_l0, peer.weight_hh_l0, peer.bias_ih_l0]
    theirs = [value.detach().numpy() for value in (y, h_T[0], c_T[0])]
    theirs += [leaf.grad.numpy().reshape(value.shape) for leaf, value in zip(leaves, given, strict=True)]
    assert_close(values_and_gradients(lstm, given, grads), theirs, tolerance)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (3, 4), r"lstm: x must be (T, B, I) with at least one step; got (3, 4)"),
        ("x", (0, 2, 4), r"lstm: x must be (T, B, I) with at least one step; got (0, 2, 4)"),
        ("x", (3, 1, 4), "lstm: h0 must be (B, H) with B = 1 because x is (3, 1, 4); got (2, 5)"),
        ("h0", (5,), "lstm: h0 must be (B, H) with B = 2 because x is (3, 2, 4); got (5,)"),
        ("c0", (2, 6), "c0 must be (B, H) = (2, 5) because x is (3, 2, 4) and h0 is (2, 5); got (2, 6)"),
        ("W_ih", (20, 5), "lstm: W_ih must be (4H, I) = (20, 4) because x is (3, 2, 4) and h0 is (2, 5)"),
        ("W_hh", (20, 4), "lstm: W_hh must be (4H, H) = (20, 5) because x is (3, 2, 4) and h0 is (2, 5)"),
        ("W_hh", (5, 20), "got (5, 20). Gates are stacked i, f, g, o on axis 0."),
        ("b", (20, 1), "lstm: b must be (4H) = (20,) because x is (3, 2, 4) and h0 is (2, 5); got (20, 1)"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_named(name, shape, message):
    inputs = arrays(3, 2, 4, 5)
    inputs[NAMES.index(name)] = np.zeros(shape)
    with pytest.raises(ShapeError) as raised:
        lstm(*inputs)
    assert message in str(raised.value)


def test_two_precisions_do_not_meet():
    inputs = arrays(3, 2, 4, 5)
    inputs[1] = inputs[1].astype(np.float32)
    with pytest.raises(DtypeError, match="float64, float32"):
        lstm(*inputs)


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_that_are_not_leaves_get_their_whole_gradient(threads, monkeypatch):
    """As under DropConnect; with an idle core, the gradients are built from two pieces of the time."""
    monkeypatch.setattr(lstm_kernels, "num_threads", lambda: threads)
    rng = np.random.default_rng(0)
    shapes = ((6, 3, 5), (3, 2), (3, 2), (8, 5), (8, 2), (8,))
    mask = rng.integers(0, 2, (8, 2)) * 2.0
    check_backward(
        lambda x, h, c, W_ih, W_hh, b: lstm(x, h, c, W_ih * 0.5, W_hh * mask, b),
        [rng.standard_normal(shape) for shape in shapes],
    )
