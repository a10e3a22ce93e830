"""The adaptive softmax is a distribution; its loss equals the plain one, at the cost of few words a row."""

import tracemalloc

import numpy as np
import pytest
from softmax_examples import divide_work

import autograd.functions as F
from autograd import DtypeError, InputError, Parameter, ShapeError, Variable, no_backprop_mode
from autograd.functions.loss import log_softmax_array
from minilstm import tied_softmax
from minilstm.adaptive_softmax import (
    adaptive_log_probs,
    adaptive_softmax_loss,
    adaptive_token_losses,
    check_bands,
)

NAMES = ("loss", "dh", "dW", "db", "dband_W", "dband_b")
BANDS = (10, 30, 31)
TOLERANCES = {np.float32: 2e-6, np.float64: 1e-14}


def example(N=40, E=5, V=70, bands=BANDS, dtype=np.float64, scale=1.0, ignored=()):
    """h, W, b, band_W, band_b, targets; with N = 40 some are in each band of more than one word."""
    rng = np.random.default_rng(0)
    shapes = ((N, E), (V, E), (V,), (len(bands), E), (len(bands),))
    h, *others = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    targets = rng.integers(0, V, N)
    targets[list(ignored)] = -1
    return [h * dtype(scale), *others, targets]


def run(loss, *given, factor=1.0, bands=BANDS):
    variables = [Variable(value) for value in given[:5]]
    result = loss(*variables, given[5], bands)
    (result * factor).backward()
    return [result.data] + [variable.grad for variable in variables]


def plain(h, W, b, band_W, band_b, targets, bands):
    """All log-probabilities of every row, from the engine's primitives, and the targets' picked from them."""
    first, V = bands[0], len(b.data)
    head = F.log_softmax(F.linear(h, F.concatenate([W[:first], band_W]), F.concatenate([b[:first], band_b])))
    parts = [head[:, :first]]
    for k, (low, high) in enumerate(zip(bands, (*bands[1:], V), strict=True)):
        tail = F.log_softmax(F.linear(h, W[low:high], b[low:high]))
        parts.append(tail + F.reshape(head[:, first + k], (-1, 1)))
    scored = np.flatnonzero(targets != -1)
    picked = F.get_item(F.concatenate(parts, axis=1), (scored, targets[scored]))
    return F.sum(picked) * (-1 / max(len(scored), 1))


def assert_near(ours, exact, tolerance):
    for name, a, b in zip(NAMES, ours, exact, strict=True):
        scale = max(np.abs(b).max(initial=0), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.fixture(params=[(1, 32 << 20), (3, 0)], ids=["one thread, kept", "three, none kept"])
def path(request, monkeypatch):
    divide_work(monkeypatch, *request.param)


# --- the distribution ---


@pytest.mark.parametrize("bands", [(1,), (69,), BANDS, tuple(range(1, 70))], ids=str)
def test_the_probabilities_of_all_words_sum_to_one(bands):
    log_probs = adaptive_log_probs(*example(bands=bands)[:5], bands)
    assert log_probs.shape == (40, 70)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-13)


def test_probabilities_by_hand():
    """A head of one word (weight 1) and a band (3); in the band two words, 1 and 4: 1/4, 3/4·1/5, 3/4·4/5."""
    W, b = np.zeros((3, 2)), np.log([1.0, 1.0, 4.0])
    log_probs = adaptive_log_probs(np.ones((1, 2)), W, b, np.zeros((1, 2)), np.log([3.0]), (1,))
    np.testing.assert_allclose(np.exp(log_probs), [[1 / 4, 3 / 20, 3 / 5]], rtol=1e-14)


def test_a_bands_vector_moves_the_probability_of_all_its_words_alike():
    h, W, b, band_W, band_b, _ = example()
    before = adaptive_log_probs(h, W, b, band_W, band_b, BANDS)
    moved = adaptive_log_probs(h, W, b, band_W + [[1.0], [0], [0]] * np.ones(5), band_b, BANDS)
    change = moved - before
    words = np.arange(10, 30)
    np.testing.assert_allclose(change[:, words], change[:, [10]] * np.ones(20), atol=1e-13)
    assert np.abs(change[:, 10] - change[:, 0]).min() > 1e-3
    assert (np.abs(moved - before).max(axis=0) > 1e-3).all()  # what one band wins, all others lose


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_is_that_of_the_log_probabilities(dtype):
    given = example(dtype=dtype)
    log_probs = adaptive_log_probs(*given[:5], BANDS)
    assert log_probs.dtype == dtype
    expected = -log_probs[np.arange(40), given[5]].mean()
    assert adaptive_softmax_loss(*given, BANDS).item() == pytest.approx(expected, rel=TOLERANCES[dtype])


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_token_losses_are_the_log_probabilities_of_the_targets(scale):
    *given, targets = example(scale=scale)
    log_probs = adaptive_log_probs(*given, BANDS)
    losses = adaptive_token_losses(*given, targets, BANDS)
    np.testing.assert_allclose(losses, -log_probs[np.arange(len(targets)), targets], rtol=1e-12, atol=1e-12)


