"""A pretrained classifier beats the largest class and a bag of words, on tasks made from real text.

In the English of Python: do the words of a sentence stand in their order? A bag of words is at chance there
by construction, so pairs of neighbouring words and random weights have to be beaten too. In WikiText, where
it is: is it a heading, or as many words of a sentence?
"""

import numpy as np
import pytest
from wikitext import wikitext_folder

from autograd.errors import InputError
from benchmarks.bag_of_words import _features, _logistic_regression, fit_bag_of_words
from benchmarks.classification import (
    LANGUAGE_MODEL,
    bag_of_words_accuracy,
    claim,
    classifier_accuracy,
    majority_accuracy,
    read_splits,
    summarize,
    table,
    train_language_model,
)
from benchmarks.classification_tasks import (
    make_task,
    read_lines,
    with_rare_words_unknown,
    write_task,
)
from train.classification_data import read_texts

SMALL = {**LANGUAGE_MODEL, "embedding_size": 64, "epochs": 1}
FLAGS = ["--learning-rate", "3e-3"]


def accuracies(name, data, folder, sizes, flags, words, vocabulary):
    """Test accuracy of every system on a task; `words` of the text the language model reads."""
    splits = read_splits(data)
    run = train_language_model(splits, folder, words, SMALL, vocabulary)
    parts = make_task(name, splits, sizes, seed=0)
    task = write_task(folder / "task", parts)
    found = {
        "majority": majority_accuracy(parts),
        "words": bag_of_words_accuracy(parts, 1),
        "pairs": bag_of_words_accuracy(parts, 2),
        "pretrained": classifier_accuracy(run, task, folder / "pretrained", [*FLAGS, *flags]),
        "scratch": classifier_accuracy(run, task, folder / "scratch", [*FLAGS, *flags, "--from-scratch"]),
    }
    print(name, found)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    return tmp_path / "work"


def test_the_order_of_words_is_learned(folder, python_english, monkeypatch):
    monkeypatch.setattr("train.python_docs.collect", lambda: python_english)
    sizes = {"train": 1000, "valid": 400, "test": 700}
    flags = ["--epochs", "6"]
    found = accuracies("order", "python-docs", folder, sizes, flags, words=200_000, vocabulary=2000)
    assert found["words"] < 0.6  # by construction; else the task is not what it says
    best_rival = max(found[name] for name in ("majority", "words", "pairs"))
    assert found["pretrained"] > best_rival + 0.04
    assert found["pretrained"] > found["scratch"] + 0.1


def test_headings_are_told_from_text(folder):
    sizes = {"train": 400, "valid": 400, "test": 1000}
    flags = ["--epochs", "8", "--features", "h,c,mean,max"]
    data = str(wikitext_folder("wikitext-2"))
    found = accuracies("heading", data, folder, sizes, flags, words=200_000, vocabulary=2000)
    assert found["pretrained"] > max(found[name] for name in ("majority", "words", "pairs")) + 0.02


LINES = read_lines(
    " = Birds = \n\n The old owl and the young owl sleep by day and they hunt by night . Owls see .\n"
    " = = Their nests = = \n A cuckoo lays its eggs in the nests of many other birds that it has seen .\n"
    " = = Their nests = = \n = Fish = \n Fish swim .\n"
    " A pike is a fish that eats all the other fish that it finds ."
)


def test_headings_stand_beside_as_many_words_of_text():
    parts = make_task("heading", dict.fromkeys(("train", "valid", "test"), LINES), SIZES, seed=0)
    by_class = {"heading": set(), "text": set()}
    for label, text in zip(parts["train"].labels, parts["train"].texts, strict=True):
        by_class[label].add(text)
    assert by_class["heading"] == {"Birds", "Their nests", "Fish"}
    assert sorted(len(text.split()) for text in by_class["text"]) == [1, 1, 2]
    body = " ".join(" ".join(line) for line in LINES if line and line[0] != "=")
    assert all(text in body for text in by_class["text"])


SIZES = {"train": 100, "valid": 100, "test": 100}


