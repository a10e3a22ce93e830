"""The tied and the sampled loss by kernels equal those of the CPU."""

import tracemalloc

import numpy as np
import pytest
from kernel_examples import assert_near, twin
from softmax_examples import example, run

import autograd.functions as F
from autograd import InputError, Parameter, ShapeError, Variable, no_backprop_mode
from autograd.gradient_check import check_backward
from autograd.kernels import host_kernels
from minilstm import LanguageModel, MaskStream, ModelConfig, tied_softmax_cuda
from minilstm.sampled_softmax import LogUniformSampler, Sample, sampled_softmax_loss
from minilstm.sampled_softmax_cuda import KernelSampledSoftmaxLoss
from minilstm.tied_softmax import tied_softmax_loss, tied_token_losses
from minilstm.tied_softmax_cuda import KernelTiedSoftmaxLoss, workspace_bytes

TOLERANCES = {np.float16: 2e-3, np.float32: 2e-6, np.float64: 1e-14}
NAMES = ("loss", "dh", "dW", "db")


def tied(h, W, b, targets, chunk_bytes=1 << 30):
    return KernelTiedSoftmaxLoss(chunk_bytes).apply(h, W, b, targets)


def sampled(h, W, b, targets, sample):
    return KernelSampledSoftmaxLoss(sample).apply(h, W, b, targets)


def drawn(V, num_samples):
    return LogUniformSampler(V).sample(num_samples, np.random.default_rng(1))


def exactly(loss, h, W, b, targets, **options):
    """The CPU's loss and gradients of the same numbers in float64."""
    return twin(run, loss, *(value.astype(np.float64) for value in (h, W, b)), targets, **options)


def on_device(device, loss, h, W, b, targets, **options):
    result = run(loss, *(device.array(value) for value in (h, W, b)), device.array(targets), **options)
    return [device.numpy(value) for value in result]


def assert_all_near(ours, exact, tolerance):
    for name, a, b in zip(NAMES, ours, exact, strict=True):
        assert_near(a, b, tolerance, name)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(tied_softmax_cuda, "CHUNK_ROWS", 4)


# --- on the device ---


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_the_tied_loss_by_kernels(device, dtype, chunk_bytes, small_chunks):
    given = example(dtype=dtype, ignored=[2, 12])
    ours = on_device(device, tied, *given, chunk_bytes=chunk_bytes)
    assert [value.dtype for value in ours] == [np.float32, dtype, dtype, dtype]
    assert_all_near(ours, exactly(tied_softmax_loss, *given), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_sampled_loss_by_kernels(device, dtype):
    given, sample = example(dtype=dtype, ignored=[2, 12]), drawn(70, 30)
    assert 0 < np.isin(given[3], sample.ids).sum() < 11
    ours = on_device(device, sampled, *given, sample=sample)
    assert [value.dtype for value in ours] == [np.float32, dtype, dtype, dtype]
    assert_all_near(ours, exactly(sampled_softmax_loss, *given, sample=sample), TOLERANCES[dtype])


def test_a_sample_may_be_on_the_device(device):
    given, (ids, num_tries) = example(dtype=np.float32), drawn(70, 30)
    there = Sample(device.array(ids.astype(np.int32)), device.array(np.array([num_tries])))
    ours = on_device(device, sampled, *given, sample=there)
    assert_all_near(ours, exactly(sampled_softmax_loss, *given, sample=Sample(ids, num_tries)), 2e-6)


def test_the_same_bits_come_out_again(device):
    given, sample = example(dtype=np.float16), drawn(70, 30)
    for loss, options in ((tied, {}), (sampled, {"sample": sample})):
        first, again = (on_device(device, loss, *given, **options) for _ in range(2))
        assert [value.tobytes() for value in first] == [value.tobytes() for value in again]


@pytest.mark.parametrize("softmax", ["full", "sampled"])
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradients"), [("float32", 1e-6, 2e-6), ("float16", 2e-3, 1e-2)]
)
def test_a_model_learns_the_same_by_kernels(host_runner, softmax, dtype, of_loss, of_gradients):
    """The wrappers choose the kernels: a whole model, against float32 without them."""
    sizes = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 8, "num_layers": 2, "num_samples": 9}
    config = ModelConfig(**sizes, softmax=softmax, encoder_emb_keep_prob=0.7)
    inputs, targets = np.random.default_rng(0).integers(0, 30, (2, 3, 2))
    results = []
    for runner, scale, of_model in ((None, 1.0, "float32"), (host_runner, 256.0, dtype)):
        model = LanguageModel(config, seed=1, dtype=of_model)
        with host_kernels(runner):
            loss, _ = model(inputs, targets, masks=MaskStream(3))
            (loss * scale).backward()
        results.append((loss.item(), model.flat_gradients.astype(np.float64) / scale))
    assert {"softmax_rows", "add_rows"} <= set(host_runner.launches)
    assert results[1][0] == pytest.approx(results[0][0], rel=of_loss)
    assert_near(results[1][1], results[0][1], of_gradients)


