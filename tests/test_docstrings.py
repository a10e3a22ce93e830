"""Whatever is public says what it is; whatever takes arrays says of what shape."""

import importlib
import inspect
import pkgutil
import re
import types

import numpy as np

import autograd

PACKAGES = ["autograd", "minilstm", "train"]
ARRAYS = {"x", "h", "c", "h0", "c0", "W", "W_ih", "W_hh", "b", "ids", "logits", "targets", "inputs", "losses"}
"""Parameters of these names are arrays wherever they stand without a type that says otherwise."""
SHAPE = re.compile(
    r"\((…|T \+ 1|[A-Za-z]\w*|\d*[A-Z])(,[^)]*)?\)|elementwise|broadcast|shaped?\b|shapes\b|-D\b|axes|axis"
    r"|as (for|in|there)\b|twin of|The same of"  # which name them
)


def modules():
    found = [name for package in PACKAGES for _, name, _ in pkgutil.walk_packages([package], f"{package}.")]
    return sorted([*PACKAGES, *found])


def public(owner, module):
    """(name, object) of the classes and functions that a module or class defines itself."""
    for name, value in vars(owner).items():
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        value = inspect.unwrap(value) if callable(value) else value
        is_code = inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, property)
        own = value.fget if isinstance(value, property) else value
        if is_code and not name.startswith("_") and getattr(own, "__module__", None) == module:
            yield name, value


def documented(module):
    """(name, object, docstring or None) of everything public in a module, methods and properties too.

    A method may have the docstring of the one that it overrides; a class must have its own.
    """
    yield module.__name__, module, module.__doc__
    for name, value in public(module, module.__name__):
        if not inspect.isclass(value):
            yield name, value, value.__doc__
            continue
        yield name, value, vars(value).get("__doc__")
        for method_name, method in public(value, module.__name__):
            docs = [vars(base)[method_name].__doc__ for base in value.__mro__ if method_name in vars(base)]
            yield f"{name}.{method_name}", method, next(filter(None, docs), None)


def everywhere(missing):
    """What `missing` finds in any module, each with its module's name."""
    return [f"{name}: {what}" for name in modules() for what in missing(importlib.import_module(name))]


def test_everything_public_has_a_docstring():
    assert len(modules()) > 100
    assert everywhere(without_docstring) == []


def without_docstring(module):
    """What is public in a module and says nothing of itself."""
    return [what for what, _, docstring in documented(module) if not (docstring or "").strip()]


def written(annotation):
    """A type hint as text; with `from __future__ import annotations` it is one already."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def array_parameters(function):
    """The names of its parameters that are arrays."""
    parameters = inspect.signature(function).parameters.values()
    return [
        parameter.name
        for parameter in parameters
        if re.match(r"(np|numpy)\.ndarray", written(parameter.annotation))
        or (parameter.name in ARRAYS and parameter.annotation in ("Any", "Variable"))
    ]


def without_shapes(module):
    """The functions and methods of a module that take arrays and do not say of what shape."""
    return [
        f"{what}({', '.join(array_parameters(value))})"
        for what, value, doc in documented(module)
        if inspect.isfunction(value) and array_parameters(value) and not SHAPE.search(doc or "")
    ]


def test_what_takes_arrays_names_their_shapes():
    assert everywhere(without_shapes) == []


def test_what_is_missing_is_seen():
    def bare(x: "np.ndarray"): ...

    def vague(x: "np.ndarray"):
        """Twice as much."""

    def clear(x: "np.ndarray"):
        """Twice x (N, V)."""

    class Inherits(autograd.Function):
        def forward(self, x): ...

    module = types.ModuleType("invented", "A module.")
    for member in (bare, vague, clear, Inherits):
        member.__module__ = "invented"
        setattr(module, member.__name__, member)
    Inherits.forward.__module__ = "invented"
    assert without_docstring(module) == ["bare", "Inherits"]  # its forward has Function's
    assert without_shapes(module) == ["bare(x)", "vague(x)"]
