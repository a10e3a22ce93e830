"""Small real classification tasks made from running text; the parts come from the text's own splits.

`heading`   is it a heading of an article, or as many words from the middle of a sentence?
`article`   which of the eight longest articles does a sentence come from?
`order`     do the words of a sentence stand in their order, or are they shuffled? A bag of words is at chance
            here by construction; it shows whether an order is learned at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from train.classification_data import PARTS, Texts
from train.corpus import UNK

Lines = list[list[str]]
"""Lines of text as words."""
Example = tuple[str, list[str]]
"""A class and the words of a text."""

SHORTEST, LONGEST = 6, 25  # words of a sentence whose order is asked about
NUM_ARTICLES = 8
PARTS_OF_ARTICLES = {"train": range(0, 6), "valid": range(6, 8), "test": range(8, 10)}
"""An article's sentences, counted by tens: all three parts come from the same articles."""


def read_lines(text: str) -> Lines:
    """Lines of words."""
    return [line.split() for line in text.split("\n")]


def sentences(lines: Lines) -> Lines:
    """Runs of words that end in a full stop; headings, marked by `=`, are none."""
    found: Lines = []
    sentence: list[str] = []
    for line in lines:
        if not line or line[0] == "=":
            continue
        sentence = []
        for word in line:
            sentence.append(word)
            if word == ".":
                found.append(sentence)
                sentence = []
    return found


def headings(lines: Lines) -> Lines:
    """What stands between the marks `= … =`, each wording once: `References` alone would be a tenth."""
    marked = [[word for word in line if word != "="] for line in lines if line and line[0] == line[-1] == "="]
    return [words.split() for words in dict.fromkeys(" ".join(words) for words in marked) if words]


def heading_task(lines: Lines, rng: np.random.Generator) -> list[Example]:
    """Headings, and for each one as many words from somewhere in a sentence."""
    titles, long_ones = headings(lines), [words for words in sentences(lines) if len(words) >= 15]
    examples: list[Example] = []
    for title, index in zip(titles, rng.permutation(len(long_ones)), strict=False):
        body = long_ones[index]
        start = int(rng.integers(0, max(1, len(body) - len(title))))
        examples += [("heading", title), ("text", body[start : start + len(title)])]
    return examples


def order_task(lines: Lines, rng: np.random.Generator) -> list[Example]:
    """Sentences; of every other one the words, but for the full stop, are shuffled."""
    fitting = [words for words in sentences(lines) if SHORTEST <= len(words) <= LONGEST]
    examples: list[Example] = []
    for place, index in enumerate(rng.permutation(len(fitting))):
        words = fitting[index]
        if place % 2:
            examples.append(("in order", words))
        else:
            examples.append(("shuffled", [words[k] for k in rng.permutation(len(words) - 1)] + words[-1:]))
    return examples


def articles(lines: Lines) -> dict[str, Lines]:
    """The lines of each article by its title, which stands between single marks, if all of it is known."""
    found: dict[str, Lines] = {}
    for line in lines:
        if line and line[0] == line[-1] == "=" and line[1] != "=":
            body = found.setdefault(" ".join(line[1:-1]), [])
        elif found:
            body.append(line)
    return {title: body for title, body in found.items() if UNK not in title}


def article_task(lines: Lines, part: str) -> list[Example]:
    """Sentences of the longest articles; of each article some for every part."""
    by_title = {title: sentences(body) for title, body in articles(lines).items()}
    longest = sorted(by_title, key=lambda title: len(by_title[title]), reverse=True)[:NUM_ARTICLES]
    return [
        (title, words)
        for title in longest
        for k, words in enumerate(by_title[title])
        if k // 10 % 10 in PARTS_OF_ARTICLES[part]
    ]


def make_task(name: str, splits: dict[str, Lines], sizes: dict[str, int], seed: int) -> dict[str, Texts]:
    """The parts of a task, each of at most so many examples, in random order.

    Args:
        name: `heading`, `article` or `order`.
        splits: lines of the text's train, valid and test split; `article` takes all parts from train.
        sizes: examples of each part.
        seed: of the choice and the shuffling.
    """
    simple: dict[str, Callable[[Lines, np.random.Generator], list[Example]]] = {
        "heading": heading_task,
        "order": order_task,
    }
    parts = {}
    for number, part in enumerate(PARTS):
        rng = np.random.default_rng([seed, number])
        made = article_task(splits["train"], part) if name == "article" else simple[name](splits[part], rng)
        chosen = [made[k] for k in rng.permutation(len(made))[: sizes[part]]]
        parts[part] = Texts([" ".join(words) for _, words in chosen], [label for label, _ in chosen])
    return parts


def write_task(folder: Path, parts: dict[str, Texts]) -> Path:
    """The task as train.tsv, valid.tsv and test.tsv, for `train.classify`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, texts in parts.items():
        rows = (f"{label}\t{text}\n" for label, text in zip(texts.labels, texts.texts, strict=True))
        (folder / f"{part}.tsv").write_text("label\ttext\n" + "".join(rows), encoding="utf-8")
    return folder


def with_rare_words_unknown(lines: Lines, num_words: int, num_kept: int) -> str:
    """The first `num_words` words as text; all but the `num_kept` most frequent words in it are `<unk>`."""
    taken, count = [], 0
    for line in lines:
        if count >= num_words:
            break
        taken.append(line)
        count += len(line) + 1
    words, first, counts = np.unique(
        [word for line in taken for word in line], return_index=True, return_counts=True
    )
    frequent = set(words[np.lexsort((first, -counts))[:num_kept]].tolist())
    return "".join(" ".join(w if w in frequent else UNK for w in line) + "\n" for line in taken)
