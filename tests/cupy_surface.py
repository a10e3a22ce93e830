"""What of CuPy is used, and what each function takes: the fake has no more."""

FUNCTIONS = {
    "all": "a axis out keepdims",
    "any": "a axis out keepdims",
    "arange": "start stop step dtype",
    "argmax": "a axis dtype out keepdims",
    "argmin": "a axis dtype out keepdims",
    "argsort": "a axis kind",
    "array": "obj dtype copy order subok ndmin blocking",
    "asarray": "a dtype order copy blocking",
    "ascontiguousarray": "a dtype",
    "bincount": "x weights minlength",
    "broadcast_to": "array shape",
    "concatenate": "tup axis out dtype casting",
    "einsum": "operands dtype",
    "empty": "shape dtype order",
    "empty_like": "prototype dtype order subok shape",
    "expand_dims": "a axis",
    "flatnonzero": "a",
    "full": "shape fill_value dtype order",
    "isin": "element test_elements assume_unique invert",
    "matmul": "args out dtype casting order",
    "ones": "shape dtype order",
    "ones_like": "a dtype order subok shape",
    "searchsorted": "a v side sorter",
    "split": "ary indices_or_sections axis",
    "where": "condition x y",
    "zeros": "shape dtype order",
    "zeros_like": "a dtype order subok shape",
}
"""CuPy's functions, as far as they are used, and what each takes; tests/test_fake_cupy.py asks CuPy."""
UFUNCS = [
    *("abs", "absolute", "add", "bitwise_and", "bitwise_or", "divide", "equal", "exp", "expm1", "greater"),
    *("greater_equal", "invert", "isfinite", "isnan", "less", "less_equal", "log", "log1p", "logaddexp"),
    *("logical_and", "logical_or", "maximum", "minimum", "multiply", "negative", "not_equal", "power"),
    *("remainder", "sqrt", "square", "subtract", "tanh"),
]
UFUNC_TAKES, REDUCE_TAKES = "out casting dtype", "array axis dtype out keepdims"
METHODS = {
    "all": "axis out keepdims",
    "any": "axis out keepdims",
    "argmax": "axis out dtype keepdims",
    "dot": "b out",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "sum": "axis dtype out keepdims",
}
CONSTANTS = ["float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "uint64", "inf", "nan"]


def check_options(name, takes, options):
    unknown = [option for option in options if option not in takes.split()]
    if unknown:
        raise TypeError(f"cupy.{name} does not take {', '.join(unknown)}; it takes {takes}")
