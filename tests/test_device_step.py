"""A whole training step through the path of a GPU, on the host, against the plain step."""

import numpy as np
import pytest
from fake_gpu import fake_gpu

from autograd import AnomalyError
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.device_step import DeviceStep
from train.mixed_precision import Backoff, LogMax
from train.optimizers import SGD, Adam
from train.step import TrainingStep

SIZES = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 8, "num_layers": 2}
DROPOUTS = {
    "encoder_emb_keep_prob": 0.7,
    "input_weight_keep_prob": 0.8,
    "recurrent_weight_keep_prob": 0.6,
    "recurrent_keep_prob": 0.8,
    "encoder_dp_output_keep_prob": 0.8,
    "encoder_last_output_keep_prob": 0.6,
}
MODELS = {
    "plain": {},
    "layer norm": {"layer_norm": True, **DROPOUTS, "activation_dropout": "per_step"},
    "sampled": {"softmax": "sampled", "num_samples": 9, **DROPOUTS, "encoder_emb_dropout": "elements"},
}
TEXT = np.random.default_rng(4).integers(0, 30, (16, 4))


@pytest.fixture
def gpu(host_runner):
    with fake_gpu(host_runner) as device:
        yield device


def make(knobs, optimizer, device=None, dtype=np.float64, **options):
    model = LanguageModel(ModelConfig(**SIZES, **knobs), seed=1, dtype=dtype)
    model.flat_parameters *= 3
    if device is None:
        return model, TrainingStep(model, optimizer(model.flat_parameters), SingleProcess(), 0.5, **options)
    model.move_to(device.xp)
    made = DeviceStep(model, optimizer(model.flat_parameters), SingleProcess(), device, 0.5, **options)
    return model, made


def run(model, step, windows=3):
    """Losses, norms, weights and state of some steps; each is looked at after the next one was launched."""
    late, results, state = [], [], None
    for window in range(windows):
        inputs, targets = TEXT[5 * window : 5 * window + 5], TEXT[5 * window + 1 : 5 * window + 6]
        late.append(step.begin(inputs, targets, state, MaskStream(9, window, 4), 0.05))
        state = late[-1].state
        if window:
            results.append(late[-2].finish()[:2])
    return [*results, late[-1].finish()[:2]], model.flat_parameters, state


