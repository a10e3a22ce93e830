"""The kernels of both LSTMs against their NumPy twins: behind the shim, and on a GPU if there is one."""

import numpy as np
import pytest
from host_runner import KernelError
from lstm_examples import SHAPES

from autograd import ShapeError, Variable
from autograd.backend import get_array_module
from autograd.gradient_check import backward_all, check_backward
from autograd.kernels import KernelModule, host_kernels
from minilstm import layer_norm_lstm_cuda, lstm_cuda
from minilstm.layer_norm_lstm import LayerNormLSTM, layer_norm_lstm
from minilstm.layer_norm_lstm_cuda import KernelLayerNormLSTM
from minilstm.lstm import LSTM, lstm
from minilstm.lstm_cuda import KernelLSTM

TWINS = {
    "lstm": (KernelLSTM, LSTM, lstm),
    "layer_norm": (KernelLayerNormLSTM, LayerNormLSTM, layer_norm_lstm),
}
TOLERANCES = {"float32": 2e-6, "float16": 6e-3}
"""Of the largest element, or of 1. float16 has 11 bits, and every step rounds the state it hands on."""


def arrays(kind, T, B, inputs, H, seed=0):
    """x, h0, c0, W_ih, W_hh and the vectors, in float64 but exact in float16."""
    rng = np.random.default_rng(seed)
    shapes = [(T, B, inputs), (B, H), (B, H), (4 * H, inputs), (4 * H, H)]
    shapes += [(4 * H,)] if kind == "lstm" else [(4 * H,), (4 * H,), (H,), (H,)]
    return [rng.standard_normal(shape).astype(np.float16).astype(np.float64) * 0.5 for shape in shapes]


def output_grads(T, B, H):
    rng = np.random.default_rng(1)
    return [
        rng.standard_normal(shape).astype(np.float16).astype(np.float64)
        for shape in ((T, B, H), (B, H), (B, H))
    ]


def candidate_mask(T, B, H):
    return np.random.default_rng(2).integers(0, 2, (T, B, H)) * 1.25


def run(function, inputs, grads):
    """y, h_T, c_T and the gradients of all inputs."""
    variables = [Variable(value) for value in inputs]
    outputs = function.apply(*variables)
    backward_all(outputs, grads)
    return [output.data for output in outputs] + [variable.grad for variable in variables]


def assert_equal_to_twin(device, kind, shape, dtype, masked, unused=()):
    """The kernels in `dtype` against the twin in float64, from the same numbers."""
    T, B, _, H = shape
    kernels, twin, _ = TWINS[kind]
    inputs, grads = arrays(kind, *shape), output_grads(T, B, H)
    grads = [None if k in unused else grad for k, grad in enumerate(grads)]
    mask = candidate_mask(T, B, H) if masked else None
    options = {"epsilon": 1e-3} if kind == "layer_norm" else {}
    expected = run(twin(mask, **options), inputs, grads)

    def there(array):
        return None if array is None else device.array(array, dtype)

    got = run(kernels(there(mask), **options), [there(v) for v in inputs], [there(v) for v in grads])
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert get_array_module(ours) is device.xp
        assert ours.dtype == dtype
        scale = max(np.abs(theirs).max(initial=0), 1)
        error = np.abs(device.numpy(ours).astype(np.float64) - theirs).max(initial=0)
        assert error <= TOLERANCES[dtype] * scale, f"output {index}: {error / scale:.1e}"


@pytest.mark.parametrize(("dtype", "masked"), [("float32", False), ("float32", True), ("float16", True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lstm_is_its_twin(device, shape, dtype, masked):
    assert_equal_to_twin(device, "lstm", shape, dtype, masked)


@pytest.mark.parametrize(("dtype", "masked"), [("float32", False), ("float32", True), ("float16", True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_lstm_is_its_twin(device, shape, dtype, masked):
    assert_equal_to_twin(device, "layer_norm", shape, dtype, masked)


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("unused", [(1, 2), (0, 2), (0, 1)])
def test_outputs_that_nobody_uses(device, kind, unused):
    assert_equal_to_twin(device, kind, (3, 2, 4, 5), "float32", True, unused)


@pytest.mark.parametrize("kind", TWINS)
def test_more_units_than_a_block_has_threads(device, kind):
    assert_equal_to_twin(device, kind, (2, 2, 3, 300), "float32", False)


@pytest.mark.parametrize("kind", TWINS)
def test_gradients_agree_with_differences(host_runner, kind):
    """In float64; also that a graph is run backward twice, and that the wrapper takes the kernels."""
    kernels, _, wrapper = TWINS[kind]
    mask = candidate_mask(2, 2, 4)
    with host_kernels(host_runner):
        assert (
            check_backward(lambda *inputs: wrapper(*inputs, candidate_mask=mask), arrays(kind, 2, 2, 3, 4))
            < 1e-7
        )
        variables = [Variable(value) for value in arrays(kind, 2, 2, 3, 4)]
        outputs = wrapper(*variables, candidate_mask=mask)
        assert isinstance(outputs[0].node.creator, kernels)
        total = outputs[0].sum() + outputs[2].sum()
        total.backward(retain_graph=True)
        once = [variable.grad.copy() for variable in variables]
        total.backward()
    for variable, grad in zip(variables, once, strict=True):
        np.testing.assert_array_equal(variable.grad, 2 * grad)


@pytest.mark.parametrize("kind", TWINS)
def test_without_kernels_it_is_the_twin(kind):
    _, twin, wrapper = TWINS[kind]
    assert isinstance(wrapper(*map(Variable, arrays(kind, 1, 1, 1, 2)))[0].node.creator, twin)


def test_too_many_units_for_a_block():
    x = np.zeros((1, 1, 1), np.float32)
    with pytest.raises(ShapeError, match=r"^layer_norm_lstm: H must be at most 2,944 on a GPU; got 2,945$"):
        layer_norm_lstm_cuda.launch("layer_norm_lstm_forward", x, 2945)


# --- the shim finds what a twin on the CPU could not: barriers left out, elements outside ---


@pytest.mark.parametrize(
    ("kind", "line", "replacement", "fault"),
    [
        (
            "layer_norm",
            "    __syncthreads();  // the sums of the call before have been read\n",
            "",
            "order of threads",
        ),
        ("layer_norm", "values[n];\n    __syncthreads();\n", "values[n];\n", "order of threads"),
        (
            "layer_norm",
            "    block_sums(means);\n",
            "    if (threadIdx.x < 32) block_sums(means);\n",
            "in vain",
        ),
        ("layer_norm", "unit < H", "unit <= H", "writes outside of|order of threads"),
        ("lstm", "    if (k >= size_t(B) * H) return;\n", "", "writes outside of"),
        ("lstm", "k / H * 4 * H", "k / H * H", "order of threads"),
    ],
)
def test_bugs_are_found(host_runner, monkeypatch, kind, line, replacement, fault):
    """Two warps and a row that does not fill them."""
    module = {"lstm": lstm_cuda, "layer_norm": layer_norm_lstm_cuda}[kind]
    assert line in module.KERNELS.source
    broken = KernelModule("minilstm", module.KERNELS.name)
    broken.source = module.KERNELS.source.replace(line, replacement)
    monkeypatch.setattr(module, "KERNELS", broken)
    inputs = [value.astype(np.float32) for value in arrays(kind, 1, 2, 3, 40)]
    with host_kernels(host_runner), pytest.raises(KernelError, match=fault):
        run(TWINS[kind][0](), inputs, [value.astype(np.float32) for value in output_grads(1, 2, 40)])
