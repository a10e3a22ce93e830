"""A small decoder, and the loss with all its gradients, for the tests of the tied softmax."""

import numpy as np

from autograd import Variable
from minilstm import tied_softmax


def example(N=13, E=5, V=70, dtype=np.float64, scale=1.0, ignored=()):
    rng = np.random.default_rng(0)
    h, W, b = (rng.standard_normal(shape).astype(dtype) for shape in ((N, E), (V, E), (V,)))
    targets = rng.integers(0, V, N)
    targets[list(ignored)] = -1
    return h * dtype(scale), W, b, targets


def run(loss, h, W, b, targets, factor=1.0, **options):
    """The loss and the gradients of h, W and b."""
    variables = [Variable(value) for value in (h, W, b)]
    result = loss(*variables, targets, **options)
    (result * factor).backward()
    return [result.data] + [variable.grad for variable in variables]


def divide_work(monkeypatch, threads, kept_bytes):
    monkeypatch.setattr(tied_softmax, "num_threads", lambda: threads)
    monkeypatch.setattr(tied_softmax, "KEPT_BYTES", kept_bytes)
