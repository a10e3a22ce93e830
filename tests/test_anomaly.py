"""detect_anomaly: the Function and the parameter where the first value arose that is not finite."""

import numpy as np
import pytest

import autograd.functions as F
from autograd import AnomalyError, Function, Parameter, Variable, detect_anomaly
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.mixed_precision import Backoff
from train.optimizers import SGD
from train.step import TrainingStep, finite_state

X = np.array([1.0, -2.0, 3.0])


class Planted(Function):
    """x, with nan for the second value of the output or of the gradient."""

    def __init__(self, forward, backward):
        self.bad_forward, self.bad_backward = forward, backward

    def forward(self, x):
        return np.where([False, self.bad_forward, False], np.nan, x)

    def backward(self, dy):
        return np.where([False, self.bad_backward, False], np.inf, dy)


def test_without_it_nothing_is_looked_at():
    x = Variable(X)
    y = Planted(True, True).apply(x).sum()
    y.backward()
    assert np.isnan(y.data)
    assert np.isinf(x.grad[1])
    with detect_anomaly(False):
        Planted(True, True).apply(x)


def test_the_first_function_whose_forward_is_not_finite_is_named():
    W = Parameter(X, name="layer.W")
    with detect_anomaly(), pytest.raises(AnomalyError) as error:
        F.exp(Planted(True, False).apply(W))
    assert str(error.value) == (
        "anomaly: planted of layer.W, forward: the output holds nan at (1,) of shape (3,) (1 of 3 values), "
        "the first value that is not finite"
    )


@pytest.mark.parametrize("named", [True, False])
def test_the_first_function_whose_backward_is_not_finite_is_named(named):
    W = Parameter(X, name="layer.W" if named else None)
    with detect_anomaly():
        loss = (Planted(False, True).apply(W) * 2.0).sum()
        with pytest.raises(AnomalyError) as error:
            loss.backward()
    where = "input 0 (parameter layer.W)" if named else "input 0"
    assert f"anomaly: planted, backward: the gradient of {where} holds inf at (1,)" in str(error.value)


def test_a_gradient_that_overflows_only_in_sum_is_named():
    W, large = Parameter(np.float32([1e-3]), name="layer.W"), np.float32([3e38])
    loss = F.sum(W * large) + F.sum(W * large)
    match = r"layer.W\) holds inf .* once the parts from all uses are added"
    with np.errstate(over="ignore"), detect_anomaly(), pytest.raises(AnomalyError, match=match):
        loss.backward()


def test_every_parameter_of_the_model_that_is_not_finite_is_named():
    """The place of each is found though everything after it is not finite either."""
    config = ModelConfig(vocab_size=11, embedding_size=4, hidden_size=5, num_layers=2)
    ids = np.random.default_rng(0).integers(0, 11, (6, 3))
    model = LanguageModel(config, seed=1)
    step = TrainingStep(model, SGD(model.flat_parameters, 1.0), SingleProcess(), check_values=True)
    for _, parameter in model.named_parameters():
        value = parameter.data.reshape(-1)[1]
        parameter.data.reshape(-1)[1] = np.inf
        with pytest.raises(AnomalyError) as error:
            step(ids[:-1], ids[1:], None, MaskStream(0), learning_rate=0.5)
        assert f"(parameter {parameter.name}) of " in str(error.value)
        assert "held inf at" in str(error.value)
        parameter.data.reshape(-1)[1] = value
    assert step(ids[:-1], ids[1:], None, MaskStream(0), learning_rate=0.5).is_finite


def test_in_mixed_precision_an_overflow_is_an_anomaly_once_the_scale_is_at_its_lowest():
    """Until then it belongs to the search for the scale, which would else end every such run."""
    config = ModelConfig(vocab_size=11, embedding_size=4, hidden_size=5, num_layers=2)
    ids = np.random.default_rng(0).integers(0, 11, (6, 3))
    model, scaler = LanguageModel(config, seed=1), Backoff(2.0**24)  # at which everything overflows
    optimizer = SGD(model.flat_parameters, 1.0)
    step = TrainingStep(model, optimizer, SingleProcess(), scaler=scaler, check_values=True)
    window = ids[:-1], ids[1:], None, MaskStream(0)
    assert not step(*window, learning_rate=0.5).is_finite
    assert scaler.scale == 2.0**23
    scaler.scale = 1.0
    assert step(*window, learning_rate=0.5).is_finite
    step.masters.half.objective = lambda *given: overflowing(
        LanguageModel.objective(step.masters.half, *given)
    )
    with pytest.raises(AnomalyError, match="planted, backward"):
        step(*window, learning_rate=0.5)
    scaler.scale = 2.0
    assert not step(*window, learning_rate=0.5).is_finite
    model.embedding.data[ids[0, 0]] = np.nan
    step.take_weights()
    with pytest.raises(AnomalyError, match="forward"):
        step(*window, learning_rate=0.5)


def overflowing(objective):
    """With a gradient that is infinite whatever the scale."""
    return objective._replace(objective=PlantedInLoss().apply(objective.objective))


class PlantedInLoss(Function):
    """x, with a gradient of inf."""

    label = "planted"

    def forward(self, x):
        return x.copy()

    def backward(self, dy):
        return np.full_like(dy, np.inf)


def test_rows_that_are_not_finite_go_back_to_the_state_before():
    rng = np.random.default_rng(0)
    new, old = ([tuple(rng.standard_normal((2, 4, 3))) for _ in range(2)] for _ in range(2))
    want = [[part.copy() for part in pair] for pair in new]
    new[1][0][2, 1], new[0][1][0, 0] = np.nan, np.inf
    for pair, pair_before in zip(want, old, strict=True):
        for part, part_before in zip(pair, pair_before, strict=True):
            part[[0, 2]] = part_before[[0, 2]]
    np.testing.assert_array_equal(finite_state(new, old), want)
    new[0][0][3] = np.nan
    assert not finite_state(new, None)[1][1][3].any()
