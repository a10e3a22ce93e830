"""How kernels are compiled, launched, and run on the CPU; what they compute is tested beside their twins."""

from pathlib import Path

import numpy as np
import nvrtc
import pytest
from host_runner import KernelError

from autograd import DtypeError, ShapeError
from autograd.kernels import KernelModule, host_kernels, use_kernels

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.glob("*/cuda/*.cu"))

EXAMPLE = """
// Sums of the rows of x (rows, columns), one block a row.
extern "C" __global__ void row_sums(const T* __restrict__ x, real* sums, int columns) {
    real sum = 0;
    for (int k = threadIdx.x; k < columns; k += blockDim.x) sum += load(x, size_t(blockIdx.x) * columns + k);
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void reversed(T* x, int n) {  // one block of n threads
    DYNAMIC_SHARED(real, s);
    s[threadIdx.x] = load(x, threadIdx.x);
    __syncthreads();
    store(x, threadIdx.x, s[n - 1 - threadIdx.x]);
}

extern "C" __global__ void row_maxima(const T* x, real* maxima, int columns) {
    real most = load(x, size_t(blockIdx.x) * columns);
    for (int k = threadIdx.x; k < columns; k += blockDim.x) {
        real value = load(x, size_t(blockIdx.x) * columns + k);
        most = value > most ? value : most;
    }
    most = block_max(most);
    if (threadIdx.x == 0) maxima[blockIdx.x] = most;
}

extern "C" __global__ void added(float* out, const float* a, const float* b, float factor, int n) {
    size_t k = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (k < n) out[k] = a[k] + factor * (b ? b[k] : 1);
}
"""


def example(**replacements):
    source = EXAMPLE
    for old, new in replacements.values():
        assert old in source
        source = source.replace(old, new)
    return KernelModule("autograd", "example", source)


# --- every source compiles ---

OTHERS = [("float16", "sm_70"), ("float16", "sm_80"), ("float32", "sm_90"), ("bfloat16", "sm_80")]


@pytest.mark.parametrize(
    ("storage", "architecture"),
    [
        ("float16", "sm_90"),
        *(pytest.param(*other, marks=pytest.mark.long) for other in OTHERS),
    ],
)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_compiles(path, storage, architecture):
    if reason := nvrtc.missing(architecture):
        pytest.skip(reason)
    module = KernelModule(path.parts[0], path.stem)
    cubin = nvrtc.compile_source(module.source, architecture, module.options(storage))
    assert cubin.startswith(b"\x7fELF")
    assert module.kernels
    for kernel in module.kernels:
        assert kernel.encode() in cubin


def test_a_compile_error_names_the_line_of_the_file():
    if reason := nvrtc.missing("sm_90"):
        pytest.skip(reason)
    broken = example(start=("real sum = 0;", "real sum = INFINITY;"))
    with pytest.raises(nvrtc.CompileError, match=r"example\.cu\(4\).*INFINITY"):
        nvrtc.compile_source(broken.source, "sm_90", broken.options("float32"))


