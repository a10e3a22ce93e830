"""Groups of parameters: each its own learning rate, frozen ones untouched, one norm over all."""

import numpy as np
import pytest
from model_examples import V, example

from minilstm import MaskStream
from train.classifier import Classifier, HeadConfig
from train.optimizers import Adam, clip_factor, global_norm
from train.parameter_groups import GroupedAdam, depth_groups

RATE = 0.01


def classifier(**options):
    return Classifier(
        example(num_layers=2, scale=0.5, **options), HeadConfig(("a", "b"), hidden_size=3), seed=1
    )


def step(model, optimizer, seed=0):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, V, length) for length in (4, 2, 3)]
    optimizer.zero_grads()
    model.loss(texts, np.array([0, 1, 1]), MaskStream(0)).backward()
    return optimizer.update(RATE)


def values(model):
    return {name: parameter.data.copy() for name, parameter in model.named_parameters().items()}


def test_the_groups_go_from_the_head_down_and_hold_everything_once():
    model = classifier(layer_norm=True)
    groups = depth_groups(model)
    assert [next(iter(group)).split(".weight")[0] for group in groups] == [
        "head.0", "lstm.1", "lstm.0", "embedding",
    ]  # fmt: skip
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(model.named_parameters())
    assert not any(name.startswith("decoder") for name in names)


def test_with_one_rate_it_is_the_flat_adam():
    """The plain twin: one Adam over one flat array of all parameters, clipped by its norm."""
    model = classifier()
    optimizer = GroupedAdam(depth_groups(model), layer_decay=1.0, clip_norm=0.05, weight_decay=0.1)
    flat = np.concatenate([p.ravel() for p in values(model).values()])
    twin = Adam(flat, weight_decay=0.1)
    for seed in range(3):
        norm = step(model, optimizer, seed)
        gradients = np.concatenate([p.grad.ravel() for p in model.named_parameters().values()])
        assert norm == pytest.approx(global_norm(gradients))
        assert clip_factor(norm, 0.05) < 1
        twin.update(gradients, RATE, clip_factor(norm, 0.05))
        np.testing.assert_allclose(
            np.concatenate([p.ravel() for p in values(model).values()]), flat, rtol=1e-12, atol=1e-15
        )


def test_each_lower_group_moves_less_by_the_decay():
    model = classifier()
    before = values(model)
    step(model, GroupedAdam(depth_groups(model), layer_decay=2.6, clip_norm=0.0))
    for depth, group in enumerate(depth_groups(model)):
        moved = max(np.abs(parameter.data - before[name]).max() for name, parameter in group.items())
        assert moved == pytest.approx(RATE / 2.6**depth, rel=1e-3)  # Adam's first step is the rate itself


def test_frozen_groups_stay_and_get_no_gradient_and_thaw_one_by_one():
    model = classifier()
    groups = depth_groups(model)
    optimizer = GroupedAdam(groups, 1.0, 0.0)
    for trained in range(1, len(groups) + 1):
        optimizer.thaw(trained)
        before = values(model)
        step(model, optimizer, seed=trained)
        for depth, group in enumerate(groups):
            for name, parameter in group.items():
                assert (parameter.grad is not None) == (depth < trained), name
                assert np.array_equal(parameter.data, before[name]) == (depth >= trained), name
    counts = optimizer.state()[1]
    assert [counts[next(iter(group))] for group in groups] == [4, 3, 2, 1]


def test_nothing_moves_where_the_gradient_is_no_number():
    model = classifier()
    optimizer = GroupedAdam(depth_groups(model), 1.0, 1.0)
    model.head.parameters[-1].data[0] = np.nan
    before = values(model)
    assert not np.isfinite(step(model, optimizer))
    for name, parameter in model.named_parameters().items():
        np.testing.assert_array_equal(parameter.data, before[name])


def test_it_goes_on_from_its_state_with_equal_bits():
    runs = []
    for stop in (None, 2):
        model = classifier()
        optimizer = GroupedAdam(depth_groups(model), 2.6, 0.5)
        for seed in range(4):
            if seed == stop:
                arrays, counts = optimizer.state()
                arrays = {name: array.copy() for name, array in arrays.items()}
                optimizer = GroupedAdam(depth_groups(model), 2.6, 0.5)
                optimizer.load_state(arrays, counts)
            step(model, optimizer, seed)
        runs.append(values(model))
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name], err_msg=name)
