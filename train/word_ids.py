"""Words to ids in one pass: numbered by first appearance as they come, renumbered by frequency at the end."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

import numpy as np

from autograd.errors import InputError
from train.corpus import EOS, UNK

_KEY_BYTES = 8
_KEY_MASKS = np.array([0, *((1 << 8 * length) - 1 for length in range(1, _KEY_BYTES + 1)), 0], np.uint64)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: Knuth, vol. 3, section 6.4
_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[list(b" \t\n\r\v\f")] = True  # as bytes.split has it


@dataclass(frozen=True)
class Ranking:
    """A vocabulary by falling frequency in the train split (ties by first appearance).

    Attributes:
        words: UTF-8, V of them.
        counts: int64 (V,), tokens of the train split; `<unk>` counts the words it stands for.
        new_ids: int32 (P,): id in this vocabulary for each of the P provisional ids.
        outside: bool (P,): which provisional ids are words that became `<unk>`.
    """

    words: list[bytes]
    counts: np.ndarray
    new_ids: np.ndarray
    outside: np.ndarray


class WordIds:
    """Provisional ids, given to words in the order of their first appearance.

    A dictionary gives them, but it is asked for new words and long ones alone: what it has said of a word of
    at most 8 bytes is remembered by these bytes, which are looked up for a whole block of text at once.
    """

    def __init__(self) -> None:
        # A missing word calls the counter from inside the dictionary: a lookup never comes back to Python
        # code.
        self._ids: dict[bytes, int] = defaultdict(count().__next__)
        self._short = ShortWords()
        self._counts = np.zeros(0, dtype=np.int64)

    def encode(self, text: bytes) -> np.ndarray:
        """Provisional ids of the words of `text`, int32 (N,); every newline gives one `<eos>`.

        Words are parted by ASCII white space, which is what parts them in WikiText. There are no NUL bytes.
        """
        text = b" " + text.replace(b"\n", f" {EOS} ".encode()) + b" " * _KEY_BYTES
        starts, ends = words_of(text)
        keys = keys_of(text, starts, ends)
        ids = self._short.find(keys)
        unknown = np.flatnonzero(ids < 0)
        bounds = zip(starts[unknown].tolist(), ends[unknown].tolist(), strict=True)
        words = [text[start:end] for start, end in bounds]
        ids[unknown] = np.fromiter(map(self._ids.__getitem__, words), np.int32, count=len(words))
        self._short.add(keys[unknown], ids[unknown])
        return ids

    def count(self, ids: np.ndarray) -> None:
        """Count `ids` (N) of the train split."""
        counts = np.bincount(ids, minlength=len(self._ids))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def rank(self, min_count: int) -> Ranking:
        """The vocabulary: `<unk>`, `<eos>`, and every counted word seen `min_count` times or more.

        Raises:
            InputError: no other word is seen that often.
        """
        special = [self._ids[word.encode()] for word in (UNK, EOS)]
        counts = np.zeros(len(self._ids), dtype=np.int64)
        counts[: len(self._counts)] = self._counts
        kept = counts >= max(1, min_count)
        kept[special] = True
        if kept.sum() == len(special):
            raise InputError(
                f"train text: expected words seen at least {min_count} times, got none; "
                f"give more text or a lower minimum count"
            )
        unk = special[0]
        counts[unk] += counts[~kept].sum()
        by_frequency = np.flatnonzero(kept)
        by_frequency = by_frequency[np.argsort(-counts[by_frequency], kind="stable")]
        new_ids = np.zeros(len(counts), dtype=np.int32)
        new_ids[by_frequency] = np.arange(len(by_frequency), dtype=np.int32)
        new_ids[~kept] = new_ids[unk]
        words = list(self._ids)
        return Ranking([words[index] for index in by_frequency], counts[by_frequency], new_ids, ~kept)


def words_of(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a text begin and end, int64 (N,) each; it must begin and end with white space."""
    is_space = _IS_SPACE[np.frombuffer(text, np.uint8)]
    edges = np.flatnonzero(is_space[1:] != is_space[:-1]) + 1
    return edges[::2], edges[1::2]


def keys_of(text: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The bytes of each word that has at most 8, as one number, uint64 (N,); 0 for longer ones.

    No two words have the same, as none has NUL bytes. 8 bytes must follow the last word.
    """
    # What stands from each byte of the text on.
    at_every_byte = np.ndarray(len(text) - _KEY_BYTES + 1, "<u8", text, strides=(1,))
    return at_every_byte[starts] & _KEY_MASKS[np.minimum(ends - starts, _KEY_BYTES + 1)]


class ShortWords:
    """Ids of words by their keys, many at a time: a hash table with open addressing."""

    def __init__(self) -> None:
        self._size, self._bits = 0, 4
        self._keys, self._ids = self._empty()

    def _empty(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(1 << self._bits, np.uint64), np.full(1 << self._bits, -1, np.int32)

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """Where to look for keys first; then in the slots that follow, up to an empty one."""
        return ((keys * _SPREAD) >> np.uint64(64 - self._bits)).astype(np.int64)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The ids of keys, uint64 (N,), as int32 (N,); -1 for a key that is not there, and for 0."""
        slots = self._slots(keys)
        ids, met = self._ids[slots], self._keys[slots]
        left = np.flatnonzero((met != keys) & (met != 0))
        while left.size:
            slots[left] = self._next(slots[left])
            ids[left], met = self._ids[slots[left]], self._keys[slots[left]]
            left = left[(met != keys[left]) & (met != 0)]
        return ids

    def add(self, keys: np.ndarray, ids: np.ndarray) -> None:
        """Keys, uint64 (N,), that are not there yet, and their ids; one may come often, 0 is left out."""
        keys, first = np.unique(keys, return_index=True)
        keys, ids = keys[keys > 0], ids[first[keys > 0]]
        self._size += len(keys)
        if 2 * self._size > len(self._keys):  # half of the slots stay empty, and ways short
            is_key = self._keys > 0
            keys, ids = np.append(keys, self._keys[is_key]), np.append(ids, self._ids[is_key])
            self._bits = (4 * self._size - 1).bit_length()
            self._keys, self._ids = self._empty()
        slots = self._slots(keys)
        left = np.arange(len(keys))
        while left.size:
            at = slots[left]
            is_free = self._keys[at] == 0
            self._keys[at[is_free]] = keys[left[is_free]]  # of several in one slot the last stays
            is_placed = self._keys[at] == keys[left]
            self._ids[at[is_placed]] = ids[left[is_placed]]
            left = left[~is_placed]
            slots[left] = self._next(slots[left])

    def _next(self, slots: np.ndarray) -> np.ndarray:
        return (slots + 1) & (len(self._keys) - 1)
