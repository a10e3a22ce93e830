"""What a pretrained encoder is worth: python -m benchmarks.classification --data ../shared/data/wikitext-2

Trains a small language model on a part of the text (or takes --run), makes three tasks from the same text
(benchmarks/classification_tasks.py), and scores on each, seed by seed, on the same examples:

    majority    the most frequent class
    words       a bag of words: logistic regression, its strength and weighting chosen on the valid part
    pairs       the same over words and pairs of neighbours
    scratch     train.classify with random weights of the language model's sizes
    pretrained  train.classify with its trained ones
    ulmfit      and with gradual unfreezing, each lower layer's learning rate divided by 2.6

The tasks' test examples come from text that the language model has not read, but for `article`, whose
sentences are of its own training text. Every finished classifier stays in WORK_DIR; the same command, given
again, goes on after the last.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.bag_of_words import fit_bag_of_words
from benchmarks.classification_tasks import (
    Lines,
    make_task,
    read_lines,
    with_rare_words_unknown,
    write_task,
)
from benchmarks.report import add_report_flags, check_report_flags, report
from train import classify, wt103
from train.classification_data import Texts, class_names
from train.environment import environment
from train.prepare import default_data_dir, prepare
from train.sources import find_source

SIZES = {
    "heading": {"train": 400, "valid": 500, "test": 1000},
    "article": {"train": 200, "valid": 150, "test": 400},
    "order": {"train": 2000, "valid": 500, "test": 1000},
}
EPOCHS = {"heading": "8", "article": "30", "order": "8"}
LANGUAGE_MODEL = {
    "embedding_size": 128, "num_layers": 1, "batch_size": 20, "epochs": 2, "learning_rate": 5e-3,
    "warmup_steps": 20, "encoder_last_input_keep_prob": 1.0, "encoder_last_output_keep_prob": 0.9,
}  # fmt: skip
NUM_WORDS, VOCABULARY = 400_000, 5000  # that the language model reads, and knows
CLASSIFIERS = {
    "scratch": ["--from-scratch"],
    "pretrained": [],
    "ulmfit": ["--unfreeze", "gradual", "--layer-decay", "2.6", "--learning-rate", "1e-2"],
}
COMMON = ["--features", "h,c,mean,max", "--learning-rate", "3e-3", "--batch-size", "32"]
SYSTEMS = ("majority", "words", "pairs", *CLASSIFIERS)


def read_splits(data: str) -> dict[str, Lines]:
    """The lines of a text's train, valid and test split; `data` as train.wt103 takes it."""
    source = find_source(data, default_data_dir())
    return {split: read_lines(b"".join(text.blocks()).decode()) for split, text in source.splits().items()}


