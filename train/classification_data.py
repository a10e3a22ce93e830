"""Labelled texts on disk, and as rows of word ids.

Two forms are taken, the first that is there:

    FOLDER/train/CLASS/*.txt      one folder a class, one file a text, as the IMDB reviews lie (Maas et al.
                                  2011); so, where they exist, valid/ (or dev/) and test/. IMDB's `unsup`,
                                  reviews without a label, is left alone.
    FOLDER/train.tsv              one text a line, as SST-2 lies; so, where they exist, valid.tsv (or dev.tsv)
                                  and test.tsv. A first line that names the columns `label` and `sentence` (or
                                  `text`) gives their places, others are left alone; without it the label
                                  stands first and the text second. Quotes mean nothing. A test.tsv without a
                                  column `label`, as GLUE publishes them, is not scored.

Without a valid part, a tenth of each class in train becomes it. The classes are those of all parts, by name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd.errors import InputError
from train.tokenizer import Tokenizer

PARTS = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}
"""Each part, and the names that it goes by on disk."""
VALID_SHARE = 10  # one text in this many becomes the valid part where there is none
UNLABELLED_FOLDER = "unsup"
TEXT_COLUMNS = ("sentence", "text")


@dataclass(frozen=True)
class Texts:
    """Raw texts of one part and the name of each one's class."""

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Rows:
    """One part as a classifier reads it.

    Attributes:
        ids: for every text its word ids, int32 (N,), `<eos>` first.
        labels: int (number of texts,): the number of each one's class.
        facts: what became of the texts: how many, words, unknown words, empty and shortened texts.
    """

    ids: list[np.ndarray]
    labels: np.ndarray
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """SHA-256 over the ids and labels."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for ids in self.ids:
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
        return digest.hexdigest()


def read_texts(folder: str | Path, seed: int) -> dict[str, Texts]:
    """The parts of a labelled data set: train and valid always, test if it is there.

    Args:
        folder: in one of the two forms above.
        seed: of the choice of the valid part, where train is split.

    Raises:
        InputError: nothing in either form there, a file that is not UTF-8 text, a line without its columns,
            no text in a part, or fewer than two classes to learn.
    """
    folder = Path(folder)
    read = _reader(folder)
    parts = {part: texts for part, names in PARTS.items() if (texts := read(folder, names)) is not None}
    for part, texts in parts.items():
        if not texts:
            raise InputError(f"{folder}: expected labelled texts in its {part} part, found none")
    classes = sorted(set(parts["train"].labels))
    if len(classes) < 2:
        raise InputError(
            f"{folder}: expected at least two classes in its train part, found {classes[0]!r} alone; "
            "add texts of another class"
        )
    if "valid" not in parts:
        parts["train"], parts["valid"] = _split_off(parts["train"], seed, folder)
    return parts


def class_names(parts: dict[str, Texts]) -> list[str]:
    """The classes of all parts, sorted by name."""
    return sorted({label for texts in parts.values() for label in texts.labels})


def to_rows(texts: Texts, classes: list[str], tokenizer: Tokenizer, max_length: int) -> Rows:
    """Texts as word ids, each after the `<eos>` that ends the line before; an empty one is `<eos>` alone.

    Args:
        classes: names by number.
        max_length: words kept of a text, its last ones: reviews end with their verdict. 0: all.
    """
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[label] for label in texts.labels], np.int64)
    ids, facts = encode_texts(texts.texts, tokenizer, max_length)
    counts = np.bincount(labels, minlength=len(classes))
    facts["classes"] = {name: int(count) for name, count in zip(classes, counts, strict=True)}
    return Rows(ids, labels, facts)


def encode_texts(
    texts: list[str], tokenizer: Tokenizer, max_length: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Word ids of each text, `<eos>` first, and the counts of `Rows.facts`."""
    start = np.array([tokenizer.vocabulary.eos_id], np.int32)
    rows, words, unknown, empty, shortened = [], 0, 0, 0, 0
    for text in texts:
        ids, num_unknown = tokenizer.encode(text)
        words, unknown = words + len(ids), unknown + num_unknown
        empty += len(ids) == 0
        shortened += bool(max_length) and len(ids) > max_length
        rows.append(np.concatenate([start, ids[-max_length:] if max_length else ids]))
    facts = {
        "texts": len(texts),
        "words": words,
        "unknown_words": unknown,
        "unknown_share": unknown / max(words, 1),
        "empty_texts": empty,
        "shortened_texts": shortened,
    }
    return rows, facts


