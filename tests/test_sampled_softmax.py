"""The log-uniform sampler against its formulas and simulation; the sampled loss against its plain twin."""

import tracemalloc

import numpy as np
import pytest
from softmax_examples import divide_work, example, run

import autograd.functions as F
from autograd import DtypeError, InputError, Parameter, ShapeError, Variable, no_backprop_mode
from autograd.gradient_check import check_backward
from minilstm import sampled_softmax, tied_softmax
from minilstm.sampled_softmax import (
    LogUniformSampler,
    Sample,
    check_sorted_by_frequency,
    sampled_softmax_loss,
)
from minilstm.tied_softmax import tied_softmax_loss

TOLERANCES = {np.float32: 2e-6, np.float64: 1e-14}


def rng(seed=0):
    return np.random.default_rng(seed)


# --- the sampler ---


@pytest.mark.parametrize("V", [1, 2, 7, 1000, 267_735])
def test_probabilities_are_log_uniform(V):
    p = LogUniformSampler(V).probability(np.arange(V))
    k = np.arange(V)
    np.testing.assert_allclose(p, np.log((k + 2) / (k + 1)) / np.log(V + 1), rtol=1e-9)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert LogUniformSampler(V).probability(np.array([[0], [V - 1]], np.int32)).shape == (2, 1)


def excess(found, expected, variance):
    """The mean of the squared deviations in units of their variance: 1 if all is as expected, ± sqrt(2/n)."""
    return float(((found - expected) ** 2 / variance).mean())


def test_a_single_draw_has_the_probabilities():
    """Of 50 words, chance leaves an excess of 1 ± 0.2."""
    V, draws = 50, 8000
    sampler, generator = LogUniformSampler(V), rng()
    samples = [sampler.sample(1, generator) for _ in range(draws)]
    assert {sample.num_tries for sample in samples} == {1}
    found = np.bincount([sample.ids[0] for sample in samples], minlength=V)
    p = sampler.probability(np.arange(V))
    assert found.min() > 0
    assert 0.5 < excess(found, draws * p, draws * p * (1 - p)) < 1.5


def test_expected_counts_are_the_frequencies_of_words_among_so_many_draws():
    V, tries, rounds = 60, 45, 4000
    sampler = LogUniformSampler(V)
    p = sampler.probability(np.arange(V))
    draws = rng().choice(V, (rounds, tries), p=p / p.sum())
    found = sum(np.isin(np.arange(V), row) for row in draws)
    q = sampler.expected_count(np.arange(V), tries)
    assert 0.4 < excess(found, rounds * q, rounds * q * (1 - q)) < 1.6
    assert q.max() < 1 < tries * p.max()  # unique draws: not the mean number of them


def test_expected_counts_are_those_of_the_sampler():
    """Among 40 different words of 200; the count of tries is the sample's own, so expectations add up."""
    V, num_samples, rounds = 200, 40, 2000
    sampler, generator, ids = LogUniformSampler(V), rng(), np.arange(200)
    found, expected, variance = np.zeros((3, V))
    for _ in range(rounds):
        sample = sampler.sample(num_samples, generator)
        q = sampler.expected_count(ids, sample.num_tries)
        found[sample.ids] += 1
        expected, variance = expected + q, variance + q * (1 - q)
    assert 0.6 < excess(found, expected, variance) < 1.4
    assert expected.sum() / rounds == pytest.approx(num_samples, rel=0.01)


def one_by_one(V, num_samples, generator):
    """The sampler as one would write it down."""
    words, num_tries = set(), 0
    while len(words) < num_samples:
        words.add(min(int(np.exp(generator.random() * np.log(V + 1.0))) - 1, V - 1))
        num_tries += 1
    return sorted(words), num_tries