def test_bands_whose_vectors_hold_their_words_sums_give_the_full_softmax():
    """With h = 0, a band's bias can be the log of its words' sum of exp(b): then nothing is approximate."""
    h, W, b, band_W, _, _ = example()
    sums = [np.log(np.exp(b[low:high]).sum()) for low, high in ((10, 30), (30, 31), (31, 70))]
    log_probs = adaptive_log_probs(0 * h, W, b, band_W, np.array(sums), BANDS)
    np.testing.assert_allclose(log_probs, np.broadcast_to(log_softmax_array(b), (40, 70)), rtol=1e-13)


# --- the loss and its gradients ---


@pytest.mark.parametrize("bands", [(1,), (69,), (35,), BANDS, (2, 3, 4, 5, 69)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_the_plain_loss(bands, dtype, path):
    given = example(bands=bands, dtype=dtype, ignored=[2, 12])
    ours = run(adaptive_softmax_loss, *given, bands=bands)
    assert {np.asarray(value).dtype for value in ours} == {np.dtype(dtype)}
    exact = run(plain, *[value.astype(np.float64) for value in given[:5]], given[5], bands=bands)
    assert_near(ours, exact, TOLERANCES[dtype])


@pytest.mark.parametrize("N", [0, 1, 200])
def test_equal_to_the_plain_loss_at_other_sizes(N, path):
    bands = (100, 700)
    given = example(N, 8, 1500, bands)
    assert_near(run(adaptive_softmax_loss, *given, bands=bands), run(plain, *given, bands=bands), 1e-13)


@pytest.mark.parametrize(
    "targets", [[0, 9, 9], [10, 29], [30], [69, 31, 31], [5, 30], [-1, -1], [-1, 69]], ids=str
)
def test_bands_without_a_target(targets, path):
    """Their words have no gradient at all; their vectors have one, for they stand in the head."""
    h, W, b, band_W, band_b, _ = example(N=len(targets))
    given = (h, W, b, band_W, band_b, np.array(targets))
    ours = run(adaptive_softmax_loss, *given)
    exact = run(plain, *given)
    assert_near(ours, exact, 1e-14)
    for low, high in ((10, 30), (30, 31), (31, 70)):
        if not any(low <= word < high for word in targets):
            assert not ours[2][low:high].any()
            assert not ours[3][low:high].any()
    assert ours[4].any() == (max(targets) >= 0)


@pytest.mark.parametrize("ignored", [[0], range(39), range(40)], ids=len)
def test_ignored_targets_count_for_nothing(ignored, path):
    given = example(ignored=ignored)
    ours = run(adaptive_softmax_loss, *given)
    assert not ours[1][list(ignored)].any()
    if len(ignored) == 40:
        assert ours[0] == 0
        assert not any(gradient.any() for gradient in ours[1:])
    else:
        kept = given[5] != -1
        shorter = adaptive_softmax_loss(given[0][kept], *given[1:5], given[5][kept], BANDS).item()
        assert ours[0] == pytest.approx(shorter, rel=1e-14)


def test_a_given_factor_scales_every_gradient():
    given = example()
    ours = run(adaptive_softmax_loss, *given, factor=-3.0)
    assert_near(ours, run(plain, *given, factor=-3.0), 1e-14)


@pytest.mark.parametrize("scale", [30, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits(dtype, scale, path):
    given = example(dtype=dtype, scale=scale)
    ours = run(adaptive_softmax_loss, *given)
    exact = run(plain, *(value.astype(np.float64) for value in given[:5]), given[5])
    assert all(np.isfinite(value).all() for value in ours)
    tolerance = 3 * np.finfo(dtype).eps * float(np.abs(given[0] @ given[1].T).max())
    np.testing.assert_allclose(ours[0], exact[0], rtol=tolerance)
    if tolerance < 1e-4:
        assert_near(ours, exact, max(20 * tolerance, TOLERANCES[dtype]))


def test_gradients_are_written_over_what_is_unwritten_and_added_to_what_is_written(path):
    given = example()
    once = run(adaptive_softmax_loss, *given)[1:]
    parameters = [Parameter(value) for value in given[:5]]
    for parameter in parameters:
        parameter.grad_buffer = np.full(parameter.shape, np.nan)
    for times in (1, 2, 3):
        adaptive_softmax_loss(*parameters, given[5], BANDS).backward()
        assert parameters[1].grad is parameters[1].grad_buffer
        for parameter, gradient in zip(parameters, once, strict=True):
            np.testing.assert_allclose(parameter.grad, times * gradient, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("lookup_first", [False, True])
def test_the_tied_matrix_gets_both_its_gradients(lookup_first):
    _, W, b, band_W, band_b, targets = example(N=10)
    ids = np.arange(10) // 2
    parameter, decoder, table = Parameter(W), Variable(W), Variable(W)
    constants = [Variable(value) for value in (b, band_W, band_b)]
    extra = F.embedding(ids, parameter).sum() if lookup_first else 0.0
    h = F.tanh(F.embedding(ids, parameter))
    (adaptive_softmax_loss(h, parameter, *constants, targets, BANDS) + extra).backward()
    loss = plain(F.tanh(F.embedding(ids, table)), decoder, *constants, targets, BANDS)
    (loss + (F.embedding(ids, table).sum() if lookup_first else 0.0)).backward()
    np.testing.assert_allclose(parameter.grad, decoder.grad + table.grad, rtol=1e-12, atol=1e-15)


def test_the_same_bits_come_out_again(path):
    given = example(N=100, E=20, V=900, dtype=np.float32)
    runs = [[np.asarray(v).tobytes() for v in run(adaptive_softmax_loss, *given)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


# --- what it costs ---


def test_only_rows_whose_target_is_in_a_band_meet_its_words(monkeypatch):
    """Products counted: all rows with the head's 10 + 3, and each band's own rows with its words."""
    met, exponentiate = 0, tied_softmax.SoftmaxBlocks._exponentiate

    def watch(self, words, out):
        nonlocal met
        met += len(self.h) * (words.stop - words.start)
        exponentiate(self, words, out)

    monkeypatch.setattr(tied_softmax.SoftmaxBlocks, "_exponentiate", watch)
    given = example()
    with no_backprop_mode():
        adaptive_softmax_loss(*given, BANDS)
    rows = [
        int(((low <= given[5]) & (given[5] < high)).sum()) for low, high in ((10, 30), (30, 31), (31, 70))
    ]
    assert met == 40 * 13 + rows[0] * 20 + rows[1] * 1 + rows[2] * 39
    assert sum(rows) > 10


def test_never_all_logits_at_once(monkeypatch):
    """512 rows, 16,384 words, half of the rows in the last band: a few blocks of 512 words, none kept."""
    N, V, bands = 512, 16_384, (1024, 4096)
    given = example(N, 4, V, bands, np.float32)
    given[5][: N // 2] %= 1024
    variables = [Variable(given[0]), *(Parameter(value) for value in given[1:5])]
    divide_work(monkeypatch, 1, 0)
    adaptive_softmax_loss(*variables, given[5], bands).backward()  # makes the gradient buffers
    tracemalloc.start()
    try:
        adaptive_softmax_loss(*variables, given[5], bands).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = N * tied_softmax.BLOCK_WORDS * 4
    assert block < peak < 2 * block
    assert peak < N * V * 4 / 15


def test_evaluation_saves_nothing():
    given = example()
    variables = [Variable(value) for value in given[:5]]
    with no_backprop_mode():
        loss = adaptive_softmax_loss(*variables, given[5], BANDS)
    assert loss.creator is None
    assert loss.item() == adaptive_softmax_loss(*variables, given[5], BANDS).item()


# --- what is refused ---


@pytest.mark.parametrize(
    "bands", [(), (0, 5), (5, 5), (7, 5), (70,), (5, 71), (-3, 5), (5.0,), ("5",), (True, 5)], ids=str
)
def test_bands_that_do_not_cut_the_vocabulary_are_refused(bands):
    message = "^mine must be whole numbers, the first word of each band, rising, above 0 and below the 70"
    with pytest.raises(InputError, match=message):
        check_bands(bands, 70, "mine")
    with pytest.raises(InputError, match="^adaptive_softmax_loss: bands must be whole numbers"):
        adaptive_softmax_loss(*example(), bands)
    check_bands((1, 2, 69), 70, "mine")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: np.ones((40, 4))}, ShapeError, "h must be (N, E) and W (V, E); got (40, 4) and (70, 5)"),
        ({2: np.ones(5)}, ShapeError, "b must be (70,) because W is (70, 5); got (5,)"),
        ({3: np.ones((2, 5))}, ShapeError, "band_W must be (3, 5) because W is (70, 5) and there are 3"),
        ({4: np.ones(4)}, ShapeError, "band_b must be (3,) because W is (70, 5) and there are 3"),
        ({5: np.zeros(12, int)}, ShapeError, "targets must be (40,) because h is (40, 5); got (12,)"),
        ({5: np.zeros(40)}, DtypeError, "targets must be integer word ids; got float64"),
        ({5: np.full(40, 70)}, InputError, "targets must lie in [-1, 70); got ids from 70 to 70"),
        ({1: np.ones((70, 5), np.float32)}, DtypeError, "must have one dtype; got float64, float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, error, message):
    given = example()
    for index, value in change.items():
        given[index] = value
    with pytest.raises(InputError) as raised:
        adaptive_softmax_loss(*given, BANDS)
    assert type(raised.value) is error
    assert message in str(raised.value)
    if error is ShapeError and 5 not in change:
        with pytest.raises(ShapeError, match="^adaptive_log_probs: "):
            adaptive_log_probs(*given[:5], BANDS)
    if error is ShapeError:
        with pytest.raises(ShapeError, match="^adaptive_token_losses: "):
            adaptive_token_losses(*given, BANDS)


def test_a_token_without_a_target_has_no_loss_of_its_own():
    given = example(ignored=[2])
    with pytest.raises(InputError, match=r"^adaptive_token_losses: targets must lie in \[0, 70\)"):
        adaptive_token_losses(*given, BANDS)
