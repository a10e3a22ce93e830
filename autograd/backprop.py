"""The reverse pass: every function once, after everybody who used its outputs; iterative, never recursive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from autograd.anomaly import check_backward, check_sum
from autograd.backend import get_array_module
from autograd.errors import ShapeError
from autograd.function import Function
from autograd.mode import is_detecting_anomaly
from autograd.profile import function_span
from autograd.variable import Node, Variable


def backward(
    root: Variable,
    gradient: Any = None,
    retain_graph: bool = False,
    on_complete: Callable[[Variable], None] | None = None,
) -> None:
    """Add d(root)/d(leaf) to the `grad` of every leaf that the root was computed from.

    Args:
        root: the variable to differentiate.
        gradient: d(something)/d(root), of the root's shape; 1 for a single number.
        retain_graph: keep what the functions saved, so that the pass can be run again.
        on_complete: called with each leaf as soon as all who used it have added to its gradient, while the
            pass goes on. The order follows from the graph alone.

    Raises:
        ShapeError: no gradient given for a root of more than one number, or one of another shape.
        RuntimeError: the root has no graph behind it, or it was released by an earlier pass.
    """
    gradient = _root_gradient(root, gradient)
    if root.keeps_grad and root.requires_grad:
        root.accumulate_grad(gradient)
    if root.creator is None:
        if not root.requires_grad:
            raise RuntimeError("backward: the root depends on nothing that requires a gradient")
        return
    with _DeferredGradients() as deferred:
        _run(root.creator, {root.node: gradient}, retain_graph, on_complete, deferred)
    for leaf in deferred.untold:
        if on_complete:
            on_complete(leaf)


def _run(
    last: Function,
    gradients: dict[Node, Any],
    retain_graph: bool,
    on_complete: Callable[[Variable], None] | None,
    deferred: _DeferredGradients,
) -> None:
    """The pass itself, from the function that made the root; `gradients` holds the root's."""
    waiting = _count_uses(last)
    leaves = _count_leaf_uses(waiting) if on_complete else {}
    ready = [last]
    detecting = is_detecting_anomaly()
    while ready:
        function = ready.pop()
        function.begin_backward(retain_graph)
        deferred.finish(function.inputs)
        try:
            grads = _input_gradients(function, gradients)
        finally:
            deferred.add(function)
        if detecting:
            check_backward(function, grads)
        for node, grad in grads:
            if grad is not None:
                total = _deliver(node, grad, gradients)
                if detecting and total is not None:
                    check_sum(function, node, total)
            if node in leaves and on_complete:
                leaves[node] -= 1
                if leaves[node] == 0 and node.owner is not None and not deferred.holds(node):
                    on_complete(node.owner)
            if node.creator is not None:
                waiting[node.creator] -= 1
                if waiting[node.creator] == 0:
                    _keep_gradients(node.creator, gradients)
                    ready.append(node.creator)
        if not retain_graph:
            function.release()


class _DeferredGradients:
    """What functions have left to idle threads in this pass (`Function.defer`); leaving it, all is done.

    Attributes:
        untold: leaves whose gradient was complete but for what is deferred: who waits for them is told after
            the pass, in this order.
    """

    def __init__(self) -> None:
        self.untold: list[Variable] = []
        self._functions: list[Function] = []
        self._by_node: dict[Node, Function] = {}

    def __enter__(self) -> _DeferredGradients:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        for function in self._functions:
            if error is None:
                self._finish(function)
            elif function.deferred:
                function.deferred.cancel()

    def add(self, function: Function) -> None:
        """Take charge of what the function has just deferred, if anything."""
        if function.deferred:
            self._functions.append(function)
            for index in function.deferred.indices:
                self._by_node[function.inputs[index]] = function

    def finish(self, nodes: Iterable[Node]) -> None:
        """Wait for the gradients of these variables, which somebody is about to touch."""
        for node in nodes:
            if node in self._by_node:
                self._finish(self._by_node[node])

    def holds(self, node: Node) -> bool:
        """Whether this leaf's gradient is not complete yet; then it is noted as untold."""
        if node not in self._by_node:
            return False
        if node.owner is not None:
            self.untold.append(node.owner)
        return True

    def _finish(self, function: Function) -> None:
        if function.deferred:
            with function_span(function, "backward", " (deferred)"):
                function.deferred.finish()
            function.deferred = None
        self._by_node = {node: other for node, other in self._by_node.items() if other is not function}


