"""Every schedule against its closed form."""

import itertools
import math

import pytest

from autograd.errors import InputError
from train.schedules import NAMES, make_schedule

OPTIONS = {"decay_steps": 50, "total_steps": 110}


def values(name, steps, **options):
    schedule = make_schedule(name, 0.5, **options)
    return [schedule(step) for step in steps]


def test_fixed():
    assert values("fixed", [0, 1, 10**9]) == [0.5] * 3


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_up_is_linear_and_ends_at_the_learning_rate(name):
    got = values(name, range(10), warmup_steps=10, **OPTIONS)
    assert got == pytest.approx([0.5 * k / 10 for k in range(1, 11)])


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_the_learning_rate_and_never_up(name):
    for warmup_steps in (0, 10):
        got = values(name, range(max(0, warmup_steps - 1), 200), warmup_steps=warmup_steps, **OPTIONS)
        assert got[0] == pytest.approx(0.5)
        assert all(later <= earlier for earlier, later in itertools.pairwise(got))


def test_step_decays_at_milestones():
    expected = [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]
    steps = [0, 99, 100, 249, 250, 10_000]
    assert values("step", steps, decay_factor=0.1, milestones=[250, 100]) == pytest.approx(expected)


def test_step_decays_every_so_many_steps():
    got = values("step", [0, 99, 100, 250], decay_factor=0.1, decay_steps=100)
    assert got == pytest.approx([0.5, 0.5, 0.05, 0.005])


def test_exponential():
    got = values("exponential", [20, 45, 70, 120], warmup_steps=20, decay_factor=0.25, decay_steps=50)
    assert got == pytest.approx([0.5, 0.25, 0.125, 0.5 / 16])
    over_the_run = values("exponential", [20, 120], warmup_steps=20, decay_factor=0.25, total_steps=120)
    assert over_the_run == pytest.approx([0.5, 0.125])


def test_cosine():
    options = {"warmup_steps": 20, "total_steps": 120, "final_learning_rate": 0.1}
    got = values("cosine", [20, 45, 70, 95, 120, 1000], **options)
    assert got == pytest.approx([0.5, 0.3 + 0.2 * math.sqrt(0.5), 0.3, 0.3 - 0.2 * math.sqrt(0.5), 0.1, 0.1])
    assert values("cosine", [20, 120], decay_steps=120, total_steps=9999, warmup_steps=20) == [0.5, 0.0]


def test_inverse_sqrt():
    got = values("inverse_sqrt", [24, 99, 399], warmup_steps=25)
    assert got == pytest.approx([0.5, 0.25, 0.125])
    assert values("inverse_sqrt", [0, 3], warmup_steps=0) == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "the nearest known schedule is 'cosine'"),
        ("fixed", {"warmup_steps": -1}, "warmup_steps"),
        ("step", {}, "milestones"),
        ("step", {"decay_factor": 0.0, "decay_steps": 3}, "decay_factor"),
        ("exponential", {}, "decay_steps"),
        ("exponential", {"warmup_steps": 9, "total_steps": 9}, "decay_steps"),
        ("cosine", {}, "must be beyond"),
        ("cosine", {"warmup_steps": 9, "total_steps": 9}, "must be beyond"),
        ("cosine", {"total_steps": 9, "final_learning_rate": -0.1}, "final_learning_rate"),
    ],
)
def test_what_cannot_be_scheduled_is_an_input_error(name, options, message):
    with pytest.raises(InputError, match=message) as refused:
        make_schedule(name, 0.5, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, math.inf, math.nan])
def test_the_learning_rate_must_be_a_number_above_0(learning_rate):
    with pytest.raises(InputError, match="learning_rate"):
        make_schedule("fixed", learning_rate)
