"""How long a run has trained, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds that a run has trained over all its resumptions, and tokens per second between two questions.

    Args:
        seconds: spent before this process.
        tokens: trained on before it.
    """

    def __init__(self, seconds: float = 0.0, tokens: int = 0) -> None:
        self._began = time.monotonic() - seconds
        self._last, self._last_tokens = time.monotonic(), tokens

    def seconds(self) -> float:
        """In training, of the whole run."""
        return time.monotonic() - self._began

    def tokens_per_second(self, tokens: int) -> float:
        """Speed since the question before; `tokens` is the count by now."""
        now = time.monotonic()
        speed = (tokens - self._last_tokens) / max(now - self._last, 1e-9)
        self._last, self._last_tokens = now, tokens
        return speed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time is not training and does not count, however it is left."""
        began = time.monotonic()
        try:
            yield
        finally:
            paused = time.monotonic() - began
            self._began, self._last = self._began + paused, self._last + paused
