"""Proof of gradients by numbers: every hand-written backward against central differences."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autograd.errors import ShapeError
from autograd.function import Function
from autograd.variable import Variable

STEP = 1e-6
"""Central differences err by about STEP² (truncation) + 1e-16 / STEP (rounding): least near 1e-5 … 1e-6."""
TOLERANCE = 1e-7
"""The worst relative error of a gradient that passes as right."""


class Comparison(NamedTuple):
    """A derivative by one input along one direction, twice: from `backward`, and from a central difference.

    Attributes:
        analytic, numerical: the two.
        norm: of the gradient of the input that was moved, which the error is relative to; a millionth of the
            whole gradient's if it is less, as of a gradient that is 0 but for rounding.
        moved: the number of that input.
    """

    analytic: float
    numerical: float
    norm: float
    moved: int = 0

    @property
    def error(self) -> float:
        """|analytic - numerical| / max(‖gradient‖, |numerical|)."""
        scale = max(self.norm, abs(self.numerical), np.finfo(float).tiny)
        return abs(self.analytic - self.numerical) / scale


def numerical_grad(
    function: Callable[[], Sequence[np.ndarray]],
    inputs: Sequence[np.ndarray],
    grad_outputs: Sequence[np.ndarray | None],
    step: float = STEP,
) -> list[np.ndarray]:
    """Gradients of sum(outputs · grad_outputs) by central differences, element by element.

    Args:
        function: computes the outputs anew from `inputs`, which are changed in place and restored.
        inputs: float64 arrays.
        grad_outputs: one array per output, of its shape, or None to leave that output out.
        step: how far each element is moved both ways.

    Returns:
        One array per input, of its shape. It costs two calls per element: for tests and small arrays.
    """

    def total() -> float:
        return _weighted_sum(function(), grad_outputs)

    grads = [np.zeros_like(array) for array in inputs]
    for array, grad in zip(inputs, grads, strict=True):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = total()
            array[index] = kept - step
            below = total()
            array[index] = kept
            grad[index] = (above - below) / (2 * step)
    return grads


def check_backward(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    grad_outputs: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    directions: int = 2,
    step: float = STEP,
    tolerance: float = TOLERANCE,
) -> float:
    """Assert that `function`'s gradients agree with central differences, input by input.

    Args:
        tolerance: the worst relative error that passes.
        Others as for `compare_backward`.

    Returns:
        The worst relative error, |analytic - numerical| / max(‖gradient‖, |numerical|).

    Raises:
        AssertionError: it is above the tolerance; or the function writes into what is not its own.
        TypeError, ValueError: as `compare_backward`.
    """
    comparisons = compare_backward(
        function, inputs, grad_outputs, seed=seed, directions=directions, step=step
    )
    worst = worst_of(comparisons)
    assert worst.error <= tolerance, (
        f"gradient check: relative error {worst.error:.1e} is above {tolerance:.0e}: along one direction of "
        f"{_called(function, worst.moved)}, of shape {np.shape(inputs[worst.moved])}, "
        f"backward says {worst.analytic:.12g}, differences say {worst.numerical:.12g}"
    )
    return worst.error


def worst_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The one with the largest error; one that is not a number is worse than any that is."""
    return max(comparisons, key=lambda comparison: (np.isnan(comparison.error), comparison.error))


def compare_backward(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    grad_outputs: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    directions: int = 2,
    step: float = STEP,
) -> list[Comparison]:
    """`function`'s gradients beside central differences, each input's by itself, along random directions.

    A derivative along a random direction costs two evaluations however large the input is. A wrong element
    of the gradient shows in it as far as it is large beside the whole gradient of that input; other inputs,
    whose gradients may be a thousand times larger, do not hide it.

    Args:
        function: takes Variables, returns a Variable or several.
        inputs: arrays; the float64 ones are differentiated, the others are held constant.
        grad_outputs: d(root)/d(output), one for each output; None for one that gets no gradient.
            Random if not given.
        seed: of the directions and of grad_outputs.
        directions: how many are tried of each input.
        step: how far an input is moved along the direction, both ways.

    Raises:
        AssertionError: the function writes into one of its inputs, or into d(root)/d(output).
        TypeError: no function, no list of arrays, or none of float64. ValueError: not as many grad_outputs
        as outputs. ShapeError: one of another shape than its output.
    """
    rng = np.random.default_rng(seed)
    moved = _differentiable(function, inputs)
    variables = [Variable(array, requires_grad=index in moved) for index, array in enumerate(inputs)]
    before = [np.array(array) for array in inputs]
    outputs = as_tuple(function(*variables))
    if grad_outputs is None:
        grad_outputs = [rng.standard_normal(output.shape) for output in outputs]
    _check_grad_outputs(grad_outputs, outputs)
    handed = [Handed() for _ in outputs]
    backward_all([each.apply(output) for each, output in zip(handed, outputs, strict=True)], grad_outputs)
    for index, (array, copy) in enumerate(zip(inputs, before, strict=True)):
        assert np.asarray(array).tobytes() == copy.tobytes(), (
            f"gradient check: {_called(function, index)} was changed by forward or backward; "
            "others hold the same array"
        )
    for index, each in enumerate(handed):
        assert not each.was_written, (
            f"gradient check: backward wrote into the gradient of output {index} that it was given; "
            "others hold the same array"
        )
    norms = {index: _norm(variables[index].grad) for index in moved}
    whole = math.hypot(*norms.values())

    comparisons = []
    for index, _ in itertools.product(moved, range(directions)):
        gradient, direction = variables[index].grad, rng.standard_normal(np.shape(inputs[index]))
        above, below = (
            _weighted_sum(_arrays(function, _shifted(inputs, index, sign * step * direction)), grad_outputs)
            for sign in (+1, -1)
        )
        norm = max(norms[index], 1e-6 * whole)
        analytic = _weighted_sum([gradient], [direction])
        comparisons.append(Comparison(analytic, (above - below) / (2 * step), norm, index))
    return comparisons


