"""`python -m train.classify RUN DATA`: a text classifier (sentiment, topic) from a trained language model.

python -m train.classify RUN DATA --run-dir OUT         # DATA/train/CLASS/*.txt, or DATA/train.tsv
python -m train.classify OUT --predict reviews.txt      # a text a line; - reads standard input
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from train.checked_types import choices_of, plain_type
from train.classification_data import (
    Rows,
    class_names,
    decode_text,
    encode_texts,
    read_text,
    read_texts,
    to_rows,
)
from train.classification_scores import summary, table
from train.classifier import load_classifier
from train.classifier_training import (
    HELP,
    ClassifierFolder,
    ClassifierTraining,
    ClassifyConfig,
    make_classifier,
)
from train.communicator import get_communicator
from train.config import field_kinds
from train.environment import environment
from train.files import atomic_write
from train.log import duration
from train.run_folder import BEST, LATEST, load_trained
from train.tokenizer import Tokenizer


def main(argv: list[str] | None = None) -> int:
    """The command: makes a classifier, or with --predict uses one."""
    args = _parser().parse_args(argv)
    if get_communicator().size > 1:
        raise InputError("train.classify runs on one process; start it without mpirun")
    if args.predict is not None:
        return _predict(args)
    return _make(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m train.classify",
        description="Make a text classifier from a trained language model, or judge texts with one.",
        epilog="DATA holds train/CLASS/*.txt or train.tsv, and valid and test likewise if there are any.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run, or with --predict a classifier")
    parser.add_argument("data", metavar="DATA", type=Path, nargs="?", help="folder of labelled texts")
    parser.add_argument("--run-dir", metavar="OUT", type=Path, help="default: runs/DATA-classifier")
    parser.add_argument("--resume", action="store_true", help="go on after the last epoch that OUT holds")
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    parser.add_argument("--predict", metavar="FILE", help="texts to judge, one a line; -: standard input")
    parser.add_argument("--json", action="store_true", help="print JSON; with --predict a line for each text")
    kinds = field_kinds(ClassifyConfig)
    for knob in dataclasses.fields(ClassifyConfig):
        flag, text, kind = "--" + knob.name.replace("_", "-"), HELP[knob.name], kinds[knob.name]
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        choices = choices_of(kind)
        metavar = None if choices else {int: "N", float: "X", str: "LIST"}[plain_type(kind)]
        text = f"{text}; default {knob.default}"
        parser.add_argument(
            flag, type=plain_type(kind), choices=choices, default=knob.default, metavar=metavar, help=text
        )
    return parser


def _make(args: argparse.Namespace) -> int:
    knobs = [knob.name for knob in dataclasses.fields(ClassifyConfig)]
    config = ClassifyConfig(**{name: getattr(args, name) for name in knobs})
    if args.data is None:
        raise InputError("DATA: expected a folder of labelled texts, or --predict FILE to use a classifier")
    folder = ClassifierFolder(args.run_dir or Path("runs") / f"{args.data.resolve().name}-classifier")
    if not args.resume:
        folder.check_unused()  # before anything that takes long
    encoder, _, vocabulary, facts = load_trained(args.run, args.checkpoint)
    texts = read_texts(args.data, config.seed)
    classes, tokenizer = class_names(texts), Tokenizer(vocabulary)
    parts = {part: to_rows(found, classes, tokenizer, config.max_length) for part, found in texts.items()}
    _tell(parts, quiet=args.json)
    settings = {
        "settings": dataclasses.asdict(config),
        "classes": classes,
        "encoder": {"checkpoint_step": facts["position"]["step"], "vocabulary": vocabulary.fingerprint()},
        "texts": {part: rows.fingerprint() for part, rows in parts.items()},
    }
    classifier = make_classifier(encoder, config, classes)
    training = ClassifierTraining(config, classifier, parts, folder, vocabulary.fingerprint())
    if args.resume:
        folder.check_settings(settings)
    with folder.locked():
        if args.resume:
            training.restore()
        else:
            folder.create_for(settings, vocabulary)
        training.train()
        result = training.finish()
        result |= {
            "data": {part: rows.facts for part, rows in parts.items()},
            "updates": training.position.step,
            "seconds": training.position.seconds,
            "run": str(args.run),
            **settings,
            "environment": environment(),
        }
        with atomic_write(folder.result) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(result, folder, as_json=args.json)
    return 0


def _tell(parts: dict[str, Rows], quiet: bool) -> None:
    """What became of the texts, a line a part, and what is wrong with them."""
    for part, rows in parts.items():
        facts = rows.facts
        classes = ", ".join(f"{name} {count:,}" for name, count in facts["classes"].items())
        line = (
            f"{part}: {facts['texts']:,} texts ({classes}), {facts['words']:,} words, "
            f"{facts['unknown_share']:.1%} of them unknown"
        )
        for key, what in (("empty_texts", "empty"), ("shortened_texts", "shortened")):
            line += f", {facts[key]:,} {what}" if facts[key] else ""
        if not quiet:
            print(line, flush=True)
    for name, count in parts["train"].facts["classes"].items():
        if not count:
            print(f"class {name!r} has no text in train: it cannot be learned", file=sys.stderr)


def _print(result: dict[str, Any], folder: ClassifierFolder, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run_dir": str(folder.path), **result}))
        return
    for part in ("valid", "test"):
        if result[part] is None:
            print(f"{part}: no labelled texts, not scored")
            continue
        print(f"\n{part}: {summary(result[part])}")
        print(table(result[part]))
    best = result["valid"]
    print(f"\nweights of epoch {best['epoch']}, {duration(result['seconds'])} of training")
    print(f"classifier: {folder.path}")


def _predict(args: argparse.Namespace) -> int:
    """Judge the texts of a file, or of standard input, one a line."""
    if args.data is not None:
        raise InputError(f"--predict: takes texts from a file alone; got {args.data} beside it")
    folder = ClassifierFolder(args.run)
    if not folder.config.is_file():
        raise InputError(
            f"{args.run}: expected the folder of a classifier, with classifier.json in it; "
            "make one: python -m train.classify RUN DATA"
        )
    vocabulary = folder.read_vocabulary()
    classifier, facts = load_classifier(folder.checkpoint(args.checkpoint), vocabulary)
    texts = _lines(args.predict)
    ids, counts = encode_texts(texts, Tokenizer(vocabulary), facts["max_length"])
    if counts["unknown_words"]:
        share = counts["unknown_share"]
        print(f"{share:.1%} of {counts['words']:,} words are not in the vocabulary", file=sys.stderr)
    classes = classifier.config.classes
    for text, row in zip(texts, np.exp(classifier.log_probs(ids)), strict=True):
        chosen = classes[int(row.argmax())]
        if args.json:
            probabilities = dict(zip(classes, row.tolist(), strict=True))
            print(json.dumps({"label": chosen, "probabilities": probabilities, "text": text}))
        else:
            print(f"{chosen}\t{row.max():.4f}\t{text}")
    return 0


def _lines(name: str) -> list[str]:
    """The lines of a file or, for "-", of standard input; an empty one is an empty text."""
    text = decode_text("standard input", sys.stdin.buffer.read()) if name == "-" else read_text(Path(name))
    if not text:
        raise InputError(f"--predict: expected texts, one a line; {name} is empty")
    return text.removesuffix("\n").split("\n")


if __name__ == "__main__":
    from train.commands import run

    run(main)
