"""Each kernel of minilstm/cuda/softmax.cu does what its NumPy twin does, in every dtype and at odd sizes."""

import numpy as np
import pytest
from host_runner import KernelError
from kernel_examples import TOLERANCES, assert_near, on, twin

from autograd.backend import accumulation_dtype
from autograd.kernels import KernelModule, host_kernels
from minilstm import softmax_kernels as kernels

DTYPES = ("float16", "float32", "float64")
BARRIER = "    __syncthreads();\n"


def rng():
    return np.random.default_rng(0)


def rows_example(dtype, N, columns, stride):
    """Logits with not-a-number where no word is, targets some of which are not scored or have no column."""
    real, generator = accumulation_dtype(np.dtype(dtype)), rng()
    logits = np.full((N, stride), np.nan, dtype)
    logits[:, :columns] = 4 * generator.standard_normal((N, columns))
    targets = generator.integers(0, columns, N).astype(np.int32)
    targets[2::5] = -1
    places = np.where(np.arange(N) % 4 == 3, -1, targets).astype(np.int32)
    return logits, targets, places, 4 * generator.standard_normal(N).astype(real), generator


@pytest.mark.parametrize(
    ("dtype", "N", "columns", "stride", "in_block", "with_shift"),
    [
        *((dtype, 6, 70, 128, in_block, not in_block) for dtype in DTYPES for in_block in (True, False)),
        ("float16", 1, 1, 64, True, False),
        ("float32", 3, 64, 64, True, True),
        ("float16", 2, 4500, 4544, True, False),
        ("float32", 0, 5, 64, True, False),
    ],
)
def test_rows_of_a_softmax(device, dtype, N, columns, stride, in_block, with_shift):
    logits, targets, places, t, generator = rows_example(dtype, N, columns, stride)
    shift = generator.standard_normal(stride).astype(t.dtype) if with_shift else None
    expected_logits = logits.copy()
    expected = twin(
        kernels.softmax_rows, expected_logits, columns, targets, places, t, in_block, True, 64.0, shift
    )
    ours = on(device, logits)
    given = [on(device, value) for value in (targets, places, t)]
    found = kernels.softmax_rows(ours, columns, *given, in_block, True, 64.0, on(device, shift))
    for name, a, b in zip(("losses", "slopes"), found, expected, strict=True):
        assert_near(device.numpy(a), b, TOLERANCES[str(t.dtype)], name)
    assert_near(device.numpy(ours), expected_logits, TOLERANCES[dtype], "gradient")
    assert not device.numpy(ours)[:, columns:].any()
    only_losses = kernels.softmax_rows(
        on(device, logits), columns, *given, in_block, False, 1.0, on(device, shift)
    )
    assert device.numpy(only_losses[0]).tobytes() == device.numpy(found[0]).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_twin_is_the_softmax(dtype):
    """In float64, from all logits side by side."""
    logits, targets, places, t, _ = rows_example(dtype, 6, 70, 128)
    exact = logits[:, :70].astype(np.float64)
    own = np.flatnonzero((targets >= 0) & (places >= 0))
    exact[own, places[own]] = -np.inf
    exact = np.exp(np.concatenate([exact, t[:, None]], axis=1, dtype=np.float64))
    p = exact / exact.sum(axis=1, keepdims=True)
    losses, slopes = twin(kernels.softmax_rows, logits, 70, targets, places, t, False, True, 4.0)
    scored = targets >= 0
    np.testing.assert_allclose(losses, np.where(scored, -np.log(p[:, -1]), 0), rtol=1e-6)
    np.testing.assert_allclose(slopes, np.where(scored, p[:, -1] - 1, 0), rtol=1e-6)
    assert_near(logits[:, :70], 4 * p[:, :-1] * scored[:, None], TOLERANCES[dtype])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_logit_is_seen_in_the_loss_of_its_row_alone(device, value):
    logits, targets, places, t, _ = rows_example("float32", 2, 70, 128)
    logits[0, 69 if targets[0] != 69 else 68] = value
    losses, _ = kernels.softmax_rows(*(on(device, x) for x in (logits, 70, targets, places, t)), True, True)
    assert np.isfinite(device.numpy(losses)).tolist() == [False, True]


@pytest.mark.parametrize("sizes", [1e4, -1e4, 3e4])
def test_large_logits_do_not_overflow(device, sizes):
    logits = np.zeros((2, 64), np.float16)
    logits[:, :3] = np.array([sizes, sizes - 16, -sizes])
    targets, t = np.array([0, 2], np.int32), np.array([sizes, -sizes], np.float32)
    losses, slopes = kernels.softmax_rows(
        *(on(device, x) for x in (logits, 3, targets, targets, t)), True, True
    )
    expected = [0, 2 * sizes] if sizes > 0 else [-2 * sizes, 0]
    np.testing.assert_allclose(device.numpy(losses), expected, atol=1e-6)
    np.testing.assert_allclose(device.numpy(slopes), np.sign(expected) * -1, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "E", "V"), [(7, 41, 9), (1, 1, 1), (0, 3, 2)])
