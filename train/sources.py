"""Where text comes from: a folder in WikiText form, a text file, a named download, or Python itself.

A source names its text's splits and the files whose checksums tell whether the text has changed.
`find_source` picks the one that is meant; `train/prepare.py` turns any of them into token ids.
"""

import io
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autograd.errors import InputError
from train.corpus import SPLITS
from train.files import exclusive_lock, made_folder
from train.nearest import nearest
from train.text import BLOCK, Text, file_text, memory_text


class Source(ABC):
    """Text in three splits. `name` names the prepared file; `recipe` says how the splits are cut."""

    name: str
    recipe: dict[str, str]
    default_min_count = 1

    @abstractmethod
    def files(self) -> list[Path]:
        """The text's files, if on this disk; their checksums tell whether the text has changed."""

    @abstractmethod
    def splits(self) -> dict[str, Text]:
        """The text of train, valid and test, fetched or made now if need be."""


_FORMS = {"wiki.{}.tokens": "wikitext", "ptb.{}.txt": "ptb"}
"""How a folder's files are named for each split, and what the recipe calls that; ptb: the Penn Treebank."""


class SplitFolder(Source):
    """A folder with a file for each split, all of them named in one of the known forms."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        patterns = [pattern for pattern in _FORMS if self._paths(pattern)[0].is_file()]
        self.pattern = patterns[0] if patterns else next(iter(_FORMS))
        self.recipe = {"form": _FORMS[self.pattern], "split": "as given"}

    def _paths(self, pattern: str) -> list[Path]:
        return [self.folder / pattern.format(split) for split in SPLITS]

    def paths(self) -> list[Path]:
        """Where the three splits are, or would be."""
        return self._paths(self.pattern)

    def files(self) -> list[Path]:
        return [path for path in self.paths() if path.is_file()]

    def splits(self) -> dict[str, Text]:
        missing = [path.name for path in self.paths() if not path.is_file()]
        if missing:
            forms = " or ".join(pattern.replace("{}", "{train,valid,test}") for pattern in _FORMS)
            raise InputError(f"{self.folder}: expected a folder with {forms}, lacks {missing[0]}")
        return {split: file_text(path) for split, path in zip(SPLITS, self.paths(), strict=True)}


@dataclass(frozen=True)
class Archive:
    """A published zip file: where it lies, its md5, and the size in bytes that no part of it exceeds."""

    mirrors: tuple[str, ...]
    md5: str
    max_bytes: int


# Merity et al. 2016, arXiv 1609.07843. First the author's own mirror; the first home, the bucket, answers 403
# today. The md5 sums are those that torchtext pins.
ARCHIVES = {
    "wikitext-2": Archive(
        (
            "https://wikitext.smerity.com/wikitext-2-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
        ),
        "542ccefacc6c27f945fb54453812b3cd",
        1 << 26,
    ),
    "wikitext-103": Archive(
        (
            "https://wikitext.smerity.com/wikitext-103-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-v1.zip",
        ),
        "9ddaacaf6af0710eda8c456decff7832",
        1 << 30,
    ),
}


class WikiTextArchive(SplitFolder):
    """A WikiText folder that is downloaded into the data folder when its text is first asked for."""

    def splits(self) -> dict[str, Text]:
        if len(self.files()) < len(SPLITS):
            self._fetch()
        return super().splits()

    def _fetch(self) -> None:
        from train.download import download, unpack  # and with it HTTP and TLS, which no other run needs

        source = ARCHIVES[self.name]
        archive = self.folder.with_name(f"{self.name}-v1.zip")
        with made_folder(archive.parent), exclusive_lock(archive):
            if not archive.exists():
                download(source.mirrors, archive, md5=source.md5, max_bytes=source.max_bytes)
            members = {f"{self.name}/{path.name}": path.name for path in self.paths()}
            unpack(archive, members, self.folder, source.max_bytes)
            archive.unlink()  # everything of use is out


class TextFile(Source):
    """One text file: its first 90% of lines train, the next 5% valid, the last 5% test."""

    default_min_count = 2  # else no <unk> stands in the train split, and none is ever learned

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().stem
        self.recipe = {"form": "text", "split": "90/5/5 by lines"}

    def files(self) -> list[Path]:
        return [self.path]

    def splits(self) -> dict[str, Text]:
        whole = file_text(self.path)
        newlines = [block.count(b"\n") for block in whole.blocks()]
        with whole.open() as stream:
            stream.seek(-1, io.SEEK_END)
            lines = sum(newlines) + (stream.read(1) != b"\n")
        if lines < len(SPLITS):
            raise InputError(
                f"{self.path}: expected {len(SPLITS)} lines at least to split 90/5/5, got {lines}"
            )
        tail = max(1, lines * 5 // 100)
        bounds = [0, *(self._line_start(newlines, lines - k * tail) for k in (2, 1)), len(whole)]
        return {
            split: Text(whole.name, whole.open, start, stop)
            for split, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
        }

    def _line_start(self, newlines: list[int], line: int) -> int:
        """The byte where line number `line` > 0 begins, given the number of newlines in each block."""
        ends = np.cumsum(newlines)
        block = int(np.searchsorted(ends, line))  # holds the newline that ends the line before
        with open(self.path, "rb") as stream:
            stream.seek(block * BLOCK)
            text = np.frombuffer(stream.read(BLOCK), dtype=np.uint8)
        nth = line - 1 - (int(ends[block - 1]) if block else 0)
        return block * BLOCK + int(np.flatnonzero(text == ord("\n"))[nth]) + 1


class PythonDocs(Source):
    """The English in the running Python's standard library; needs no network."""

    name = "python-docs"
    default_min_count = 2

    def __init__(self) -> None:
        from train import python_docs

        self.recipe = {
            "form": "python-docs",
            "split": python_docs.SPLIT_RULE,
            "python": python_docs.version(),
        }

    def files(self) -> list[Path]:
        return []  # the Python version in the recipe stands for them

    def splits(self) -> dict[str, Text]:
        from train import python_docs

        texts = {split: text.encode() for split, text in python_docs.collect().items()}
        return {split: memory_text(f"{self.name}.{split}", text) for split, text in texts.items()}


def find_source(given: str | os.PathLike, data_dir: Path) -> Source:
    """The source that `given` names: wikitext-2, wikitext-103, python-docs, a folder or a text file.

    Raises:
        InputError: nothing is there, or what is there cannot be a source.
    """
    name = os.fspath(given)
    if name == PythonDocs.name:
        return PythonDocs()
    if name in ARCHIVES:
        return WikiTextArchive(data_dir / name, name)
    path = Path(name)
    if path.is_dir():
        folder = SplitFolder(path, path.resolve().name)
        folder.splits()  # refuses a folder that holds something else
        return folder
    if path.is_file():
        return TextFile(path)
    names = [PythonDocs.name, *ARCHIVES]
    hint = nearest("name", name, names, cutoff=0.6)
    raise InputError(
        f"{name}: expected a folder, a text file or one of {', '.join(names)}; nothing is there"
        + (f", {hint}" if hint else "; give the path of your text")
    )