def _root_gradient(root: Variable, gradient: Any) -> Any:
    xp = get_array_module(root.data)
    if gradient is None:
        if root.size != 1:
            raise ShapeError(
                f"backward: a root of shape {root.shape} needs a gradient of its shape; got none; "
                "give one, or call backward on one number, such as the .sum()"
            )
        return xp.ones_like(root.data)
    gradient = xp.asarray(gradient, dtype=root.dtype)
    if gradient.shape != root.shape:
        raise ShapeError(f"backward: the gradient must be {root.shape} as the root is; got {gradient.shape}")
    return gradient


def _count_uses(last: Function) -> dict[Function, int]:
    """For every function behind `last`: how many uses of its outputs must report before it can run."""
    uses: dict[Function, int] = {last: 0}
    unseen = [last]
    while unseen:
        function = unseen.pop()
        if function.is_released:
            raise RuntimeError(
                "backward: this graph was released by an earlier pass; call that one with retain_graph=True"
            )
        for node in function.inputs:
            creator = node.creator
            if creator is None:
                continue
            if creator not in uses:
                uses[creator] = 0
                unseen.append(creator)
            uses[creator] += 1
    return uses


def _count_leaf_uses(functions: Iterable[Function]) -> dict[Node, int]:
    """For every variable that wants a gradient and that no function made: how many uses of it there are."""
    uses: dict[Node, int] = {}
    for function in functions:
        for node in function.inputs:
            if node.creator is None and node.requires_grad:
                uses[node] = uses.get(node, 0) + 1
    return uses


def _input_gradients(function: Function, gradients: dict[Node, Any]) -> list[tuple[Node, Any]]:
    """(node, gradient or None) for every input of a function that wants one."""
    grad_outputs = [None if node is None else gradients.pop(node, None) for node in function.outputs]
    if all(grad is None for grad in grad_outputs):
        grads: Any = (None,) * len(function.inputs)  # nothing reached it
    else:
        with function_span(function, "backward"):
            grads = function.backward(*grad_outputs)
    grads = tuple(grads) if isinstance(grads, tuple | list) else (grads,)
    if len(grads) != len(function.inputs):
        raise RuntimeError(
            f"{function.label}.backward must return one gradient or None for each of its "
            f"{len(function.inputs)} inputs; got {len(grads)}"
        )
    for index, (node, grad) in enumerate(zip(function.inputs, grads, strict=True)):
        if node.requires_grad and grad is not None:
            _check_gradient(function, index, node, grad)
    return [(node, grad) for node, grad in zip(function.inputs, grads, strict=True) if node.requires_grad]


def _check_gradient(function: Function, index: int, node: Node, grad: Any) -> None:
    """Raise a RuntimeError in the words of who wrote `backward` unless a gradient fits its input."""
    expected, got, hint = f"an array {node.shape}", f"a {type(grad).__name__}", ""
    if hasattr(grad, "dtype") and not isinstance(grad, Variable):
        if (grad.shape, grad.dtype) == (node.shape, node.dtype):
            return
        if grad.shape != node.shape:
            got = str(grad.shape)
            hint = "; what was broadcast is summed: autograd.functions.arithmetic.sum_to"
        else:
            expected, got = f"of {node.dtype} as the input is", str(grad.dtype)
    raise RuntimeError(
        f"{function.label}.backward: the gradient of input {index}, {function.argument_names()[index]}, "
        f"must be {expected}; got {got}{hint}"
    )


def _deliver(node: Node, grad: Any, gradients: dict[Node, Any]) -> Any:
    """Add a gradient to a leaf's own, or to what waits for the function that made the node; the sum."""
    if node.creator is None:
        owner = node.owner
        if owner is None:
            return None
        owner.accumulate_grad(grad)
        return owner.grad
    # Not in place: the first may be somebody else's too.
    gradients[node] = gradients[node] + grad if node in gradients else grad
    return gradients[node]


def _keep_gradients(function: Function, gradients: dict[Node, Any]) -> None:
    """Hand finished gradients to those intermediate variables that asked for them by `retain_grad`."""
    for node in function.outputs:
        if node is not None and node in gradients:
            owner = node.owner
            if owner is not None and owner.keeps_grad:
                owner.accumulate_grad(gradients[node])
