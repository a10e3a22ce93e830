"""Work that nobody waits for yet, done by threads that have nothing else to do.

In a backward pass the gradient of an activation is needed at once, that of a weight at the end alone. A
function may return the first and leave the second to later (`Function.defer`): cores that the functions after
it leave idle, as the time loop of a small LSTM does, then take it up part by part.
"""

from __future__ import annotations

import collections
import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from autograd.parallel import num_threads, run_parts, single_threaded_blas, submit


class Deferred:
    """work(part) for every part, in any order and by any thread; then `last()`, once, in `finish`.

    Parts write to memory of their own, so that the same bits come out whoever takes them up and when. Until
    `finish` BLAS has one thread, however far the work has come: what is computed beside it has the same
    bits each time too.

    Args:
        work, parts: as for `run_parts`, but for the results.
        last: needs all parts done.
        indices: of the function's inputs whose gradients these are.
    """

    def __init__(
        self,
        work: Callable[[Any], object],
        parts: Iterable[Any],
        last: Callable[[], object],
        indices: tuple[int, ...] = (),
    ) -> None:
        self.indices = indices
        self._work, self._last = work, last
        self._waiting = collections.deque(parts)
        self._context = contextvars.copy_context()
        self._blas = single_threaded_blas()
        self._blas.__enter__()
        idle = min(num_threads() - 1, len(self._waiting))
        self._futures: list[Future] = [submit(self._do_one) for _ in range(idle)]
        self.is_finished = False

    def finish(self) -> None:
        """All threads do what is left; all is done when it returns, or raises what a part has raised."""
        if self.is_finished:
            return
        try:
            run_parts(lambda _: self._do_the_rest(), range(num_threads()))
            self._wait()
            self._last()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """What has not been begun is left undone; nothing is under way any more when it returns."""
        if self.is_finished:
            return
        self._waiting.clear()
        try:
            self._wait()
        finally:
            self.is_finished = True
            self._blas.__exit__(None, None, None)
            del self._work, self._last  # and the arrays that they hold

    def _do_one(self) -> Future | None:
        """One part; then the thread is free for others', and the next part is last in their queue."""
        return submit(self._do_one) if self._do_next() else None

    def _do_next(self) -> bool:
        try:
            part = self._waiting.popleft()
        except IndexError:
            return False
        self._context.copy().run(self._work, part)
        return True

    def _do_the_rest(self) -> None:
        while self._do_next():
            pass

    def _wait(self) -> None:
        while self._futures:
            following = self._futures.pop().result()
            if following is not None:
                self._futures.append(following)