@pytest.mark.parametrize(
    ("V", "num_samples"), [(1, 1), (5, 5), (60, 60), (300, 1), (300, 250), (10_000, 800)]
)
@pytest.mark.parametrize("max_draws", [7, 1 << 20])
def test_equal_to_drawing_one_word_after_the_other(V, num_samples, max_draws, monkeypatch):
    monkeypatch.setattr(sampled_softmax, "MAX_DRAWS", max_draws)
    for seed in range(3):
        sample = LogUniformSampler(V).sample(num_samples, rng(seed))
        words, num_tries = one_by_one(V, num_samples, rng(seed))
        assert sample.ids.tolist() == words
        assert sample.num_tries == num_tries
        assert sample.num_tries >= num_samples


def test_the_last_words_need_no_more_than_a_few_rounds(monkeypatch):
    """Each makes as many draws as all before it together, so that asking for every word ends soon."""
    counts, draw = [], LogUniformSampler._draw
    monkeypatch.setattr(
        LogUniformSampler, "_draw", lambda self, count, g: counts.append(count) or draw(self, count, g)
    )
    sample = LogUniformSampler(3000).sample(3000, rng())
    assert sample.num_tries > 20_000
    assert counts == [6000 * 2**k for k in range(len(counts))]


def test_words_are_different_and_the_same_for_an_equal_generator():
    sampler = LogUniformSampler(267_735)
    first, again, other = (sampler.sample(8192, rng(seed)) for seed in (3, 3, 4))
    assert len(np.unique(first.ids)) == 8192
    assert 0 <= first.ids.min() < first.ids.max() < 267_735
    assert first.ids.tobytes() == again.ids.tobytes()
    assert first.num_tries == again.num_tries
    assert first.ids.tobytes() != other.ids.tobytes()


def test_a_number_rounded_up_to_one_draws_the_last_word():
    class AlmostOne:
        def random(self, count):
            return np.full(count, np.nextafter(1, 0))

    for V in (3, 10, 1000, 267_735):
        assert LogUniformSampler(V).sample(1, AlmostOne()).ids.tolist() == [V - 1]


@pytest.mark.parametrize("num_samples", [0, -1, 8])
def test_more_samples_than_words_are_refused(num_samples):
    with pytest.raises(InputError, match=rf"num_samples must be in \[1, 7\].*got {num_samples}; lower"):
        LogUniformSampler(7).sample(num_samples, rng())


def test_ids_must_go_by_falling_frequency():
    check_sorted_by_frequency(np.array([9, 9, 5, 0, 0]))
    check_sorted_by_frequency(np.array([9]))
    check_sorted_by_frequency(np.array([9, 3], np.uint64))
    with pytest.raises(InputError, match="word 1 stands 3 times, word 2 4 times; prepare the text"):
        check_sorted_by_frequency(np.array([9, 3, 4, 1, 2]))
    with pytest.raises(InputError, match="word 0 stands 3 times, word 1 9 times"):
        check_sorted_by_frequency(np.array([3, 9], np.uint64))


# --- the loss ---


def plain(h, W, b, targets, sample):
    """From the engine's primitives: all logits side by side, the target's first, hits left out by -inf."""
    scored = np.flatnonzero(targets != -1)
    ids, y = sample.ids, targets[scored]
    log_q = [-np.log(LogUniformSampler(len(b)).expected_count(k, sample.num_tries)) for k in (ids, y)]
    h = F.get_item(h, scored)
    hits = np.where(ids == y[:, None], -np.inf, 0)
    drawn = F.linear(h, F.get_item(W, ids), F.get_item(b, ids) + log_q[0]) + hits
    target = F.sum(h * F.get_item(W, y), axis=1) + F.get_item(b, y) + log_q[1]
    logits = F.concatenate([F.reshape(target, (-1, 1)), drawn], axis=1)
    return F.softmax_cross_entropy(logits, np.zeros(len(y), int))


