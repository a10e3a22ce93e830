"""Labelled texts: both forms on disk, what is refused, and the word ids that a classifier reads."""

import numpy as np
import pytest

from autograd.errors import InputError
from train.classification_data import class_names, read_texts, to_rows
from train.corpus import Vocabulary
from train.tokenizer import Tokenizer

WORDS = Vocabulary(["<unk>", "<eos>", "good", "bad", "film", "the"])
TSV = "sentence\tlabel\ngood film\t1\nbad film\t0\n"


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def imdb(part, **classes):
    return {
        f"{part}/{name}/{index}_{index}.txt": text
        for name, texts in classes.items()
        for index, text in enumerate(texts)
    }


def pairs(texts):
    return sorted(zip(texts.labels, texts.texts, strict=True))


def test_a_folder_for_each_class(tmp_path):
    files = {
        **imdb("train", pos=["good<br />film", ""], neg=["bad", "film"], unsup=["the film"]),
        **imdb("dev", pos=["good"], neg=["bad"]),
        **imdb("test", pos=["good"]),
        "train/urls_pos.txt": "no review",
        "train/.cache/1.txt": "no review",
        "train/pos/notes.md": "no review",
    }
    parts = read_texts(write(tmp_path, files), seed=0)
    assert pairs(parts["train"]) == [("neg", "bad"), ("neg", "film"), ("pos", ""), ("pos", "good<br />film")]
    assert {part: len(texts) for part, texts in parts.items()} == {"train": 4, "valid": 2, "test": 1}
    assert class_names(parts) == ["neg", "pos"]


@pytest.mark.parametrize(
    "train",
    [
        TSV,
        "label\tsentence\n1\tgood film\n0\tbad film\n",
        "Label\tText\r\n1\tgood film\r\n0\tbad film\r\n",
        "id\tsentence\tlabel\n7\tgood film\t1\n8\tbad film\t0\n",
        "1\tgood film\n0\tbad film\n",
        "\ufeff1\tgood film\n\n0\tbad film",
    ],
    ids=["sst", "label first", "windows", "more columns", "no header", "byte order mark, no last newline"],
)
def test_tab_separated_texts(tmp_path, train):
    parts = read_texts(write(tmp_path, {"train.tsv": train, "valid.tsv": TSV}), seed=0)
    assert pairs(parts["train"]) == [("0", "bad film"), ("1", "good film")]


def test_quotes_and_empty_texts_are_texts(tmp_path):
    train = 'sentence\tlabel\n"good\t1\n\t0\n'
    parts = read_texts(write(tmp_path, {"train.tsv": train, "dev.tsv": TSV}), seed=0)
    assert pairs(parts["train"]) == [("0", ""), ("1", '"good')]


def test_a_test_part_without_labels_is_not_scored(tmp_path):
    files = {"train.tsv": TSV, "dev.tsv": TSV, "test.tsv": "index\tsentence\n0\tgood film\n"}
    assert set(read_texts(write(tmp_path, files), seed=0)) == {"train", "valid"}


def test_a_tenth_of_each_class_becomes_the_valid_part(tmp_path):
    files = imdb("train", a=[f"a{k}" for k in range(40)], b=[f"b{k}" for k in range(5)], c=["c0"])
    write(tmp_path, files)
    parts = read_texts(tmp_path, seed=3)
    assert sorted(parts["valid"].labels) == ["a"] * 4 + ["b"]
    assert sorted(parts["train"].texts + parts["valid"].texts) == sorted(files.values())
    assert read_texts(tmp_path, seed=3) == parts
    assert read_texts(tmp_path, seed=4)["valid"] != parts["valid"]


def test_a_class_may_be_missing_in_any_part(tmp_path):
    files = {"train.tsv": TSV, "valid.tsv": "1\tgood\n", "test.tsv": "2\tfilm\n"}
    parts = read_texts(write(tmp_path, files), seed=0)
    classes = class_names(parts)
    assert classes == ["0", "1", "2"]
    rows = to_rows(parts["valid"], classes, Tokenizer(WORDS), 0)
    assert rows.facts["classes"] == {"0": 0, "1": 1, "2": 0}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected labelled texts as train/CLASS/\\*.txt or train.tsv in it; got a folder without them"),
        (imdb("train", pos=["good"]), "at least two classes in its train part, found 'pos' alone"),
        ({"train.tsv": "1\tgood\n1\tfilm\n"}, "at least two classes in its train part, found '1' alone"),
        (imdb("train", pos=["a"], neg=["b"]), "or two texts of some class to split one off; got 2 texts"),
        ({"train/pos/notes.md": ""}, "expected labelled texts in its train part, found none"),
        ({"train.tsv": ""}, "expected labelled texts in its train part, found none"),
        ({"train.tsv": TSV, "test.tsv": "label\ttext\n"}, "labelled texts in its test part, found none"),
        ({"train.tsv": "sentence\ngood\n"}, "expected a column named label in its first line"),
        ({"train.tsv": "label\treview\n1\tgood\n"}, "a column named sentence or text beside label"),
        ({"train.tsv": TSV + "no tab\n"}, "line 4 must hold a label and a text, a tab between; got 'no tab'"),
        ({"train.tsv": TSV + "film\t \n"}, "line 4 must hold a label and a text"),
        ({"train.tsv": b"1\tgood\n0\tb\xe4d\n"}, "got byte 0xe4 at byte 10; convert it to UTF-8"),
        ({"train.tsv": b"1\tgood\n0\tb\0d\n"}, "got a NUL byte"),
        (imdb("train", pos=[b"\xff"], neg=["bad"]), "pos/0_0.txt: expected UTF-8 text"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        read_texts(write(tmp_path, files), seed=0)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected labelled texts .* got no such folder"):
        read_texts(tmp_path / "nowhere", seed=0)


def test_an_unreadable_file_is_refused(tmp_path):
    write(tmp_path, imdb("train", pos=["a"], neg=["b"]))
    (tmp_path / "train" / "neg" / "1_1.txt").mkdir()
    with pytest.raises(InputError, match=r"1_1.txt: cannot be read \(is a directory\)"):
        read_texts(tmp_path, seed=0)


def rows_of(tmp_path, max_length):
    files = {"train.tsv": "1\tthe good film\n0\t\n1\tthe zebra\n0\tbad film\n", "valid.tsv": TSV}
    parts = read_texts(write(tmp_path, files), seed=0)
    return to_rows(parts["train"], class_names(parts), Tokenizer(WORDS), max_length)


def test_texts_become_ids_after_eos_and_their_last_words_are_kept(tmp_path):
    whole = rows_of(tmp_path, 0)
    assert [ids.tolist() for ids in whole.ids] == [[1, 5, 2, 4], [1], [1, 5, 0], [1, 3, 4]]
    np.testing.assert_array_equal(whole.labels, [1, 0, 1, 0])
    shortened = rows_of(tmp_path, 2)
    assert [ids.tolist() for ids in shortened.ids] == [[1, 2, 4], [1], [1, 5, 0], [1, 3, 4]]
    assert shortened.facts == {
        "texts": 4,
        "words": 7,
        "unknown_words": 1,
        "unknown_share": 1 / 7,
        "empty_texts": 1,
        "shortened_texts": 1,
        "classes": {"0": 2, "1": 2},
    }
    assert whole.fingerprint() != shortened.fingerprint() == rows_of(tmp_path, 2).fingerprint()
