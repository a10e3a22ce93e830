"""What happens before what on several streams: each access to memory is held against all earlier ones.

A stream does one thing after the other, and knows of another stream's only by an event that it has waited
for: so each has a clock with one count for every stream, its own counting up with each launch. Two accesses
to the same memory, one of them a write, must not meet at a point at which the later one does not know of the
earlier. CuPy gives memory that Python has let go of to whoever asks next on the stream that it was made on:
that is held against all that other streams still do with it.
"""

import sys

import numpy as np
from numpy.lib.array_utils import byte_bounds

LOW, HIGH, STREAM, COUNT, WRITES = range(5)


class RaceError(AssertionError):
    """Two launches that nothing has put in order."""


class Trace:
    """The launches on all streams.

    Args:
        current: gives the address of the stream that launches go to.

    Attributes:
        streams: addresses of those on which anything was launched, in the order of their first launch.
    """

    def __init__(self, current):
        self.current, self.streams, self.names = current, [], []
        self.clocks = np.zeros((16, 16), np.int64)  # a row for each stream: what it knows of all of them
        self.accesses = np.zeros((4096, 5), np.int64)
        self.owned, self.given_back, self.checked = {}, [], []

    def launch(self, name, reads, writes):
        """A launch on the current stream; arrays, or (low, high) addresses."""
        stream = self._index(self.current())
        clock = self.clocks[stream]
        self._take_back(stream)
        clock[stream] += 1
        bounds = [
            (*self._bounds(array, stream), is_write)
            for is_write in (0, 1)
            for array in (reads, writes)[is_write]
        ]
        for low, high, is_write in bounds:
            unknown = self._unknown(low, high, clock, any_access=is_write)
            if len(unknown):
                raise RaceError(f"{name} does not wait for {self.names[unknown[0]]} of another stream")
        for low, high, is_write in bounds:
            if len(self.names) == len(self.accesses):
                self.accesses = np.concatenate([self.accesses, np.zeros_like(self.accesses)])
            self.accesses[len(self.names)] = low, high, stream, clock[stream], is_write
            self.names.append(name)

    def record(self, stream):
        return self.clocks[self._index(stream)].copy()

    def wait(self, stream, event):
        clock = self.clocks[self._index(stream)]
        np.maximum(clock, event, out=clock)

    def knows_of_all(self, stream):
        """Whether a stream has waited for all that others have begun."""
        return (self.clocks[self._index(stream)] == self.clocks.diagonal()).all()

    def _index(self, stream):
        if stream not in self.streams:
            self.streams.append(stream)
        return self.streams.index(stream)

    def _unknown(self, low, high, clock, any_access):
        """Which accesses to these addresses, all or the writes, a stream does not know of."""
        made = self.accesses[: len(self.names)]
        meet = (made[:, LOW] < high) & (low < made[:, HIGH]) & (made[:, COUNT] > clock[made[:, STREAM]])
        return np.flatnonzero(meet if any_access else meet & (made[:, WRITES] == 1))

    def _bounds(self, array, stream):
        if isinstance(array, tuple):
            return array
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) not in self.owned:
            # Held here, so that nobody gets the same address: what CuPy may do with it is checked below.
            self.owned[id(owner)] = owner, stream
        return byte_bounds(array) if array.size else (0, 0)

    def _take_back(self, stream):
        """What only the trace holds any more was given back; its stream may write to it from now on."""
        for key, (owner, _) in list(self.owned.items()):
            if sys.getrefcount(owner) <= 3:  # held by `owned`, this loop and the call
                self.given_back.append(self.owned.pop(key))
        for owner, maker in self.given_back:
            unknown = self._unknown(*byte_bounds(owner), self.clocks[stream], True) if maker == stream else ()
            if len(unknown):
                name = self.names[unknown[0]]
                raise RaceError(f"{name} still uses memory that was given back to another stream")
        # A stream does not forget: those are in order from now on. Their addresses must not come again.
        self.checked += [owner for owner, maker in self.given_back if maker == stream]
        self.given_back = [(owner, maker) for owner, maker in self.given_back if maker != stream]
