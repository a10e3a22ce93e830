"""Calls of every Function of the engine: what `python -m autograd.check` and the tests run through.

A new Function gets one line here, `yield Case(Cube, cube, [normal(2, 3)])`, with the shapes that it may meet:
none, size 1, empty batches and broadcasting both ways. `python -m autograd.check` fails if it has none.
"""

# One loop runs over shapes of many lengths and Functions of many kinds, which mypy takes for mistakes.
# mypy: disable-error-code="arg-type, assignment, operator"

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import autograd.functions as F
from autograd import Function, Variable
from autograd.functions.activation import Exp, Log, Relu, Sigmoid, Tanh
from autograd.functions.arithmetic import Add, Divide, Multiply, Negate, Power, Subtract
from autograd.functions.array import (
    BroadcastTo,
    Cast,
    Concatenate,
    GetItem,
    Reshape,
    Split,
    Transpose,
)
from autograd.functions.embedding import Embedding
from autograd.functions.linear import Linear, Matmul
from autograd.functions.loss import LogSoftmax, SoftmaxCrossEntropy
from autograd.functions.normalization import LayerNormalization
from autograd.functions.reduction import Mean, Sum
from autograd.gradient_check import Handed, as_tuple

SHAPES = [(), (1,), (3,), (2, 1), (2, 3), (0, 3), (2, 1, 4), (3, 0, 2)]
BROADCASTS = [
    ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 3), ()),
    ((1, 1), (1,)), ((1, 1), (2, 3)), ((0, 3), (3,)), ((1, 3), (0, 3)), ((0, 1), (1, 3)), ((4, 1, 3), (2, 1)),
]  # fmt: skip
KEPT = np.array([0, 2.0, 1.5, 0.5])


@dataclass
class Case:
    """A call that applies a Function of this kind; those of its arrays that hold floats are variables.

    Args:
        kind: the Function whose gradient is checked.
        function: takes the inputs, as arrays or variables.
        inputs: float64 arrays, and integers that are constants.
    """

    kind: type[Function]
    function: Callable[..., Variable | tuple[Variable, ...]]
    inputs: list[np.ndarray]

    def __str__(self) -> str:
        return " ".join([self.kind.__name__] + [str(value.shape).replace(" ", "") for value in self.inputs])

    @property
    def float_inputs(self) -> list[int]:
        """The places of the inputs that are differentiated."""
        return [index for index, value in enumerate(self.inputs) if value.dtype.kind == "f"]


