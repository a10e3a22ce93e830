"""Accuracy, precision, recall and F1, by hand."""

import numpy as np
import pytest

from train.classification_scores import scores, summary, table


def score(labels, chosen, classes="abc"):
    log_probs = np.full((len(labels), len(classes)), np.log(0.1 / (len(classes) - 1)))
    log_probs[np.arange(len(labels)), chosen] = np.log(0.9)
    return scores(np.array(labels), log_probs, list(classes))


def test_by_hand():
    found = score([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2])
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["majority_accuracy"] == pytest.approx(3 / 6)
    assert found["classes"]["a"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "texts": 3, "chosen": 3}
    )
    assert found["classes"]["b"]["f1"] == pytest.approx(0.5)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert found["macro_precision"] == found["macro_recall"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert found["loss"] == pytest.approx(-(4 * np.log(0.9) + 2 * np.log(0.05)) / 6)


def test_a_class_that_is_never_chosen_has_no_precision_but_an_f1_of_0():
    found = score([0, 0, 1], [0, 0, 0], "ab")
    assert (found["classes"]["b"]["precision"], found["classes"]["b"]["f1"]) == (None, 0.0)
    assert found["classes"]["b"]["recall"] == 0.0
    assert found["macro_precision"] == pytest.approx((2 / 3) / 2)
    assert found["macro_f1"] == pytest.approx(0.8 / 2)


def test_a_class_that_no_text_has_counts_only_if_it_was_chosen():
    chosen, unchosen = score([0, 1], [0, 2]), score([0, 1], [0, 1])
    assert chosen["classes"]["c"]["recall"] is None
    assert chosen["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)
    assert unchosen["classes"]["c"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "texts": 0,
        "chosen": 0,
    }
    assert unchosen["macro_f1"] == 1.0


def test_an_imbalance_shows_in_the_macro_scores():
    found = score([0] * 98 + [1] * 2, [0] * 100, "ab")
    assert found["accuracy"] == found["majority_accuracy"] == 0.98
    assert found["macro_recall"] == 0.5


def test_what_is_printed():
    found = score([0, 0, 1], [0, 0, 0], ("neg", "a class with quite a long name"))
    assert summary(found).startswith(
        "accuracy 66.7% of 3 texts (the largest class alone: 66.7%), macro F1 0.4"
    )
    lines = table(found).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["neg", "0.667", "1.000", "0.800", "2", "2,", "0"]
    assert lines[2].split()[-6:] == ["–", "0.000", "0.000", "1", "1,", "0"]
    assert "a class with quite a lo…" in lines[2]
