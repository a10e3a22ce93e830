"""The softmax loss in blocks of the vocabulary equals the plain one, whatever the blocks and the numbers."""

import numpy as np
import pytest
from softmax_examples import divide_work, example, run

import autograd.functions as F
from autograd import DtypeError, InputError, Parameter, ShapeError, Variable
from minilstm import tied_softmax
from minilstm.tied_softmax import BLOCK_WORDS, KEPT_BYTES, tied_softmax_loss, tied_token_losses

TOLERANCES = {np.float32: 2e-6, np.float64: 1e-14}


def plain(h, W, b, targets):
    return F.softmax_cross_entropy(F.linear(h, W, b), targets)


def assert_near(ours, exact, tolerance):
    """Within the tolerance of the largest element: sums of many small ones are no more exact than that."""
    for name, a, b in zip(("loss", "dh", "dW", "db"), ours, exact, strict=True):
        scale = max(np.abs(b).max(initial=0), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.fixture(
    params=[(1, KEPT_BYTES), (2, 0), (3, 3 * 13 * 8 * 20)],
    ids=["one thread, all kept", "two, none kept", "three, some kept"],
)
def path(request, monkeypatch):
    """How many threads share the vocabulary, and how many exponentials stay for the backward pass."""
    divide_work(monkeypatch, *request.param)


# --- the same numbers as the plain loss ---


@pytest.mark.parametrize("block_size", [1, 7, 16, 69, 70, BLOCK_WORDS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_the_plain_loss(dtype, block_size, path):
    given = example(dtype=dtype, ignored=[2, 12])
    ours = run(tied_softmax_loss, *given, block_size=block_size)
    assert {np.asarray(value).dtype for value in ours} == {np.dtype(dtype)}
    exact = run(plain, *[value.astype(np.float64) for value in given[:3]], given[3])
    assert_near(ours, exact, TOLERANCES[dtype])


@pytest.mark.parametrize(("N", "E", "V"), [(1, 1, 2), (1, 3, 5), (40, 1, 9), (3, 20, 2), (64, 8, 1000)])
def test_equal_to_the_plain_loss_at_other_sizes(N, E, V, path):
    given = example(N, E, V)
    for block_size in (3, 64, BLOCK_WORDS):
        assert_near(run(tied_softmax_loss, *given, block_size=block_size), run(plain, *given), 1e-13)


def test_a_given_factor_scales_every_gradient():
    """A loss scale, or a loss that is a part of a sum."""
    given = example()
    assert_near(
        run(tied_softmax_loss, *given, factor=-3.0)[1:] + [0],
        run(plain, *given, factor=-3.0)[1:] + [0],
        1e-14,
    )


def test_one_word_is_always_right():
    loss, dh, dW, db = run(tied_softmax_loss, *example(V=1))
    assert abs(loss) < 1e-15
    for gradient in (dh, dW, db):
        assert np.abs(gradient).max() < 1e-14


@pytest.mark.parametrize("ignored", [[0], [0, 1, 2], range(12), range(13)], ids=len)
def test_ignored_targets_count_for_nothing(ignored, path):
    h, W, b, targets = example(ignored=ignored)
    ours = run(tied_softmax_loss, h, W, b, targets, block_size=16)
    assert_near(ours, run(plain, h, W, b, targets), 1e-14)
    assert not ours[1][list(ignored)].any()
    if len(ignored) == len(h):
        assert ours[0] == 0
        assert not any(gradient.any() for gradient in ours[1:])
    else:
        kept = targets != -1
        assert ours[0] == pytest.approx(plain(h[kept], W, b, targets[kept]).item(), rel=1e-14)


def test_no_rows_at_all(path):
    loss, dh, dW, db = run(tied_softmax_loss, *example(N=0))
    assert loss == 0
    assert (dh.shape, dW.any(), db.any()) == ((0, 5), False, False)


# --- numbers that overflow without care ---


def test_the_shift_is_used_only_where_it_must_be(monkeypatch):
    calls = []
    row_maxima = tied_softmax.SoftmaxBlocks._row_maxima
    monkeypatch.setattr(
        tied_softmax.SoftmaxBlocks, "_row_maxima", lambda blocks: calls.append(1) or row_maxima(blocks)
    )
    tied_softmax_loss(*example(dtype=np.float32))
    assert not calls
    tied_softmax_loss(*example(dtype=np.float32, scale=100))
    assert calls


@pytest.mark.parametrize("scale", [10, 30, 100, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits(dtype, scale, sign, path):
    """Of float32's logits only about |logit| · 1e-7 is exact, and so are its losses and probabilities."""
    h, W, b, targets = example(dtype=dtype, scale=scale, ignored=[3])
    W = sign * np.abs(W) + dtype(0.1) * W  # every logit of a positive row of one sign
    h = np.abs(h)
    ours = run(tied_softmax_loss, h, W, b, targets, block_size=16)
    exact = run(plain, *(value.astype(np.float64) for value in (h, W, b)), targets)
    assert all(np.isfinite(value).all() for value in ours)
    largest = np.abs(h @ W.T).max()
    tolerance = 3 * np.finfo(dtype).eps * largest
    assert_near(ours[:1] + [0] * 3, exact[:1] + [0] * 3, tolerance)
    if tolerance < 1e-2:
        assert_near(ours, exact, max(20 * tolerance, TOLERANCES[dtype]))


@pytest.mark.parametrize("bias", [60.0, -60.0, 300.0, -300.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_biases(dtype, bias, path):
    """On every second word, so that a word is all but certain or all but impossible."""
    h, W, b, targets = example(dtype=dtype)
    b[::2] += dtype(bias)
    ours = run(tied_softmax_loss, h, W, b, targets, block_size=16)
    exact = run(plain, *(value.astype(np.float64) for value in (h, W, b)), targets)
    assert_near(ours, exact, 3 * np.finfo(dtype).eps * max(abs(bias), 10))


def test_a_bias_against_the_product(path):
    """exp(l) alone is too small for float32 although exp(l + b) is not."""
    h, W, b, targets = example(N=6, V=40, dtype=np.float32)
    h[:, 0], W[:, 0] = 1, np.where(np.arange(40) % 2, -96, 0)
    b[1::2] += np.float32(85)
    ours = run(tied_softmax_loss, h, W, b, targets, block_size=16)
    exact = run(plain, *(value.astype(np.float64) for value in (h, W, b)), targets)
    assert_near(ours, exact, 3e-5)


def test_words_of_probability_zero_are_no_error():
    h, W, b, targets = example(dtype=np.float32)
    b[7] = -np.inf
    targets[targets == 7] = 0
    ours = run(tied_softmax_loss, h, W, b, targets, block_size=16)
    assert all(np.isfinite(value).all() for value in ours)
    assert not ours[2][7].any()


# --- where gradients go ---


def test_gradients_are_written_over_what_is_unwritten_and_added_to_what_is_written(path):
    h, W, b, targets = example()
    _, _, dW, db = run(tied_softmax_loss, h, W, b, targets)
    W, b = Parameter(W), Parameter(b)
    W.grad_buffer, b.grad_buffer = np.full(W.shape, np.nan), np.full(b.shape, np.nan)
    for times in (1, 2, 3):
        tied_softmax_loss(h, W, b, targets, block_size=16).backward()
        assert W.grad is W.grad_buffer
        np.testing.assert_allclose(W.grad, times * dW, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(b.grad, times * db, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("lookup_first", [False, True])
def test_the_tied_matrix_gets_both_its_gradients(lookup_first, path):
    _, W, b, targets = example(N=10)
    ids = np.arange(10) // 2  # words come twice
    parameter, decoder, table = Parameter(W), Variable(W), Variable(W)
    extra = F.embedding(ids, parameter).sum() if lookup_first else 0.0
    (
        tied_softmax_loss(F.tanh(F.embedding(ids, parameter)), parameter, b, targets, block_size=16) + extra
    ).backward()
    plain_loss = plain(F.tanh(F.embedding(ids, table)), decoder, b, targets)
    (plain_loss + (F.embedding(ids, table).sum() if lookup_first else 0.0)).backward()
    np.testing.assert_allclose(parameter.grad, decoder.grad + table.grad, rtol=1e-12, atol=1e-15)
    assert np.abs(table.grad).max() > 1e-3
    assert np.abs(decoder.grad).max() > 1e-3


def test_a_frozen_matrix_gets_no_gradient():
    h, W, b, targets = example()
    h, frozen = Variable(h), Variable(W, requires_grad=False)
    tied_softmax_loss(h, frozen, b, targets).backward()
    assert frozen.grad is None
    assert h.grad is not None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_come_out_again(dtype, path):
    given = example(N=50, E=20, V=500, dtype=dtype)
    runs = [
        [np.asarray(v).tobytes() for v in run(tied_softmax_loss, *given, block_size=64)] for _ in range(3)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_a_retained_graph_gives_its_gradients_again(path):
    h, W, b, targets = example(ignored=[1])
    variables = [Variable(value) for value in (h, W, b)]
    loss = tied_softmax_loss(*variables, targets)
    passes = []
    for _ in range(2):
        for variable in variables:
            variable.zero_grad()
        loss.backward(retain_graph=True)
        passes.append([variable.grad.tobytes() for variable in variables])
    assert passes[0] == passes[1]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": np.ones((13, 4))}, ShapeError, "h must be (N, E) and W (V, E); got (13, 4) and (70, 5)"),
        ({"h": np.ones((1, 13, 5))}, ShapeError, "tied_softmax_loss: h must be (N, E)"),
        ({"b": np.ones(5)}, ShapeError, "b must be (70,) because W is (70, 5); got (5,)"),
        ({"targets": np.zeros((13, 1), int)}, ShapeError, "targets must be (13,) because h is (13, 5); got"),
        ({"targets": np.zeros(12, int)}, ShapeError, "targets must be (13,) because h is (13, 5); got (12,)"),
        ({"targets": np.zeros(13)}, DtypeError, "targets must be integer word ids; got float64"),
        ({"targets": np.zeros(13, np.float32)}, DtypeError, "targets must be integer word ids; got float32"),
        ({"targets": np.full(13, 70)}, InputError, "targets must lie in [-1, 70); got ids from 70 to 70"),
        ({"targets": np.full(13, -2)}, InputError, "targets must lie in [-1, 70); got ids from -2 to -2"),
        ({"W": np.ones((70, 5), np.float32)}, DtypeError, "must have one dtype; got float64, float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, error, message):
    given = dict(zip(("h", "W", "b", "targets"), example(), strict=True)) | change
    with pytest.raises(InputError) as raised:
        tied_softmax_loss(**given)
    assert type(raised.value) is error
    assert message in str(raised.value)
    if error is ShapeError:
        with pytest.raises(ShapeError, match="^tied_token_losses: "):
            tied_token_losses(**given)


def test_a_token_without_a_target_has_no_loss_of_its_own():
    with pytest.raises(InputError, match=r"^tied_token_losses: targets must lie in \[0, 70\)"):
        tied_token_losses(*example(ignored=[2]))
