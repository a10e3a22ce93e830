"""The recurrent product in panels equals the plain one, whatever their number, depth and padding."""

import itertools
import tracemalloc

import numpy as np
import pytest

from autograd.parallel import run_parts
from minilstm import lstm_kernels
from minilstm.lstm_kernels import (
    MAX_ROWS,
    MIN_PARALLEL_WORK,
    PANEL_WIDTH,
    RecurrentProduct,
    batch_parts,
    unit_parts,
)

ROWS, DEPTHS, COLUMNS = (0, 1, 2, 24, 25), (1, 4, 6, 7, 32, 40), (1, 31, 32, 33, 64, 100)
TOLERANCES = {np.float32: 1e-5, np.float64: 1e-13}


@pytest.fixture(autouse=True)
def panels_pay(monkeypatch):
    monkeypatch.setattr(lstm_kernels, "blas_architecture", lambda: lstm_kernels.PANEL_ARCHITECTURES[0])


def operands(rows, depth, columns, transposed, dtype):
    """h (rows, depth) and W (depth, columns), perhaps the transpose of a matrix that lies row by row."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((columns, depth)).T if transposed else rng.standard_normal((depth, columns))
    return rng.standard_normal((rows, depth)).astype(dtype), W.astype(dtype, order="K")


def assert_product(product, h, W, tolerance):
    out = np.full((len(h), W.shape[1]), np.nan, W.dtype)
    assert product(h, out) is out
    np.testing.assert_allclose(out, h @ W, rtol=tolerance, atol=tolerance * np.sqrt(len(W)))
    assert out.dtype == W.dtype


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 700])
def test_a_matrix_is_copied_row_by_row_however_it_lies(columns):
    wide = np.random.default_rng(0).standard_normal((columns, 60))
    for W in (wide.T, wide.T[:, : columns // 2 + 1], wide[:, 3:9], np.asfortranarray(wide)):
        copy = lstm_kernels._row_by_row(W)
        assert copy.flags.c_contiguous
        assert not np.shares_memory(copy, W)
        assert np.array_equal(copy, W)


@pytest.mark.parametrize("small_product", [1, 300, 3000, lstm_kernels.SMALL_PRODUCT])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_panels_equal_the_plain_product(small_product, transposed, dtype, monkeypatch):
    monkeypatch.setattr(lstm_kernels, "SMALL_PRODUCT", small_product)
    splits = set()
    for rows, depth, columns in itertools.product(ROWS, DEPTHS, COLUMNS):
        h, W = operands(rows, depth, columns, transposed, dtype)
        product = RecurrentProduct(W, rows)
        assert_product(product, h, W, TOLERANCES[dtype])
        splits.add(None if product.panels is None else product.panels.shape[1])
    if small_product == 300:
        assert splits == {1, 2, 4, None}, "the sizes above no longer reach every path"


@pytest.mark.parametrize(
    ("rows", "depth", "splits"),
    [(24, 1024, 1), (20, 1150, 1), (24, 4096, 4), (24, 2604, 2), (20, 4600, 4), (24, 1301, 1),
     (24, 1303, None), (24, 9000, None), (25, 100, None)],
)  # fmt: skip
def test_no_piece_is_larger_than_blas_takes_as_it_lies(rows, depth, splits):
    product = RecurrentProduct(np.zeros((depth, 40), np.float32), rows)
    if splits is None:
        assert product.panels is None
    else:
        assert product.panels.shape == (2, splits, depth // splits, PANEL_WIDTH)
        assert rows * depth // splits * PANEL_WIDTH <= lstm_kernels.SMALL_PRODUCT


@pytest.mark.parametrize("depth", [1024, 4096], ids=["whole depth", "split depth"])
@pytest.mark.parametrize("columns", [640, 650], ids=["whole panels", "a narrower last panel"])
def test_with_a_workspace_a_product_allocates_nothing(depth, columns):
    h, W = operands(20, depth, columns, False, np.float32)
    product, out = RecurrentProduct(W, 20), np.empty((20, columns), np.float32)
    workspace = product.workspace(20)
    assert (workspace is None) == (depth == 1024 and columns == 640)
    product(h, out, workspace)
    tracemalloc.start()
    try:
        product(h, out, workspace)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 8
    np.testing.assert_allclose(out, h @ W, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_W_is_read_when_the_product_is_made(transposed):
    """A later change of the weights, as by an optimizer, does not reach a pass that has begun."""
    h, W = operands(3, 8, 40, transposed, np.float64)
    product, expected = RecurrentProduct(W, 3), h @ W
    W[...] = 0
    out = np.empty_like(expected)
    np.testing.assert_allclose(product(h, out), expected, rtol=1e-13)


@pytest.mark.parametrize("make", [lambda h: np.asfortranarray(h), lambda h: np.repeat(h, 2, axis=1)[:, ::2]])
@pytest.mark.parametrize("columns", [50, 64])
def test_h_and_out_may_lie_anyhow(make, columns):
    h, W = operands(5, 12, columns, True, np.float64)
    whole = np.full((5, 2, columns), np.nan)
    RecurrentProduct(W, 5)(make(h), whole[:, 1])
    np.testing.assert_allclose(whole[:, 1], h @ W, rtol=1e-12, atol=1e-13)
    assert np.isnan(whole[:, 0]).all()


def test_where_panels_do_not_pay_it_is_the_plain_product(monkeypatch):
    monkeypatch.setattr(lstm_kernels, "blas_architecture", lambda: "Haswell")
    h, W = operands(3, 40, 50, True, np.float64)
    product = RecurrentProduct(W, 3)
    assert product.panels is None
    assert product.workspace(3) is None
    assert_product(product, h, W, 1e-13)
    expected, W[...] = h @ W, 0
    np.testing.assert_array_equal(product(h, np.empty_like(expected)), expected)


def test_fewer_rows_than_promised():
    """The last part of a batch may have fewer rows than the first."""
    h, W = operands(3, 40, 50, False, np.float64)
    assert_product(RecurrentProduct(W, MAX_ROWS), h, W, 1e-13)


def test_the_same_bits_come_out_again():
    h, W = operands(20, 200, 150, True, np.float32)
    outs = {RecurrentProduct(W, 20)(h, np.empty((20, 150), np.float32)).tobytes() for _ in range(3)}
    assert len(outs) == 1


def test_units_are_shared_out_only_when_that_pays(monkeypatch):
    monkeypatch.setattr(lstm_kernels, "num_threads", lambda: 3)
    x = np.zeros((1, 1, 1))
    B, H = 20, 1150
    assert unit_parts(x, B, H) == [slice(0, 383), slice(383, 767), slice(767, 1150)]
    assert unit_parts(x, B, 200) == [slice(0, 200)]
    assert run_parts(lambda _: len(unit_parts(x, B, H)), range(2)) == [1, 1], "a part is shared no further"


def test_the_batch_is_shared_out_only_when_that_pays(monkeypatch):
    monkeypatch.setattr(lstm_kernels, "num_threads", lambda: 3)
    x = np.zeros((1, 1, 1))
    H = 200
    enough = -(-MIN_PARALLEL_WORK // (8 * H * H))
    assert batch_parts(x, enough - 1, H) == [slice(0, enough - 1)]
    parts = batch_parts(x, enough, H)
    assert len(parts) == 3
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(enough))
    assert batch_parts(x, 0, 10**6) == [slice(0, 0)]
    assert len(batch_parts(x, 2, 10**6)) == 2