def outputs_of(case: Case, inputs: list[Any]) -> tuple[Variable, ...]:
    """What the call makes of these inputs instead of its own, a tuple always."""
    return as_tuple(case.function(*inputs))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers; equal shapes and seeds give equal ones."""
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape))


def away_from_zero(*shape: int) -> np.ndarray:
    """Of both signs, none within 0.5 of 0: for the pole of 1 / x and the kink of relu."""
    x = normal(*shape, seed=1)
    return x + np.copysign(0.5, x)


def positive(*shape: int) -> np.ndarray:
    """At least 0.5: for logarithms and roots."""
    return np.abs(away_from_zero(*shape))


def ids(size: int, *shape: int) -> np.ndarray:
    """Whole numbers in [0, size)."""
    return np.asarray(np.random.default_rng([size, *shape]).integers(0, size, shape))


def elementwise() -> Iterator[Case]:
    """Of one array, and of two with broadcasting."""
    for shape in SHAPES:
        for kind, function in ((Exp, F.exp), (Sigmoid, F.sigmoid), (Tanh, F.tanh), (Negate, F.negate)):
            yield Case(kind, function, [normal(*shape)])
        yield Case(Log, F.log, [positive(*shape)])
        yield Case(Relu, F.relu, [away_from_zero(*shape)])
        for exponent in (3, 0.5, -1, 1, 0):
            yield Case(Power, functools.partial(F.power, exponent=exponent), [positive(*shape)])
        yield Case(Power, functools.partial(F.power, exponent=0), [np.zeros(shape)])
        yield Case(Multiply, lambda x: F.dropout(x, 0.5, np.random.default_rng(0)), [normal(*shape)])
        # to the precision of what comes in, so that this list serves float32 and float64
        yield Case(Cast, lambda x: F.cast(x, x.dtype), [normal(*shape)])
    for x, y in BROADCASTS:
        for kind, function in (
            (Add, F.add), (Subtract, F.subtract), (Multiply, F.multiply), (Divide, F.divide)
        ):  # fmt: skip
            yield Case(kind, function, [normal(*x), away_from_zero(*y)])
    yield Case(Multiply, lambda x: x * x, [normal(2, 3)])
    yield Case(Divide, lambda x: 2.0 / x, [positive(2, 3)])
    yield Case(Subtract, lambda x: 1 - x, [positive(2, 3)])


def reductions() -> Iterator[Case]:
    """Sums and means over every kind of axis."""
    for shape, axis, keepdims in itertools.product(SHAPES, (None, 0, -1, (0, -1), (-2,)), (False, True)):
        axes = () if axis is None else np.atleast_1d(axis)
        if len(shape) < 2 and axis is not None and not (len(shape) == 1 and axis in (0, -1)):
            continue  # there is no such axis
        x, options = normal(*shape), {"axis": axis, "keepdims": keepdims}
        yield Case(Sum, functools.partial(F.sum, **options), [x])
        if x.size or (axis is not None and all(shape[a] for a in axes)):  # nothing has no mean
            yield Case(Mean, functools.partial(F.mean, **options), [x])


def array_functions() -> Iterator[Case]:
    """What moves numbers without changing them."""
    for shape, new in (((2, 3), (3, 2)), ((2, 3), (-1,)), ((), (1, 1)), ((0, 3), (3, 0)), ((4,), (2, 1, 2))):
        yield Case(Reshape, functools.partial(F.reshape, shape=new), [normal(*shape)])
    for shape in SHAPES:
        yield Case(Transpose, F.transpose, [normal(*shape)])
        yield Case(Handed, lambda x: Handed().apply(x), [normal(*shape)])
    for axes in ((1, 2, 0), (2, 0, 1), (0, -1, 1)):
        yield Case(Transpose, functools.partial(F.transpose, axes=axes), [normal(2, 3, 4)])
    for index in (
        1, -1, np.int64(2), slice(1, None, 2), (slice(None), 0), (3, 2), (..., None, 1),
        slice(2, 2), slice(None, None, -1), np.array([0, 2, 0, 0]), [1, 1],
        (np.array([0, 0]), np.array([1, 1])), np.array([], int), np.array([True, False, True, True]),
    ):  # fmt: skip
        yield Case(GetItem, functools.partial(F.get_item, index=index), [normal(4, 3)])
    yield Case(GetItem, lambda x: x[1:], [normal(0, 3)])
    for axis, shapes in (
        (0, [(2, 3), (1, 3), (0, 3)]), (1, [(2, 3), (2, 1)]), (-1, [(1, 2), (1, 2), (1, 1)]), (0, [(3,)]),
        (0, [(0, 2), (0, 2)]),
    ):  # fmt: skip
        inputs = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
        yield Case(Concatenate, lambda *arrays, axis=axis: F.concatenate(arrays, axis), inputs)
    for axis in (0, 1, 2):
        inputs = [normal(2, 3, seed=k) for k in range(2)]
        yield Case(Concatenate, lambda *arrays, axis=axis: F.stack(arrays, axis), inputs)
    for shape, sections, axis in (
        ((4, 3), 2, 0),
        ((2, 6), 3, -1),
        ((2, 3), 1, 1),
        ((0, 4), 2, 1),
        ((0, 2), 3, 0),
    ):
        yield Case(Split, functools.partial(F.split, sections=sections, axis=axis), [normal(*shape)])
    for shape, new in (((3,), (2, 3)), ((2, 1), (2, 3)), ((), (2, 3)), ((1, 3), (0, 3)), ((1, 1), (4, 1, 3))):
        yield Case(BroadcastTo, functools.partial(F.broadcast_to, shape=new), [normal(*shape)])


def products() -> Iterator[Case]:
    """Matrix products, with broadcasting and without."""
    for x, y in (
        ((2, 3), (3, 4)), ((1, 1), (1, 1)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((0, 3), (3, 4)),
        ((5, 1, 2, 3), (4, 3, 1)), ((0, 2, 3), (3, 4)), ((2, 0), (0, 3)), ((1, 2, 3), (5, 3, 2)),
    ):  # fmt: skip
        yield Case(Matmul, F.matmul, [normal(*x), normal(*y, seed=1)])
    for x in ((2, 3), (3,), (1, 3), (0, 3), (4, 2, 3), (4, 0, 3)):
        yield Case(Linear, F.linear, [normal(*x), normal(4, 3)])
        yield Case(Linear, F.linear, [normal(*x), normal(4, 3), normal(4)])
    yield Case(Linear, F.linear, [normal(2, 1), normal(1, 1), normal(1)])


def normalizations_and_losses() -> Iterator[Case]:
    """What works along the last axis."""
    for shape in ((5,), (1,), (2, 5), (2, 1), (0, 5), (3, 2, 4)):
        width = shape[-1:]
        parameters = [normal(*width), normal(*width, seed=1)]
        normalize = functools.partial(F.layer_normalization, epsilon=0.1)
        yield Case(LayerNormalization, normalize, [normal(*shape, seed=2), *parameters])
        yield Case(LogSoftmax, F.log_softmax, [normal(*shape)])
        yield Case(SoftmaxCrossEntropy, F.softmax_cross_entropy, [normal(*shape), ids(*width, *shape[:-1])])
    for targets in (np.array([1, -1, 0, 4]), np.full(4, -1)):
        yield Case(SoftmaxCrossEntropy, F.softmax_cross_entropy, [normal(4, 5), targets])


def embeddings() -> Iterator[Case]:
    """Lookups of ids of many shapes, scaled and not."""
    for shape in ((), (1,), (5,), (3, 2), (0,), (2, 0)):
        yield Case(Embedding, F.embedding, [ids(4, *shape), normal(4, 3)])
        scaled = lambda ids, W: F.embedding(ids, W, KEPT.astype(W.dtype))  # noqa: E731
        yield Case(Embedding, scaled, [ids(4, *shape), normal(4, 3)])


CASES = [
    *elementwise(),
    *reductions(),
    *array_functions(),
    *products(),
    *normalizations_and_losses(),
    *embeddings(),
]
PLOTTED: list[type[Function]] = [Tanh, LayerNormalization, Matmul]
"""What `--plot` shows; a product has no third derivative, so central differences truncate nothing there."""
