"""Variable: an array that remembers how it came to be, so that gradients can flow back through it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.backend import get_array_module
from autograd.errors import DtypeError

if TYPE_CHECKING:
    from autograd.function import Function


class Node:
    """A variable's place in the graph: who made it, and what it looks like, without its array.

    Functions point at the nodes of their inputs and not at the variables, so an intermediate array
    lives on only if some function saved it for its backward pass.
    """

    __slots__ = (
        "creator", "shape", "dtype", "name", "requires_grad", "is_parameter", "_owner", "__weakref__",
    )  # fmt: skip

    def __init__(self, variable: Variable, requires_grad: bool, name: str | None) -> None:
        self.creator: Function | None = None
        self.shape, self.dtype, self.name = variable.shape, variable.dtype, name
        self.requires_grad, self.is_parameter = requires_grad, isinstance(variable, Parameter)
        self._owner = weakref.ref(variable)

    @property
    def owner(self) -> Variable | None:
        """The variable, or None once nobody holds it: then nobody can ask for its gradient."""
        return self._owner()


class Variable:
    """An array in the computational graph.

    Args:
        data: a NumPy or CuPy array, or what numpy.asarray takes.
        requires_grad: whether `backward` computes a gradient for it.
        name: shown in errors and in drawings of the graph.

    Attributes:
        data: the array.
        grad: d(root)/d(data) after `backward`, an array of the same shape and dtype, or None. It is kept
            for variables that no function made (leaves), and for others after `retain_grad()`.
        creator: the `Function` that made it, or None.

    Raises:
        DtypeError: requires_grad with numbers that are not floating point.
    """

    __slots__ = ("data", "grad", "node", "keeps_grad", "__weakref__")
    __array_priority__ = 200  # so that `numpy_array * variable` is ours

    def __init__(self, data: Any, requires_grad: bool = True, name: str | None = None) -> None:
        self.data = data if hasattr(data, "dtype") and hasattr(data, "shape") else np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            called = f"Variable {name}" if name else "Variable"
            raise DtypeError(
                f"{called}: only floating-point data can have a gradient; "
                f"got {self.data.dtype}; convert it with .astype, or pass requires_grad=False"
            )
        self.grad: Any = None
        self.keeps_grad = True
        self.node = Node(self, requires_grad, name)

    @property
    def name(self) -> str | None:
        """Shown in errors and in drawings of the graph; None: it has none."""
        return self.node.name

    @name.setter
    def name(self, name: str | None) -> None:
        self.node.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a NumPy function got a Variable; give it the array, .data, "
            "or call autograd.functions, which records the gradient"
        )

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` computes a gradient for it."""
        return self.node.requires_grad

    @property
    def creator(self) -> Function | None:
        """The `Function` that made it; None for a leaf."""
        return self.node.creator

    def item(self) -> float:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Variable:
        """The same array without its history: no gradient flows back through it."""
        return Variable(self.data, requires_grad=False, name=self.name)

    def retain_grad(self) -> None:
        """Keep this variable's gradient in `grad` although a function made it."""
        self.keeps_grad = True

    def zero_grad(self) -> None:
        """Forget the gradient, so that the next backward pass starts anew instead of adding to it."""
        self.grad = None

    def backward(
        self,
        gradient: Any = None,
        retain_graph: bool = False,
        on_complete: Callable[[Variable], None] | None = None,
    ) -> None:
        """Adds d(self)/d(leaf) to every leaf's `grad`; see `autograd.backprop.backward`."""
        from autograd.backprop import backward

        backward(self, gradient, retain_graph, on_complete)

    def accumulate_grad(self, gradient: Any) -> None:
        """Add a gradient (an array of this shape) to `grad`; the first one is copied, never shared."""
        if self.grad is None:
            self.grad = gradient.astype(self.dtype)
        elif self.grad is not gradient:
            self.grad += gradient

    def grad_target(self) -> tuple[Any, bool]:
        """Where a function may add this leaf's gradient by itself: (array, whether it is still unwritten).

        Whoever takes an unwritten one must write all of it at once: from here on it counts as written.
        """
        unwritten = self.grad is None
        if unwritten:
            self.grad = get_array_module(self.data).empty_like(self.data)
        return self.grad, unwritten

    if (
        TYPE_CHECKING
    ):  # autograd.functions puts these here: variable.py need not know what functions there are

        def __add__(self, other: Any) -> Variable: ...
        def __radd__(self, other: Any) -> Variable: ...
        def __sub__(self, other: Any) -> Variable: ...
        def __rsub__(self, other: Any) -> Variable: ...
        def __mul__(self, other: Any) -> Variable: ...
        def __rmul__(self, other: Any) -> Variable: ...
        def __truediv__(self, other: Any) -> Variable: ...
        def __rtruediv__(self, other: Any) -> Variable: ...
        def __matmul__(self, other: Any) -> Variable: ...
        def __rmatmul__(self, other: Any) -> Variable: ...
        def __pow__(self, exponent: float) -> Variable: ...
        def __neg__(self) -> Variable: ...
        def __getitem__(self, index: Any) -> Variable: ...
        def reshape(self, *shape: Any) -> Variable: ...
        def transpose(self, axes: Any = None) -> Variable: ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> Variable: ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> Variable: ...
        @property
        def T(self) -> Variable: ...

    def __repr__(self) -> str:
        label = f", name={self.name!r}" if self.name else ""
        return f"{type(self).__name__}({self.data!r}{label})"


