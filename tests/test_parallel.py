"""Parts in threads: their order, their errors, BLAS's own threads, and the same bits every time."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from autograd import parallel
from autograd.parallel import (
    MIN_PARALLEL_PRODUCT,
    can_share_work,
    matmul_rows,
    num_threads,
    run_parts,
    split_range,
)


def blas_threads():
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library.num_threads for library in controllers if "numpy" in library.filepath]


class FakeBlas:
    """Counts what it is told, whatever the cores and the BLAS of this machine."""

    def __init__(self):
        self.told = []

    def set_num_threads(self, number):
        self.told.append(number)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """As if BLAS had been given three, whatever the cores of this machine and the threads of this process."""
    blas, given = parallel._blas()
    monkeypatch.setattr(parallel, "_blas", lambda: (blas, 3))
    with ThreadPoolExecutor(3, thread_name_prefix="autograd") as pool:
        monkeypatch.setattr(parallel, "_pool", lambda: pool)
        if blas is not None:
            blas.set_num_threads(3)
        yield
        if blas is not None:
            blas.set_num_threads(given)


# --- split_range ---


@pytest.mark.parametrize("size", [0, 1, 2, 7, 16, 100])
@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
@pytest.mark.parametrize("multiple", [1, 3, 16, 1000])
def test_slices_cover_the_range_in_order(size, pieces, multiple):
    slices = split_range(size, pieces, multiple)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(size))
    assert 1 <= len(slices) <= pieces
    assert all(part.start % multiple == 0 for part in slices)
    assert size == 0 or all(part.stop > part.start for part in slices)


def test_slices_are_of_about_one_size():
    assert split_range(100, 4) == [slice(0, 25), slice(25, 50), slice(50, 75), slice(75, 100)]
    assert split_range(100, 2, multiple=16) == [slice(0, 64), slice(64, 100)]
    assert split_range(3, 5) == [slice(0, 1), slice(1, 2), slice(2, 3)]


# --- run_parts ---


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_results_come_in_the_order_of_the_parts(count):
    done = [threading.Event() for _ in range(count + 1)]
    done[count].set()

    def last_first(part):
        if count <= num_threads():
            assert done[part + 1].wait(10)  # each waits for the one behind it
            done[part].set()
        return part * part

    assert run_parts(last_first, range(count)) == [part * part for part in range(count)]


def test_the_first_part_runs_in_the_calling_thread():
    names = run_parts(lambda _: threading.current_thread().name, range(2))
    assert names[0] == threading.current_thread().name
    assert names[1].startswith("autograd")


def test_what_a_part_could_share_runs_in_its_own_thread():
    def threads_of_parts(_):
        return set(run_parts(lambda _: threading.current_thread().name, range(3)))

    first, second = run_parts(threads_of_parts, range(2))
    assert first == {threading.current_thread().name}
    assert len(second) == 1
    assert can_share_work()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_exception_of_any_part_arrives(broken):
    def fail(part):
        if part == broken:
            raise KeyError(f"part {part}")

    with pytest.raises(KeyError, match=f"part {broken}"):
        run_parts(fail, range(3))
    assert run_parts(abs, [-1, -2]) == [1, 2], "the pool must live on"


def test_the_first_part_failing_does_not_leave_others_behind():
    """Nobody may go on writing into arrays that the caller has given up."""
    going_on, finished = threading.Event(), threading.Event()

    def part(index):
        if index == 0:
            going_on.wait(10)
            raise KeyError
        going_on.set()
        threading.Event().wait(0.05)
        finished.set()

    with pytest.raises(KeyError):
        run_parts(part, range(2))
    assert finished.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_blas_gets_its_threads_back(fails, monkeypatch):
    fake = FakeBlas()
    monkeypatch.setattr(parallel, "_blas", lambda: (fake, 7))

    def part(index):
        assert fake.told == [1]
        assert not fails, "planted"

    with pytest.raises(AssertionError, match="planted") if fails else contextlib.nullcontext():
        run_parts(part, range(2))
    assert fake.told == [1, 7]
    run_parts(lambda _: None, range(1))
    assert fake.told == [1, 7], "one part may use all of BLAS's threads"


def test_without_a_blas_to_steer_parts_run_all_the_same(monkeypatch):
    monkeypatch.setattr(parallel, "_blas", lambda: (None, 1))
    assert run_parts(abs, [-1, -2]) == [1, 2]


def test_blas_has_one_thread_inside_several_parts():
    if not blas_threads():
        pytest.skip("no BLAS that can be asked")
    assert run_parts(lambda _: blas_threads(), range(2)) == [[1], [1]]
    assert blas_threads() == [num_threads()]


def test_a_part_sees_the_callers_settings():
    """What NumPy ignores in the caller it ignores in its threads."""
    with np.errstate(over="ignore"):
        assert run_parts(lambda _: float(np.exp(np.float32(1000))), range(2)) == [np.inf, np.inf]
    with np.errstate(all="ignore"):
        assert run_parts(lambda _: float(np.float32(1) / np.float32(0)), range(3)) == [np.inf] * 3
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        run_parts(lambda part: part and np.float32(1) / np.float32(0), range(2))


# --- matmul_rows ---


@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 2), (3, 0, 2), (15, 4, 3), (33, 5, 7), (100, 20, 30)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("large", [False, True])
def test_matmul_rows_is_the_product(shape, dtype, large, monkeypatch):
    monkeypatch.setattr(parallel, "MIN_PARALLEL_PRODUCT", 0 if large else MIN_PARALLEL_PRODUCT)
    m, k, n = shape
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-13}
    out = np.full((m, n), np.nan, dtype)
    assert matmul_rows(x, y, out=out) is out
    np.testing.assert_allclose(out, x @ y, **tolerance)
    fresh = matmul_rows(x, y)
    assert fresh.dtype == dtype
    assert fresh.tobytes() == out.tobytes()
    np.testing.assert_allclose(matmul_rows(x.T.copy().T, y.T.copy().T), x @ y, **tolerance)
    before = out.copy()
    assert matmul_rows(x, y, out=out, accumulate=True) is out
    assert out.tobytes() == (before + before).tobytes()


def test_matmul_rows_uses_threads_from_a_size_on(monkeypatch, three_threads):
    rows = []
    monkeypatch.setattr(parallel, "run_parts", lambda function, parts: rows.append(len(parts)))
    monkeypatch.setattr(parallel, "MIN_PARALLEL_PRODUCT", 100 * 200 * 200)
    y = np.zeros((200, 200))
    for m in (99, 100):
        matmul_rows(np.zeros((m, 200)), y)
    assert rows == [3]


def test_the_same_bits_come_out_again(monkeypatch, three_threads):
    monkeypatch.setattr(parallel, "MIN_PARALLEL_PRODUCT", 0)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    assert len({matmul_rows(x, y).tobytes() for _ in range(5)}) == 1
