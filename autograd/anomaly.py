"""Where the first value that is no finite number arose: what `autograd.mode.detect_anomaly` switches on.

Each Function's inputs were looked at when they were made, so the Function that is named is the one at fault,
or one of its parameters or constants is; the message tells which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.backend import get_array_module
from autograd.errors import AnomalyError

if TYPE_CHECKING:
    from autograd.function import Function
    from autograd.variable import Node, Variable


def check_forward(function: Function, inputs: Sequence[Variable], outputs: Sequence[Any]) -> None:
    """Raise an AnomalyError if an input or an output of a Function holds a value that is not finite.

    Args:
        function: that was applied.
        inputs: variables that it was applied to.
        outputs: arrays that its `forward` made.
    """
    for index, variable in enumerate(inputs):
        found = _first_bad(variable.data)
        if found:
            raise AnomalyError(
                f"anomaly: {_input(index, variable.node)} of {function.label} held {found} before the "
                "forward pass; it came in with the data or the weights"
            )
    for index, array in enumerate(outputs):
        found = _first_bad(array)
        if found:
            of = _parameters([variable.node for variable in inputs])
            raise AnomalyError(
                f"anomaly: {function.label}{of}, forward: {_output(index, len(outputs))} holds {found}, "
                "the first value that is not finite"
            )


def check_backward(function: Function, grads: Sequence[tuple[Node, Any]]) -> None:
    """Raise an AnomalyError if a gradient that a Function's `backward` returned is not finite.

    Args:
        function: whose backward pass has run; its inputs are still known.
        grads: (input, gradient or None) of the inputs that want a gradient.
    """
    for node, grad in grads:
        found = None if grad is None else _first_bad(grad)
        if found:
            index = next(i for i, known in enumerate(function.inputs) if known is node)
            of = "" if _is_named(node) else _parameters(function.inputs)
            raise AnomalyError(
                f"anomaly: {function.label}{of}, backward: the gradient of {_input(index, node)} holds "
                f"{found}, the first value that is not finite"
            )


def check_sum(function: Function, node: Node, total: Any) -> None:
    """Raise an AnomalyError if the gradients of one variable, the last from `function`, overflow in sum."""
    found = _first_bad(total)
    if found:
        index = next(i for i, known in enumerate(function.inputs) if known is node)
        raise AnomalyError(
            f"anomaly: {function.label}, backward: the gradient of {_input(index, node)} holds {found} once "
            "the parts from all uses are added, the first value that is not finite"
        )


def _first_bad(array: Any) -> str | None:
    """\"nan at (0, 3)\" for the first value that is not finite; None if there is none."""
    if array.dtype.kind != "f":
        return None
    xp = get_array_module(array)
    finite = xp.isfinite(array)
    if finite.all():
        return None
    place = tuple(int(i) for i in np.unravel_index(int(xp.argmin(finite)), array.shape))
    bad = array.size - int(finite.sum())
    return f"{float(array[place])} at {place} of shape {tuple(array.shape)} ({bad} of {array.size} values)"


def _input(index: int, node: Node) -> str:
    kind = "parameter" if node.is_parameter else "variable"
    return f"input {index}" + (f" ({kind} {node.name})" if node.name else "")


def _output(index: int, count: int) -> str:
    return "the output" if count == 1 else f"output {index}"


def _is_named(node: Node) -> bool:
    return node.is_parameter and node.name is not None


def _parameters(nodes: Sequence[Node]) -> str:
    """\" of W, b\": the parameters among some inputs, which tell the layers of one kind apart."""
    names = [node.name for node in nodes if node.is_parameter and node.name]
    return f" of {', '.join(names)}" if names else ""
