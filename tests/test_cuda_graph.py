"""When work is run, captured and launched, on a CuPy whose graphs are lists of what was launched."""

import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, FakeCupy

from autograd.errors import DeviceError, ShapeError
from train import cuda_graph
from train.cuda_graph import GraphedFunction
from train.device import Gpu


class Work:
    """out = x · factor and total += x, by "kernels"; `runs` counts how often Python went through it."""

    def __init__(self):
        self.cupy = FakeCupy()
        self.gpu = Gpu(self.cupy, 0)
        self.total, self.factor, self.runs, self.told = np.zeros(3), np.ones(1), 0, []
        self.call = GraphedFunction(self.run, self.gpu, self.told.append)

    def run(self, x):
        self.runs += 1
        out = np.full(len(x), np.nan)

        def kernel():
            out[...] = x * self.factor
            self.total[: len(x)] += x

        self.cupy.launch(kernel)
        return (out,)


@pytest.fixture
def work():
    return Work()


def test_eager_first_captured_second_launched_ever_after(work):
    results = []
    for step in range(5):
        work.factor[...] = step + 1  # lies in memory, so the graph sees it change
        (out,) = work.call("T=3", np.full(3, step + 1.0))
        results.append(out.copy())
    np.testing.assert_array_equal(results, [[(step + 1.0) ** 2] * 3 for step in range(5)])
    np.testing.assert_array_equal(work.total, [15, 15, 15])  # the capture itself ran nothing
    assert work.runs == 2
    assert [line for line in work.cupy.history if "capture" in line] == ["begin_capture", "end_capture"]
    assert work.told == []


def test_each_key_has_a_graph_and_buffers_of_its_own(work):
    for _ in range(3):
        for length in (3, 2):
            (out,) = work.call(length, np.arange(1.0, 1 + length))
            np.testing.assert_array_equal(out, np.arange(1.0, 1 + length))
    assert work.runs == 4
    np.testing.assert_array_equal(work.total, [6, 12, 9])


def test_inputs_are_copied_into_buffers_that_stay(work):
    x = np.ones(3)
    work.call(0, x)
    work.call(0, x)
    x[...] = np.nan  # whoever made it uses it for something else
    (out,) = work.call(0, np.full(3, 2.0))
    np.testing.assert_array_equal(out, [2, 2, 2])


def test_both_runs_take_their_memory_from_one_private_pool(work):
    for _ in range(3):
        work.call(0, np.ones(3))
    assert work.cupy.history.count("private pool") == 2
    assert len(work.cupy.pools) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        CUDARuntimeError(906, "cudaErrorStreamCaptureImplicit: would wait\nmore"),
        RuntimeError("calling cuBLAS API during stream capture is currently unsupported\nmore"),
        DeviceError("cuBLAS could not multiply: internal error (status 14)"),
        MemoryError("Out of memory allocating 11,512,315,904 bytes"),
    ],
)
def test_what_cannot_be_captured_goes_on_piece_by_piece_and_says_so_once(work, refusal):
    work.cupy.refuses_to_capture = refusal
    for step in range(4):
        (out,) = work.call(0, np.full(3, step + 1.0))
        np.testing.assert_array_equal(out, np.full(3, step + 1.0))
        work.call(1, np.ones(3))
    assert len(work.told) == 1
    assert work.told[0].startswith(f"no CUDA graphs: {str(refusal).splitlines()[0]}; each kernel")
    np.testing.assert_array_equal(work.total, [14, 14, 14])
    assert not work.gpu.stream.is_capturing()


def test_a_mistake_of_the_caller_is_raised_and_leaves_no_capture_open(work):
    work.call(0, np.ones(3))
    work.cupy.refuses_to_capture = ShapeError("x must be (3)")
    with pytest.raises(ShapeError):
        work.call(0, np.ones(3))
    assert not work.gpu.stream.is_capturing()


def test_no_more_graphs_than_there_may_be(work, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MOST_GRAPHS", 2)
    for _ in range(3):
        for length in (1, 2, 3):
            work.call(length, np.ones(length))
    assert work.runs == 2 + 2 + 3
    np.testing.assert_array_equal(work.total, [9, 6, 3])
