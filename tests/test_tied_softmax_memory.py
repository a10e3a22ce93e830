"""The softmax loss holds a few blocks of logits, and no more for the backward pass than it may."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from softmax_examples import divide_work, example, run

from autograd import Function, Parameter, Variable, no_backprop_mode
from minilstm import tied_softmax
from minilstm.tied_softmax import BLOCK_WORDS, WORKING_BYTES, tied_softmax_loss, words_at_a_time


@pytest.mark.parametrize("ignored", [(), (0, 5)], ids=["all scored", "some ignored"])
@pytest.mark.parametrize("kept_blocks", [0, 6])
def test_only_a_few_blocks_of_logits_live_at_any_time(kept_blocks, ignored, monkeypatch):
    N, E, V, block_size = 512, 4, 16_384, 256
    h, W, b, targets = example(N, E, V, np.float32, ignored=ignored)
    parameters = [Variable(h), Parameter(W), Parameter(b)]
    logits, block = N * V * 4, N * block_size * 4
    divide_work(monkeypatch, 2, kept_blocks * block)
    tied_softmax_loss(*parameters, targets, block_size=block_size).backward()  # makes the gradient buffers
    tracemalloc.start()
    try:
        tied_softmax_loss(*parameters, targets, block_size=block_size).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept_blocks * block < peak < (kept_blocks + 4) * block
    assert peak < logits / 6


@pytest.fixture
def exponentiated(monkeypatch):
    """The blocks of which logits were multiplied out, one entry each time."""
    blocks, exponentiate = [], tied_softmax.SoftmaxBlocks._exponentiate

    def watch(self, words, out):
        blocks.append(words)
        exponentiate(self, words, out)

    monkeypatch.setattr(tied_softmax.SoftmaxBlocks, "_exponentiate", watch)
    return blocks


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("words_per_thread", "kept_per_thread"), [(0, 0), (15, 0), (30, 1), (48, 3)])
def test_a_kept_block_is_not_multiplied_out_again(
    words_per_thread, kept_per_thread, threads, exponentiated, monkeypatch
):
    """Ten blocks of 16 words, in both passes; each thread may keep its share."""
    divide_work(monkeypatch, threads, threads * words_per_thread * 13 * 8)
    run(tied_softmax_loss, *example(N=13, V=160), block_size=16)
    assert len(exponentiated) == 2 * 10 - threads * kept_per_thread


def trained(N, E, V, runs=2, before=lambda W, loss: None, **options):
    """Gradients of h, W and b after some losses that go backward, W and b being parameters as in training."""
    h, W, b, targets = example(N, E, V)
    h, W, b = Variable(h), Parameter(W), Parameter(b)
    for _ in range(runs):
        for variable in (h, W, b):
            variable.zero_grad()
        loss = tied_softmax_loss(h, W, b, targets, block_size=16)
        before(W, loss)
        loss.backward(**options)
    return [h.grad, W.grad.copy(), b.grad.copy()]


@pytest.fixture
def nothing_lent(monkeypatch):
    """What `trained` gives if no memory is lent."""

    def run(*sizes, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Function, "borrow_grad_memory", lambda self, index: None)
            return trained(*sizes, **options)

    return run


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("N", "E", "kept", "lent"),
    [(13, 5, 0, 61), (13, 5, 20, 61), (13, 5, 150, 16), (13, 5, 160, 0), (13, 13, 0, 160), (12, 13, 0, 0)],
)
def test_exponentials_in_the_memory_of_the_gradient_give_the_same_bits(
    N, E, kept, lent, threads, exponentiated, nothing_lent, monkeypatch
):
    """Of 160 words in blocks of 16, as many as fit are lent room, in whole blocks for each thread."""
    divide_work(monkeypatch, threads, kept * N * 8)
    plain = nothing_lent(N, E, 160)
    without = len(exponentiated)
    exponentiated.clear()
    for ours, theirs in zip(trained(N, E, 160), plain, strict=True):
        assert np.array_equal(ours, theirs)
    saved = without - len(exponentiated)  # the first of two runs has no memory to lend
    if threads == 1:
        assert saved == lent // 16
    assert saved > 0 or lent < 16 * threads


@pytest.mark.parametrize(
    "before",
    [
        lambda W, loss: (W * 2.0).sum().backward(),
        lambda W, loss: W.grad_target()[0].fill(0.5),
        lambda W, loss: loss.backward(retain_graph=True),
    ],
    ids=["another backward pass", "another writer", "twice"],
)
def test_what_others_wrote_over_is_computed_anew(before, nothing_lent, monkeypatch):
    divide_work(monkeypatch, 2, 0)
    plain = nothing_lent(13, 5, 160, before=before)
    for ours, theirs in zip(trained(13, 5, 160, before=before), plain, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("order", [1, -1])
def test_two_losses_of_one_matrix_do_not_share_its_memory(order, monkeypatch):
    divide_work(monkeypatch, 2, 0)

    def gradients():
        h, W, b, targets = example(13, 5, 160)
        h, W, b = Variable(h), Parameter(W), Parameter(b)
        W.grad_target()  # makes the memory
        W.zero_grad()
        losses = [tied_softmax_loss(h * scale, W, b, targets, block_size=16) for scale in (1.0, 0.5)]
        for loss in losses[::order]:
            loss.backward()
        return [h.grad, W.grad, b.grad]

    lent = gradients()
    monkeypatch.setattr(Function, "borrow_grad_memory", lambda self, index: None)
    for ours, theirs in zip(lent, gradients(), strict=True):
        assert np.array_equal(ours, theirs)


def test_what_needs_a_shift_is_computed_again_and_lent_again(exponentiated, nothing_lent, monkeypatch):
    divide_work(monkeypatch, 2, 0)
    monkeypatch.setattr(tied_softmax, "SAFE_SUMS", (1.0, 1.0))  # as if all logits were beyond exp
    plain = nothing_lent(13, 5, 160)
    without = len(exponentiated)
    exponentiated.clear()
    for ours, theirs in zip(trained(13, 5, 160), plain, strict=True):
        assert np.array_equal(ours, theirs)
    assert len(exponentiated) < without


def test_nothing_is_kept_for_a_pass_that_will_not_come(monkeypatch):
    kept, sums_of_exp = [], tied_softmax.SoftmaxBlocks.sums_of_exp

    def watch(self, **options):
        sums = sums_of_exp(self, **options)
        kept.append(len(self._kept))
        return sums

    monkeypatch.setattr(tied_softmax.SoftmaxBlocks, "sums_of_exp", watch)
    for mode in (contextlib.nullcontext, no_backprop_mode):
        with mode():
            tied_softmax_loss(*example())
    assert kept == [1, 0]


def test_evaluation_saves_nothing():
    h, W, b, targets = example()
    variables = [Variable(value) for value in (h, W, b)]
    with no_backprop_mode():
        loss = tied_softmax_loss(*variables, targets)
    assert loss.creator is None
    assert loss.item() == tied_softmax_loss(*variables, targets).item()


@pytest.mark.parametrize("rows", [1, 700, 21_504, 10**6])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_all_threads_together_hold_one_block(rows, threads):
    """16 MB are worked on, unless those are not 64 words a thread."""
    words = words_at_a_time(rows, threads, 4)
    assert words % 64 == 0
    assert 64 <= words <= BLOCK_WORDS
    assert words * threads * rows * 4 <= WORKING_BYTES or words == 64
    if words < BLOCK_WORDS:
        assert (words + 64) * threads * rows * 4 > WORKING_BYTES, "more would fit"


def test_many_rows_take_fewer_words_at_a_time(exponentiated, monkeypatch):
    monkeypatch.setattr(tied_softmax, "WORKING_BYTES", 128 * 13 * 8)
    divide_work(monkeypatch, 1, 0)
    run(tied_softmax_loss, *example(N=13, V=300))
    assert exponentiated == 2 * [slice(0, 128), slice(128, 256), slice(256, 300)]
