"""Rows added to a matrix by kernels: the ids' order, and the sums of equal ones, as the twins have them."""

import numpy as np
import pytest
from host_runner import KernelError
from kernel_examples import TOLERANCES, assert_near, on, twin

import autograd.functions as F
from autograd import Parameter
from autograd.backend import accumulation_dtype
from autograd.functions import embedding_kernels as kernels
from autograd.functions.embedding import add_rows
from autograd.kernels import KernelModule, host_kernels


@pytest.mark.parametrize(("size", "words"), [(0, 1), (1, 1), (256, 3), (300, 1), (257, 1000)])
def test_ids_are_sorted_stably(device, size, words):
    ids = np.random.default_rng(0).integers(-1, words, size).astype(np.int32)
    order, words = kernels.sort_ids(on(device, ids))
    np.testing.assert_array_equal(device.numpy(order), np.argsort(ids, kind="stable"))
    np.testing.assert_array_equal(device.numpy(words), np.sort(ids))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("N", "E", "V"), [(150, 33, 7), (40, 3, 60), (1, 1, 1), (0, 4, 3)])
@pytest.mark.parametrize("weighed", [False, True])
def test_rows_are_added(device, dtype, N, E, V, weighed):
    generator, real = np.random.default_rng(0), accumulation_dtype(np.dtype(dtype))
    ids = generator.integers(-1, V, N).astype(np.int32)
    target, rows = (generator.standard_normal((n, E)).astype(dtype) for n in (V, N))
    weights = generator.standard_normal(N).astype(real) if weighed else None
    word_scale = generator.standard_normal(V).astype(dtype) if weighed else None
    factor = np.array([0.3], real) if weighed else None
    ours = on(device, target)
    kernels.add_weighted_rows(ours, *(on(device, x) for x in (ids, rows, weights, word_scale, factor)))
    exact = target.astype(np.float64)
    twin(kernels.add_weighted_rows, target, ids, rows, weights, word_scale, factor)
    assert_near(device.numpy(ours), target, TOLERANCES[dtype])
    for n in np.flatnonzero(ids >= 0):
        scale = weights[n] * word_scale[ids[n]].astype(np.float64) * factor[0] if weighed else 1.0
        exact[ids[n]] += scale * rows[n].astype(np.float64)
    assert_near(target, exact, TOLERANCES[dtype])


@pytest.mark.parametrize("counts", [[8], [9], [7, 2], [1, 24, 1], [5, 40, 5, 6], [16, 16], [3] * 11])
def test_runs_end_anywhere_in_a_chunk(device, counts):
    """A block sums 8 positions; runs are as long as that, longer than several, or begin at its end."""
    ids = np.repeat(np.arange(len(counts)), counts)[::-1]
    rows = np.random.default_rng(0).standard_normal((ids.size, 3))
    expected = np.zeros((len(counts), 3))
    np.add.at(expected, ids, rows)
    target = on(device, np.zeros_like(expected))
    kernels.add_weighted_rows(target, on(device, ids), on(device, rows))
    np.testing.assert_allclose(device.numpy(target), expected, rtol=1e-13, atol=1e-13)


def test_a_frequent_word_is_summed_in_float32(device):
    """In float16 a sum of ones stands still at 2,048."""
    target, rows = on(device, np.zeros((2, 1), np.float16)), on(device, np.ones((2300, 1), np.float16))
    add_rows(target, on(device, np.ones(2300, np.int64)), rows)
    assert device.numpy(target).ravel().tolist() == [0, 2300]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_embedding_takes_its_gradient_from_kernels(host_runner, scaled):
    generator = np.random.default_rng(0)
    W, ids, dx = (
        generator.standard_normal((6, 3)),
        generator.integers(0, 6, (4, 5)),
        generator.random((4, 5, 3)),
    )
    row_scale = generator.random(6) if scaled else None
    gradients = []
    for runner in (None, host_runner):
        parameter = Parameter(W)
        with host_kernels(runner):
            for _ in range(2):  # the second on top of the first
                F.embedding(ids, parameter, row_scale).backward(dx)
        gradients.append(parameter.grad)
    assert "add_rows" in host_runner.launches
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-13)


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("        __syncthreads();\n    }\n", "    }\n", "order depends on the order of threads"),
        ("tile[k] <= own", "tile[k] < own", "order depends on the order of threads"),
    ],
)
def test_planted_bugs_are_found(host_runner, monkeypatch, right, wrong, fault):
    source = KernelModule("autograd", "embedding").source.partition('#line 1 "embedding.cu"\n')[2]
    assert source.count(right) == 1
    bug = KernelModule("autograd", "embedding", source.replace(right, wrong))
    monkeypatch.setattr(kernels, "EMBEDDING", bug)
    ids, rows = np.sort(np.arange(300) % 9), np.random.default_rng(0).standard_normal((300, 3))
    with host_kernels(host_runner), pytest.raises(KernelError, match=fault):
        add_rows(np.zeros((9, 3)), ids[::-1], rows)