# --- they run ---


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sums_and_maxima_of_rows(device, dtype):
    if dtype == "float64" and device.xp is not np:
        pytest.skip("float64 serves gradient checks on the CPU")
    x = np.random.default_rng(0).standard_normal((5, 77)).astype(dtype)
    wide = np.promote_types(dtype, np.float32)
    sums, maxima = device.array(np.zeros(5, wide)), device.array(np.zeros(5, wide))
    example().launch("row_sums", 5, 64, device.array(x), sums, 77)
    example().launch("row_maxima", 5, 64, device.array(x), maxima, 77)
    np.testing.assert_allclose(device.numpy(sums), x.astype(np.float64).sum(1), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(device.numpy(maxima), x.max(1))


def test_an_array_may_be_none_and_a_grid_empty(device):
    a, out = device.array(np.arange(5, dtype=np.float32)), device.array(np.zeros(5, np.float32))
    example().launch("added", 1, 32, out, a, None, 2.0, 5)
    np.testing.assert_array_equal(device.numpy(out), np.arange(5) + 2)
    example().launch("added", 0, 32, out, a, a, 2.0, 5)
    np.testing.assert_array_equal(device.numpy(out), np.arange(5) + 2)


# --- what a kernel does wrong is found ---


@pytest.mark.parametrize(
    ("bug", "fault"),
    [
        (("    __syncthreads();\n", ""), "depends on the order of threads"),
        (("store(x, threadIdx.x,", "store(x, threadIdx.x + 1,"), "writes outside of x"),
        (("    __syncthreads();\n", "    if (threadIdx.x < 3) __syncthreads();\n"), "each other in vain"),
        (("store(x, threadIdx.x,", "store(x, 0,"), "depends on the order of threads"),
        (("    __syncthreads();\n", "    warp_sum(1);\n"), "each other in vain"),
    ],
)
def test_bugs_are_found(host_runner, bug, fault):
    x = np.arange(40, dtype=np.float32)
    with host_kernels(host_runner):
        example().launch("reversed", 1, 40, x, 40, shared_bytes=160)
        np.testing.assert_array_equal(x, np.arange(40)[::-1])
        with pytest.raises(KernelError, match=fault):
            example(bug=bug).launch("reversed", 1, 40, x, 40, shared_bytes=160)


def test_more_than_a_block_has(host_runner):
    """`reversed` uses no other shared memory, but the sums in front of it are in the same source."""
    x = np.arange(32, dtype=np.float32)
    with host_kernels(host_runner):
        example().launch("reversed", 1, 32, x, 32, shared_bytes=47 << 10)
        for threads, shared_bytes in ((1056, 128), (32, 48 << 10)):
            with pytest.raises(KernelError, match="more threads or shared memory than a block has"):
                example().launch("reversed", 1, threads, x, 32, shared_bytes=shared_bytes)


def test_arrays_that_overlap_are_refused(host_runner):
    x = np.zeros(8, np.float32)
    with host_kernels(host_runner), pytest.raises(KernelError, match="overlap"):
        example().launch("added", 1, 32, x[:5], x[2:7], None, 1.0, 5)


# --- the launch checks what it is given ---


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("row_sums", 1, 32), ShapeError, r"row_sums: takes 3 arguments \(x, sums, columns\); got 0"),
        (("sums", 1, 32), ShapeError, "example.cu has no kernel sums; it has row_sums"),
        (
            ("row_sums", 1, 32, np.zeros((1, 4), np.int32), np.zeros(1, np.float32), 4),
            DtypeError,
            "row_sums: arrays of T must be of float16, bfloat16, float32, float64; got int32",
        ),
        (
            ("row_sums", 1, 32, np.zeros((1, 4), np.float16), np.zeros(1, np.float16), 4),
            DtypeError,
            "row_sums: sums must be numpy.ndarray of float32; got numpy.ndarray of float16",
        ),
        (
            ("row_sums", 1, 32, np.zeros((4, 2), np.float32).T, np.zeros(2, np.float32), 4),
            ShapeError,
            r"row_sums: x must be contiguous; got \(2, 4\), strides",
        ),
        (("row_sums", 1, 32, None, None, 4), DtypeError, "row_sums: at least one argument must be an array"),
    ],
)
def test_wrong_arguments(host_runner, args, error, message):
    with host_kernels(host_runner), pytest.raises(error, match=message):
        example().launch(*args)


def test_numpy_arrays_need_a_runner(host_runner):
    x = np.zeros((1, 4), np.float32)
    assert not use_kernels(x)
    with pytest.raises(DtypeError, match="kernels take CuPy arrays; got NumPy's"):
        example().launch("row_sums", 1, 32, x, np.zeros(1, np.float32), 4)
    with host_kernels(host_runner):
        assert use_kernels(x)
    assert not use_kernels(x)


def test_parameters_are_read_from_the_source():
    kernels = example().kernels
    assert list(kernels) == ["row_sums", "reversed", "row_maxima", "added"]
    assert [tuple(parameter) for parameter in kernels["row_sums"]] == [
        ("x", "T", True),
        ("sums", "real", True),
        ("columns", "int", False),
    ]
    with pytest.raises(DtypeError, match="wrong: parameter 'T x' must be"):
        _ = KernelModule("autograd", "wrong", 'extern "C" __global__ void wrong(T x) {}').kernels