class Handed(Function):
    """The identity, which remembers what its `backward` handed on."""

    dy: Any = None

    def forward(self, x):
        return x

    def backward(self, dy):
        self.dy, self.copy = dy, dy.copy()
        return dy

    @property
    def was_written(self) -> bool:
        """Whether somebody wrote into that array afterwards."""
        return self.dy is not None and self.dy.tobytes() != self.copy.tobytes()


def _differentiable(function: Callable[..., Any], inputs: Sequence[Any]) -> list[int]:
    """The numbers of the float64 inputs, once what was given is what a check takes."""
    if isinstance(function, type):
        raise TypeError(
            f"check_backward: function must apply it, lambda *inputs: {function.__name__}().apply(*inputs); "
            f"got the class {function.__name__}"
        )
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"check_backward: inputs must be a list of arrays; got one {type(inputs).__name__}")
    if any(isinstance(array, Variable) for array in inputs):
        raise TypeError("check_backward: inputs must be arrays; got a Variable; give its .data")
    dtypes = [np.asarray(array).dtype for array in inputs]
    moved = [index for index, dtype in enumerate(dtypes) if dtype == np.float64]
    if not moved:
        raise TypeError(
            f"check_backward: differences need float64; got {', '.join(map(str, dtypes)) or 'no inputs'}"
        )
    return moved


def _check_grad_outputs(grad_outputs: Sequence[Any], outputs: Sequence[Variable]) -> None:
    if len(grad_outputs) != len(outputs):
        raise ValueError(
            f"check_backward: grad_outputs must have an array or None for each of the {len(outputs)} "
            f"outputs; got {len(grad_outputs)}"
        )
    for index, (output, grad) in enumerate(zip(outputs, grad_outputs, strict=True)):
        if grad is not None and np.shape(grad) != output.shape:
            raise ShapeError(
                f"check_backward: grad_outputs[{index}] must be {output.shape} as output {index} is; "
                f"got {np.shape(grad)}"
            )


def _called(function: Callable[..., Any], index: int) -> str:
    """An input by its number, and by the name that `function` gives it if it tells."""
    try:
        names = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins do not tell
        names = []
    named = index < len(names) and names[index].kind is not inspect.Parameter.VAR_POSITIONAL
    return f"input {index} ({names[index].name})" if named else f"input {index}"


def backward_all(outputs: Sequence[Variable], grad_outputs: Sequence[Any]) -> None:
    """One backward pass from several outputs at once, each with its own gradient or None."""
    from autograd import functions as F

    parts = [
        F.sum(output * Variable(grad, requires_grad=False))
        for output, grad in zip(outputs, grad_outputs, strict=True)
        if grad is not None
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total.backward()


def as_tuple(outputs: Any) -> tuple[Variable, ...]:
    """What a call returned, a tuple always."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _arrays(function: Callable[..., Any], inputs: Sequence[Any]) -> list[np.ndarray]:
    variables = [Variable(array, requires_grad=False) for array in inputs]
    return [output.data for output in as_tuple(function(*variables))]


def _shifted(inputs: Sequence[Any], index: int, change: np.ndarray) -> list[Any]:
    shifted = list(inputs)
    shifted[index] = inputs[index] + change
    return shifted


def _norm(gradient: Any) -> float:
    return 0.0 if gradient is None else math.sqrt(float((gradient**2).sum()))


def _weighted_sum(arrays: Sequence[Any], weights: Sequence[Any]) -> float:
    """Sum of the products, in pairs; a missing partner counts as zero."""
    pairs = zip(arrays, weights, strict=True)
    return float(sum((a * w).sum() for a, w in pairs if a is not None and w is not None))