# --- anywhere: the same Functions on the twins ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "E", "V"), [(13, 5, 70), (1, 3, 2), (0, 3, 5), (40, 16, 700)])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_equal_to_the_cpus_at_other_sizes(dtype, N, E, V, chunk_bytes, small_chunks):
    given, sample = example(N, E, V, dtype), drawn(V, V // 2)
    ours = run(tied, *given, factor=-3.0, chunk_bytes=chunk_bytes)
    assert_all_near(ours, exactly(tied_softmax_loss, *given, factor=-3.0), 10 * TOLERANCES[dtype])
    ours = run(sampled, *given, factor=-3.0, sample=sample)
    exact = exactly(sampled_softmax_loss, *given, factor=-3.0, sample=sample)
    assert_all_near(ours, exact, 10 * TOLERANCES[dtype])


@np.errstate(over="ignore")
def test_gradients_of_rare_words_survive_float16(monkeypatch):
    """Without a scale of their own most of them are 0; with it they are as near as the others."""
    h, W, b, targets = example(N=20, E=8, V=4000, dtype=np.float16, scale=0.1)
    b[100:] -= np.float16(12)
    targets %= 100
    exact = exactly(tied_softmax_loss, h, W, b, targets, factor=1 << 20)[2][100:]
    errors = {}
    for scale in (1.0, tied_softmax_cuda.GRADIENT_SCALE):
        monkeypatch.setattr(tied_softmax_cuda, "GRADIENT_SCALE", scale)
        ours = run(tied, h, W, b, targets, factor=1 << 20)[2][100:].astype(np.float64)
        errors[scale] = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert errors[1.0] > 0.1
    assert errors[tied_softmax_cuda.GRADIENT_SCALE] < 0.01


def test_a_sure_prediction_costs_nothing_and_not_less():
    """In float16 the logit of 20.27 is stored as 20.27 ± 0.008: the target's own is not the stored one."""
    h, W = np.array([[2.25]], np.float16), np.array([[9.01], [0.0]], np.float16)
    loss, dh, dW, db = run(tied, h, W, np.zeros(2, np.float16), np.array([0]))
    assert 0 <= loss < 1e-6
    assert max(np.abs(value).max() for value in (dh, dW, db)) < 1e-6


@pytest.mark.parametrize("loss", ["tied", "sampled"])
def test_the_gradient_is_right(loss):
    h, W, b, targets = example(ignored=[4])
    if loss == "tied":
        check_backward(lambda *x: tied(*x, targets), [h, W, b])
    for ids in (np.setdiff1d(np.arange(70), targets), np.unique(targets[targets >= 0])):
        sample = Sample(ids, 90)
        check_backward(lambda *x, sample=sample: sampled(*x, targets, sample), [h, W, b])


@pytest.mark.parametrize("ignored", [[0], range(13)], ids=len)
def test_ignored_targets_count_for_nothing(ignored):
    given, sample = example(ignored=ignored), drawn(70, 9)
    for ours, exact in (
        (run(tied, *given), exactly(tied_softmax_loss, *given)),
        (run(sampled, *given, sample=sample), exactly(sampled_softmax_loss, *given, sample=sample)),
    ):
        assert not ours[1][list(ignored)].any()
        assert_all_near(ours, exact, 1e-14)


@pytest.mark.parametrize(("loss", "options"), [(tied, {}), (sampled, {"sample": drawn(70, 20)})])
def test_gradients_are_written_over_what_is_unwritten_and_added_to_what_is_written(loss, options):
    h, W, b, targets = example()
    _, _, dW, db = run(loss, h, W, b, targets, **options)
    W, b = Parameter(W), Parameter(b)
    W.grad_buffer, b.grad_buffer = np.full(W.shape, np.nan), np.full(b.shape, np.nan)
    for times in (1, 2):
        loss(h, W, b, targets, **options).backward()
        assert W.grad is W.grad_buffer
        np.testing.assert_allclose(W.grad, times * dW, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(b.grad, times * db, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(("loss", "options"), [(tied, {}), (sampled, {"sample": drawn(70, 20)})])
def test_evaluation_makes_no_gradients_and_a_frozen_matrix_gets_none(loss, options, monkeypatch):
    h, W, b, targets = example()
    h, W, b = Variable(h), Variable(W, requires_grad=False), Variable(b)
    trained = loss(h, W, b, targets, **options)
    trained.backward(retain_graph=True)
    first = h.grad.copy()
    trained.backward()
    assert_near(h.grad, 2 * first, 1e-15)
    assert W.grad is None
    scales = []
    rows = tied_softmax_cuda.softmax_rows
    monkeypatch.setattr(
        tied_softmax_cuda, "softmax_rows", lambda *args: scales.append(args[6]) or rows(*args)
    )
    with no_backprop_mode():
        assert loss(h, W, b, targets, **options).item() == trained.item()
    assert scales == [False]


def test_token_losses(host_runner):
    h, W, b, targets = example(dtype=np.float16)
    exact = tied_token_losses(*(value.astype(np.float64) for value in (h, W, b)), targets)
    with host_kernels(host_runner):
        ours = tied_token_losses(h, W, b, targets)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, atol=0.01)


def test_only_one_chunk_of_logits_is_held(small_chunks):
    """64 rows of 8,192 words in chunks of 8."""
    N, E, V = 64, 4, 8192
    h, W, b, targets = example(N, E, V, np.float32)
    given = [Variable(h), Parameter(W), Parameter(b)]
    chunk_bytes = 8 * V * 4
    tied(*given, targets, chunk_bytes).backward()
    tracemalloc.start()
    try:
        tied(*given, targets, chunk_bytes).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    twins = 4 * chunk_bytes  # what NumPy makes of a chunk and a kernel does not
    assert peak < chunk_bytes + twins + 3 * V * 8 * 4
    assert peak < 0.8 * N * V * 4


def test_the_memory_at_the_size_of_wikitext_103():
    """21,504 rows: three chunks of 7,168; a copy of W and its gradient; h and its."""
    chunk, packed = 7168 * 267_776 * 2, (267_776 + 21_504) * 408
    assert workspace_bytes(21_504, 267_735, 400, np.float16) == chunk + packed * (2 + 4)
    assert workspace_bytes(0, 100, 400, np.float32) == 128 * 404 * 8


def test_what_does_not_fit_is_named():
    h, W, b, targets = example()
    with pytest.raises(ShapeError, match="^tied_softmax_loss: h must be"):
        tied(np.ones((13, 4)), W, b, targets)
    with pytest.raises(InputError, match="^tied_softmax_loss: targets must lie in"):
        tied(h, W, b, np.full(13, 70))
    with pytest.raises(InputError, match="^sampled_softmax_loss: sampled ids must be different"):
        sampled(h, W, b, targets, Sample(np.array([3, 3]), 5))


def test_the_tied_matrix_gets_both_its_gradients(host_runner):
    _, W, b, targets = example(N=10)
    ids = np.arange(10) // 2
    with host_kernels(host_runner):
        parameter = Parameter(W)
        tied_softmax_loss(F.tanh(F.embedding(ids, parameter)), parameter, b, targets).backward()
    decoder, table = Variable(W), Variable(W)
    tied_softmax_loss(F.tanh(F.embedding(ids, table)), decoder, b, targets).backward()
    np.testing.assert_allclose(parameter.grad, decoder.grad + table.grad, rtol=1e-12, atol=1e-15)