class Parameter(Variable):
    """A variable that is trained. Its array and its gradient may be views into one flat buffer.

    The gradient's memory is kept between steps: `zero_grad` marks it as unwritten, and the next backward
    pass writes over it, so nothing is allocated or cleared once training runs. While it is unwritten, one
    Function of the forward pass can borrow it.
    """

    __slots__ = ("grad_buffer", "_borrower")

    def __init__(self, data: Any, name: str | None = None) -> None:
        super().__init__(data, requires_grad=True, name=name)
        self.grad_buffer: Any = None
        self._borrower: weakref.ref[Function] | None = None

    def lend_grad_buffer(self, borrower: Function) -> Any:
        """The gradient's memory, for what a Function saves until its backward pass; None if it is in use.

        The loan ends when somebody asks for `grad_target`, the borrower itself included.
        """
        taken = self._borrower is not None and self._borrower() is not None
        if self.grad is not None or self.grad_buffer is None or taken:
            return None
        self._borrower = weakref.ref(borrower)
        return self.grad_buffer

    def lends_to(self, borrower: Function) -> bool:
        """Whether what this Function has put into the gradient's memory is still there."""
        return self._borrower is not None and self._borrower() is borrower

    def move_to(self, data: Any, grad_buffer: Any) -> None:
        """Let this parameter live in the given arrays (of its shape); its values are copied there."""
        data[...] = self.data
        self.data, self.grad_buffer, self.grad, self._borrower = data, grad_buffer, None, None
        self.node.dtype = data.dtype

    def accumulate_grad(self, gradient: Any) -> None:
        if gradient is self.grad:
            return  # the function has built it in place
        target, unwritten = self.grad_target()
        if unwritten:
            target[...] = gradient
        else:
            target += gradient

    def grad_target(self) -> tuple[Any, bool]:
        unwritten = self.grad is None
        if self.grad_buffer is None:
            self.grad_buffer = get_array_module(self.data).empty_like(self.data)
        self.grad, self._borrower = self.grad_buffer, None
        return self.grad, unwritten


def as_variable(value: Any) -> Variable:
    """The value itself if it is a Variable, else a constant (no gradient) around it."""
    return value if isinstance(value, Variable) else Variable(value, requires_grad=False)


# Last, for it needs the names above: it brings the functions along, and with them a variable's operators.
import autograd.function  # noqa: E402, F401
