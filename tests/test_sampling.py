"""Which words can be drawn after temperature, top-k and top-p, and how often each is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd.errors import InputError
from train.sampling import Sampling, largest, nucleus

P = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
distributions = st.lists(st.integers(1, 1000), min_size=1, max_size=40).map(lambda w: np.array(w) / sum(w))


def weights(sampling, probs=P):
    """What words are drawn in proportion to, scaled to a sum of 1."""
    found = np.exp(sampling.log_weights(np.log(probs)))
    return found / found.sum()


def test_temperature_raises_probabilities_to_its_inverse():
    np.testing.assert_allclose(weights(Sampling(temperature=0.5)), P**2 / (P**2).sum())
    np.testing.assert_allclose(weights(Sampling()), P)


@given(distributions, st.integers(1, 50))
def test_top_k_keeps_the_k_likeliest_in_proportion(probs, k):
    found = weights(Sampling(top_k=k), probs)
    kept = found > 0
    assert kept.sum() == min(k, len(probs))
    assert kept.all() or probs[kept].min() >= probs[~kept].max()
    np.testing.assert_allclose(found[kept], probs[kept] / probs[kept].sum())


@given(distributions, st.floats(0.001, 0.999))
def test_top_p_keeps_the_fewest_likeliest_words_that_have_probability_p(probs, p):
    found = weights(Sampling(top_p=p), probs)
    kept = found > 0
    assert probs[kept].sum() >= p - 1e-12
    assert probs[kept].sum() - probs[kept].min() < p + 1e-12  # one word less is too few
    assert kept.all() or probs[kept].min() >= probs[~kept].max()
    np.testing.assert_allclose(found[kept], probs[kept] / probs[kept].sum())


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.01, 0.999))
def test_leaving_the_unlikely_words_unsorted_loses_none(seed, p):
    """The plain twin: sort everything, add up."""
    log_weights = 3 * np.random.default_rng(seed).standard_normal(500)
    order = np.argsort(-log_weights, kind="stable")
    sums = np.cumsum(np.exp(log_weights[order]))
    fewest = int((sums < p * sums[-1]).sum()) + 1
    assert nucleus(log_weights, p).tolist() == order[:fewest].tolist()


def test_the_cuts_act_one_after_the_other():
    # 0.4 and 0.25 are left by top_k; of their sum, 0.4 is 61%
    np.testing.assert_allclose(weights(Sampling(top_k=2, top_p=0.6)), [0, 1, 0, 0, 0])
    # squared, 0.4 has 58% of all; as it is, 40%
    np.testing.assert_allclose(weights(Sampling(temperature=0.5, top_p=0.5)), [0, 1, 0, 0, 0])
    assert (weights(Sampling(top_p=0.5)) > 0).sum() == 2


def test_of_equal_words_the_first_ones_are_kept():
    equal = np.full(6, 1 / 6)
    assert np.flatnonzero(weights(Sampling(top_k=3), equal)).tolist() == [0, 1, 2]
    assert np.flatnonzero(weights(Sampling(top_p=0.4), equal)).tolist() == [0, 1, 2]
    assert largest(np.array([1.0, 3, 2, 3, 2]), 3).tolist() == [1, 3, 2]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=3), Sampling(top_p=0.6)])
def test_draws_are_as_frequent_as_the_weights_say(sampling):
    rng = np.random.default_rng(1)
    drawn = [sampling.draw(np.log(P), rng) for _ in range(5000)]
    found, expected = np.bincount(drawn, minlength=5) / 5000, weights(sampling)
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(5000))


def test_barred_words_are_never_drawn_and_take_no_place():
    log_probs = np.log(P)
    log_probs[1] = -np.inf
    found = np.exp(Sampling(top_k=2).log_weights(log_probs))
    assert np.flatnonzero(found).tolist() == [3, 4]
    assert len(nucleus(log_probs, 0.74)) == 2  # of the 0.6 that is left, 0.25 and 0.2 are 75%


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-3])
def test_the_coldest_draws_take_the_likeliest_word(temperature):
    rng = np.random.default_rng(0)
    assert {Sampling(temperature).draw(np.log(P), rng) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": -1}, "temperature must be a number of at least 0; got -1"),
        ({"temperature": float("nan")}, "got nan"),
        ({"top_k": -3}, "top_k must be at least 1, or 0 for all words; got -3"),
        ({"top_p": 0}, "top_p must be a probability in (0, 1]; got 0"),
        ({"top_p": 1.5}, "got 1.5"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(InputError) as raised:
        Sampling(**knobs)
    assert message in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_without_probabilities_is_refused(value, temperature):
    with pytest.raises(InputError, match="must give some word a probability"):
        Sampling(temperature).draw(np.full(4, value), np.random.default_rng(0))