def test_rows_of_the_targets(device, dtype, N, E, V):
    real, generator = accumulation_dtype(np.dtype(dtype)), rng()
    h, W = (generator.standard_normal(shape).astype(dtype) for shape in ((N, E), (V, E)))
    targets = generator.integers(-1, V, N).astype(np.int32)
    slopes, bias = generator.standard_normal((2, N)).astype(real)
    dh = generator.standard_normal((N, E + 3)).astype(real)
    for own_bias in (None, bias):
        given = [h, W, targets, own_bias]
        exact = twin(kernels.target_logits, *given)
        ours = kernels.target_logits(*(on(device, x) for x in given))
        assert_near(device.numpy(ours), exact, TOLERANCES[str(real)])
    ours = on(device, dh)
    kernels.add_target_rows(ours, *(on(device, x) for x in (W, targets, slopes)))
    twin(kernels.add_target_rows, dh, W, targets, slopes)
    assert_near(device.numpy(ours), dh, TOLERANCES[str(real)])


@pytest.mark.parametrize(("N", "ignored"), [(1, 0), (1, 1), (600, 0), (601, 300), (0, 0)])
def test_the_mean_of_the_losses(device, N, ignored):
    losses, targets = rng().standard_normal(N).astype(np.float32), np.arange(N, dtype=np.int32)
    losses[:ignored], targets[:ignored] = 0, -1
    expected = twin(kernels.mean_loss, losses, targets)
    for a, b in zip(kernels.mean_loss(on(device, losses), on(device, targets)), expected, strict=True):
        np.testing.assert_allclose(device.numpy(a), b, rtol=1e-6)
    assert expected[1] == max(N - ignored, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [None, [4, 0, 3]])
def test_rows_are_packed_and_unpacked(device, dtype, ids):
    real, generator = accumulation_dtype(np.dtype(dtype)), rng()
    rows, column = (
        generator.standard_normal((5, 37)).astype(dtype),
        generator.standard_normal(5).astype(dtype),
    )
    ids = None if ids is None else np.array(ids, np.int32)
    for own in (column, None):
        given = [on(device, rows), on(device, own), 40, 7, on(device, ids), 1.0]
        exact = twin(kernels.pack_rows, rows, own, 40, 7, ids, 1.0)
        ours = device.numpy(kernels.pack_rows(*given))
        np.testing.assert_array_equal(ours, exact)
        assert ours.dtype == rows.dtype
    packed, factor = generator.standard_normal((7, 40)).astype(real), np.array([0.7], real)
    for new_rows, new_column in ((True, False), (False, True)):
        expected = [rows.copy(), column.copy()]
        ours = [on(device, value) for value in expected]
        both = ((expected[0], new_rows), (expected[1], new_column))
        twin(kernels.unpack_rows, packed, 37, factor, *both, ids)
        both = ((ours[0], new_rows), (ours[1], new_column))
        kernels.unpack_rows(on(device, packed), 37, on(device, factor), *both, on(device, ids))
        for a, b in zip(ours, expected, strict=True):
            assert_near(device.numpy(a), b, TOLERANCES[dtype])


def test_rows_are_unpacked_alone_and_columns_too(device):
    packed, factor = np.ones((2, 64), np.float32), np.full(1, 3, np.float32)
    rows, column = device.array(np.zeros((2, 5), np.float32)), device.array(np.zeros(2, np.float32))
    kernels.unpack_rows(on(device, packed), 5, on(device, factor), (rows, True))
    kernels.unpack_rows(on(device, packed), 5, on(device, factor), None, (column, True))
    assert (device.numpy(rows) == 3).all()
    assert (device.numpy(column) == 3).all()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (BARRIER + "\n    real l[PACK];", "    real l[PACK];"),
        (BARRIER + "    if (thread == 0 && place >= 0 && t", "    if (thread == 0 && place >= 0 && t"),
        ("packs - 1 - thread; p >= 0", "packs - thread; p >= 0"),
        (BARRIER + "    ExpSum total", "    ExpSum total"),
    ],
)
def test_planted_bugs_are_found(host_runner, monkeypatch, right, wrong):
    source = KernelModule("minilstm", "softmax").source.partition('#line 1 "softmax.cu"\n')[2]
    assert source.count(right) == 1
    bug = KernelModule("minilstm", "softmax", source.replace(right, wrong))
    monkeypatch.setattr(kernels, "SOFTMAX", bug)
    logits, targets, places, t, _ = rows_example("float32", 2, 1000, 1024)
    places[:] = targets[:] = [999, 3]
    with host_kernels(host_runner), pytest.raises(KernelError, match="order of threads|writes outside"):
        kernels.softmax_rows(logits, 1000, targets, places, t, True, True)
