"""Variables and parameters: operators, precision, modes, memory, and what is refused."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import (
    DtypeError,
    Function,
    Parameter,
    ShapeError,
    Variable,
    evaluation_mode,
    is_training,
    no_backprop_mode,
)
from autograd.gradient_check import check_backward


def variable(*values, dtype=np.float64):
    return Variable(np.array(values, dtype))


class Square(Function):
    """What a reader would write first."""

    def forward(self, x):
        self.save(x)
        return x * x

    def backward(self, dy):
        (x,) = self.saved
        return 2 * x * dy


# --- a reader's own function, and operators ---


def test_a_function_as_a_reader_writes_it():
    check_backward(lambda x: Square().apply(x), [np.random.default_rng(0).standard_normal((3, 2))])
    x = variable(1.0, 2.0, 3.0)
    y = Square().apply(x)
    (y * y).sum().backward()
    assert y.data.tolist() == [1, 4, 9]
    assert x.grad.tolist() == [4, 32, 108]


def test_the_example_of_the_package():
    x = Variable(np.array([1.0, 2.0, 3.0]))
    (x * x).sum().backward()
    assert repr(x.grad) == "array([2., 4., 6.])"
    assert repr(Variable(np.array([1.0]), name="x")) == "Variable(array([1.]), name='x')"


@pytest.mark.parametrize(
    "other", [2, 2.0, np.float64(2), np.float32(2), np.int64(2), np.array([2], np.int32)]
)
@pytest.mark.parametrize(
    ("operate", "factor"),
    [(lambda x, y: x * y, 2), (lambda x, y: y * x, 2), (lambda x, y: x + y, 1), (lambda x, y: y + x, 1),
     (lambda x, y: x - y, 1), (lambda x, y: y - x, -1), (lambda x, y: x / y, 0.5),
     (lambda x, y: y / x, -2 / 16)],
)  # fmt: skip
def test_numbers_and_integers_take_the_precision_of_the_variable(operate, factor, other):
    x = variable(4.0, dtype=np.float32)
    y = operate(x, other)
    assert isinstance(y, Variable)
    assert y.dtype == np.float32
    y.retain_grad()
    y.backward()
    assert y.grad.dtype == x.grad.dtype == np.float32
    assert x.grad.tolist() == [factor]
    assert y.data.tolist() == operate(np.array([4.0]), other).tolist()


def test_a_cast_sends_its_gradient_back_in_the_old_precision():
    y = F.cast(variable(3.0, dtype=np.float32), np.float64)
    assert y.dtype == np.float64
    assert y.creator.backward(np.ones(1)).dtype == np.float32


@pytest.mark.parametrize("exponent", [2, 2.0, np.float64(2), np.int64(2)])
def test_powers_keep_the_precision(exponent):
    x = variable(3.0, dtype=np.float32)
    y = x**exponent
    assert y.dtype == np.float32
    y.backward()
    assert x.grad.tolist() == [6]


def test_a_number_does_not_become_an_integer_beside_integers():
    ids = Variable(np.array([1, 2]), requires_grad=False)
    assert (ids * 0.5).data.tolist() == [0.5, 1]


@pytest.mark.parametrize("array", [np.array([2.0, 3.0], np.float32), np.array([[2], [3]], np.float32)])
def test_an_array_on_the_left_becomes_a_variable(array):
    x = variable(1.0, 2.0, dtype=np.float32)
    for y in (array + x, array - x, array * x, array / x):
        assert isinstance(y, Variable)
        assert y.dtype == np.float32
    assert (array - x).data.tolist() == (array - x.data).tolist()
    assert (array / x).data.tolist() == (array / x.data).tolist()
    matrix = Variable(np.ones((2, 2), np.float32))
    assert (np.eye(2, dtype=np.float32) @ matrix).data.tolist() == [[1, 1], [1, 1]]


def test_methods_of_a_variable():
    x = Variable(np.arange(6.0).reshape(2, 3))
    assert x.T.shape == x.transpose().shape == (3, 2)
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == (3, 2)
    assert x.reshape(-1).shape == (6,)
    assert x.sum().item() == 15
    assert x.mean(axis=0).data.tolist() == [1.5, 2.5, 3.5]
    assert x[1, ::2].data.tolist() == [3, 5]
    assert [row.data.tolist() for row in x] == [[0, 1, 2], [3, 4, 5]]
    assert (-x).data.tolist() == (-x.data).tolist()
    assert (len(x), x.ndim, x.size, x.shape, x.dtype) == (2, 2, 6, (2, 3), np.float64)


# --- parameters ---


def test_a_parameters_gradient_stays_in_its_memory():
    W = Parameter(np.ones((3, 2)))
    memory = None
    for step in range(1, 4):
        x = np.full((5, 2), float(step))
        W.zero_grad()
        assert W.grad is None
        F.linear(x, W).sum().backward()
        memory = W.grad if memory is None else memory
        assert W.grad is memory
        assert W.grad.tolist() == np.full((3, 2), 5.0 * step).tolist(), "the last step shines through"


def test_gradients_are_written_into_views_of_a_flat_buffer():
    flat, flat_grad = np.zeros(10), np.full(10, np.nan)
    W, b = Parameter(np.ones((3, 2))), Parameter(np.full(3, 7.0))
    W.move_to(flat[:6].reshape(3, 2), flat_grad[:6].reshape(3, 2))
    b.move_to(flat[6:9], flat_grad[6:9])
    assert flat.tolist() == [1] * 6 + [7] * 3 + [0]
    F.linear(np.ones((4, 2)), W, b).sum().backward()
    assert flat_grad[:9].tolist() == [4] * 9
    assert np.isnan(flat_grad[9])


def test_a_parameter_that_moves_takes_the_precision_of_its_new_place():
    W = Parameter(np.ones(2, np.float32))
    W.move_to(np.zeros(2), np.zeros(2))
    F.cast(W * (1 / 3), np.float64).sum().backward()
    F.cast(W, np.float64).backward(np.full(2, 1 / 3))
    assert W.grad.tolist() == [2 / 3, 2 / 3]


@pytest.mark.parametrize("in_place_first", [False, True])
def test_one_parameter_in_two_functions(in_place_first):
    """Once by Linear, which writes into the buffer, and once by Multiply, which hands a new array over."""
    rng = np.random.default_rng(0)
    data, x = rng.standard_normal((3, 2)), rng.standard_normal((4, 2))

    def loss(W):
        parts = [F.linear(x, W).sum(), (W * W).sum()]
        first, second = parts if in_place_first else reversed(parts)
        return first + second

    W = Parameter(data)
    for _ in range(2):
        W.zero_grad()
        loss(W).backward()
        expected = x.sum(axis=0) + 2 * data
        np.testing.assert_allclose(W.grad, expected, rtol=1e-14)
    loss(W).backward()
    np.testing.assert_allclose(W.grad, 2 * expected, rtol=1e-14)


def test_one_variable_as_both_inputs_of_a_function_that_writes_in_place():
    check_backward(lambda W: F.linear(W, W), [np.random.default_rng(0).standard_normal((3, 3))])
    data = np.random.default_rng(1).standard_normal((3, 3))
    W, twin = Parameter(data), Variable(data)
    F.linear(W, W).sum().backward()
    F.linear(twin, twin).sum().backward()
    np.testing.assert_array_equal(W.grad, twin.grad)


# --- modes ---


def test_no_graph_is_recorded_in_no_backprop_mode():
    x = variable(1.0)
    with no_backprop_mode():
        y = F.exp(x)
        with no_backprop_mode():
            pass
        assert y.creator is None
        assert not y.requires_grad
        assert not F.exp(x).requires_grad, "the inner context ended the outer one"
    with pytest.raises(RuntimeError, match="depends on nothing that requires a gradient"):
        y.backward()
    F.exp(x).backward()
    assert x.grad is not None


def test_nothing_is_saved_in_no_backprop_mode():
    class Kept(Function):
        def forward(self, x):
            self.save(x)
            return x * 2

    function = Kept()
    with no_backprop_mode():
        function.apply(variable(1.0))
    with pytest.raises(RuntimeError, match="kept"):
        _ = function.saved


def test_dropout_is_the_identity_in_evaluation_mode():
    x = variable(*np.ones(100))
    assert is_training()
    with evaluation_mode():
        assert not is_training()
        assert F.dropout(x, 0.5).data.tolist() == [1] * 100
    assert is_training()
    assert 0 in F.dropout(x, 0.5).data


def test_modes_end_with_an_exception():
    def fail():
        raise KeyError

    for mode in (no_backprop_mode, evaluation_mode):
        with pytest.raises(KeyError), mode():
            fail()
    assert is_training()
    assert F.exp(variable(1.0)).requires_grad


# --- what is refused ---


def test_a_root_of_several_numbers_needs_a_gradient():
    x = variable(1.0, 2.0)
    y = x * 2.0
    with pytest.raises(ShapeError, match=r"a root of shape \(2,\) needs a .*; got none; .* \.sum\(\)"):
        y.backward()
    with pytest.raises(ShapeError, match=r"must be \(2,\) as the root is; got \(3,\)"):
        y.backward(np.ones(3))
    assert x.grad is None
    y.backward([1, 10])
    assert x.grad.tolist() == [2, 20]


@pytest.mark.parametrize("data", [[1, 2], [True], np.array([1j])], ids=["integers", "truths", "complex"])
def test_only_floating_point_data_can_have_a_gradient(data):
    with pytest.raises(DtypeError, match="ids.*floating-point.*requires_grad=False"):
        Variable(data, name="ids")
    Variable(data, requires_grad=False)


@pytest.mark.parametrize(
    "mix",
    [F.add, F.subtract, F.multiply, F.divide, F.matmul, F.linear, lambda x, y: F.concatenate([x, y]),
     lambda x, y: F.layer_normalization(x, y[0], y[0])],
)  # fmt: skip
def test_two_precisions_do_not_meet_unseen(mix):
    x, y = (Variable(np.ones((2, 2), dtype)) for dtype in (np.float32, np.float64))
    with pytest.raises(DtypeError, match=r"one dtype; got float32, float64.*cast"):
        mix(x, y)
    assert mix(F.cast(x, np.float64), y).dtype == np.float64


@pytest.mark.parametrize(
    ("returned", "message"),
    [((1.0,), "bad.backward must return one gradient or None for each of its 2 inputs; got 1"),
     ([np.ones(2)], "bad.backward must return one gradient or None for each of its 2 inputs; got 1"),
     ((np.ones(3), None), r"bad.backward: .* input 0, x, must be an array \(2,\); got \(3,\); .*summed"),
     ((np.ones(2), 1.0), r"of input 1, y, must be an array \(2,\); got a float"),
     ((None, variable(1.0, 1.0)), r"of input 1, y, must be an array \(2,\); got a Variable")],
)  # fmt: skip
def test_a_function_that_returns_a_wrong_gradient_is_named(returned, message):
    class Bad(Function):
        def forward(self, x, y):
            return x + y

        def backward(self, dz):
            return returned

    z = Bad().apply(variable(1.0, 2.0), variable(3.0, 4.0))
    with pytest.raises(RuntimeError, match=message):
        z.backward(np.ones(2))


@pytest.mark.parametrize("result", [1.0, [np.ones(2)], None])
def test_a_forward_that_returns_no_array_is_named(result):
    class Bad(Function):
        def forward(self, x):
            return result

    with pytest.raises(TypeError, match=f"bad.forward must return an array .*; got {type(result).__name__}"):
        Bad().apply(variable(1.0))


def test_what_forward_makes_of_variables_is_told():
    class Mixed(Function):
        def forward(self, x):
            return F.tanh(x)

    with pytest.raises(TypeError, match=r"mixed.forward .*; got Variable; inside forward call NumPy"):
        Mixed().apply(variable(1.0))


def test_apply_is_not_called_on_the_class():
    for x in (variable(1.0), np.ones(2)):
        with pytest.raises(TypeError, match=r"Cube\(\).apply\(x\), not Cube.apply\(x\)"):
            F.activation.Exp.apply(x)


@pytest.mark.parametrize("numpy_function", [np.tanh, np.asarray, lambda x: np.concatenate([x, x])])
def test_a_numpy_function_does_not_take_a_variable(numpy_function):
    """Asked for its elements one by one it would make an array of objects, and no gradient."""
    with pytest.raises(TypeError, match="give it the array, .data, or call autograd.functions"):
        numpy_function(variable(1.0, 2.0))
    assert (np.ones(2) * variable(1.0, 2.0)).requires_grad  # an operator is the Variable's own
    assert (np.float64(2) * variable(1.0, 2.0)).requires_grad


def test_float32_does_not_become_float64_on_the_way():
    class Wide(Function):
        def __init__(self, backward_too):
            self.backward_too = backward_too

        def forward(self, x):
            return x if self.backward_too else x * np.ones(2)

        def backward(self, dy):
            return dy * np.ones(2)

    x = Variable(np.ones(2, np.float32))
    with pytest.raises(DtypeError, match="wide: inputs of float32 would make float64; give the arrays that"):
        Wide(False).apply(x)
    with pytest.raises(RuntimeError, match="wide.backward: .* must be of float32 .*; got float64"):
        Wide(True).apply(x).sum().backward()


def test_one_instance_is_applied_once():
    class Double(Function):
        def forward(self, x):
            return 2 * x

        def backward(self, dy):
            return 2 * dy

    double, x = Double(), variable(1.0)
    y = double.apply(x)
    with pytest.raises(RuntimeError, match="double: one instance is applied once"):
        double.apply(y)
    y.backward()
    assert double.apply(x).data == 2.0  # the graph that it stood in is gone


def test_what_was_not_saved_is_told():
    class Forgetful(Function):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy * self.saved[0]

    with pytest.raises(RuntimeError, match=r"forgetful: nothing is saved; forward must call self.save"):
        Forgetful().apply(variable(1.0)).backward()


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_function_without_its_methods_is_named(method):
    class Empty(Function):
        pass

    with pytest.raises(NotImplementedError, match=f"empty: {method}"):
        getattr(Empty(), method)(np.ones(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: F.matmul(x, n),
        lambda x, n: F.linear(x, n),
        lambda x, n: F.concatenate([x, n]),
    ],
    ids=["matmul", "linear", "concatenate"],
)
def test_integers_beside_float32_do_not_make_float64(function):
    x, n = Variable(np.ones((2, 2), np.float32)), np.ones((2, 2), np.int64)
    with pytest.raises(DtypeError, match=r"float32.*int64.*float64; give the integers"):
        function(x, n)


def test_a_leaf_is_told_of_once_when_its_last_user_has_added_to_its_gradient():
    x, y = (Variable(np.array([2.0, 3.0]), name=name) for name in "xy")
    constant = Variable(np.ones(2), requires_grad=False)
    early = x * x  # x is used first of all, so its gradient comes last
    late = early * y + constant
    told = []
    (late + y).sum().backward(on_complete=lambda leaf: told.append((leaf.name, leaf.grad.copy())))
    assert sorted(name for name, _ in told) == ["x", "y"]
    for name, grad in told:
        np.testing.assert_array_equal(grad, {"x": x, "y": y}[name].grad)
    assert told[-1][0] == "x"


def test_a_leaf_that_no_gradient_reaches_is_told_of_too():
    x, y = Variable(np.array([2.0])), Variable(np.array([3.0]))
    unused, used = Variable(np.array([1.0])) * y, x * 2.0
    told = []
    (used + unused * 0.0).sum().backward(on_complete=told.append)
    assert x in told
    assert y in told


class Borrower(Function):
    """Saves something in the memory of its input's gradient, if it can."""

    def forward(self, x):
        self.memory = self.borrow_grad_memory(0)
        return x * 2.0

    def backward(self, dy):
        return dy * 2.0


