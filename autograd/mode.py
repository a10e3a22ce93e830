"""Switches of the engine: is the graph recorded, is this training or evaluation, are values checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

_backprop: ContextVar[bool] = ContextVar("backprop", default=True)
_training: ContextVar[bool] = ContextVar("training", default=True)
_anomaly: ContextVar[bool] = ContextVar("anomaly", default=False)


def is_backprop_enabled() -> bool:
    """True unless inside `no_backprop_mode`."""
    return _backprop.get()


def is_training() -> bool:
    """True unless inside `evaluation_mode`: dropouts act only in training."""
    return _training.get()


def is_detecting_anomaly() -> bool:
    """True inside `detect_anomaly`."""
    return _anomaly.get()


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


def detect_anomaly(enabled: bool = True) -> AbstractContextManager[None]:
    """Context in which the first value that is not finite raises an `AnomalyError` that says where it arose.

    Every array that a Function makes, forward or backward, is looked at, as PyTorch's mode of this name does
    for the backward pass; without it nothing is looked at.

    Args:
        enabled: False makes this context do nothing, for a caller that has a switch of its own.
    """
    return _switched(_anomaly, enabled)
