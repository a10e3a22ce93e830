"""One training step against its own arithmetic, written out."""

import numpy as np
import pytest

from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.optimizers import SGD
from train.step import TrainingStep

CONFIG = ModelConfig(vocab_size=11, embedding_size=4, hidden_size=5, num_layers=2)
IDS = np.random.default_rng(0).integers(0, 11, (6, 3))


def make(clip_norm):
    model = LanguageModel(CONFIG, seed=1, dtype=np.float64)
    optimizer = SGD(model.flat_parameters, learning_rate=1.0)
    return model, TrainingStep(model, optimizer, SingleProcess(), clip_norm)


def gradient():
    model = LanguageModel(CONFIG, seed=1, dtype=np.float64)
    loss, _ = model(IDS[:-1], IDS[1:], None, MaskStream(0))
    loss.backward()
    return loss.item(), model.flat_gradients.copy()


@pytest.mark.parametrize("clip_norm", [0, 0.05, 100])
def test_the_update_is_the_clipped_gradient_times_the_learning_rate(clip_norm):
    loss, grad = gradient()
    model, step = make(clip_norm)
    before = model.flat_parameters.copy()
    result = step(IDS[:-1], IDS[1:], None, MaskStream(0), learning_rate=0.5)
    norm = np.sqrt((grad**2).sum())
    factor = clip_norm / norm if 0 < clip_norm < norm else 1.0
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.grad_norm == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(model.flat_parameters, before - 0.5 * factor * grad, rtol=1e-12, atol=1e-15)


def test_gradients_of_two_steps_are_not_added_up():
    _, step = make(0)
    first = step(IDS[:-1], IDS[1:], None, MaskStream(0), learning_rate=0.0)
    second = step(IDS[:-1], IDS[1:], None, MaskStream(0), learning_rate=0.0)
    assert second.grad_norm == first.grad_norm


def test_a_gradient_that_is_no_number_changes_nothing():
    model, step = make(0.25)
    model.embedding.data[IDS[0, 0], 0] = np.nan
    before = model.flat_parameters.copy()
    with np.errstate(invalid="ignore"):
        result = step(IDS[:-1], IDS[1:], None, MaskStream(0), learning_rate=0.5)
    assert not result.is_finite
    np.testing.assert_array_equal(model.flat_parameters, before)
    assert step.optimizer.t == 0


def test_the_state_is_carried_as_plain_arrays_that_own_their_memory():
    _, step = make(0)
    state = step(IDS[:-1], IDS[1:], None, MaskStream(0), learning_rate=0.1).state
    for pair in state:
        for part in pair:
            assert type(part) is np.ndarray
            assert part.base is None
