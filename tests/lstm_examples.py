"""Sizes for the tests of both LSTMs, and how small ones take the paths of large ones."""

import pytest

from autograd import parallel
from minilstm import lstm_kernels

# (T, B, I, H): sizes of one, an empty batch, several panels of 32 columns, more rows than panels are for.
SHAPES = [(1, 1, 1, 1), (3, 2, 4, 5), (2, 0, 3, 4), (5, 1, 2, 3), (4, 3, 5, 1), (3, 4, 7, 33), (2, 25, 3, 20)]
PATHS = ["plain", "plain product", "split depth", "threads", "threads and split depth"]


def on_its_paths(fused, readable):
    """Parametrizes `function` and `path`: the fused one on each path, the readable one, which has none,
    once."""
    cases = [*((fused, path) for path in PATHS), (readable, PATHS[0])]
    names = [f"{function.__name__}-{path}" for function, path in cases]
    return pytest.mark.parametrize(("function", "path"), cases, indirect=["path"], ids=names)


def take_path(monkeypatch, name):
    architecture = "Haswell" if "plain product" in name else lstm_kernels.PANEL_ARCHITECTURES[0]
    monkeypatch.setattr(lstm_kernels, "blas_architecture", lambda: architecture)
    if "split" in name:
        monkeypatch.setattr(lstm_kernels, "SMALL_PRODUCT", 32 * 33)
    if "threads" in name:
        use_threads(monkeypatch)


def use_threads(monkeypatch, threads=3):
    """Take the paths of large sizes, several threads and all, on tiny ones."""
    monkeypatch.setattr(lstm_kernels, "MIN_PARALLEL_WORK", 0)
    monkeypatch.setattr(lstm_kernels, "MIN_MEETING_WORK", 0)
    monkeypatch.setattr(lstm_kernels, "num_threads", lambda: threads)
    monkeypatch.setattr("minilstm.lstm.free_threads", lambda: threads)
    monkeypatch.setattr("minilstm.lstm.MIN_PARALLEL_ELEMENTS", 0)
    monkeypatch.setattr(lstm_kernels, "free_threads", lambda: threads)
    monkeypatch.setattr(parallel, "MIN_PARALLEL_PRODUCT", 0)
    monkeypatch.setattr(parallel, "num_threads", lambda: threads)
