"""What a classifier's choices are worth: accuracy, and precision, recall and F1 of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels: np.ndarray, chosen: np.ndarray, num_classes: int) -> np.ndarray:
    """int (classes, classes): texts of class [row] that were taken for class [column].

    Args:
        labels, chosen: (N), a class for each text.
    """
    return np.bincount(labels * num_classes + chosen, minlength=num_classes**2).reshape(-1, num_classes)


def scores(labels: np.ndarray, log_probs: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of a part, plain values for JSON.

    A class that is never chosen has no precision, one that no text has no recall: null, each; one that is
    neither has no F1. The macro scores are means over the classes that some text has or that were chosen;
    what is null in them counts as 0, as scikit-learn has it.

    Args:
        labels: int (N,), N at least 1.
        log_probs: (N, classes).
        classes: their names.

    Returns:
        texts, loss (nats), accuracy, macro_precision, macro_recall, macro_f1; classes: for each name
        precision, recall, f1, texts (that have it), chosen; confusion: rows of the true class.
    """
    confusion = confusion_matrix(labels, log_probs.argmax(axis=1), len(classes))
    texts, chosen, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    by_class = {
        name: {
            "precision": _ratio(right[k], chosen[k]),
            "recall": _ratio(right[k], texts[k]),
            "f1": _ratio(2 * right[k], texts[k] + chosen[k]),
            "texts": int(texts[k]),
            "chosen": int(chosen[k]),
        }
        for k, name in enumerate(classes)
    }
    met = [found for found in by_class.values() if found["f1"] is not None]
    macro = {
        f"macro_{key}": sum(found[key] or 0.0 for found in met) / len(met)
        for key in ("precision", "recall", "f1")
    }
    return {
        "texts": len(labels),
        "loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        "accuracy": float(right.sum() / len(labels)),
        **macro,
        "majority_accuracy": float(texts.max() / len(labels)),
        "classes": by_class,
        "confusion": confusion.tolist(),
    }


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def summary(result: dict[str, Any]) -> str:
    """The scores in a line."""
    return (
        f"accuracy {result['accuracy']:.1%} of {result['texts']:,} texts (the largest class alone: "
        f"{result['majority_accuracy']:.1%}), macro F1 {result['macro_f1']:.3f}, loss {result['loss']:.4f}"
    )


def table(result: dict[str, Any]) -> str:
    """The scores by class and the confusion matrix, as a person reads them."""
    names = list(result["classes"])
    width = max(12, *(min(len(name), 24) for name in names))
    cut = {name: name if len(name) <= width else name[: width - 1] + "…" for name in names}
    head = f"{'class':<{width}}  precision  recall      F1    texts  taken for: " + ", ".join(cut.values())
    lines = [head]
    for name, row in zip(names, result["confusion"], strict=True):
        found = result["classes"][name]
        lines.append(
            f"{cut[name]:<{width}}  {_cell(found['precision']):>9}  {_cell(found['recall']):>6}  "
            f"{_cell(found['f1']):>6}  {found['texts']:>7,}  " + ", ".join(f"{count:,}" for count in row)
        )
    lines.append(
        f"{'macro':<{width}}  {_cell(result['macro_precision']):>9}  {_cell(result['macro_recall']):>6}  "
        f"{_cell(result['macro_f1']):>6}  {result['texts']:>7,}"
    )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