def assert_equal_runs(gpu, got, expected, rtol):
    """`got` on the GPU."""
    (numbers, weights, state), (device_numbers, device_weights, device_state) = expected, got
    np.testing.assert_allclose(device_numbers, numbers, rtol=rtol)
    np.testing.assert_allclose(gpu.to_host(device_weights), weights, rtol=rtol, atol=rtol)
    for pair, device_pair in zip(state, device_state, strict=True):
        for part, device_part in zip(pair, device_pair, strict=True):
            np.testing.assert_allclose(gpu.to_host(device_part), part, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("knobs", MODELS)
def test_the_step_on_a_gpu_is_the_plain_one(gpu, knobs):
    optimizer, more = (SGD, {"l2_tied": 0.1, "accumulate": 2}) if knobs == "layer norm" else (Adam, {})
    expected = run(*make(MODELS[knobs], optimizer, **more))
    got = run(*make(MODELS[knobs], optimizer, gpu, graphs=False, **more))
    assert_equal_runs(gpu, got, expected, rtol=1e-9)


@pytest.mark.parametrize("more", [{}, {"l2_tied": 0.1}, {"accumulate": 2}])
def test_in_mixed_precision_to_its_rounding(gpu, more):
    """With L2 or groups of rows the gradients go to the masters first; else the kernel reads float16."""
    more = {"dtype": np.float32, **more}
    expected = run(*make({}, SGD, scaler=Backoff(2.0**10), **more))
    model, step = make({}, SGD, gpu, graphs=False, scaler=Backoff(2.0**10), **more)
    got = run(model, step)
    assert got[2][0][0].dtype == np.float16
    assert_equal_runs(gpu, got, expected, rtol=3e-3)
    assert (model.gradient_buffer.size == 0) == (len(more) == 1)  # no memory for what nobody writes


def test_groups_are_added_in_float32(gpu):
    """Of a sum in float16 the last bits would be lost: here they are those of the CPU."""
    gradients = []
    for device, more in ((None, {}), (gpu, {"graphs": False})):
        model, step = make({}, SGD, device, np.float32, scaler=Backoff(2.0**10), accumulate=4, **more)
        step(TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.0)
        host = model.flat_gradients if device is None else gpu.to_host(model.flat_gradients)
        gradients.append(host.astype(np.float32))
    exact, ours = gradients
    assert np.abs(ours - exact).max() < 2e-3 * np.abs(exact).max()
    assert (ours != ours.astype(np.float16)).mean() > 0.3  # numbers that float16 does not have


def test_the_largest_gradient_is_without_l2_and_the_norm_with_it(gpu):
    """As on the CPU: LogMax would follow the weights otherwise."""
    seen, scales = [], []
    for device, more in ((None, {}), (gpu, {"graphs": False})):
        scaler = LogMax(2.0**10)
        _, step = make({}, SGD, device, np.float32, scaler=scaler, l2_tied=100.0, **more)
        seen.append(step(TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.0).grad_norm)
        scales.append(scaler.mean)
    assert seen[1] == pytest.approx(seen[0], rel=1e-3)
    assert scales[1] == pytest.approx(scales[0], abs=1e-4)


def test_an_overflow_is_skipped_and_lowers_the_very_next_scale(gpu):
    """Although the host hears of it when the next step is under way."""
    scaler = Backoff(2.0**24)  # at which everything overflows
    model, step = make({}, SGD, gpu, dtype=np.float32, graphs=False, scaler=scaler)
    before = gpu.to_host(model.flat_parameters).copy()
    window = (TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.05)
    first, second = step.begin(*window), step.begin(*window)
    assert scaler.scale == 2.0**24
    assert not first.finish().is_finite
    assert scaler.scale == 2.0**23
    assert not second.finish().is_finite
    assert scaler.scale == 2.0**22
    np.testing.assert_array_equal(gpu.to_host(model.flat_parameters), before)
    assert step.optimizer.t == 0


@pytest.mark.parametrize("bad", [False, True])
def test_the_learning_rate_is_that_of_the_updates_made(gpu, bad):
    """Which of two it is, the GPU decides when it knows whether the step before made one."""
    model, step = make({}, SGD, gpu, dtype=np.float32, graphs=False)
    loud = np.full((4, 8), np.nan if bad else 0.0, np.float32)
    state = [(gpu.to_device(loud), gpu.to_device(0 * loud))] + [step.computing.initial_state(4)[1]]
    first = step.begin(TEXT[:5], TEXT[1:6], state, MaskStream(9), 0.0)
    before = gpu.to_host(model.flat_parameters).copy()
    second = step.begin(TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.0, rate_after_skip=0.05)
    assert (first.finish().is_finite, second.finish().is_finite) == (not bad, True)
    assert (gpu.to_host(model.flat_parameters) != before).any() == bad


@pytest.mark.parametrize("scaler", [None, Backoff])
def test_rows_of_the_state_that_are_not_finite_are_as_before(gpu, scaler):
    """Else every window after the skipped one would be skipped too, to the end of the epoch."""
    states, bad = [], TEXT[7, 1]
    for device, more in ((None, {}), (gpu, {"graphs": False})):
        model, step = make({}, SGD, device, np.float32, scaler=scaler and scaler(), **more)
        before = step(TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.05).state
        model.embedding.data[bad] = np.nan
        step.take_weights()
        states.append(step(TEXT[5:10], TEXT[6:11], before, MaskStream(9, 1), 0.05).state)
    for pair, device_pair in zip(*states, strict=True):
        for part, device_part in zip(pair, device_pair, strict=True):
            np.testing.assert_allclose(gpu.to_host(device_part), part, rtol=2e-3, atol=2e-3)


def test_in_float32_to_its_rounding(gpu):
    expected = run(*make({}, SGD, dtype=np.float32))
    assert_equal_runs(gpu, run(*make({}, SGD, gpu, np.float32, graphs=False)), expected, rtol=2e-5)


@pytest.mark.parametrize("knobs", MODELS)
def test_a_window_is_captured_without_a_wait_and_each_has_masks_of_its_own(gpu, knobs):
    """The first window runs, the second is captured, by a capture that carries out what it captures."""
    expected = run(*make(MODELS[knobs], SGD), windows=2)
    gpu.xp.runs_what_it_captures, told = True, []
    model, step = make(MODELS[knobs], SGD, gpu, tell=told.append)
    got = run(model, step, windows=2)
    assert told == []
    assert gpu.xp.history.count("end_capture") == 1
    assert_equal_runs(gpu, got, expected, rtol=1e-9)


def test_what_would_wait_in_a_capture_is_found_and_goes_on_without(gpu, monkeypatch):
    """The test above has the power to fail."""
    expected = run(*make({}, SGD), windows=3)
    gpu.xp.runs_what_it_captures, told = True, []
    model, step = make({}, SGD, gpu, tell=told.append)
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda ids, *rest: (ids.max().item(), encode(ids, *rest))[1])
    got = run(model, step, windows=3)
    assert len(told) == 1
    assert "no CUDA graphs: cudaErrorStreamCaptureImplicit: item waits for the GPU; each" in told[0]
    assert_equal_runs(gpu, got, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("knobs", "options", "reason"),
    [
        ({"softmax": "adaptive", "adaptive_bands": (8,)}, {}, "softmax = 'adaptive' has products"),
        ({}, {"check_values": True}, "every value is looked at"),
    ],
)
def test_what_cannot_be_a_graph_says_why(gpu, knobs, options, reason):
    told = []
    make(knobs, SGD, gpu, tell=told.append, **options)
    assert len(told) == 1
    assert reason in told[0]


def test_an_anomaly_is_named(gpu):
    model, step = make({}, SGD, gpu, np.float32, check_values=True, tell=lambda line: None)
    model.embedding.data[TEXT[1, 1]] = np.nan
    with pytest.raises(AnomalyError, match=rf"embedding.weight.*nan at \({TEXT[1, 1]}, 0\)"):
        step(TEXT[:5], TEXT[1:6], None, MaskStream(9), 0.05)


@pytest.mark.parametrize("scaler", [None, Backoff])
def test_groups_of_rows_are_one_graph(gpu, scaler):
    """Each with its own rows of the masks, and in mixed precision with its sum in float32."""
    dtype, rtol = (np.float32, 3e-3) if scaler else (np.float64, 1e-9)
    options = {"accumulate": 2, "dtype": dtype}
    for knobs in ({**DROPOUTS, "activation_dropout": "per_step"}, MODELS["sampled"]):
        gpu.xp.runs_what_it_captures, told = False, []
        expected = run(*make(knobs, SGD, scaler=scaler and scaler(2.0**10), **options), windows=2)
        gpu.xp.runs_what_it_captures = True
        step = make(knobs, SGD, gpu, tell=told.append, scaler=scaler and scaler(2.0**10), **options)
        assert_equal_runs(gpu, run(*step, windows=2), expected, rtol)
        assert told == []
    assert gpu.xp.history.count("end_capture") == 2
