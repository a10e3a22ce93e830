"""Function: one differentiable operation, with its derivative written by hand."""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autograd.anomaly import check_forward
from autograd.backend import accumulation_dtype, get_array_module
from autograd.deferred import Deferred
from autograd.errors import DtypeError, ShapeError
from autograd.mode import is_backprop_enabled, is_detecting_anomaly
from autograd.parallel import num_threads
from autograd.profile import function_span
from autograd.variable import Node, Parameter, Variable, as_variable

Dtypes = set[np.dtype]


class Function:
    """An operation on arrays and its derivative; applying it grows the graph.

    A subclass writes two methods:

        forward(*arrays) -> array or tuple of arrays
            computes, and hands `self.save(...)` whatever the derivative will need;
        backward(*grad_outputs) -> array or None, or a tuple with one of these per input
            returns d(root)/d(input) from d(root)/d(output); an output that nobody used has None.

    One instance is applied once. Constants (an axis, a mask) are set in `__init__`. The floating-point
    inputs must share one dtype, so float32 never becomes float64 unseen. What goes back to a float16 input
    is float16; inside, sums over it are made in float32 (`autograd.backend.accumulation_dtype`).
    """

    inputs: tuple[Node, ...]
    _given: list[Variable]  # the inputs themselves, while `forward` runs
    _outputs: tuple[weakref.ref[Node], ...] = ()
    _saved: tuple[Any, ...] | None = None
    saved_is_needed_again = False  # set by a backward pass that retains the graph
    applied_within = ""  # the span of a profile around its forward
    needs_kernels = False  # True for those that CUDA kernels compute; tests hold them equal to their twins
    changes_dtype = False  # True for the few whose result has another precision by intention
    is_sum = False  # True for losses: of float16 inputs the result is float32, being a sum over all of them

    def forward(self, *arrays: Any) -> Any:
        """The operation: arrays in, an array or a tuple of arrays out."""
        raise NotImplementedError(f"{self.label}: forward")

    def backward(self, *grad_outputs: Any) -> Any:
        """Its derivative: d(root)/d(output) for each output in, d(root)/d(input) for each input out."""
        raise NotImplementedError(f"{self.label}: backward")

    @property
    def label(self) -> str:
        """The operation's name in errors and drawings: LayerNormalization is layer_normalization."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    def apply(self, *inputs: Any) -> Any:
        """Run `forward` on variables or arrays, of the shapes that it takes.

        Returns:
            A Variable, or a tuple of them, as `forward` does.

        Raises:
            DtypeError: floating-point inputs of several precisions, or a result of another than theirs.
            RuntimeError: this instance was applied before. TypeError: it is called on the class, or `forward`
            returned no array.
        """
        if not isinstance(self, Function):  # called on the class
            raise TypeError(
                "apply is called on an instance, a new one each time: Cube().apply(x), not Cube.apply(x)"
            )
        variables = [as_variable(value) for value in inputs]
        given = self._checked_dtypes(variables)
        if not self.is_released:
            raise RuntimeError(f"{self.label}: one instance is applied once; make a new one for each call")
        self._given = variables
        with function_span(self, "forward"):
            result = self.forward(*(variable.data for variable in variables))
        del self._given
        arrays = result if isinstance(result, tuple) else (result,)
        self._check_results(variables, given, arrays)
        if is_detecting_anomaly():
            check_forward(self, variables, arrays)
        records = is_backprop_enabled() and any(variable.requires_grad for variable in variables)
        outputs = tuple(self._output(array, records) for array in arrays)
        if records:
            self.inputs = tuple(variable.node for variable in variables)
            self._outputs = tuple(weakref.ref(output.node) for output in outputs)
        else:
            self._saved = None
        return outputs if isinstance(result, tuple) else outputs[0]

    def _output(self, array: Any, records: bool) -> Variable:
        output = Variable(array, requires_grad=records)
        if records:
            output.node.creator, output.keeps_grad = self, False
        return output

    def _checked_dtypes(self, variables: list[Variable]) -> Dtypes:
        """The one dtype of the floating-point inputs; of inputs that are all of one dtype, that one."""
        dtypes = {variable.data.dtype for variable in variables}
        if len(dtypes) > 1:
            dtypes = {dtype for dtype in dtypes if dtype.kind == "f"}
        if len(dtypes) > 1:
            raise DtypeError(
                f"{self.label}: all floating-point inputs must have one dtype; got "
                f"{', '.join(str(variable.dtype) for variable in variables)}; "
                "convert with autograd.functions.cast"
            )
        return dtypes

    def _check_results(self, variables: list[Variable], given: Dtypes, arrays: tuple[Any, ...]) -> None:
        """NumPy makes float64 of float32 and integers: here that is an error and not a slow surprise."""
        for array in arrays:
            if isinstance(array, Variable) or not hasattr(array, "dtype"):
                hint = "; inside forward call NumPy, not autograd.functions"
                raise TypeError(
                    f"{self.label}.forward must return an array or a tuple of arrays; "
                    f"got {type(array).__name__}{hint if isinstance(array, Variable) else ''}"
                )
            if array.dtype not in given and array.dtype.kind == "f":
                self._check_changed_dtype(variables, given, array.dtype)

    def _check_changed_dtype(self, variables: list[Variable], given: Dtypes, made: np.dtype) -> None:
        """Raise unless this Function may make numbers of another precision than all that it was given."""
        given = {dtype for dtype in given if dtype.kind == "f"}
        wide = {accumulation_dtype(dtype) for dtype in given} if self.is_sum else set()
        if given and not self.changes_dtype and made not in wide:
            integers = any(variable.dtype.kind != "f" for variable in variables)
            hint = "give the integers" if integers else "give the arrays that forward makes"
            raise DtypeError(
                f"{self.label}: inputs of {', '.join(str(variable.dtype) for variable in variables)} would "
                f"make {made}; {hint} the others' precision"
            )

    def begin_backward(self, retain_graph: bool) -> None:
        """Called before each `backward`: are the saved arrays needed again? No target is written yet."""
        self.saved_is_needed_again = retain_graph
        self._targets: dict[int, Any] = {}
        self.deferred: Deferred | None = None

    def save(self, *arrays: Any) -> None:
        """Keep arrays for `backward`; they are released after it unless the graph is retained."""
        self._saved = arrays

    @property
    def saved(self) -> tuple[Any, ...]:
        """What `forward` saved."""
        if self._saved is None:
            raise RuntimeError(f"{self.label}: nothing is saved; forward must call self.save(...)")
        return self._saved

    def release(self) -> None:
        """Let go of the saved arrays and of the graph behind this function."""
        del self.inputs
        self._saved = None

    @property
    def is_released(self) -> bool:
        """Whether it stands in no graph: not applied, not recorded, or gone through by a backward pass."""
        return not hasattr(self, "inputs")

    @property
    def outputs(self) -> tuple[Node | None, ...]:
        """The nodes of the outputs; None for one that nobody holds any more."""
        return tuple(reference() for reference in self._outputs)

    def argument_names(self) -> list[str]:
        """What `forward` calls each input; those of a `*arrays` are numbered if there are several."""
        names, rest = _parameters(type(self).forward)
        count = len(self.inputs) - len(names)
        numbered = [rest] if count == 1 else [f"{rest}[{k}]" for k in range(count)]
        return names[: len(self.inputs)] + numbered

    def needs_grad(self, index: int) -> bool:
        """Whether anybody wants the gradient of input `index`; if not, `backward` may return None for it."""
        return self.inputs[index].requires_grad

    def grad_target(self, index: int, like: Any) -> tuple[Any, bool]:
        """An array in which `backward` may build the gradient of input `index`, and whether it is unwritten.

        For a parameter this is its own gradient buffer: large gradients are written in place, block by
        block. An unwritten one must be written over, a written one added to; then `backward` returns it.
        For any other input it is an array of its own, of the dtype of `like`; asked for again, it is written.
        """
        node = self.inputs[index]
        owner = node.owner if node.creator is None and node.requires_grad else None
        if owner is not None:
            return owner.grad_target()
        unwritten = index not in self._targets
        if unwritten:
            self._targets[index] = get_array_module(like).empty(node.shape, like.dtype)
        return self._targets[index], unwritten

    def borrow_grad_memory(self, index: int) -> Any:
        """For `forward`: memory in which something may be saved until `backward`; None if there is none.

        It is that of the gradient of input `index`, a parameter, of its shape and dtype. `backward` must ask
        `still_borrows` before it asks for the `grad_target`, and have another way if it no longer does.
        """
        variable = self._given[index]
        if not (is_backprop_enabled() and isinstance(variable, Parameter)):
            return None
        return variable.lend_grad_buffer(self)

    def still_borrows(self, index: int) -> bool:
        """Whether what `forward` has saved in the memory of that gradient is still there."""
        owner = self.inputs[index].owner
        return isinstance(owner, Parameter) and owner.lends_to(self)

    def defer(
        self,
        indices: tuple[int, ...],
        work: Callable[[Any], object],
        parts: Sequence[Any],
        last: Callable[[], object],
    ) -> None:
        """For `backward`: work(part) for all parts, then last(), complete the gradients of these inputs.

        They are built in the arrays that `grad_target` gave, which `backward` returns. Where those belong to
        leaves of the graph, idle threads do the work while the pass goes on, and it ends before anybody else
        touches them; else it is done at once. Each part writes to memory of its own; the bits are the same.
        """
        deferred = Deferred(work, parts, last, indices)
        of_leaves = not any(self.inputs[index].creator for index in indices)
        if num_threads() == 1 or is_detecting_anomaly() or not of_leaves:
            deferred.finish()
        else:
            self.deferred = deferred

    def check_shape(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...], because: str) -> None:
        """Raise a ShapeError in the caller's words unless the shape is the expected one."""
        if tuple(shape) != tuple(expected):
            raise ShapeError(f"{self.label}: {name} must be {expected} because {because}; got {tuple(shape)}")


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[list[str], str]:
    """The names of the arguments of a Function's `forward`, and that of its `*arrays`."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]  # without self
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    return [p.name for p in parameters if p.name not in rest], "".join(rest)


# Last, for they need the names above: whatever of the engine is loaded first, variables have their operators.
import autograd.functions  # noqa: E402, F401
