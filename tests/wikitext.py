"""Small texts in WikiText form, the published ones where they are, and looks at what was made of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import rank_environment

from train.corpus import SPLITS, open_corpus

TRAIN = b" = Title = \n\nthe cat saw the <unk> dog\n a dog b \n"
VALID = b"the bird\ncat cat"
TEST = b"a\n"


def write_wikitext(folder, train=TRAIN, valid=VALID, test=TEST):
    folder.mkdir(exist_ok=True)
    for split, text in zip(SPLITS, (train, valid, test), strict=True):
        if text is not None:
            (folder / f"wiki.{split}.tokens").write_bytes(text)
    return folder


def words_of(path, split):
    """A prepared split as words again."""
    with open_corpus(path) as corpus:
        return [corpus.vocabulary.words[index] for index in corpus.tokens(split)[:]]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def change(path):
    """What tells whether a file was written anew."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def run_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "train.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=rank_environment(),
        **options,
    )


def wikitext_folder(name):
    """A folder of the published WikiText, where this machine has one; else the test is skipped."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MINILSTM_WIKITEXT") or shared) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} here; MINILSTM_WIKITEXT names no folder that holds it")
    return folder
