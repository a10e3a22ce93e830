"""Words to ids in one pass: numbered by first appearance as they come, renumbered by frequency at the end."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

import numpy as np

from autograd.errors import InputError
from train.corpus import EOS, UNK


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
    """Provisional ids, given to words in the order of their first appearance."""

    def __init__(self) -> None:
        # A missing word calls the counter from inside the dictionary: a lookup never comes back to Python
        # code.
        self._ids: dict[bytes, int] = defaultdict(count().__next__)
        self._counts = np.zeros(0, dtype=np.int64)

    def encode(self, text: bytes) -> np.ndarray:
        """Provisional ids of the words of `text`, int32 (N,); every newline gives one `<eos>`.

        Words are parted by ASCII white space, which is what parts them in WikiText.
        """
        words = text.replace(b"\n", f" {EOS} ".encode()).split()
        return np.fromiter(map(self._ids.__getitem__, words), np.int32, count=len(words))

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
