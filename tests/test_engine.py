"""The reverse pass: its order, how gradients add up or are absent, what is kept and what is released."""

import gc
import itertools
import weakref

import numpy as np
import pytest

import autograd.functions as F
from autograd import Function, Variable

CHAIN = 100_000


def variable(*values, dtype=np.float64):
    return Variable(np.array(values, dtype))


class Scale(Function):
    """2x on the first output, 3x on the second; remembers which gradients came."""

    def forward(self, x):
        return 2 * x, 3 * x

    def backward(self, da, db):
        self.came = (da, db)
        return sum(factor * grad for factor, grad in ((2, da), (3, db)) if grad is not None)


# --- order and accumulation ---


def test_a_chain_of_100000_steps_is_differentiated_and_collected():
    x = y = variable(1.0)
    for _ in range(CHAIN):
        y = y + x
    y.backward()
    assert x.grad.tolist() == [CHAIN + 1]
    del y
    gc.collect()


def test_a_chain_that_was_never_run_backward_is_collected():
    y = variable(1.0)
    for _ in range(CHAIN):
        y = F.negate(y)
    last = weakref.ref(y.creator)
    del y
    gc.collect()
    assert last() is None


def test_a_diamond_waits_for_both_of_its_sides():
    x = variable(3.0)
    top = x * x  # 9
    left, right = top * 2.0, F.exp(F.log(F.exp(F.log(top))))  # one short and one long way
    (left * right).backward()  # 2x⁴
    assert x.grad.tolist() == pytest.approx([8 * 3**3])


def test_every_function_of_a_ladder_of_diamonds_runs_once(monkeypatch):
    """2⁶⁰ paths, 60 functions: only a pass that runs each function once comes to an end."""
    runs = []
    backward = F.add(1.0, variable(1.0)).creator.backward
    monkeypatch.setattr(type(backward.__self__), "backward", lambda f, dz: runs.append(f) or (dz, dz))
    x = y = variable(1.0)
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.tolist() == [2.0**60]
    assert len(runs) == len(set(runs)) == 60


def test_a_variable_used_by_many_and_twice_by_one():
    x, z = variable(2.0), variable(5.0)
    (x * x * x + x * z + x).sum().backward()
    assert x.grad.tolist() == [3 * 4 + 5 + 1]
    assert z.grad.tolist() == [2]


def test_gradients_of_two_passes_add_up_until_they_are_zeroed():
    x = variable(1.0, 2.0)
    (x * x).sum().backward()
    (3.0 * x).sum().backward()
    assert x.grad.tolist() == [2 + 3, 4 + 3]
    x.zero_grad()
    assert x.grad is None
    (3.0 * x).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_the_gradients_of_two_leaves_share_no_memory():
    x, y = variable(1.0), variable(2.0)
    (x + y).backward()
    x.grad += 10
    assert y.grad.tolist() == [1]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_gradient_handed_to_several_is_not_changed_for_one(order):
    """Add hands one array on to both its inputs; what is added for the one must not reach the other."""
    x, y = variable(1.0), variable(2.0)
    a, b = F.exp(x), F.exp(y)
    terms = [a + b, 5.0 * a, 7.0 * b]
    first, second, third = (terms[k] for k in order)
    (first + second + third).backward()
    assert x.grad.tolist() == pytest.approx([6 * np.exp(1)])
    assert y.grad.tolist() == pytest.approx([8 * np.exp(2)])


def test_a_given_gradient_is_not_changed():
    x = variable(1.0, 2.0)
    gradient = np.array([3.0, 4.0])
    y = F.reshape(x, (2,))
    y.retain_grad()
    for _ in range(2):
        y.backward(gradient, retain_graph=True)
    assert gradient.tolist() == [3, 4]
    assert x.grad.tolist() == y.grad.tolist() == [6, 8]


def test_a_leaf_is_its_own_root():
    x = variable(5.0)
    x.backward()
    assert x.grad.tolist() == [1]


# --- absent gradients ---


class Gate(Function):
    """x where it is open; the gradient of the other input is left out."""

    def forward(self, x, unused):
        return x + 0 * unused

    def backward(self, dy):
        return dy, None


def test_a_function_may_return_no_gradient():
    x, y = variable(1.0), variable(2.0)
    Gate().apply(x, F.exp(y)).backward()
    assert x.grad.tolist() == [1]
    assert y.grad is None


