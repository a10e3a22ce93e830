"""The time that a run has trained."""

import time

import pytest

from train.clock import Clock
from train.signals import StopRequestedError


def test_a_pause_does_not_count_even_if_a_signal_ends_it():
    clock = Clock(seconds=100.0)
    with clock.paused():
        time.sleep(0.2)
    with pytest.raises(StopRequestedError):
        stopped_in_a_pause(clock)
    assert 100 <= clock.seconds() < 100.2


def stopped_in_a_pause(clock):
    with clock.paused():
        time.sleep(0.2)
        raise StopRequestedError(15)
