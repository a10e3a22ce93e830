"""The one matrix product: float32 and float64 as NumPy has them, float16 summed in float32, rounded once."""

import numpy as np
import pytest

from autograd import DeviceError
from autograd.backend import accumulation_dtype, device_array_module, matmul

SHAPES = [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((2, 0), (0, 3)), ((7,), (7, 2)), ((6, 7), (7,)),
          ((2, 3, 4), (4, 5)), ((1, 3, 4), (5, 4, 2))]  # fmt: skip


def operands(shapes, dtype):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float32_and_float64_are_numpys_own_product_to_the_bit(shapes, dtype):
    a, b = operands(shapes, dtype)
    expected = a @ b
    assert matmul(a, b).tobytes() == expected.tobytes()
    assert matmul(a, b).dtype == dtype
    out = np.full_like(expected, np.nan)
    assert matmul(a, b, out=out) is out
    assert out.tobytes() == expected.tobytes()
    out = matmul(a, b, out=np.ones_like(expected), accumulate=True, alpha=0.25)
    assert out.tobytes() == (1 + expected * dtype(0.25)).tobytes()


@pytest.mark.parametrize("shapes", SHAPES)
def test_float16_is_summed_in_float32_and_rounded_once(shapes):
    a, b = operands(shapes, np.float16)
    exact = a.astype(np.float32) @ b.astype(np.float32)
    assert matmul(a, b).tobytes() == exact.astype(np.float16).tobytes()
    assert matmul(a, b, alpha=3).tobytes() == (exact * np.float32(3)).astype(np.float16).tobytes()
    half, single = np.full_like(exact, 1, np.float16), np.full_like(exact, 1)
    assert matmul(a, b, out=half).tobytes() == exact.astype(np.float16).tobytes()
    assert matmul(a, b, out=single).tobytes() == exact.tobytes()
    assert matmul(a, b.astype(np.float32), out=half).tobytes() == exact.astype(np.float16).tobytes()
    half[...] = 1
    assert matmul(a, b, out=half, accumulate=True) is half
    assert half.tobytes() == (1 + exact).astype(np.float16).tobytes()


def test_a_long_float16_sum_does_not_stand_still():
    """Added up in float16, 4,096 ones end at 2,048, where one more is lost to rounding."""
    ones = np.ones((1, 4096), np.float16)
    assert matmul(ones, ones.T).item() == 4096


def test_a_float16_product_may_leave_its_range_on_the_way():
    a = np.array([[60000, 60000]], np.float16)
    b = np.array([[4], [-4]], np.float16)
    assert matmul(a, b).item() == 0
    assert matmul(a, np.abs(b), out=np.empty((1, 1), np.float32)).item() == 480_000
    assert matmul(a, np.abs(b), alpha=0.125).item() == 60_000


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_sums_are_made_in_float32_at_least(dtype, expected):
    assert accumulation_dtype(np.dtype(dtype)) == expected


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceError, match="device must be cpu or cuda; got 'tpu'"):
        device_array_module("tpu")
