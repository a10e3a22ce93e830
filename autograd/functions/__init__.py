"""The differentiable functions, one family a file; `import autograd.functions as F`."""

from autograd.functions.activation import exp, log, relu, sigmoid, tanh
from autograd.functions.arithmetic import add, divide, multiply, negate, power, subtract
from autograd.functions.array import (
    broadcast_to,
    cast,
    concatenate,
    get_item,
    reshape,
    split,
    stack,
    transpose,
)
from autograd.functions.dropout import dropout
from autograd.functions.embedding import embedding
from autograd.functions.linear import linear, matmul
from autograd.functions.loss import log_softmax, softmax_cross_entropy
from autograd.functions.normalization import layer_normalization
from autograd.functions.reduction import mean, sum
from autograd.variable import Variable

__all__ = [
    "add", "broadcast_to", "cast", "concatenate", "divide", "dropout", "embedding", "exp", "get_item",
    "layer_normalization", "linear", "log", "log_softmax", "matmul", "mean", "multiply", "negate", "power",
    "relu", "reshape", "sigmoid", "softmax_cross_entropy", "split", "stack", "subtract", "sum", "tanh",
    "transpose",
]  # fmt: skip


def _install_operators() -> None:
    """Let variables be added, multiplied and sliced with Python's own signs."""

    def reshaped(x, *shape):
        return reshape(x, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    operators = {
        "__add__": add,
        "__radd__": lambda y, x: add(x, y),
        "__sub__": subtract,
        "__rsub__": lambda y, x: subtract(x, y),
        "__mul__": multiply,
        "__rmul__": lambda y, x: multiply(x, y),
        "__truediv__": divide,
        "__rtruediv__": lambda y, x: divide(x, y),
        "__matmul__": matmul,
        "__rmatmul__": lambda y, x: matmul(x, y),
        "__neg__": negate,
        "__pow__": power,
        "__getitem__": get_item,
        "reshape": reshaped,
        "transpose": transpose,
        "sum": sum,
        "mean": mean,
        "T": property(transpose),
    }
    for name, operator in operators.items():
        setattr(Variable, name, operator)


_install_operators()
