"""`python -m train.import_weights FILE --run-dir RUN`: a run from weights of PyTorch, safetensors or npz.

The weights are those of an AWD-LSTM-shaped model: an embedding, LSTM layers, a decoder that may share the
embedding's matrix. docs/exchange.md tells the names. The run can be evaluated, written with, classified with
and exported; it has no optimizer's state to train on from.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from minilstm import LanguageModel, from_torch_state_dict
from train.awd_names import Tensors, model_knobs, plain_names
from train.communicator import get_communicator
from train.config import RunConfig, TrainConfig
from train.corpus import Vocabulary, open_corpus
from train.export import FORMAT, VERSION, companion_of, sha256
from train.files import made_folder, read_text
from train.prepare import ensure_prepared
from train.run_folder import BEST, Position, RunFolder, checkpoint_facts, save_run
from train.weight_files import read_tensors

_PER_WORD = ("encoder.weight", "decoder.weight", "decoder.bias")


def main(argv: list[str] | None = None) -> int:
    """The command; prints what it made."""
    args = _parser().parse_args(argv)
    if not get_communicator().is_root:
        return 0
    folder = RunFolder(args.run_dir)
    folder.check_unused()
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise InputError(f"{folder.path}: expected a new folder; choose another --run-dir")
    tensors = plain_names(read_tensors(args.file), str(args.file))
    facts = _read_companion(args.file)
    if facts is None and args.words is None and args.data is None:
        raise InputError(
            f"{args.file}: {companion_of(args.file).name} is not beside it, which would tell the words; "
            "give --words FILE, or --data if ids are those of its vocabulary"
        )
    told = _told_words(args.words, facts, args.file)
    config = _configuration(tensors, facts, args.data, str(args.file))
    min_count = config.train.min_count or None  # of the text that the words are those of
    vocabulary, tensors = _vocabulary(tensors, told, args.data, min_count, str(args.file))
    model = LanguageModel(config.model_config(len(vocabulary)))
    try:
        from_torch_state_dict(model, tensors)
    except InputError as error:
        raise InputError(f"{args.file}: {error}") from None
    write_run(folder.path, model, config, vocabulary, facts["step"] if facts else 0)
    print(f"imported {model.config.num_parameters():,} parameters, {len(vocabulary):,} words")
    print(f"run: {folder.path}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m train.import_weights",
        description=(__doc__ or "").partition(": ")[2].partition("\n")[0],
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the weights")
    parser.add_argument("--run-dir", required=True, type=Path, metavar="RUN", help="a new folder")
    parser.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help="the words in the order of their ids, one a line, or a JSON list; "
        "default: those in FILE.json, which train.export writes beside its weights",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="data with the same words; ids become its own, so that the run can be evaluated on it. "
        "Where no words are given, ids must be its own",
    )
    return parser


def _configuration(tensors: Tensors, facts: dict[str, Any] | None, data: str | None, where: str) -> RunConfig:
    """The exported run's knobs, where it is one; sizes are those of the weights."""
    sizes = model_knobs(tensors, where)
    if facts is None:
        if "decoder.band_weight" in tensors:
            raise InputError(
                f"{where}: has an adaptive softmax, whose bands {companion_of(Path(where)).name} tells; "
                "put that beside it"
            )
        config = RunConfig(sizes, TrainConfig(data="unknown"))
    else:
        told = RunConfig.from_dict(facts["configuration"], str(companion_of(Path(where))))
        config = RunConfig({**told.model, **sizes}, told.train)
    return replace(config, train=replace(config.train, data=data)) if data else config


def _told_words(path: Path | None, facts: dict[str, Any] | None, file: Path) -> Vocabulary | None:
    """The words of `--words`, else the companion's; None if neither is there."""
    if path is not None:
        return _checked_words(_read_words(path), path)
    if facts is None:
        return None
    words = _checked_words(facts["words"], companion_of(file))
    if words.fingerprint() != facts.get("vocabulary"):
        raise InputError(f"{companion_of(file)}: its words were changed after they were written")
    return words


