"""Layers side by side on streams of their own: the bits of the sequential order, and nothing unordered."""

import numpy as np
import pytest
from fake_gpu import fake_gpu
from stream_trace import RaceError

from minilstm import LanguageModel, MaskStream, ModelConfig, wavefront
from train.communicator import SingleProcess
from train.device_step import DeviceStep
from train.mixed_precision import Backoff
from train.optimizers import SGD

SIZES = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 8, "num_layers": 3}
DROPOUTS = {
    "recurrent_weight_keep_prob": 0.6,
    "recurrent_keep_prob": 0.8,
    "encoder_dp_input_keep_prob": 0.8,
    "encoder_dp_output_keep_prob": 0.8,
    "encoder_last_output_keep_prob": 0.6,
}
MODELS = {
    "plain": {},
    "dropouts": {**DROPOUTS, "temporal_activation_regularization": 1.0},
    "layer norm": {"layer_norm": True, **DROPOUTS, "activation_dropout": "per_step"},
}
TEXT = np.random.default_rng(4).integers(0, 30, (11, 4))


@pytest.fixture
def gpu(host_runner, monkeypatch):
    monkeypatch.setattr(wavefront, "CHUNK", 2)
    with fake_gpu(host_runner) as device:
        yield device


def make(gpu, knobs=(), told=None, **options):
    model = LanguageModel(ModelConfig(**SIZES, **dict(knobs)), seed=1)
    model.move_to(gpu.xp)
    more = {"tell": (told if told is not None else []).append, **options}
    return model, DeviceStep(model, SGD(model.flat_parameters), SingleProcess(), gpu, **more)


def run(gpu, model, step):
    """All that two windows of five steps leave behind, as bytes."""
    state, numbers = None, []
    for window in range(2):
        inputs, targets = TEXT[5 * window : 5 * window + 5], TEXT[5 * window + 1 : 5 * window + 6]
        result = step(inputs, targets, state, MaskStream(9, window, 4), 0.05)
        state, numbers = result.state, [*numbers, result.loss, result.grad_norm]
    assert np.isfinite(numbers).all()
    arrays = [model.flat_parameters, *(part for pair in state for part in pair)]
    return [np.array(numbers).tobytes(), *(gpu.to_host(array).tobytes() for array in arrays)]


@pytest.mark.parametrize("knobs", MODELS)
def test_every_bit_is_the_sequential_order_s(gpu, knobs):
    """Launched one by one, and in a graph, which is captured with the second window."""
    expected = run(gpu, *make(gpu, MODELS[knobs], graphs=False))
    model, step = make(gpu, MODELS[knobs], graphs=False, wavefront="always")
    with gpu.xp.traced(gpu.cublas) as trace:
        assert run(gpu, model, step) == expected
    assert len(trace.streams) == 4
    gpu.xp.runs_what_it_captures, told = True, []
    model, step = make(gpu, MODELS[knobs], told)
    with gpu.xp.traced(gpu.cublas) as trace:
        assert run(gpu, model, step) == expected
    assert (told, len(trace.streams), gpu.xp.history.count("end_capture")) == ([], 4, 1)


def test_in_mixed_precision_with_groups_of_rows_too(gpu):
    options = {"scaler": Backoff(2.0**10), "accumulate": 2, "graphs": False}
    expected = run(gpu, *make(gpu, MODELS["dropouts"], **options))
    model, step = make(gpu, MODELS["dropouts"], **{**options, "scaler": Backoff(2.0**10)}, wavefront="always")
    with gpu.xp.traced(gpu.cublas):
        assert run(gpu, model, step) == expected


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "fault"),
    [
        (wavefront.StreamLane, "needs", lambda lane, array, steps: lane.holds(array), "does not wait for"),
        (wavefront.StreamLane, "holds", lambda lane, array: None, "given back"),
        (wavefront.Wavefront, "meet", lambda order: (order.written.clear(), order.held.clear()), "not wait"),
        (wavefront, "written_gradient", lambda function, index, gradient: gradient, "given back|not wait"),
    ],
)
def test_what_is_missing_is_found(gpu, monkeypatch, owner, name, replacement, fault):
    """The tests above have the power to fail."""
    monkeypatch.setattr(owner, name, replacement)
    if name == "written_gradient":
        monkeypatch.setattr("minilstm.lstm_cuda.written_gradient", replacement)
    model, step = make(gpu, MODELS["dropouts"], graphs=False, wavefront="always")
    with gpu.xp.traced(gpu.cublas), pytest.raises(RaceError, match=fault):
        run(gpu, model, step)


@pytest.mark.parametrize(
    ("knobs", "options", "reason"),
    [
        ({"residual": True, "embedding_size": 8}, {}, "residual connections join the layers"),
        ({"num_layers": 1}, {}, "there is one layer"),
        ({}, {"check_values": True}, "every value is looked at"),
    ],
)
def test_where_there_is_none_it_says_why(gpu, knobs, options, reason):
    told = []
    model = LanguageModel(ModelConfig(**{**SIZES, **knobs}), seed=1)
    model.move_to(gpu.xp)
    options = {"graphs": False, "wavefront": "always", "tell": told.append, **options}
    step = DeviceStep(model, SGD(model.flat_parameters), SingleProcess(), gpu, **options)
    assert step.computing.wavefront is None
    assert told == [f"no wavefront: {reason}; layers run one after the other"]
