"""Masks drawn by kernels are those of minilstm/dropout.py, bit for bit: behind the shim, and on a GPU."""

import numpy as np
import pytest

from autograd import Variable
from autograd.gradient_check import check_backward
from autograd.kernels import host_kernels
from minilstm import MaskStream, ModelConfig
from minilstm.dropout import Dropouts
from minilstm.dropout_cuda import Draws, KernelDropout, KernelDropouts

STREAMS = [MaskStream(0), MaskStream(2**63 + 5, 123456789, first_row=7)]
KEEPS = [0.65, 0.3, 1 - 1e-7, 0.001]


def both(stream, device, dtype):
    """The dropouts of NumPy and those of kernels, for the same stream."""
    config = ModelConfig(9, 4, 4, 1)
    like = np.empty(0, dtype)
    return Dropouts(config, stream, like), KernelDropouts(config, stream, device.array(like))


def assert_same_bits(device, ours, theirs):
    assert ours.dtype == theirs.dtype
    ours = device.numpy(ours)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize("stream", STREAMS, ids=["first", "later"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 1, 1), (2, 4, 16), (2, 3, 700), (2, 0, 3)], ids=str)
def test_masks_of_activations(device, stream, dtype, shape):
    """Locked and per step, the candidate's, and of weights; of ranks that begin in the middle of a tick."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for keep in KEEPS[:2] if x.size > 50 else KEEPS:
        plain, kernels = both(stream, device, dtype)
        assert_same_bits(device, kernels.step_mask("a", shape, keep), plain.step_mask("a", shape, keep))
        for name in ("times_row_mask", "times_step_mask", "times_weight_mask"):
            ours = getattr(kernels, name)("a", Variable(device.array(x)), keep)
            assert_same_bits(device, ours.data, getattr(plain, name)("a", Variable(x), keep).data)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 16, 21])
def test_masks_of_words(device, dtype, width):
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((5, 3, width)).astype(dtype), rng.integers(0, 200_000, (5, 3))
    ids[1] = ids[0]
    plain, kernels = both(STREAMS[1], device, dtype)
    ours = kernels.times_lookup_mask("embedding", Variable(device.array(x)), device.array(ids), 0.65)
    assert_same_bits(device, ours.data, plain.times_lookup_mask("embedding", Variable(x), ids, 0.65).data)
    assert_same_bits(device, kernels.word_mask("e", 777, 0.3), plain.word_mask("e", 777, 0.3))


def test_gradients_pass_the_same_mask(host_runner):
    draws = Draws.of(STREAMS[1], "a", 0.5, rows_size=5, per_step=True)
    with host_kernels(host_runner):
        x = Variable(np.ones((3, 2, 5)))
        y = KernelDropout(draws, steps=3).apply(x)
        y.sum().backward()
        np.testing.assert_array_equal(x.grad, y.data)
        assert 0 < (y.data == 0).sum() < 30
        assert check_backward(KernelDropout(draws, steps=3).apply, [x.data]) < 1e-7


def test_the_window_is_read_when_the_kernel_runs(host_runner):
    """A graph that was captured for one window draws the next one's masks."""
    window = np.array([5], np.uint64)
    with host_kernels(host_runner):
        draws = Draws(window, 3, 4, 0, 0.5, per_step=True)
        first = draws.mask((2, 30), window.astype(np.float32))
        window[0] = 6
        second = draws.mask((2, 30), window.astype(np.float32))
        np.testing.assert_array_equal(first, draws._replace(window=5).mask((2, 30), first))
        np.testing.assert_array_equal(second, draws._replace(window=6).mask((2, 30), first))
    assert (first != second).any()
