"""The English that comes with Python: prose, each paragraph once, always the same."""

import collections
import subprocess
import sys

import pytest
from mpi import rank_environment
from wikitext import change, names

from autograd.errors import InputError
from train.corpus import open_corpus
from train.prepare import ensure_prepared, prepare


def test_python_docs_are_english(python_english):
    num_words = {split: len(text.split()) for split, text in python_english.items()}
    assert num_words["train"] > 200_000
    assert all(0.02 < num_words[split] / num_words["train"] < 0.2 for split in ("valid", "test"))
    lines = [line for text in python_english.values() for line in text.splitlines()]
    assert len(set(lines)) == len(lines)
    assert not any(">>>" in line for line in lines)
    most_common = [word for word, _ in collections.Counter(python_english["train"].split()).most_common(12)]
    assert {"the", "a", "of", "to", "is", "."} <= set(most_common)


def test_python_docs_are_the_same_in_every_process(python_english):
    code = "from train import python_docs; print(ascii(python_docs.collect()))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=rank_environment({"PYTHONHASHSEED": "7"}),
        check=True,
    )
    assert result.stdout.decode().rstrip() == ascii(python_english)


def test_python_docs_prepared(tmp_path, monkeypatch, python_english):
    monkeypatch.setattr("train.python_docs.collect", lambda: python_english)
    path = ensure_prepared("python-docs", tmp_path)
    assert path == tmp_path / "python-docs.h5"
    with open_corpus(path) as corpus:
        assert 5_000 < len(corpus.vocabulary) < 20_000
        assert corpus.recipe["min_count"] == 2
        assert corpus.vocabulary.unk_id < 50
    before = change(path)
    ensure_prepared("python-docs", tmp_path)
    assert change(path) == before
    monkeypatch.setattr("train.python_docs.version", lambda: "CPython 3.99.0")  # other documentation
    with pytest.raises(InputError, match="made from other text or in another way; give --data"):
        ensure_prepared("python-docs", tmp_path)
    assert change(path) == before


def test_a_python_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="lacks its library's sources"):
        prepare("python-docs", tmp_path / "tokens.h5")
    assert names(tmp_path) == []
