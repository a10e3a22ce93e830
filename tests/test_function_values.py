"""Every function's values against NumPy's, and its errors word for word."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import DtypeError, InputError, ShapeError, Variable
from autograd.function_cases import BROADCASTS, SHAPES, away_from_zero, normal, positive
from autograd.functions import layer_normalization as normalize
from autograd.functions import softmax_cross_entropy as cross_entropy

# --- values ---


def softmax(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (F.exp, np.exp),
        (F.log, np.log),
        (F.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (F.tanh, np.tanh),
        (F.relu, lambda x: np.where(x > 0, x, 0)),
        (F.negate, lambda x: -x),
        (F.transpose, np.transpose),
        (F.sum, np.sum),
        (lambda x: F.relu(-x), lambda x: np.where(x < 0, -x, 0)),
        *((lambda x, p=p: x**p, lambda x, p=p: np.power(x, float(p))) for p in (1, 2, 3, 4, 7, 16, 17, -3)),
        (lambda x: F.broadcast_to(x, (2, *x.shape)), lambda x: np.stack([x, x])),
        (lambda x: F.stack([x, -x], axis=0), lambda x: np.stack([x, -x])),
        (lambda x: F.stack([x, -x], axis=-1), lambda x: np.stack([x, -x], axis=-1)),
        (lambda x: F.reshape(x, (-1, 1)) if x.size else x, lambda x: x.reshape(-1, 1) if x.size else x),
    ],
)
def test_values_of_one_array(function, expected, shape):
    x = positive(*shape)
    result = function(Variable(x))
    assert result.shape == expected(x).shape
    np.testing.assert_allclose(result.data, expected(x), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("x", "y"), BROADCASTS)
def test_values_of_arithmetic(x, y):
    x, y = normal(*x), away_from_zero(*y)
    for function, expected in ((F.add, x + y), (F.subtract, x - y), (F.multiply, x * y), (F.divide, x / y)):
        np.testing.assert_array_equal(function(x, y).data, expected)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (0, 5), (3, 2, 1)])
def test_values_over_the_last_axis(shape):
    x, gain, shift = normal(*shape), normal(*shape[-1:]), normal(*shape[-1:], seed=1)
    np.testing.assert_allclose(F.log_softmax(x).data, np.log(softmax(x)), rtol=1e-12, atol=1e-14)
    normalized = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        F.layer_normalization(x, gain, shift).data, normalized * gain + shift, rtol=1e-10
    )
    np.testing.assert_array_equal(F.mean(x, axis=-1).data, x.mean(-1))
    W, b = normal(4, shape[-1]), normal(4)
    np.testing.assert_allclose(F.linear(x, W, b).data, np.einsum("...i,oi->...o", x, W) + b, rtol=1e-13)
    np.testing.assert_allclose(F.linear(x, W).data, np.einsum("...i,oi->...o", x, W), rtol=1e-12)


def test_values_of_products_and_parts():
    x, y = normal(5, 1, 2, 3), normal(4, 3, 2)
    np.testing.assert_allclose(
        F.matmul(x, y).data, np.einsum("...ik,...kj->...ij", x, y), rtol=1e-13, atol=1e-15
    )
    np.testing.assert_array_equal(F.concatenate([y[:1], y[1:]]).data, y)
    np.testing.assert_array_equal(F.concatenate([y[..., :1], y], axis=-1).data, y[..., [0, 0, 1]])
    for got, expected in zip(F.split(y, 3, axis=1), np.split(y, 3, axis=1), strict=True):
        np.testing.assert_array_equal(got.data, expected)
    np.testing.assert_array_equal(F.get_item(y, (slice(None), [0, 0])).data, y[:, [0, 0]])
    ids, scale = np.array([[3, 0], [3, 1]]), np.array([1.0, 0, 2, 3])
    np.testing.assert_array_equal(F.embedding(ids, y[:, 0]).data, y[:, 0][ids])
    np.testing.assert_array_equal(F.embedding(ids, y[:, 0], scale).data, y[:, 0][ids] * scale[ids][..., None])


def test_the_loss_is_the_mean_over_what_is_scored():
    logits, targets = normal(2, 3, 4), np.array([[0, -1, 3], [-1, -1, 2]])
    nll = -np.log(softmax(logits))
    expected = (nll[0, 0, 0] + nll[0, 2, 3] + nll[1, 2, 2]) / 3
    assert F.softmax_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-14)
    assert F.softmax_cross_entropy(logits, np.full((2, 3), -1)).item() == 0
    assert F.softmax_cross_entropy(np.zeros((0, 4)), np.zeros(0, int)).item() == 0


def test_large_numbers_do_not_overflow():
    x = np.array([-1e4, 0, 1e4], np.float32)
    assert F.sigmoid(x).data.tolist() == [0, 0.5, 1]
    assert F.log_softmax(x).data.tolist() == [-2e4, -1e4, 0]
    assert F.softmax_cross_entropy(x, np.array(0)).item() == 2e4


def test_statistics_of_float16_are_taken_in_float32():
    x = np.full((1, 4096), 300, np.float16)  # squares and sums leave float16
    x[0, ::2] = -300
    result = F.layer_normalization(x, np.ones(4096, np.float16), np.zeros(4096, np.float16))
    assert result.dtype == np.float16
    assert result.data[0, :2].tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout(dtype):
    x = np.full((200, 500), 2, dtype)
    y = F.dropout(Variable(x), 0.25, np.random.default_rng(0))
    assert y.dtype == dtype
    assert set(np.unique(y.data)) == {0, dtype(dtype(2) * dtype(1 / 0.75))}
    assert (y.data == 0).mean() == pytest.approx(0.25, abs=0.006)  # four standard deviations
    again, other = (F.dropout(x, 0.25, np.random.default_rng(seed)).data for seed in (0, 1))
    assert (again == y.data).all()
    assert (other != y.data).any()
    assert (F.dropout(x, 0.25).data != F.dropout(x, 0.25).data).any(), "without a generator masks are fresh"
    mask = np.array([0, 4.0], dtype)
    assert F.dropout(np.ones((3, 2), dtype), 0.75, mask=mask).data.tolist() == [[0, 4]] * 3
    assert F.dropout(x, 0).data is x


# --- what is refused ---

X = np.ones((2, 3))
IDS = np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.matmul(X, X), ShapeError, "matmul: shapes must be (…, m, k) and (…, k, n); got (2, 3)"),
        (lambda: F.matmul(X[0], X.T), ShapeError, "(…, m, k) and (…, k, n); got (3,) and (3, 2)"),
        (lambda: F.linear(X, X.T), ShapeError, "linear: x must be (…, I) and W (O, I); got (2, 3) and"),
        (lambda: F.linear(X, X[0]), ShapeError, "x must be (…, I) and W (O, I); got (2, 3) and (3,)"),
        (lambda: F.linear(np.array(1.0), X), ShapeError, "x must be (…, I) and W (O, I); got () and (2, 3)"),
        (lambda: F.linear(X, X, X[0]), ShapeError, "b must be (2,) because W is (2, 3); got (3,)"),
        (lambda: F.split(X, 2, 1), ShapeError, "split: axis 1 of (2, 3) must divide into 2 equal parts; 3"),
        (lambda: normalize(X, X[:, 0], X[0]), ShapeError, "gain must be (3,) because x is (2, 3); got (2,)"),
        (lambda: normalize(X, X[0], X), ShapeError, "shift must be (3,) because x is (2, 3); got (2, 3)"),
        (lambda: F.embedding(IDS, X[0]), ShapeError, "embedding: W must be (V, E); got (3,)"),
        (lambda: F.embedding(IDS + 1, X), InputError, "ids must lie in [0, 2); got ids from 1 to 2"),
        (lambda: F.embedding(-IDS, X), InputError, "embedding: ids must lie in [0, 2); got ids from -1 to 0"),
        (lambda: F.embedding(X[0], X), DtypeError, "embedding: ids must be integer word ids; got float64"),
        (lambda: F.embedding(X[0] > 0, X), DtypeError, "embedding: ids must be integer word ids; got bool"),
        (lambda: F.embedding(IDS.astype("f4"), X), DtypeError, "ids must be integer word ids; got float32"),
        (lambda: cross_entropy(X, IDS[:1]), ShapeError, "must be (…, V) and targets (…); got (2, 3) and"),
        (lambda: cross_entropy(X, IDS * 1.0), DtypeError, "targets must be integer word ids; got float64"),
        (lambda: cross_entropy(X, IDS.astype("f4")), DtypeError, "must be integer word ids; got float32"),
        (lambda: cross_entropy(X, IDS + 2), InputError, "targets must lie in [-1, 3); got ids from 2 to 3"),
        (lambda: cross_entropy(X, IDS - 2), InputError, "targets must lie in [-1, 3); got ids from -2 to -1"),
        (lambda: F.dropout(X, 1.0), InputError, "dropout: ratio must be in [0, 1); got 1.0"),
        (lambda: F.dropout(X, -0.1), InputError, "dropout: ratio must be in [0, 1); got -0.1"),
        (lambda: F.dropout(X, float("nan")), InputError, "dropout: ratio must be in [0, 1); got nan"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(call, error, message):
    with pytest.raises(InputError) as raised:
        call()
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