def assert_near(ours, exact, tolerance):
    for name, a, b in zip(("loss", "dh", "dW", "db"), ours, exact, strict=True):
        scale = max(np.abs(b).max(initial=0), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def drawn(V, num_samples, seed=1):
    return LogUniformSampler(V).sample(num_samples, rng(seed))


@pytest.fixture(params=[(1, 32 << 20), (3, 0)], ids=["one thread, kept", "three, none kept"])
def path(request, monkeypatch):
    divide_work(monkeypatch, *request.param)


@pytest.mark.parametrize("num_samples", [1, 2, 30, 69, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_the_plain_loss(dtype, num_samples, path):
    given, sample = example(dtype=dtype, ignored=[2, 12]), drawn(70, num_samples)
    ours = run(sampled_softmax_loss, *given, sample=sample)
    assert {np.asarray(value).dtype for value in ours} == {np.dtype(dtype)}
    exact = run(plain, *[value.astype(np.float64) for value in given[:3]], given[3], sample=sample)
    assert_near(ours, exact, TOLERANCES[dtype])


@pytest.mark.parametrize("hit", [0, 1, 13], ids="{} targets drawn".format)
def test_accidental_hits_count_once(hit, path):
    """With none, some and all of the targets among the drawn words."""
    h, W, b, targets = example()
    ids = np.setdiff1d(np.arange(70), targets)[:20]
    ids = np.union1d(ids, targets[:hit])
    given, sample = (h, W, b, targets), Sample(ids, 60)
    assert np.isin(targets, ids).sum() >= hit
    assert_near(run(sampled_softmax_loss, *given, sample=sample), run(plain, *given, sample=sample), 1e-14)


@pytest.mark.parametrize(("N", "E", "V", "num_samples"), [(1, 3, 5, 2), (0, 3, 9, 4), (64, 8, 3000, 700)])
def test_equal_to_the_plain_loss_at_other_sizes(N, E, V, num_samples, path):
    given, sample = example(N, E, V), drawn(V, num_samples)
    assert_near(run(sampled_softmax_loss, *given, sample=sample), run(plain, *given, sample=sample), 1e-13)


def test_the_only_word_is_always_right():
    for value in run(sampled_softmax_loss, *example(V=1), sample=drawn(1, 1)):
        assert np.abs(value).max() < 1e-14


def test_a_given_factor_scales_every_gradient():
    given, sample = example(), drawn(70, 20)
    ours = run(sampled_softmax_loss, *given, factor=-3.0, sample=sample)
    assert_near(ours, run(plain, *given, factor=-3.0, sample=sample), 1e-14)


@pytest.mark.parametrize("num_tries", [70, 400, 10_000])
def test_with_every_word_drawn_it_is_the_full_softmax_with_the_bias_corrected(num_tries, path):
    """Precisely: of all V words, it is tied_softmax_loss with b - log Q for b."""
    h, W, b, targets = example(ignored=[5])
    q = LogUniformSampler(70).expected_count(np.arange(70), num_tries)
    full = run(tied_softmax_loss, h, W, b - np.log(q), targets)
    sample = Sample(np.arange(70), num_tries)
    assert_near(run(sampled_softmax_loss, h, W, b, targets, sample=sample), full, 1e-14)


def test_with_every_word_drawn_often_it_is_the_full_softmax():
    """Q goes to 1 with the number of tries, and the corrections to nothing."""
    given = example()
    sample = Sample(np.arange(70), 10**9)
    assert_near(run(sampled_softmax_loss, *given, sample=sample), run(tied_softmax_loss, *given), 1e-14)


def test_the_corrections_make_the_sum_over_the_sample_that_over_all_words():
    """On average, the drawn words' sum of exp(logit) / Q is the full softmax's."""
    h, W, _, _ = example(N=5, V=400, scale=0.3)
    sampler, generator = LogUniformSampler(400), rng()
    e = np.exp(h @ W.T - np.log(np.arange(1, 401)))  # frequent words are likely, as in any text
    sums, uncorrected = np.zeros((2, 5))
    for _ in range(2000):
        ids, num_tries = sampler.sample(60, generator)
        sums += (e[:, ids] / sampler.expected_count(ids, num_tries)).sum(axis=1) / 2000
        uncorrected += e[:, ids].sum(axis=1) * (400 / 60) / 2000
    np.testing.assert_allclose(sums, e.sum(axis=1), rtol=0.02)
    assert (uncorrected / e.sum(axis=1)).min() > 2


@pytest.mark.parametrize("scale", [30, 1e3, 1e5])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits(dtype, scale, sign, path):
    """The target may stand far above or below all that was drawn; nothing overflows."""
    h, W, b, targets = example(dtype=dtype, scale=scale)
    W = sign * np.abs(W) + dtype(0.1) * W
    given, sample = (np.abs(h), W, b, targets), drawn(70, 25)
    assert 0 < np.isin(targets, sample.ids).sum() < 13
    ours = run(sampled_softmax_loss, *given, sample=sample)
    exact = run(plain, *(value.astype(np.float64) for value in given[:3]), targets, sample=sample)
    assert all(np.isfinite(value).all() for value in ours)
    largest = float(np.abs(given[0] @ W.T).max())
    tolerance = 3 * np.finfo(dtype).eps * largest
    np.testing.assert_allclose(ours[0], exact[0], rtol=tolerance, atol=tolerance)
    if tolerance < 1e-3:
        assert_near(ours, exact, max(20 * tolerance, TOLERANCES[dtype]))


@pytest.mark.parametrize("ignored", [[0], range(12), range(13)], ids=len)
def test_ignored_targets_count_for_nothing(ignored):
    h, W, b, targets = example(ignored=ignored)
    sample = drawn(70, 20)
    ours = run(sampled_softmax_loss, h, W, b, targets, sample=sample)
    assert not ours[1][list(ignored)].any()
    if len(ignored) == 13:
        assert ours[0] == 0
        assert not any(gradient.any() for gradient in ours[1:])
    else:
        kept = targets != -1
        shorter = sampled_softmax_loss(h[kept], W, b, targets[kept], sample).item()
        assert ours[0] == pytest.approx(shorter, rel=1e-14)


def test_the_gradient_is_right():
    """Where no target was drawn, and where all were; the list of all Functions has the rest."""
    h, W, b, targets = example()
    for ids in (np.setdiff1d(np.arange(70), targets), np.unique(targets)):
        sample = Sample(ids, 90)
        check_backward(lambda *x, s=sample: sampled_softmax_loss(*x, targets, s), [h, W, b])


# --- where gradients go, and what it costs ---


def test_only_rows_that_were_touched_have_a_gradient():
    h, W, b, targets = example(N=4, V=500)
    sample = drawn(500, 9)
    _, _, dW, db = run(sampled_softmax_loss, h, W, b, targets, sample=sample)
    touched = np.union1d(sample.ids, targets)
    assert np.flatnonzero(dW.any(axis=1)).tolist() == touched.tolist()
    assert np.flatnonzero(db).tolist() == touched.tolist()


def test_gradients_are_written_over_what_is_unwritten_and_added_to_what_is_written(path):
    h, W, b, targets = example()
    sample = drawn(70, 20)
    _, _, dW, db = run(sampled_softmax_loss, h, W, b, targets, sample=sample)
    W, b = Parameter(W), Parameter(b)
    W.grad_buffer, b.grad_buffer = np.full(W.shape, np.nan), np.full(b.shape, np.nan)
    for times in (1, 2, 3):
        sampled_softmax_loss(h, W, b, targets, sample).backward()
        assert W.grad is W.grad_buffer
        np.testing.assert_allclose(W.grad, times * dW, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(b.grad, times * db, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("lookup_first", [False, True])
def test_the_tied_matrix_gets_both_its_gradients(lookup_first):
    _, W, b, targets = example(N=10)
    ids, sample = np.arange(10) // 2, drawn(70, 20)
    parameter, decoder, table = Parameter(W), Variable(W), Variable(W)
    extra = F.embedding(ids, parameter).sum() if lookup_first else 0.0
    loss = sampled_softmax_loss(F.tanh(F.embedding(ids, parameter)), parameter, b, targets, sample)
    (loss + extra).backward()
    loss = plain(F.tanh(F.embedding(ids, table)), decoder, Variable(b), targets, sample)
    (loss + (F.embedding(ids, table).sum() if lookup_first else 0.0)).backward()
    np.testing.assert_allclose(parameter.grad, decoder.grad + table.grad, rtol=1e-12, atol=1e-15)


def test_a_frozen_matrix_gets_no_gradient():
    h, W, b, targets = example()
    h, frozen = Variable(h), Variable(W, requires_grad=False)
    sampled_softmax_loss(h, frozen, b, targets, drawn(70, 20)).backward()
    assert frozen.grad is None
    assert h.grad is not None


def test_the_same_bits_come_out_again(path):
    given, sample = example(N=50, E=20, V=900, dtype=np.float32), drawn(900, 600)
    runs = [run(sampled_softmax_loss, *given, sample=sample) for _ in range(3)]
    runs = [[np.asarray(value).tobytes() for value in values] for values in runs]
    assert runs[0] == runs[1] == runs[2]


def test_evaluation_saves_nothing():
    given, sample = example(), drawn(70, 20)
    variables = [Variable(value) for value in given[:3]]
    with no_backprop_mode():
        loss = sampled_softmax_loss(*variables, given[3], sample)
    assert loss.creator is None
    assert loss.item() == sampled_softmax_loss(*variables, given[3], sample).item()


def test_no_logits_of_words_that_were_not_drawn_and_few_blocks_of_the_others(monkeypatch):
    """512 rows, 4,096 of 16,384 words drawn, in blocks of 512, none of them kept for the backward pass."""
    N, E, V, num_samples = 512, 4, 16_384, 4096
    h, W, b, targets = example(N, E, V, np.float32)
    parameters, sample = [Variable(h), Parameter(W), Parameter(b)], drawn(V, num_samples)
    divide_work(monkeypatch, 1, 0)
    sampled_softmax_loss(*parameters, targets, sample).backward()  # makes the gradient buffers
    tracemalloc.start()
    try:
        sampled_softmax_loss(*parameters, targets, sample).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = N * tied_softmax.BLOCK_WORDS * 4
    assert block < peak < 2.5 * block
    assert peak < N * num_samples * 4 / 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": np.ones((13, 4))}, ShapeError, "h must be (N, E) and W (V, E); got (13, 4) and (70, 5)"),
        ({"b": np.ones(5)}, ShapeError, "b must be (70,) because W is (70, 5); got (5,)"),
        ({"targets": np.zeros(12, int)}, ShapeError, "targets must be (13,) because h is (13, 5); got (12,)"),
        ({"targets": np.zeros(13)}, DtypeError, "targets must be integer word ids; got float64"),
        ({"targets": np.full(13, 70)}, InputError, "targets must lie in [-1, 70); got ids from 70 to 70"),
        ({"W": np.ones((70, 5), np.float32)}, DtypeError, "must have one dtype; got float64, float32"),
        ({"sample": Sample(np.array([3, 70]), 5)}, InputError, "sampled ids must lie in [0, 70); got ids"),
        ({"sample": Sample(np.array([3, 3]), 5)}, InputError, "different words, at least one and at most"),
        ({"sample": Sample(np.array([], int), 5)}, InputError, "got 0 ids, 0 different, in 5 tries"),
        ({"sample": Sample(np.array([1, 2]), 1)}, InputError, "got 2 ids, 2 different, in 1 tries"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, error, message):
    given = dict(zip(("h", "W", "b", "targets"), example(), strict=True)) | {"sample": drawn(70, 4)} | change
    with pytest.raises(InputError) as raised:
        sampled_softmax_loss(**given)
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert str(raised.value).startswith("sampled_softmax_loss: ")
