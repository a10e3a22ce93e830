"""The reading side of a prepared data set: a vocabulary and three streams of token ids in one HDF5 file.

`train/prepare.py` writes such files. Layout, version 2:

    attributes   format = "minilstm-tokens", version, recipe (JSON), sources (JSON list of name, bytes,
    sha256),
                 outside_vocabulary (JSON: per split, tokens that became <unk>), complete = True (written
                 last)
    train, valid, test   int32, 1-D, chunked: token ids, every line ended by <eos>
    vocabulary           uint8, 1-D: V words in UTF-8, a line feed between two; by falling frequency in the
                         train split, ties by first appearance
    counts               int64 (V,): how often each word stands in the train split

In version 1 the words were a list of V strings, and the attributes were of variable length: it is read too.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.errors import InputError
from train.hdf5 import attribute, try_texts

if TYPE_CHECKING:
    import h5py

FORMAT = "minilstm-tokens"
VERSION = 2
_FIXED = 2  # the first version without texts of variable length
SPLITS = ("train", "valid", "test")
UNK = "<unk>"
EOS = "<eos>"

_DATASETS = (*SPLITS, "vocabulary", "counts")
_MAX_CHUNK = 64 << 20  # bytes: HDF5 takes as much memory to read from a chunk
_SCAN = 1 << 20  # tokens read at a time when a file is checked


class Vocabulary:
    """Words and their ids; id 0 is the most frequent word.

    Raises:
        InputError: a word stands twice, or `<unk>` or `<eos>` is missing.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self._ids = {word: index for index, word in enumerate(words)}
        if len(self._ids) != len(words):
            raise InputError(f"vocabulary: expected {len(words)} different words, got {len(self._ids)}")
        for word in (UNK, EOS):
            if word not in self._ids:
                raise InputError(
                    f"vocabulary: expected the word {word}, which is missing among {len(words)} words"
                )
        self.unk_id = self._ids[UNK]
        self.eos_id = self._ids[EOS]

    def __len__(self) -> int:
        return len(self.words)

    def id_of(self, word: str) -> int | None:
        """The id of `word`, None when it is not in the vocabulary."""
        return self._ids.get(word)

    def encode(self, words: list[str]) -> tuple[np.ndarray, list[str]]:
        """Ids of `words`, int32 (len(words),), and those of the words that are unknown and became `<unk>`."""
        ids = np.array([self._ids.get(word, self.unk_id) for word in words], dtype=np.int32)
        return ids, [word for word in words if word not in self._ids]

    def fingerprint(self) -> str:
        """SHA-256 over the words in their order: equal exactly when every id means the same word."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()


class Corpus:
    """A prepared data set, open for reading; `open_corpus` makes it. Usable as a context manager."""

    def __init__(self, path: Path, file: "h5py.File") -> None:
        self.path = path
        self._file = file
        self.recipe, self.sources, self.outside_vocabulary = stored_facts(file)
        self.vocabulary = Vocabulary(_words(file))
        self.counts: np.ndarray = file["counts"][:]
        self.fingerprint = self.vocabulary.fingerprint()

    def tokens(self, split: str) -> "h5py.Dataset":
        """The ids of a split as a data set on disk, int32 (N,), to be sliced."""
        if split not in SPLITS:
            raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        return self._file[split]

    def num_tokens(self, split: str) -> int:
        """How many tokens the split holds, `<eos>` counted."""
        return self.tokens(split).shape[0]

    def read(self, split: str, start: int, stop: int) -> np.ndarray:
        """Ids `start` to `stop` (exclusive) of a split in memory, int32 (stop - start,)."""
        tokens = self.tokens(split)
        if not 0 <= start <= stop <= tokens.shape[0]:
            raise InputError(
                f"{split}: expected 0 <= start <= stop <= {tokens.shape[0]}, got {start} and {stop}"
            )
        try:
            return tokens[start:stop]
        except OSError as error:  # the disk, or the machine that it is on, is gone
            raise InputError(
                f"{self.path}: cannot be read any more ({' '.join(str(error).split())})"
            ) from None

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._file.close()

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_corpus(path: str | os.PathLike) -> Corpus:
    """Open a prepared data set and check all of it, every token id included, in constant memory.

    Raises:
        InputError: the file is missing, empty, not HDF5, of another format or a newer version, unfinished, or
            holds ids outside its vocabulary.
    """
    path = Path(path)
    file = open_tokens_file(path)
    try:
        _check_datasets(file)
        _check_size(path, file)
        corpus = Corpus(path, file)
        if len(corpus.counts) != len(corpus.vocabulary):
            raise InputError(f"it holds {len(corpus.vocabulary)} words but {len(corpus.counts)} counts")
        for split in SPLITS:
            _check_ids(split, file[split], len(corpus.vocabulary))
    except Exception as error:  # of the checks, or whatever HDF5 makes of broken bytes
        _close(file)
        raise _damaged(path, str(error)) from None
    return corpus


def joined(words: list[bytes]) -> np.ndarray:
    """The words, in UTF-8, as `vocabulary` holds them, uint8 (bytes,); none has a line feed in it."""
    return np.frombuffer(b"\n".join(words), np.uint8)


def _words(file: "h5py.File") -> list[str]:
    if _is_fixed(file):
        return file["vocabulary"][:].tobytes().decode().split("\n")
    try_texts(file, "vocabulary")
    return [word.decode() for word in file["vocabulary"][:]]


def _is_fixed(file: "h5py.File") -> bool:
    return bool(attribute(file, "version") >= _FIXED)


def stored_facts(file: "h5py.File") -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    """Recipe, sources and outside_vocabulary of a prepared file; InputError if they are something else."""
    kinds: dict[str, type] = {"recipe": dict, "sources": list, "outside_vocabulary": dict}
    found: list[Any] = []
    variable = not _is_fixed(file)
    for name, kind in kinds.items():
        try:
            fact = json.loads(attribute(file, name, variable=variable))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"its {name} is no JSON ({error})") from None
        if not isinstance(fact, kind):
            raise InputError(f"its {name} is no JSON {'list' if kind is list else 'object'}")
        found.append(fact)
    recipe, sources, outside = found
    if not all(isinstance(entry, dict) and {"name", "sha256"} <= entry.keys() for entry in sources):
        raise InputError("its sources do not each have a name and a sha256")
    return recipe, sources, outside


def open_tokens_file(path: Path) -> "h5py.File":
    """Open `path` after a look at its attributes alone: is it a finished file of a known version?

    Raises:
        InputError: it is not.
    """
    import h5py

    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise InputError(
            f"{path}: expected a prepared data set, found {what}; "
            f"make one: python -m train.prepare SOURCE --out {path}"
        )
    if path.stat().st_size == 0:
        raise _damaged(path, "it is empty")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "it is not HDF5" if not h5py.is_hdf5(path) else str(error)
        raise _damaged(path, reason) from None
    try:
        reason = _foreign(file)
    except Exception as error:  # whatever HDF5 makes of broken bytes
        reason = str(error)
    if reason:
        _close(file)
        raise _damaged(path, reason)
    return file


def _foreign(file: "h5py.File") -> str:
    """Why this HDF5 file cannot be read as a data set; the empty string when it can."""
    import h5py

    attributes = file.attrs
    stored = attribute(file, "version")
    version = int(stored) if isinstance(stored, np.integer) else 0
    variable = version < _FIXED
    if variable:
        try_texts(file)
    form = attribute(file, "format", variable=variable)
    if not (isinstance(form, str) and form == FORMAT):
        return f"its format is {form!r:.60}, not {FORMAT!r}"
    if not 1 <= version <= VERSION:
        return f"its version is {stored!s:.60}, and this program reads up to {VERSION}"
    missing = [
        name for name in ("recipe", "sources", "outside_vocabulary", "complete") if name not in attributes
    ]
    links = {name: file.get(name, getlink=True) for name in _DATASETS}  # looked at, not followed
    missing += [name for name, link in links.items() if link is None]
    if missing:
        return f"it lacks {', '.join(missing)}"
    elsewhere = [name for name, link in links.items() if not isinstance(link, h5py.HardLink)]
    if elsewhere:
        return f"its {', '.join(elsewhere)} lies in another place"
    complete = attribute(file, "complete", variable=variable)
    if not (isinstance(complete, (bool, np.bool_)) and complete):
        return "it was never finished"
    return ""


def _check_datasets(file: "h5py.File") -> None:
    """Shapes and kinds of the data sets, before anything is read from them."""
    import h5py

    for name in _DATASETS:
        if not isinstance(file[name], h5py.Dataset):
            raise InputError(f"its {name} is no data set")
    plain: dict[str, type] = {**dict.fromkeys(SPLITS, np.int32), "counts": np.int64}
    if _is_fixed(file):
        plain["vocabulary"] = np.uint8
    for name, kind in plain.items():
        dataset, expected = file[name], np.dtype(kind)
        if dataset.ndim != 1 or dataset.dtype != expected or dataset.shape[0] == 0:
            raise InputError(
                f"its {name} is {dataset.dtype} {dataset.shape}, which should be {expected} (N,) with N > 0"
            )
    if "vocabulary" in plain:
        return
    strings = h5py.check_string_dtype(file["vocabulary"].dtype)
    if file["vocabulary"].ndim != 1 or strings is None or strings.length is not None:
        raise InputError("its vocabulary is not a list of strings")


def _check_size(path: Path, file: "h5py.File") -> None:
    """Everything lies plainly in this file: together no larger than it, so that none asks for more memory."""
    import h5py

    size = os.path.getsize(path)
    total = 0
    for name in _DATASETS:
        dataset = file[name]
        stored = dataset.id.get_create_plist()
        layouts = (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS) if name in SPLITS else (h5py.h5d.CONTIGUOUS,)
        if stored.get_layout() not in layouts or dataset.external or stored.get_nfilters():
            raise InputError(f"its {name} is not stored plainly in this file")
        chunk = 4 * dataset.chunks[0] if dataset.chunks else 0
        if chunk > _MAX_CHUNK:
            raise InputError(
                f"its {name} is in chunks of {chunk} bytes, more than the {_MAX_CHUNK} that are read"
            )
        is_text = dataset.dtype.hasobject  # of its references only the least is known
        declared = _length(dataset) * (1 if is_text else dataset.dtype.itemsize)
        if dataset.id.get_storage_size() < declared:
            raise InputError(f"its {name} declares {declared} bytes, which are not there")
        total += declared
    if not _is_fixed(file):
        total += _text_size(path, file)
    if total > size:
        raise InputError(f"it declares {total} bytes and has {size}")


def _length(dataset: "h5py.Dataset") -> int:
    return int(dataset.shape[0])


def _text_size(path: Path, file: "h5py.File") -> int:
    """Bytes of all words, before one is read: many references may name one long text.

    Each word is stored as a reference to it, which begins with its length as four bytes (HDF5 File Format
    Specification, version 3.0, section III.K on the global heap).
    """
    dataset = file["vocabulary"]
    words, stored = _length(dataset), int(dataset.id.get_storage_size())
    if not words:
        return 0
    offset = dataset.id.get_offset()
    if offset is None or file.userblock_size or stored % words or stored // words < 12:
        raise InputError("its vocabulary is not stored plainly in this file")
    references = np.memmap(path, np.uint8, "r", offset, (words, stored // words))
    return int(np.ascontiguousarray(references[:, :4]).view("<u4").sum(dtype=np.uint64))


def _close(file: "h5py.File") -> None:
    with contextlib.suppress(Exception):  # as it is of broken bytes
        file.close()


def _check_ids(split: str, tokens: "h5py.Dataset", vocab_size: int) -> None:
    for start in range(0, tokens.shape[0], _SCAN):
        block = tokens[start : start + _SCAN]
        outside = np.flatnonzero((block < 0) | (block >= vocab_size))
        if len(outside):
            where = outside[0]
            raise InputError(
                f"{split}[{start + where}] is {block[where]}, outside the vocabulary's ids 0 to "
                f"{vocab_size - 1}"
            )


def _damaged(path: Path, reason: str) -> InputError:
    reason = " ".join(reason.split())
    return InputError(
        f"{path}: expected a prepared data set, but {reason}; "
        f"make it anew: python -m train.prepare SOURCE --out {path} --force"
    )