def _reader(folder: Path) -> Any:
    """What reads this folder's form: a function of the folder and a part's names."""
    if (folder / "train").is_dir():
        return _read_folders
    if (folder / "train.tsv").is_file():
        return _read_tsv
    found = (
        "no such folder" if not folder.exists() else "a folder without them" if folder.is_dir() else "a file"
    )
    raise InputError(
        f"{folder}: expected labelled texts as train/CLASS/*.txt or train.tsv in it; got {found}"
    )


def _read_folders(folder: Path, names: tuple[str, ...]) -> Texts | None:
    part = next((folder / name for name in names if (folder / name).is_dir()), None)
    if part is None:
        return None
    texts = Texts([], [])
    for class_folder in sorted(path for path in part.iterdir() if path.is_dir()):
        if class_folder.name == UNLABELLED_FOLDER or class_folder.name.startswith("."):
            continue
        for file in sorted(class_folder.glob("*.txt")):
            texts.texts.append(read_text(file))
            texts.labels.append(class_folder.name)
    return texts


def _read_tsv(folder: Path, names: tuple[str, ...]) -> Texts | None:
    files = [folder / f"{name}.tsv" for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    lines = read_text(file).split("\n")
    label, text, first = _columns(file, lines[0])
    if label is None and names == PARTS["test"]:
        return None
    if label is None:
        raise InputError(f"{file}: expected a column named label in its first line; got {lines[0][:60]!r}")
    texts = Texts([], [])
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = line.split("\t")
        if cells == [""]:
            continue  # what follows the last line's end, above all
        if len(cells) <= max(label, text) or not cells[label].strip():
            raise InputError(
                f"{file}: line {number} must hold a label and a text, a tab between; got {line[:60]!r}"
            )
        texts.texts.append(cells[text])
        texts.labels.append(cells[label].strip())
    return texts


def _columns(file: Path, line: str) -> tuple[int | None, int, int]:
    """Places of label (None: there is none) and text, and the number of lines before the first text."""
    names = [cell.strip().lower() for cell in line.split("\t")]
    label, text = (
        next((names.index(name) for name in known if name in names), None)
        for known in (("label",), TEXT_COLUMNS)
    )
    if text is not None:
        return label, text, 1
    if label is not None:
        raise InputError(f"{file}: expected a column named sentence or text beside label; got {line[:60]!r}")
    return 0, 1, 0


def read_text(file: Path) -> str:
    """A file's text, ends of lines as newlines.

    Raises:
        InputError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return decode_text(str(file), file.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{file}: cannot be read ({reason}); expected a text file") from None


def decode_text(name: str, content: bytes) -> str:
    """Bytes as text, without the mark that some editors put first; InputError naming `name` if it is none."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: expected UTF-8 text, got byte 0x{content[error.start]:02x} at byte {error.start}; "
            "convert it to UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(f"{name}: expected UTF-8 text, got a NUL byte")
    return text.replace("\r\n", "\n")


def _split_off(texts: Texts, seed: int, folder: Path) -> tuple[Texts, Texts]:
    """A tenth of each class, at least one text where a class has two, becomes the valid part."""
    rng = np.random.default_rng(seed)
    labels, valid = np.array(texts.labels), np.zeros(len(texts), bool)
    for name in sorted(set(texts.labels)):
        own = rng.permutation(np.flatnonzero(labels == name))
        share = max(1, round(len(own) / VALID_SHARE)) if len(own) > 1 else 0
        valid[own[:share]] = True
    if not valid.any():
        raise InputError(
            f"{folder}: expected a valid part, or two texts of some class to split one off; "
            f"got {len(texts)} texts of as many classes"
        )
    return _chosen(texts, ~valid), _chosen(texts, valid)


def _chosen(texts: Texts, chosen: np.ndarray) -> Texts:
    """The texts where `chosen`, bool (number of texts,), is true."""
    where = np.flatnonzero(chosen)
    return Texts([texts.texts[k] for k in where], [texts.labels[k] for k in where])
