"""The binding of cuBLAS: a fake library carries out each GemmEx on the host, at the addresses it is given."""

import itertools
import sys

import numpy as np
import pytest
from fake_cublas import FakeCublas
from fake_cupy import FakeCupy

from autograd import backend
from autograd.backend import matmul, matmul_by_cublas
from autograd.cublas import WORKSPACE_BYTES, Cublas, Layout, layout_of, with_signatures
from autograd.errors import DeviceError, DtypeError, ShapeError

ONE_AND_ZERO = np.array([1, 0], np.float32)
SIZES = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 4, 1), (7, 2, 2)]


@pytest.fixture
def fake():
    return FakeCublas()


@pytest.fixture
def cublas(fake):
    return Cublas(with_signatures(fake.library), 77, (4096, WORKSPACE_BYTES), ONE_AND_ZERO.ctypes.data)


def placed(matrix, how):
    """The same numbers, otherwise in memory; what lies around them is nan."""
    rows, columns = matrix.shape
    if how == "rows":
        return matrix.copy()
    if how == "columns":
        return np.array(matrix, order="F")  # a copy
    if how == "wide rows":  # a part of the columns of a larger matrix
        around = np.full((rows + 2, columns + 3), np.nan, matrix.dtype)
        inside = around[1 : rows + 1, 2 : columns + 2]
    else:  # a part of the transpose of a larger matrix
        around = np.full((columns + 2, rows + 5), np.nan, matrix.dtype)
        inside = around[1 : columns + 1, 3 : rows + 3].T
    inside[...] = matrix
    return inside


PLACES = ("rows", "columns", "wide rows", "wide columns")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_every_layout_of_every_operand_gives_the_product(cublas, size, accumulate):
    m, k, n = size
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape) for shape in ((m, k), (k, n), (m, n)))
    expected = 0.5 * (a @ b) + (c if accumulate else 0)
    for where_a, where_b, where_out in itertools.product(PLACES, repeat=3):
        out = placed(c if accumulate else np.full_like(c, np.nan), where_out)
        around = None if out.base is None else np.isnan(out.base).sum() - np.isnan(out).sum()
        cublas.gemm(placed(a, where_a), placed(b, where_b), out, accumulate, alpha=0.5)
        np.testing.assert_allclose(out, expected, rtol=1e-13)
        assert around is None or np.isnan(out.base).sum() == around, "it wrote beside the matrix"


@pytest.mark.parametrize(
    ("given", "result"), [("float16", "float16"), ("float16", "float32"), ("float32",) * 2]
)
@pytest.mark.parametrize("on_device", [False, True])
def test_types_and_scalars_on_either_side(cublas, fake, given, result, on_device):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(given) for shape in ((20, 30), (30, 10)))
    out = np.ones((20, 10), result)
    alpha = np.array([0.125], np.float32) if on_device else 0.125
    cublas.gemm(a, b, out, accumulate=True, alpha=alpha)
    expected = 1 + 0.125 * (a.astype(np.float32) @ b.astype(np.float32))
    # 30 products summed in another order: roundings of 1, which do not shrink where the sum cancels it.
    bounds = {"rtol": 2e-3} if result == "float16" else {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(out, expected.astype(result), **bounds)
    out[...] = np.nan
    cublas.gemm(a, b, out, alpha=alpha)
    np.testing.assert_allclose(out, (expected - 1).astype(result), **bounds)
    cublas.gemm(a, b, out, alpha=1.0)
    assert fake.calls.count("cublasSetPointerMode_v2") == (2 if on_device else 0)  # there, and back


def test_float16_sums_are_made_in_float32(cublas):
    """4,096 ones sum to 4,096; float16 would stay at 2,048."""
    ones, out = np.ones((1, 4096), np.float16), np.empty((1, 1), np.float16)
    cublas.gemm(ones, ones.T, out)
    assert out[0, 0] == 4096


def test_the_workspace_is_given_after_the_stream_which_would_take_it_away(cublas, fake):
    assert fake.streams == {1: 77}
    assert fake.workspaces == {1: (4096, WORKSPACE_BYTES)}
    assert fake.modes == {1: 16}  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0), (3, 0, 5)])
def test_empty_products(cublas, shape):
    m, k, n = shape
    out = np.full((m, n), 7.0)
    cublas.gemm(np.ones((m, k)), np.ones((k, n)), out, accumulate=True)
    assert (out == 7).all()
    cublas.gemm(np.ones((m, k)), np.ones((k, n)), out)
    assert (out == 0).all()


