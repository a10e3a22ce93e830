"""Write a page that shows an LSTM's backward pass on a sentence: python -m minilstm.anatomy "text"

A small model is trained for some seconds on English that every Python carries, then reads the sentence. The
page shows every gate's value and gradient, each with its equation, its line of code and its check by
differences; it is one file, needs no network, and works in any browser of today.

For a run of your own: python -m train.anatomy RUN "text"
"""

from __future__ import annotations

import argparse
import html
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from autograd.command import Parser, run
from autograd.errors import InputError
from minilstm.dissection import Sentence, dissect
from minilstm.first_model import EOS, UNK, train_first_model, words_of
from minilstm.language_model import LanguageModel

SENTENCE = "if the value of the expression is true, the name of the object is returned."
MAX_WORDS = 40
"""A page holds some thousand numbers for each word, and its maps a column."""
MAX_UNITS = 64
MARK = "<!-- made by minilstm.anatomy -->"
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {"minilstm/lstm_cell.py": ("lstm_cell",), "minilstm/lstm.py": ()},
    "layer_norm": {
        "minilstm/lstm_cell.py": ("layer_norm_lstm_cell",),
        "minilstm/layer_norm_lstm.py": (),
        "minilstm/lstm.py": ("local_derivatives",),
    },
}
"""Where a cell's equations stand: file, and the functions to look into, all of them if none is named."""
EQUATIONS = {"plain": range(1, 12), "layer_norm": (2, 3, *range(5, 10), 40, 42, 43, *range(50, 61))}
"""Those of a cell's step, forward and backward, by their numbers in docs/lstm_backward.md."""
_NUMBER = re.compile(r"\((\d+)\)")
_CONTEXT = 4
MASKING = {35, 36}
"""Equations of the candidate's mask, which stand among the lines that lead to others."""


