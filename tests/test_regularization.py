"""AR and TAR against a calculation by hand, plain twins and PyTorch; differences are in test_functions.py."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import Parameter, ShapeError, Variable
from minilstm.regularization import activation_regularization, temporal_activation_regularization

H = np.array([1.0, -2.0, 3.0, 3.0]).reshape(4, 1, 1)


def outputs(T=7, B=3, E=5, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((T, B, E)).astype(dtype)


def loss_and_gradient(penalty, h, weight):
    h = Variable(h)
    loss = penalty(h, weight)
    loss.backward()
    return loss.data, h.grad


def test_ar_by_hand():
    """(1 + 4 + 9 + 9) / 4 · 2; each slope is 2 · 2 h / 4."""
    loss, gradient = loss_and_gradient(activation_regularization, H, 2.0)
    assert loss == 11.5
    assert gradient.ravel().tolist() == [1, -2, 3, 3]


def test_tar_by_hand():
    """Changes -3, 5, 0: (9 + 25 + 0) / 3 · 1.5; slopes are the change to a step less that from it."""
    loss, gradient = loss_and_gradient(temporal_activation_regularization, H, 1.5)
    assert loss == pytest.approx(17, rel=1e-15)
    assert gradient.ravel().tolist() == [3, -8, 5, 0]


def test_tar_of_a_single_step_is_nothing():
    loss, gradient = loss_and_gradient(temporal_activation_regularization, outputs(T=1), 1.0)
    assert loss == 0
    assert gradient.shape == (1, 3, 5)
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5)])
@pytest.mark.parametrize("penalty", [activation_regularization, temporal_activation_regularization])
def test_nothing_has_no_penalty(penalty, shape):
    loss, gradient = loss_and_gradient(penalty, np.zeros(shape), 1.0)
    assert loss == 0
    assert gradient.shape == shape


def plain_ar(h, alpha):
    return F.mean(h * h) * alpha


def plain_tar(h, beta):
    return F.mean((h[1:] - h[:-1]) ** 2) * beta


PAIRS = [(activation_regularization, plain_ar), (temporal_activation_regularization, plain_tar)]


@pytest.mark.parametrize(("penalty", "plain"), PAIRS, ids=["AR", "TAR"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_equal_to_the_plain_one(penalty, plain, dtype, tolerance):
    loss, gradient = loss_and_gradient(penalty, outputs(dtype=dtype), 1.7)
    assert loss.dtype == gradient.dtype == dtype
    exact_loss, exact_gradient = loss_and_gradient(plain, outputs(), 1.7)
    np.testing.assert_allclose(loss, exact_loss, rtol=tolerance)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("penalty", "plain"), PAIRS, ids=["AR", "TAR"])
def test_float32_sums_of_many_elements_stay_exact(penalty, plain):
    """h around 1 and of 4 million elements, whose running float32 sum would lose its last four digits."""
    h = 1 + outputs(1000, 10, 400, np.float32) * np.float32(0.1)
    assert penalty(h, 1.0).item() == pytest.approx(plain(h.astype(np.float64), 1.0).item(), rel=2e-7)


def test_equal_to_pytorch():
    torch = pytest.importorskip("torch")
    ours, theirs = Variable(outputs()), torch.tensor(outputs(), requires_grad=True)
    loss = activation_regularization(ours, 2.0) + temporal_activation_regularization(ours, 1.0)
    other = 2.0 * theirs.pow(2).mean() + 1.0 * (theirs[1:] - theirs[:-1]).pow(2).mean()
    loss.backward()
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-14)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_both_add_to_the_loss_and_to_its_gradient():
    h = Parameter(outputs())
    data = F.sum(h * outputs())
    penalties = activation_regularization(h, 2.0) + temporal_activation_regularization(h, 1.0)
    (data + penalties).backward()
    apart = sum(
        loss_and_gradient(penalty, h.data, weight)[1]
        for penalty, weight in ((activation_regularization, 2.0), (temporal_activation_regularization, 1.0))
    )
    np.testing.assert_allclose(h.grad, outputs() + apart, rtol=1e-13)


def test_a_weight_of_0_is_no_penalty():
    for penalty in (activation_regularization, temporal_activation_regularization):
        loss, gradient = loss_and_gradient(penalty, outputs(), 0.0)
        assert loss == 0
        assert not gradient.any()


def test_steps_must_be_an_axis():
    with pytest.raises(ShapeError, match=r"temporal_activation_regularization: h must be \(T, …\).*got \(\)"):
        temporal_activation_regularization(np.float64(3), 1.0)
