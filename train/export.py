"""`python -m train.export RUN --to torch|safetensors|npz`: a run's weights for other programs.

Beside the weights goes a JSON file with what they mean nothing without: the words in the order of their ids,
and the configuration. `train/import_weights.py` makes a run of both again; docs/exchange.md tells the names
and shapes, and how PyTorch computes the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from autograd.command import Parser
from autograd.errors import InputError
from minilstm import LanguageModel, to_torch_state_dict
from train.communicator import get_communicator
from train.config import RunConfig
from train.corpus import Vocabulary
from train.files import atomic_write, made_folder
from train.weight_files import SUFFIXES, write_tensors

FORMAT = "minilstm-weights"
VERSION = 1


def export(
    model: LanguageModel, config: RunConfig, vocabulary: Vocabulary, step: int, path: Path, form: str
) -> Path:
    """Write the weights to `path` and their companion beside it; returns the companion's path.

    Args:
        model: trained.
        config, vocabulary, step: what it was trained by, its words, and after how many updates it is.
        path: the file; its folder is made.
        form: torch, safetensors or npz.

    Raises:
        InputError: one of the two files is there already, the model is one that `to_torch_state_dict`
            refuses, or a file cannot be written.
    """
    refuse_existing(path)
    tensors, companion = to_torch_state_dict(model), companion_of(path)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "configuration": config.with_vocab_size(len(vocabulary)).to_dict(),
        "vocabulary": vocabulary.fingerprint(),
        "words": vocabulary.words,
    }
    try:
        with made_folder(path.parent), _removed_on_failure(path):
            write_tensors(path, form, tensors, {"vocabulary": vocabulary.fingerprint()})
            facts["weights"] = {"file": path.name, "sha256": sha256(path)}
            with atomic_write(companion) as temporary:
                temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be written: {error.strerror or error}") from None
    return companion


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the file, which was not there before, when the block raises: without its words it is no use."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def companion_of(path: Path) -> Path:
    """Where words and configuration of the weights at `path` lie: its name with `.json` added."""
    return path.with_name(path.name + ".json")


def refuse_existing(path: Path) -> None:
    """Raise an InputError if the weights or their companion are there already, or `path` is a folder."""
    if path.is_dir():
        raise InputError(f"--output: expected the name of a file to write, got the folder {path}")
    for file in (path, companion_of(path)):
        if file.exists():
            raise InputError(f"{file}: is there already; remove it, or choose another --output")


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """The command; prints what it wrote."""
    from train.run_folder import BEST, LATEST, load_trained

    parser = Parser(
        prog="python -m train.export", description=(__doc__ or "").partition(": ")[2].partition("\n")[0]
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--to", required=True, choices=tuple(SUFFIXES), help="form of the file")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="the file; default: RUN/model with the form's suffix"
    )
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    args = parser.parse_args(argv)
    if not get_communicator().is_root:
        return 0
    path = args.output or args.run / f"model{SUFFIXES[args.to]}"
    refuse_existing(path)

    model, config, vocabulary, facts = load_trained(args.run, args.checkpoint)
    companion = export(model, config, vocabulary, facts["position"]["step"], path, args.to)
    print(f"weights: {path}, {model.config.num_parameters():,} parameters, by the names of PyTorch")
    print(f"words and configuration: {companion}")
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