def test_a_branch_without_gradient_does_not_hold_up_the_other():
    x = variable(2.0)
    middle = F.exp(x)
    (Gate().apply(x, middle) + 3.0 * middle).backward()
    assert x.grad.tolist() == pytest.approx([1 + 3 * np.exp(2)])


@pytest.mark.parametrize("used", [0, 1])
def test_an_unused_output_has_no_gradient(used):
    x = variable(1.0)
    outputs = Scale().apply(x)
    function = outputs[used].creator
    outputs[used].backward()
    assert function.came[1 - used] is None
    assert x.grad.tolist() == [(2, 3)[used]]


def test_all_outputs_of_a_function_report_before_it_runs():
    x = variable(1.0)
    first, second = Scale().apply(x)
    (F.exp(F.log(first)) + second).backward()
    assert x.grad.tolist() == pytest.approx([5])


def test_an_output_that_nobody_holds_any_more():
    x = variable(1.0)
    second = Scale().apply(x)[1]
    gc.collect()
    second.backward()
    assert x.grad.tolist() == [3]


def test_a_leaf_that_nobody_holds_any_more():
    x = variable(2.0)
    y = x * Variable(np.array([3.0]))
    gc.collect()
    y.backward()
    assert x.grad.tolist() == [3]


def test_constants_have_no_gradient():
    x, constant = variable(2.0), Variable(np.array([3.0]), requires_grad=False)
    (x * constant).backward()
    assert x.grad.tolist() == [3]
    assert constant.grad is None
    assert not (constant * constant).requires_grad


def test_detach_cuts_the_graph():
    x = variable(3.0)
    (x * x.detach()).backward()
    assert x.grad.tolist() == [3]


# --- what is kept, what is released ---


def test_a_second_pass_is_refused_unless_the_graph_is_retained():
    x = variable(3.0)
    y = F.exp(x) * x
    y.backward(retain_graph=True)
    first = x.grad.copy()
    x.zero_grad()
    y.backward()
    assert x.grad.tobytes() == first.tobytes()
    with pytest.raises(RuntimeError, match="released by an earlier pass.*retain_graph=True"):
        y.backward()
    assert x.grad.tobytes() == first.tobytes()


def test_a_shared_part_that_was_released_is_refused():
    x = variable(3.0)
    shared = F.exp(x)
    first, second = shared * 2.0, shared * 3.0
    first.backward()
    with pytest.raises(RuntimeError, match="released"):
        second.backward()


@pytest.mark.parametrize("retain_graph", [False, True])
def test_saved_arrays_are_freed_by_the_pass_unless_retained(retain_graph):
    x = variable(1.0, 2.0)
    y = F.exp(x)  # saves its own output
    array = weakref.ref(y.data)
    z = y.sum()
    del y
    gc.collect()
    assert array() is not None, "backward needs it"
    z.backward(retain_graph=retain_graph)
    gc.collect()
    assert (array() is not None) == retain_graph


def test_an_intermediate_array_that_no_derivative_needs_is_freed_at_once():
    x = variable(1.0, 2.0)
    y = x + x
    array = weakref.ref(y.data)
    z = F.negate(y)
    del y
    assert array() is None
    z.backward(np.ones(2))
    assert x.grad.tolist() == [-2, -2]


def test_arriving_gradients_are_freed_during_the_pass():
    """At most two live at any time in a chain: one arriving and the one made from it."""
    alive, most = weakref.WeakSet(), [0]

    class Watched(np.ndarray):
        pass

    class Step(Function):
        def forward(self, x):
            return x + 1

        def backward(self, dy):
            dx = (dy * 1).view(Watched)
            alive.add(Tracked(dx))
            most[0] = max(most[0], len(alive))
            return dx

    class Tracked:
        """Lives as long as the array, for arrays cannot be put into a set."""

        def __init__(self, array):
            array.tracked = self

    y = variable(1.0)
    for _ in range(20):
        y = Step().apply(y)
    y.backward()
    assert 1 <= most[0] <= 2


def test_retain_grad_keeps_the_gradient_of_an_intermediate_variable():
    x = variable(2.0)
    y, unasked = x * x, x * 5.0
    y.retain_grad()
    z = y * 3.0 + y + unasked
    z.retain_grad()
    z.backward(retain_graph=True)
    assert y.grad.tolist() == [4]
    assert z.grad.tolist() == [1]
    assert unasked.grad is None
    z.backward()
    assert y.grad.tolist() == [8]