def lender():
    """A parameter whose gradient has memory, and is unwritten."""
    parameter = Parameter(np.ones(3))
    parameter.grad_target()
    parameter.zero_grad()
    return parameter


def test_the_memory_of_an_unwritten_gradient_is_lent_to_one_function_at_a_time():
    parameter = lender()
    first, second = Borrower(), Borrower()
    kept = first.apply(parameter)
    assert first.memory is parameter.grad_buffer
    assert first.still_borrows(0)
    second.apply(parameter)
    assert second.memory is None
    assert kept.creator is first
    del kept, first  # never went backward
    third = Borrower()
    third.apply(parameter)
    assert third.memory is parameter.grad_buffer


def test_a_loan_ends_when_the_gradient_is_asked_for():
    parameter = lender()
    borrower = Borrower()
    borrower.apply(parameter)
    parameter.zero_grad()
    assert borrower.still_borrows(0)  # which touches nothing
    (parameter * 1.0).sum().backward()
    assert not borrower.still_borrows(0)


@pytest.mark.parametrize("x", [np.ones(3), Variable(np.ones(3)), Parameter(np.ones(3))])
def test_what_has_no_memory_for_a_gradient_lends_none(x):
    borrower = Borrower()
    borrower.apply(x)
    assert borrower.memory is None


def test_nothing_is_lent_of_a_written_gradient_or_without_a_backward_pass_to_come():
    written, parameter = lender(), lender()
    written.grad_target()
    borrower, other = Borrower(), Borrower()
    borrower.apply(written)
    with no_backprop_mode():
        other.apply(parameter)
    assert borrower.memory is None
    assert other.memory is None
