"""What no training step in NumPy does without: matrix products, exponentials, tangents and the update.

The first is its floor, which the program is measured against. The second, shared among all threads as well as
can be, tells with the rate of one large product how fast the same step could be on this machine at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autograd.parallel import num_threads, run_parts
from benchmarks.sizes import Size
from train.optimizers import Adam, clip_factor, global_norm

LOGITS_BYTES = 64 << 20
"""Of the vocabulary's products at a time: the logits of the largest size would take 0.8 GB."""

IN_CACHE = 1 << 16
"""Numbers whose exponentials, or tangents, are taken at a time."""


@dataclass(frozen=True)
class Product:
    """`count` products of (rows, depth) by (depth, columns)."""

    rows: int
    depth: int
    columns: int
    count: int = 1


def step_products(size: Size) -> list[Product]:
    """Every product of one step, forward and backward."""
    N, B, T, V = size.tokens, size.batch_size, size.window, size.vocab_size
    products = []
    for inputs, units in size.model_config().layer_sizes:
        gates = 4 * units
        products += [Product(N, inputs, gates), Product(N, gates, inputs), Product(gates, N, inputs)]
        products += [Product(B, units, gates, T), Product(B, gates, units, T), Product(gates, N, units)]
    E = size.model_config().output_size
    words = min(V, max(LOGITS_BYTES // (4 * N), 1))
    for columns, blocks in ((words, V // words), (V % words, 1)):
        if columns:
            products += [Product(N, E, columns, blocks), Product(N, columns, E, blocks)]
            products.append(Product(columns, N, E, blocks))
    return products


def floor_timer(size: Size) -> Callable[[], float]:
    """A function that makes all products of a step once and returns their seconds.

    Operands are made beforehand, results go into memory that is there. A product that a step makes many times
    (with one W_hh, or with blocks of one W) has the same operands each time: the cache can only help it.
    """
    rng = np.random.default_rng(0)
    prepared = []
    for product in step_products(size):
        a = rng.random((product.rows, product.depth), np.float32)
        b = rng.random((product.depth, product.columns), np.float32)
        prepared.append((a, b, np.empty((product.rows, product.columns), np.float32), product.count))

    def multiply() -> float:
        start = time.perf_counter()
        for a, b, out, count in prepared:
            for _ in range(count):
                np.matmul(a, b, out=out)
        return time.perf_counter() - start

    return multiply


def elementwise_timer(size: Size) -> Callable[[], float]:
    """A function that makes what a step does to single numbers and returns its seconds.

    That is exp of every logit, tanh of every gate and cell, the global norm and Adam of every parameter: the
    first two by NumPy alone, on numbers that stay in the cache, the others as a training step makes them.
    """
    model = size.model_config()
    logits = size.tokens * size.vocab_size
    tangents = size.tokens * sum(5 * units for _, units in model.layer_sizes)
    parameters = np.zeros(model.num_parameters(), np.float32)
    gradients = np.full_like(parameters, 1e-3)
    adam = Adam(parameters)

    def walk(_: int) -> None:
        x = np.linspace(-1, 1, IN_CACHE, dtype=np.float32)
        y = np.empty_like(x)
        for function, count in ((np.exp, logits), (np.tanh, tangents)):
            for _ in range(max(round(count / (num_threads() * IN_CACHE)), 1)):
                function(x, out=y)

    def compute() -> float:
        start = time.perf_counter()
        run_parts(walk, range(num_threads()))
        adam.update(gradients, 1e-3, clip_factor(global_norm(gradients), 0.25))
        return time.perf_counter() - start

    return compute
