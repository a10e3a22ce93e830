"""Text as a stream of bytes: read in pieces of constant size, cut between words, checked to be UTF-8."""

import codecs
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autograd.errors import InputError

BLOCK = 1 << 20  # bytes of text in memory at a time
_LONGEST_WORD = 1 << 20  # bytes; more without any white space is not text


@dataclass(frozen=True)
class Text:
    """A run of bytes of UTF-8 text in a file or in memory: `[start, stop)` of what `open` opens."""

    name: str
    open: Callable[[], BinaryIO]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they lie, in pieces of at most BLOCK.

        Raises:
            InputError: the file has become shorter since its length was taken.
        """
        with self.open() as stream:
            stream.seek(self.start)
            left = len(self)
            while left:
                block = stream.read(min(BLOCK, left))
                if not block:
                    raise InputError(
                        f"{self.name}: became shorter while it was read; prepare it when it has settled"
                    )
                left -= len(block)
                yield block

    def sha256(self) -> str:
        """The checksum of the bytes."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


def file_text(path: Path) -> Text:
    """All of a file.

    Raises:
        InputError: the file is empty.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: expected text, got an empty file; give one with words in it")
    return Text(path.name, lambda: open(path, "rb"), 0, size)


def memory_text(name: str, text: bytes) -> Text:
    """Text that lies in memory."""
    return Text(name, lambda: io.BytesIO(text), 0, len(text))


def whole_words(name: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The text of `blocks` cut between words, with a newline after the last line even if it had none.

    Raises:
        InputError: NUL bytes, bytes that are not UTF-8, or a run of 1 MiB without a space or newline.
    """
    rest, last_byte, position = b"", b"", 0
    for block in blocks:
        text = rest + (block if position else block.removeprefix(codecs.BOM_UTF8))
        cut = max(text.rfind(b"\n"), text.rfind(b" ")) + 1
        rest, last_byte = text[cut:], text[-1:]
        if len(rest) > _LONGEST_WORD:
            raise InputError(f"{name}: expected words, got {len(rest)} bytes without a space or newline")
        yield _checked(name, text[:cut], position)
        position += cut
    if last_byte != b"\n":
        yield _checked(name, rest, position) + b"\n"


def _checked(name: str, piece: bytes, position: int) -> bytes:
    """`piece` itself if it is text; `position` is its place in the whole."""
    if b"\0" in piece:
        where = position + piece.index(0)
        raise InputError(f"{name}: expected UTF-8 text, got a NUL byte at byte {where}; give plain text")
    if not piece.isascii():
        try:
            piece.decode()
        except UnicodeDecodeError as error:
            byte, where = piece[error.start], position + error.start
            raise InputError(
                f"{name}: expected UTF-8 text, got byte 0x{byte:02x} at byte {where}; convert it to UTF-8"
            ) from None
    return piece