def test_shuffled_sentences_keep_their_words():
    lines = [f"{k} b c d e f g h .".split() for k in range(60)]
    parts = make_task("order", dict.fromkeys(("train", "valid", "test"), lines), SIZES, seed=0)
    labels, texts = parts["test"].labels, parts["test"].texts
    assert labels.count("in order") == labels.count("shuffled") == 30
    for label, text in zip(labels, texts, strict=True):
        words = text.split()
        original = lines[int(min(words, key=lambda word: (not word.isdigit(), word)))]
        assert sorted(words) == sorted(original)
        assert (words == original) == (label == "in order")
        assert words[-1] == "."


def test_each_article_has_sentences_in_every_part():
    lines = [["=", "Owl", "="], *([[f"o{k}", "."] for k in range(200)])]
    lines += [["=", "Pike", "="], ["=", "=", "Food", "=", "="], *([[f"p{k}", "."] for k in range(150)])]
    parts = make_task("article", {"train": lines}, dict.fromkeys(SIZES, 1000), seed=0)
    for part, texts in parts.items():
        assert set(texts.labels) == {"Owl", "Pike"}, part
        assert all(text[0] == label[0].lower() for label, text in zip(texts.labels, texts.texts, strict=True))
    texts = [text for part in parts.values() for text in part.texts]
    assert len(texts) == len(set(texts)) == 350


def test_a_task_on_disk_is_the_task(tmp_path):
    parts = make_task("heading", dict.fromkeys(("train", "valid", "test"), LINES), SIZES, seed=1)
    assert read_texts(write_task(tmp_path / "task", parts), seed=0) == parts


def test_rare_words_of_the_text_become_unk():
    text = with_rare_words_unknown(read_lines("a b a c\nb a d\n\ne e e e"), num_words=7, num_kept=2)
    assert text == "a b a <unk>\nb a <unk>\n"


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_finds_the_minimum(classes):
    """The gradient of the penalised loss, computed densely, is zero there."""
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abcdefgh"), 6).tolist() for _ in range(40)]
    labels, l2 = rng.integers(0, classes, 40), 1e-2
    for tf_idf in (False, True):
        (matrix,) = _features([texts], tf_idf)
        weights = _logistic_regression(matrix, labels, l2, tolerance=1e-9, steps=5000)
        dense = np.zeros(matrix.shape)
        dense[matrix.rows, matrix.columns] = matrix.values
        np.testing.assert_allclose(np.linalg.norm(dense[:, :-1], axis=1), 1)
        chances = np.exp(dense @ weights)
        chances /= chances.sum(axis=1, keepdims=True)
        gradient = dense.T @ (chances - np.eye(classes)[labels]) / 40
        gradient[:-1] += l2 * weights[:-1]
        np.testing.assert_allclose(gradient, 0, atol=1e-8)


def test_a_bag_of_words_learns_words_and_pairs_learn_their_order():
    rng = np.random.default_rng(1)
    words = [rng.permutation(["a", "b", *rng.choice(list("cdefg"), 2)]).tolist() for _ in range(300)]
    by_word = np.array([text.count("c") > 0 for text in words]).astype(int)
    by_order = np.array(["a b" in " ".join(text) for text in words]).astype(int)

    def accuracy(labels, longest):
        fit = fit_bag_of_words(
            words[:200], labels[:200], words[200:250], labels[200:250], words[250:], longest
        )
        return (fit.chosen == labels[250:]).mean()

    assert accuracy(by_word, 1) > 0.95
    assert accuracy(by_order, 2) > 0.95
    assert accuracy(by_order, 1) <= max(np.bincount(by_order[250:])) / 50


def test_results_of_another_comparison_are_not_gone_on_with(tmp_path):
    claim(tmp_path / "work", {"words": 1})
    claim(tmp_path / "work", {"words": 1})
    with pytest.raises(InputError, match="holds results of another comparison"):
        claim(tmp_path / "work", {"words": 2})


def test_the_summary_over_seeds():
    rows = [
        dict.fromkeys(("majority", "words", "pairs", "scratch", "pretrained", "ulmfit"), x)
        for x in (0.5, 0.7)
    ]
    found = summarize(rows)
    assert found["words"] == {"mean": 0.6, "deviation": pytest.approx(0.02**0.5), "seeds": [0.5, 0.7]}
    assert table({"order": {"accuracy": found}}).splitlines()[1].split()[:4] == ["order", "60.0", "±", "14.1"]
    assert summarize(rows[:1])["words"]["deviation"] is None
