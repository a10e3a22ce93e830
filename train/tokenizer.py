"""Text as people write it, cut into the words of a vocabulary.

The text that a run was trained on was tokenised by somebody: WikiText writes `didn 't`, `17 @-@ match` and
`1 @,@ 000`, the English of Python keeps `didn't` whole and writes `well - known`. So the vocabulary decides:
each piece of the text takes the first of the forms below that is a word of it.

1. What stands between white space, as it stands: text that is tokenised already stays as it is.
2. Its pieces: words (`don't` is one), runs of one sign (`...`), signs.
3. Of a piece: as it stands, in lower case, with a capital letter: `GREAT` is great, `i` is I.
4. Of an unknown contraction: cut before each apostrophe, `didn` and `'t`.
5. Of an unknown run of one sign: the signs one by one.
6. `-` between letters, `,` and `.` between digits: `@-@`, `@,@`, `@.@` if the vocabulary has them.

What is still unknown is `<unk>`. A line break in the text, or the `<br />` of a web page, is `<eos>`, as
lines end in the text of a run; `&amp;` and its like are read, curly quotes become straight ones.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from train.corpus import EOS, Vocabulary

_LINE_BREAK = re.compile(r"<br\s*/?>|\n", re.IGNORECASE)
_PIECE = re.compile(r"\w+(?:'\w+)*|'\w+|([^\w\s])\1*")
_WORD = re.compile(r"\w")
_APOSTROPHE = re.compile(r"(?=')")
_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


class Tokenizer:
    """Cuts raw text into words of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._words_of_chunk = lru_cache(1 << 16)(self._cut_chunk)  # language repeats itself

    def encode(self, text: str) -> tuple[np.ndarray, int]:
        """Ids of a text's words, int32 (N,), and how many of the words became `<unk>`."""
        ids, unknown = self.vocabulary.encode(self.words(text))
        return ids, len(unknown)

    def words(self, text: str) -> list[str]:
        """The words of a text, unknown ones as they are; blank lines and blank ends give nothing."""
        words: list[str] = []
        for line in _LINE_BREAK.split(html.unescape(text)):
            chunks = line.split()
            if chunks and words:
                words.append(EOS)
            for chunk in chunks:
                words += self._words_of_chunk(chunk)
        return words

    def _cut_chunk(self, chunk: str) -> tuple[str, ...]:
        if self._is_known(chunk):
            return (chunk,)
        return tuple(self._pieces(chunk.translate(_STRAIGHT)))

    def _pieces(self, chunk: str) -> Iterator[str]:
        for match in _PIECE.finditer(chunk):
            piece = match.group()
            joining = f"@{piece}@"
            if _joins(chunk, match.start(), match.end()) and self._is_known(joining):
                yield joining
            else:
                yield from self._forms(piece)

    def _forms(self, piece: str) -> list[str]:
        """The piece in the first form that is known; itself, if it is one word that is not."""
        for form in (piece, piece.lower(), piece.capitalize()):
            if self._is_known(form):
                return [form]
        parts = _parts(piece)
        return [piece] if len(parts) < 2 else [form for part in parts for form in self._forms(part)]

    def _is_known(self, word: str) -> bool:
        return self.vocabulary.id_of(word) is not None


def _parts(piece: str) -> list[str]:
    """A piece cut further: `didn't` before its apostrophe, `'quoted` after it, `...` into its signs."""
    if piece.startswith("'"):
        parts = ["'", piece[1:]]
    else:
        parts = _APOSTROPHE.split(piece) if _WORD.match(piece) else list(piece)
    return [part for part in parts if part]


def _joins(chunk: str, start: int, stop: int) -> bool:
    """Whether chunk[start:stop] is a sign within a word or number: well-known, 1,000, 3.5."""
    before, sign, after = chunk[start - 1 : start], chunk[start:stop], chunk[stop : stop + 1]
    if sign == "-":
        return before.isalnum() and after.isalnum()
    return sign in (",", ".") and before.isdigit() and after.isdigit()
