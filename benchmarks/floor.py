"""The floor of a training step: its matrix products in NumPy, of the same shapes, and nothing else.

What a step takes beyond it is the program's own: exponentials, gates, sums, clipping, Adam, Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.sizes import Size

LOGITS_BYTES = 64 << 20
"""Of the vocabulary's products at a time: the logits of the largest size would take 0.8 GB."""


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
