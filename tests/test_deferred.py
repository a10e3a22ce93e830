"""Gradients left to idle threads: nothing lost, nothing early, the same bits, errors that arrive."""

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from autograd import Function, Parameter, Variable, detect_anomaly, function, parallel
from autograd import deferred as deferred_module
from autograd.deferred import Deferred
from autograd.parallel import free_threads, run_parts


@pytest.fixture(autouse=True, params=[1, 2, 3])
def threads(request, monkeypatch):
    for module in (parallel, function, deferred_module):
        monkeypatch.setattr(module, "num_threads", lambda: request.param)
    return request.param


@pytest.fixture(autouse=True)
def blas_is_left_as_it_was():
    yield
    assert parallel._open_regions == 0
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    assert all(blas.num_threads == parallel._blas()[1] for blas in controllers if "numpy" in blas.filepath)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_part_is_done_once_and_then_what_comes_last(count):
    done = []
    deferred = Deferred(done.append, range(count), lambda: done.append("last"))
    assert free_threads() == 1, "the others are taken"
    deferred.finish()
    deferred.finish()
    assert sorted(done[:-1]) == list(range(count))
    assert done[-1] == "last"


def test_others_parts_go_first(threads):
    """A thread that does what is deferred takes up others' work before the next deferred part."""
    if threads == 1:
        pytest.skip("one thread has nobody beside it")
    begun, done = threading.Event(), []

    def work(part):
        begun.set()
        done.append(part)

    deferred = Deferred(work, range(10_000), lambda: None)
    assert begun.wait(10)
    run_parts(lambda part: done.append("urgent") if part else None, range(2))
    assert "urgent" in done[:9_999]
    deferred.finish()
    assert len(done) == 10_001


@pytest.mark.parametrize("broken", [0, 7, "last"])
def test_an_exception_arrives_where_the_work_is_finished(broken):
    def work(part):
        if part == broken:
            raise ZeroDivisionError(part)

    deferred = Deferred(work, range(20), lambda: work("last"))
    with pytest.raises(ZeroDivisionError):
        deferred.finish()
    assert run_parts(abs, [-1, -2]) == [1, 2], "the pool must live on"


def test_what_is_cancelled_is_not_begun_any_more():
    done, may_go = [], threading.Event()

    def work(part):
        may_go.wait(10)
        done.append(part)

    deferred = Deferred(work, range(1000), lambda: done.append("last"))
    threading.Timer(0.05, may_go.set).start()
    deferred.cancel()
    count = len(done)
    assert count <= 3
    assert "last" not in done
    assert len(done) == count


# --- in a backward pass ---


class Scale(Function):
    """y = x w, w's gradient deferred in two parts."""

    def __init__(self, log):
        self.log = log

    def forward(self, x, w):
        self.save(x, w)
        return x * w

    def backward(self, dy):
        x, w = self.saved
        target, unwritten = self.grad_target(1, like=w)
        if unwritten:
            target[...] = 0
        half = len(w) // 2

        def work(part):
            target[part] += (dy * x)[part]
            self.log.append("part")

        self.defer((1,), work, [slice(0, half), slice(half, None)], lambda: self.log.append("last"))
        return dy * w, target


class Watch(Function):
    """y = x, which notes in its backward what the log holds."""

    def __init__(self, log):
        self.log = log

    def forward(self, x, *others):
        return x.copy()

    def backward(self, dy):
        self.log.append("watched")
        return (dy,) + (None,) * (len(self.inputs) - 1)


def values():
    return np.arange(1.0, 7.0), np.arange(2.0, 8.0)


@pytest.mark.parametrize("kind", [Parameter, Variable])
def test_gradients_are_whole_after_the_pass(kind):
    x, w = (kind(array) for array in values())
    Scale([]).apply(x, w).sum().backward()
    np.testing.assert_array_equal(w.grad, x.data)
    np.testing.assert_array_equal(x.grad, w.data)


def test_it_ends_before_another_touches_the_same_gradient():
    log, (x, w) = [], (Parameter(array) for array in values())
    y = Scale(log).apply(Watch(log).apply(x, w), w)  # backward: Scale, then Watch, whose input w is
    y.sum().backward()
    assert log == ["part", "part", "last", "watched"]


def test_who_waits_for_it_is_told_when_it_is_whole(threads):
    log, (x, w) = [], (Parameter(array) for array in values())
    Scale(log).apply(x, w).sum().backward(on_complete=lambda leaf: log.append("w" if leaf is w else "x"))
    assert log.index("last") < log.index("w")
    assert sorted(log) == ["last", "part", "part", "w", "x"]


def test_a_gradient_that_goes_on_is_made_at_once():
    log, (x, w) = [], (Parameter(array) for array in values())
    Scale(log).apply(x, w * 2).sum().backward()
    np.testing.assert_array_equal(w.grad, 2 * x.data)


def test_it_adds_to_what_is_there():
    x, w = (Parameter(array) for array in values())
    for _ in range(2):
        Scale([]).apply(x, w).sum().backward()
    np.testing.assert_array_equal(w.grad, 2 * x.data)


def test_a_function_that_fails_after_it_deferred_leaves_nothing_under_way():
    class FailLate(Scale):
        def backward(self, dy):
            super().backward(dy)
            raise ZeroDivisionError

    x, w = (Parameter(array) for array in values())
    with pytest.raises(ZeroDivisionError):
        FailLate([]).apply(x, w).sum().backward()


def test_a_pass_that_fails_leaves_nothing_under_way():
    class Fail(Function):
        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            raise ZeroDivisionError

    x, w = (Parameter(array) for array in values())
    with pytest.raises(ZeroDivisionError):
        Scale([]).apply(Fail().apply(x), w).sum().backward()


def test_where_anomalies_are_looked_for_it_is_made_at_once():
    log, (x, w) = [], (Parameter(array) for array in values())
    with detect_anomaly():
        Scale(log).apply(Watch(log).apply(x), w).sum().backward()
    assert log == ["part", "part", "last", "watched"]