def train_language_model(
    splits: dict[str, Lines],
    folder: Path,
    num_words: int,
    knobs: dict[str, Any],
    vocabulary: int = VOCABULARY,
) -> Path:
    """A language model of a part of the training split, trained where it is not there yet; its run folder."""
    run = folder / "language-model"
    if not (run / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = folder / "language-model.txt"
        text.write_text(with_rare_words_unknown(splits["train"], num_words, vocabulary), encoding="utf-8")
        settings = [part for name, value in knobs.items() for part in ("--set", f"{name}={value}")]
        tokens = prepare(text, folder / "language-model.h5")
        arguments = ["--preset", "quickstart", "--data", str(tokens), "--run-dir", str(run), *settings]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            wt103.main([*arguments, "--resume"] if (run / "config.toml").exists() else arguments)
    return run


def bag_of_words_accuracy(parts: dict[str, Texts], longest: int) -> float:
    """Accuracy on the test part of logistic regression over runs of up to `longest` words."""
    number = {name: k for k, name in enumerate(class_names(parts))}
    words = {part: [text.split() for text in texts.texts] for part, texts in parts.items()}
    labels = {part: np.array([number[name] for name in texts.labels]) for part, texts in parts.items()}
    fit = fit_bag_of_words(
        words["train"], labels["train"], words["valid"], labels["valid"], words["test"], longest
    )
    return float((fit.chosen == labels["test"]).mean())


def majority_accuracy(parts: dict[str, Texts]) -> float:
    """Accuracy on the test part of the class that is the most frequent one in train."""
    labels = parts["train"].labels
    largest = max(sorted(set(labels)), key=labels.count)
    return parts["test"].labels.count(largest) / len(parts["test"])


def classifier_accuracy(run: Path, task: Path, out: Path, flags: list[str]) -> float:
    """Accuracy on the test part of what `train.classify` makes, where it is not there yet."""
    if not (out / "result.json").exists():
        resume = ["--resume"] if (out / "classifier.json").exists() else []
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            classify.main([str(run), str(task), "--run-dir", str(out), *flags, *resume])
    return json.loads((out / "result.json").read_text(encoding="utf-8"))["test"]["accuracy"]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings into the folder; InputError if it holds the results of others."""
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise InputError(f"{folder}: holds results of another comparison; choose another --work-dir")


def compare(
    name: str, splits: dict[str, Lines], sizes: dict[str, int], run: Path, folder: Path, seed: int
) -> dict[str, float]:
    """Accuracy of every system on one task, examples chosen by the seed."""
    parts = make_task(name, splits, sizes, seed)
    task = write_task(folder / f"{name}-{seed}", parts)
    found = {
        "majority": majority_accuracy(parts),
        "words": bag_of_words_accuracy(parts, 1),
        "pairs": bag_of_words_accuracy(parts, 2),
    }
    for system, flags in CLASSIFIERS.items():
        flags = [*COMMON, "--epochs", EPOCHS[name], "--seed", str(seed), *flags]
        found[system] = classifier_accuracy(run, task, folder / f"{name}-{seed}-{system}", flags)
    return found


def summarize(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean and deviation over the seeds, by system."""
    return {
        system: {
            "mean": mean(row[system] for row in rows),
            "deviation": stdev(row[system] for row in rows) if len(rows) > 1 else None,
            "seeds": [row[system] for row in rows],
        }
        for system in SYSTEMS
    }


def table(tasks: dict[str, Any]) -> str:
    """The accuracies for people."""
    lines = [f"{'test accuracy':14}" + "".join(f"{system:>15}" for system in SYSTEMS)]
    for name, found in tasks.items():
        cells = (found["accuracy"][system] for system in SYSTEMS)
        lines.append(f"{name:14}" + "".join(f"{_cell(cell):>15}" for cell in cells))
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    deviation = "" if found["deviation"] is None else f" ± {100 * found['deviation']:.1f}"
    return f"{100 * found['mean']:.1f}{deviation}"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    names = options.tasks.split(",")
    if not set(names) <= set(SIZES):
        raise InputError(f"--tasks: expected some of {', '.join(SIZES)}; got {options.tasks}")
    if options.seeds < 1:
        raise InputError(f"--seeds: expected at least 1; got {options.seeds}")
    settings = {
        "data": Path(options.data).name,
        "run": options.run and str(options.run),
        "words": options.words,
        "flags": {"all": COMMON, "epochs": EPOCHS, **CLASSIFIERS},
    }
    splits, folder = read_splits(options.data), options.work_dir
    claim(folder, settings)
    run = options.run or train_language_model(splits, folder, options.words, LANGUAGE_MODEL)
    tasks = {
        name: {
            "examples": SIZES[name],
            "accuracy": summarize(
                [compare(name, splits, SIZES[name], run, folder, seed) for seed in range(options.seeds)]
            ),
        }
        for name in names
    }
    result = {**settings, "tasks": tasks, "environment": environment()}
    if options.run is None:
        result["language_model"] = {**LANGUAGE_MODEL, "vocabulary": VOCABULARY}
    report(options, result, table(tasks))
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.classification", __doc__)
    parser.add_argument("--data", default="wikitext-2", metavar="NAME", help="as for train.wt103")
    parser.add_argument("--run", type=Path, help="a trained run instead of a small one trained here")
    parser.add_argument("--words", type=int, default=NUM_WORDS, metavar="N", help="for the small one to read")
    parser.add_argument("--tasks", default=",".join(SIZES), metavar="LIST", help="default: all three")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs/classification"), help="default: runs/classification"
    )
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