@pytest.mark.parametrize(
    "matrix", [np.ones((4, 6))[:, ::2], np.broadcast_to(np.ones(4), (3, 4)), np.ones((4, 4))[::-1]]
)
def test_what_lies_apart_in_both_directions_cannot_be_read(cublas, matrix):
    assert layout_of(matrix) is None
    with pytest.raises(ShapeError, match="a must have rows or columns that lie next to each other"):
        cublas.gemm(matrix, np.ones((matrix.shape[1], 2)), np.empty((len(matrix), 2)))


def test_layouts():
    matrix = np.empty((3, 8))
    assert layout_of(matrix) == Layout(False, 8)
    assert layout_of(matrix.T) == Layout(True, 8)
    assert layout_of(matrix[:, 2:5]) == Layout(False, 8)
    assert layout_of(matrix[::2]) == Layout(False, 16)


@pytest.mark.parametrize(
    ("a", "b", "out", "error"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)), ShapeError),
        (np.ones((2, 3)), np.ones((3, 4)), np.ones((4, 2)), ShapeError),
        (np.ones(3), np.ones((3, 4)), np.ones((1, 4)), ShapeError),
        (np.ones((2, 3)), np.ones((3, 4), np.float32), np.ones((2, 4)), DtypeError),
        (np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones((2, 4), np.float16), DtypeError),
        (np.ones((2, 3), int), np.ones((3, 4), int), np.ones((2, 4), int), DtypeError),
    ],
)
def test_operands_that_do_not_fit(cublas, a, b, out, error):
    with pytest.raises(error, match="matmul: "):
        cublas.gemm(a, b, out)


def test_alpha_on_the_device_is_one_float32(cublas):
    with pytest.raises(DtypeError, match="alpha must be a number, or an array of one float32"):
        cublas.gemm(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), alpha=np.ones(1, np.float32))


def test_an_error_of_cublas_is_told_with_its_reason(cublas, fake):
    fake.fail_with = 13
    with pytest.raises(DeviceError, match=r"cuBLAS could not multiply \(2, 3\) float64 .* failed to execute"):
        cublas.gemm(np.ones((2, 3)), np.ones((3, 4)), np.ones((2, 4)))


def operands():
    rng = np.random.default_rng(2)
    matrix, other = rng.standard_normal((4, 6)), rng.standard_normal((6, 3))
    return {
        "matrices": (matrix, other),
        "a vector in front": (matrix[0], other),
        "a vector behind": (matrix, other[:, 0]),
        "two vectors": (matrix[0], other[:, 1]),
        "every second column": (rng.standard_normal((4, 12))[:, ::2], other),
        "transposes": (matrix.T, matrix),
        "float16 beside float32": (matrix.astype(np.float16), other.astype(np.float32)),
        "float16": (matrix.astype(np.float16), other.astype(np.float16)),
    }


@pytest.mark.parametrize("case", operands())
@pytest.mark.parametrize("accumulate", [False, True])
def test_the_device_s_product_is_the_host_s(cublas, case, accumulate):
    a, b = operands()[case]
    made = matmul_by_cublas(cublas, a, b, None, False, 0.5)
    expected = matmul(a, b, alpha=0.5)
    assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[str(made.dtype)]
    np.testing.assert_allclose(made, expected, rtol=tolerance, atol=tolerance)
    if made.shape:
        outs = [np.full(made.shape, 2, made.dtype) for _ in range(2)]
        assert matmul_by_cublas(cublas, a, b, outs[0], accumulate, 0.5) is outs[0]
        np.testing.assert_allclose(outs[0], matmul(a, b, outs[1], accumulate, 0.5), rtol=2 * tolerance)


def test_one_handle_for_each_stream_whose_memory_lives_as_long_as_it(fake, monkeypatch):
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "load_library", lambda major: with_signatures(fake.library))
    backend._cublas.cache_clear()
    first = backend._cublas_of_stream()
    assert backend._cublas_of_stream() is first
    with cupy.cuda.Stream(non_blocking=True) as stream:
        second = backend._cublas_of_stream()
    assert second is not first
    assert fake.streams == {1: None, 2: stream.ptr}  # ctypes gives a null pointer as None
    (workspace, scalars), (_, other) = first.memory, second.memory
    assert fake.workspaces[1] == (workspace.ptr, WORKSPACE_BYTES)
    assert other.ptr != scalars.ptr
    assert bytes(scalars.bytes) == ONE_AND_ZERO.tobytes()
    backend._cublas.cache_clear()
