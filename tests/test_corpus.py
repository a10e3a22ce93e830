"""The reading side of prepared data: what it gives back, and what it refuses."""

import json

import h5py
import numpy as np
import pytest

from autograd.errors import InputError
from train.corpus import Vocabulary, joined, open_corpus

WORDS = ["the", "<eos>", "<unk>", "café"]


def write_tokens(path, first_version=False, **changes):
    """A small sound file; `changes` replace attributes or data sets by name, None leaves one out."""
    content = {
        "format": "minilstm-tokens",
        "version": 1 if first_version else 2,
        "recipe": json.dumps({"min_count": 1}),
        "sources": json.dumps([{"name": "text", "bytes": 3, "sha256": "0"}]),
        "outside_vocabulary": json.dumps({"train": 0, "valid": 1, "test": 0}),
        "complete": True,
        "train": np.array([0, 3, 1, 0, 2, 1], np.int32),
        "valid": np.array([2, 1], np.int32),
        "test": np.array([3, 1], np.int32),
        "vocabulary": (strings if first_version else words)(*WORDS),
        "counts": np.array([2, 2, 1, 1]),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if isinstance(value, np.ndarray):
                file[name] = value
            elif value is not None:
                fixed = isinstance(value, str) and not first_version
                file.attrs[name] = np.bytes_(value.encode()) if fixed else value
    return path


def strings(*words):
    return np.array(words, dtype=h5py.string_dtype())


def words(*words):
    return joined([word.encode() for word in words])


@pytest.mark.parametrize("first_version", [False, True])
def test_what_was_written_is_read(tmp_path, first_version):
    with open_corpus(write_tokens(tmp_path / "tokens.h5", first_version)) as corpus:
        assert corpus.vocabulary.words == WORDS
        assert [corpus.num_tokens(split) for split in ("train", "valid", "test")] == [6, 2, 2]
        np.testing.assert_array_equal(corpus.read("train", 1, 4), np.array([3, 1, 0], np.int32))
        assert corpus.read("train", 1, 4).dtype == np.int32
        assert corpus.read("train", 6, 6).shape == (0,)
        np.testing.assert_array_equal(corpus.tokens("valid")[:], [2, 1])
        np.testing.assert_array_equal(corpus.counts, [2, 2, 1, 1])
        assert corpus.recipe == {"min_count": 1}
        assert corpus.outside_vocabulary["valid"] == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_reading_beyond_a_split_is_refused(tmp_path, start, stop):
    with (
        open_corpus(write_tokens(tmp_path / "tokens.h5")) as corpus,
        pytest.raises(InputError, match=r"expected 0 <= start <= stop <= 6"),
    ):
        corpus.read("train", start, stop)


def test_an_unknown_split_is_refused(tmp_path):
    with (
        open_corpus(write_tokens(tmp_path / "tokens.h5")) as corpus,
        pytest.raises(InputError, match="train, valid, test, got 'dev'"),
    ):
        corpus.num_tokens("dev")


def test_vocabulary_encodes_and_reports_unknown_words():
    vocabulary = Vocabulary(WORDS)
    ids, unknown = vocabulary.encode(["café", "naïve", "the", "naïve"])
    np.testing.assert_array_equal(ids, np.array([3, 2, 0, 2], np.int32))
    assert ids.dtype == np.int32
    assert unknown == ["naïve", "naïve"]
    assert (len(vocabulary), vocabulary.unk_id, vocabulary.eos_id) == (4, 2, 1)
    assert (vocabulary.id_of("the"), vocabulary.id_of("naïve")) == (0, None)


def test_the_fingerprint_is_that_of_the_words_in_their_order(tmp_path):
    fingerprints = []
    for number, listed in enumerate((WORDS, WORDS, WORDS[::-1], [*WORDS[:3], "cafe"])):
        vocabulary = words(*listed)
        with open_corpus(write_tokens(tmp_path / f"{number}.h5", vocabulary=vocabulary)) as corpus:
            fingerprints.append(corpus.fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 3}, "version is 3, and this program reads up to 2"),
        ({"version": "1"}, "version is 1,"),
        ({"complete": None}, "lacks complete"),
        ({"complete": False}, "never finished"),
        ({"valid": None}, "lacks valid"),
        ({"recipe": "{"}, "Expecting property name"),
        ({"test": np.zeros(0, np.int32)}, r"test is int32 \(0,\)"),
        ({"train": np.zeros((2, 2), np.int32)}, r"train is int32 \(2, 2\)"),
        ({"train": np.zeros(4, np.float32)}, "train is float32"),
        (
            {"train": np.array([0, 1, 4, 9], np.int32)},
            r"train\[2\] is 4, outside the vocabulary's ids 0 to 3",
        ),
        ({"test": np.array([0, -1], np.int32)}, r"test\[1\] is -1, outside"),
        ({"counts": np.array([1, 2, 3])}, "4 words but 3 counts"),
        ({"vocabulary": np.arange(4)}, r"vocabulary is int64 \(4,\), which should be uint8"),
        ({"vocabulary": strings(*WORDS)}, r"vocabulary is object \(4,\), which should be uint8"),
        ({"vocabulary": np.array([255, 254], np.uint8)}, "can't decode byte"),
        ({"vocabulary": words("a", "a", "<unk>", "<eos>")}, "expected 4 different words, got 3"),
        ({"vocabulary": words("a", "b", "c", "<eos>")}, "expected the word <unk>"),
        ({"first_version": True, "vocabulary": np.arange(4)}, "not a list of strings"),
        ({"first_version": True, "version": 2}, "its format is of variable length"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, changes, message):
    path = write_tokens(tmp_path / "tokens.h5", **changes)
    with pytest.raises(InputError, match=message) as raised:
        open_corpus(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_ids_are_checked_to_the_end_of_a_long_split(tmp_path, monkeypatch):
    monkeypatch.setattr("train.corpus._SCAN", 10)
    tokens = np.zeros(37, np.int32)
    tokens[36] = 4
    with pytest.raises(InputError, match=r"train\[36\] is 4"):
        open_corpus(write_tokens(tmp_path / "tokens.h5", train=tokens))


def test_what_is_no_hdf5_file_is_refused(tmp_path):
    empty, text, torn = tmp_path / "empty.h5", tmp_path / "text.h5", tmp_path / "torn.h5"
    empty.touch()
    text.write_text("the cat sat")
    write_tokens(torn, train=np.zeros(100_000, np.int32))
    torn.write_bytes(torn.read_bytes()[:50_000])
    for path, message in (
        (tmp_path / "missing.h5", "found nothing; make one: python -m train.prepare"),
        (tmp_path, "found a folder"),
        (empty, "it is empty"),
        (text, "it is not HDF5"),
        (torn, "truncated"),
    ):
        with pytest.raises(InputError, match=message):
            open_corpus(path)
