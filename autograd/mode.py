"""Two switches of the engine: is the graph recorded, and is this training or evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_backprop: ContextVar[bool] = ContextVar("backprop", default=True)
_training: ContextVar[bool] = ContextVar("training", default=True)


def is_backprop_enabled() -> bool:
    """True unless inside `no_backprop_mode`."""
    return _backprop.get()


def is_training() -> bool:
    """True unless inside `evaluation_mode`: dropouts act only in training."""
    return _training.get()


@contextmanager
def _switched(switch: ContextVar[bool], value: bool) -> Iterator[None]:
    token = switch.set(value)
    try:
        yield
    finally:
        switch.reset(token)


def no_backprop_mode():
    """Context in which no graph is recorded and nothing is saved for a backward pass (PyTorch's no_grad)."""
    return _switched(_backprop, False)


def evaluation_mode():
    """Context in which every dropout is the identity (PyTorch's model.eval())."""
    return _switched(_training, False)