def _vocabulary(
    tensors: Tensors, told: Vocabulary | None, data: str | None, min_count: int | None, where: str
) -> tuple[Vocabulary, Tensors]:
    """The run's words, and the weights with one row for each of them, in their order.

    Raises:
        InputError: another number of words than rows, or other words than the data's.
    """
    if told is not None:
        _check_rows(tensors, told, where)
    if data is None:
        assert told is not None
        return told, tensors
    with open_corpus(ensure_prepared(data, min_count=min_count)) as corpus:
        vocabulary = corpus.vocabulary
    if told is None:
        _check_rows(tensors, vocabulary, where)
    elif told.words != vocabulary.words:
        if "decoder.band_weight" in tensors:
            raise InputError(
                f"--data {data}: numbers the words otherwise than the weights, whose adaptive softmax goes "
                "by their numbers; leave --data out"
            )
        order = _rows_of(told, vocabulary, data)
        tensors = {name: array[order] if name in _PER_WORD else array for name, array in tensors.items()}
    return vocabulary, tensors


def _rows_of(told: Vocabulary, theirs: Vocabulary, data: str) -> np.ndarray:
    """For each id of theirs, the row that its word has in the weights."""
    rows, missing = told.encode(theirs.words)
    foreign = theirs.encode(told.words)[1]
    if missing or foreign:
        raise InputError(
            f"--data {data}: has another vocabulary: {_some(missing)} there are not among the weights', "
            f"{_some(foreign)} of those are not there; leave --data out"
        )
    return rows


def _some(words: list[str]) -> str:
    return f"{len(words)} words ({' '.join(words[:3])})" if words else "0 words"


def _check_rows(tensors: Tensors, vocabulary: Vocabulary, where: str) -> None:
    for name in _PER_WORD:
        if name in tensors and tensors[name].shape[:1] != (len(vocabulary),):
            raise InputError(
                f"{where}: {name} must have a row for each of {len(vocabulary)} words; "
                f"got shape {tensors[name].shape}"
            )


def _checked_words(words: Any, where: Path) -> Vocabulary:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{where}: its words must be a list of texts")
    for number, word in enumerate(words):
        if word.encode(errors="replace").split() != [word.encode(errors="surrogatepass")]:
            raise InputError(f"{where}: word {number} must be one word without white space; got {word!r}")
    try:
        return Vocabulary(words)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _read_words(path: Path) -> Any:
    """The lines of a text file, or a JSON list; from exported weights' companion, its words."""
    text = read_text(path)
    if path.suffix != ".json":
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    found = _from_json(text, path)
    return found.get("words") if isinstance(found, dict) else found


def _read_companion(path: Path) -> dict[str, Any] | None:
    """What `train.export` wrote beside the weights; None if nothing is there.

    Raises:
        InputError: it is something else, of a newer version, or beside other weights than its own.
    """
    file = companion_of(path)
    if not file.exists():
        return None
    facts = _from_json(read_text(file), file)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{file}: expected what train.export writes beside weights; take it away")
    if facts.get("version") != VERSION:
        raise InputError(f"{file}: is of version {facts.get('version')}, this program reads {VERSION}")
    try:
        good = facts["weights"]["sha256"] == sha256(path) and isinstance(facts["step"], int)
        good = good and isinstance(facts["configuration"], dict) and "words" in facts
    except (KeyError, TypeError):
        good = False
    if not good:
        raise InputError(f"{file}: was not written beside these weights, or is damaged; copy both anew")
    return facts


def _from_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


def write_run(path: Path, model: LanguageModel, config: RunConfig, vocabulary: Vocabulary, step: int) -> None:
    """A run's folder with these weights as its best, whole or not at all.

    Raises:
        InputError: the folder is there and not empty, or cannot be written.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    facts = checkpoint_facts(model, Position(step=step), vocabulary.fingerprint(), {})
    try:
        with made_folder(path.parent):
            folder = RunFolder(temporary)
            folder.create(config, vocabulary)
            save_run(folder.checkpoint(BEST), model, facts, None, None, get_communicator())
            temporary.rename(path)  # over an empty folder at most
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    from train.commands import run

    run(main)