def write_page(
    path: Path,
    model: LanguageModel,
    sentence: Sentence,
    vocabulary: Sequence[str],
    about: str,
    max_units: int = 24,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Dissect the model on the sentence, and write the page whole or not at all.

    Args:
        path: the file; an older page there is written over.
        about: a sentence on where the model comes from.
        Others as for `dissect`.

    Raises:
        InputError: something else than such a page is at `path`; others as `dissect`.
    """
    check_target(path)
    found = dissect(model, sentence, list(vocabulary), max_units, progress)
    text = page({"model": about, "code": code_of_equations(found["cell"]), **found})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raise an InputError unless a page can be written at `path`: nothing is there, or an older page."""
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"--out: expected a name ending in .html; got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"--out: the folder {path.parent} is not there; make it first")
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder; give the name of a file")
    if path.exists():
        with open(path, "rb") as file:
            if MARK.encode() not in file.read(200):
                raise InputError(f"--out: {path} is there and is no page of this command; give another name")


def page(facts: dict[str, Any]) -> str:
    """The page around its facts: template, style and script of the folder `anatomy_page`, in one text."""
    folder = resources.files("minilstm") / "anatomy_page"
    html_text, style, *scripts = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "equations.js", "page.js")
    )
    words = " ".join(facts["sentence"]["words"][1:])
    filling = {
        "title": html.escape(f"Anatomy of “{words}”"),
        "style": style,
        "data": as_json(facts),
        "script": "\n".join(scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filling[match[1]], html_text)


def as_json(facts: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or begin another."""
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def code_of_equations(cell: str) -> dict[int, list[dict[str, Any]]]:
    """For each equation of a cell the lines that compute it, read from the sources' own comments.

    Args:
        cell: "plain" or "layer_norm".

    Returns:
        number → blocks, each {file, within: the function, lines: [{number, text, hit}]}; a hit bears the
        equation's number, lines before it lead there.
    """
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in EQUATIONS[cell]}
    for file, names in PLACES[cell].items():
        source = (resources.files("minilstm") / Path(file).name).read_text(encoding="utf-8")
        lines = source.split("\n")
        numbered = [_numbers(line) for line in lines]
        owners = _owners(lines)
        for number in found:
            hits = [at for at, of in enumerate(numbered) if number in of]
            hits = [at for at in hits if not names or owners[at] in names]
            for _, group in itertools.groupby(hits, key=lambda at: owners[at]):
                found[number].append(_block(file, lines, numbered, owners, list(group)))
    return found


def _numbers(line: str) -> set[int]:
    """The equations that the comment at a line's end names."""
    _, sign, comment = line.partition("  # ")
    return {int(number) for number in _NUMBER.findall(comment)} if sign else set()


def _owners(lines: list[str]) -> list[str]:
    """For each line the function or method around it, as Class.method."""
    owners, owner, within = [], "", ""
    for line in lines:
        if match := re.match(r"(class|def) (\w+)", line):
            within, owner = (match[2] + "." if match[1] == "class" else ""), match[2]
        elif match := re.match(r"    def (\w+)", line):
            owner = within + match[1] if within else owner
        owners.append(owner)
    return owners


def _block(
    file: str, lines: list[str], numbered: list[set[int]], owners: list[str], hits: list[int]
) -> dict[str, Any]:
    """The hit lines, each with the few before it that belong to it, without their common indentation."""
    shown: set[int] = set()
    for hit in hits:
        shown.add(hit)
        depth = _indentation(lines[hit])
        for at in range(hit - 1, hit - 1 - _CONTEXT, -1):
            others = numbered[at] - MASKING
            is_text = not lines[at].strip() or '"""' in lines[at]
            if others or is_text or _indentation(lines[at]) < depth:
                break
            shown.add(at)
    common = min(_indentation(lines[at]) for at in shown)
    return {
        "file": file,
        "within": owners[hits[0]],
        "lines": [{"number": at + 1, "text": lines[at][common:], "hit": at in hits} for at in sorted(shown)],
    }


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def sentence_of(words: Sequence[str], ids: Sequence[int], vocabulary: Sequence[str], eos_id: int) -> Sentence:
    """A sentence as the model reads it, `<eos>` first.

    Raises:
        InputError: no words, too many, or none that the model knows.
    """
    if not words:
        raise InputError('sentence: is empty; give some words, for example "the value of the name"')
    if len(words) > MAX_WORDS:
        raise InputError(f"sentence: must have at most {MAX_WORDS} words and signs; got {len(words)}")
    names = [vocabulary[index] for index in ids]
    unknown = [word for word, name in zip(words, names, strict=True) if word != name]
    if len(unknown) == len(words):
        raise InputError(
            f"sentence: the model knows none of its words ({' '.join(unknown)}); use words of its text"
        )
    if unknown:
        print(f"not in the vocabulary, read as {UNK}: {' '.join(unknown)}", file=sys.stderr)
    return Sentence([EOS, *words], [eos_id, *ids], [EOS, *names])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that this command and `train.anatomy` share."""
    parser.add_argument(
        "sentence", nargs="?", default=SENTENCE, help=f"at most {MAX_WORDS} words; default: {SENTENCE!r}"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("anatomy.html"), help="default: anatomy.html"
    )
    parser.add_argument(
        "--units",
        type=int,
        default=24,
        metavar="N",
        help=f"units shown of each layer, those with most gradient; default 24, at most {MAX_UNITS}",
    )


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what can be refused before any work is done."""
    if not 1 <= args.units <= MAX_UNITS:
        raise InputError(f"--units: must be within 1 and {MAX_UNITS}; got {args.units}")
    if not args.sentence.strip():
        sentence_of([], [], [], 0)
    try:
        args.sentence.encode()
    except UnicodeEncodeError:
        raise InputError(f"sentence: must be UTF-8; got {args.sentence!r}") from None
    check_target(args.out)


def tell(text: str) -> None:
    """Progress on stderr: one line that is written over on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="" if text else "\r", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = Parser.documented("python -m minilstm.anatomy", __doc__)
    add_flags(parser)
    parser.add_argument("--run", metavar="RUN", help=argparse.SUPPRESS)
    parser.add_argument(
        "--steps", type=int, default=700, metavar="N", help="updates the model learns for; default 700"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the model; default 0")
    parser.add_argument("--layer-norm", action="store_true", help="a model of layer-normalised cells")
    args = parser.parse_args(argv)
    if args.run is not None:  # minilstm knows no runs: train does
        raise InputError(f"--run: a run is looked into by python -m train.anatomy {args.run}")
    for name, least in (("steps", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: must be at least {least}; got {getattr(args, name)}")
    check_flags(args)
    words = words_of(args.sentence)
    if not words or len(words) > MAX_WORDS:
        sentence_of(words, [], [], 0)
    model, vocabulary = train_first_model(
        steps=args.steps,
        seed=args.seed,
        layer_norm=args.layer_norm,
        progress=lambda step, loss: tell(f"learning: {step} of {args.steps} updates, loss {loss:.2f}"),
    )
    ids = {word: index for index, word in enumerate(vocabulary)}
    tell("")
    sentence = sentence_of(words, [ids.get(word, ids[UNK]) for word in words], vocabulary, ids[EOS])
    about = f"A model that has learned from Python's help topics for {args.steps} updates."
    write_page(args.out, model, sentence, vocabulary, about, args.units, tell_share)
    tell("")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def tell_share(share: float) -> None:
    """`tell` how far the checks are."""
    tell(f"checking gradients: {share:.0%}")


if __name__ == "__main__":
    run(main)
