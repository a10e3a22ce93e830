"""A run's folder: where its files lie, and what its checkpoints hold."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd.backend import get_array_module, to_host
from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from minilstm.language_model import State
from train.checkpoint import Newest, load_checkpoint, save_checkpoint
from train.communicator import Communicator
from train.config import RunConfig, load_run_config, to_toml
from train.corpus import Vocabulary
from train.files import atomic_write, exclusive_lock, set_aside, versions
from train.mixed_precision import LossScaler
from train.optimizers import AVERAGE, Optimizer

BEST, LATEST = "best", "latest"


class RunFolder:
    """RUN/: config.toml, vocabulary.txt, metrics.jsonl, checkpoints/, result.json, plot.png, trace.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.vocabulary = self.path / "vocabulary.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.plot = self.path / "plot.png"
        self.signs = self.path / "ranks"  # of life, while a run on many ranks goes on
        self.trace = self.path / "trace.json"

    def checkpoint(self, which: str) -> Path:
        """The file of the checkpoint `best` (lowest validation loss so far) or `latest`."""
        return self.path / "checkpoints" / f"{which}.h5"

    def has_latest(self) -> bool:
        """Whether there is a checkpoint to go on from: the latest, or one before it."""
        return bool(versions(self.checkpoint(LATEST)))

    def leave_damaged(self, found: Newest) -> None:
        """Say that the run goes on from an earlier checkpoint, and put the damaged ones out of the way."""
        latest = self.checkpoint(LATEST)
        if found.path == latest:
            return
        for path, error in found.damaged.items():
            print(f"{error}; it lies now in {set_aside(path).name}", file=sys.stderr)
        why = "" if found.damaged else f"{latest} is missing: "
        step = found.meta["position"]["step"]
        print(f"{why}going on from {found.path.name}, saved after step {step:,}", file=sys.stderr, flush=True)

    def create(self, config: RunConfig, vocabulary: Vocabulary) -> None:
        """Make the folder and write what stays as it is: the configuration and the words.

        Raises:
            InputError: it cannot be made, or holds a run already.
        """
        self.check_unused()
        self.update(config, vocabulary)

    def update(self, config: RunConfig, vocabulary: Vocabulary) -> None:
        """Write the configuration and the words anew; InputError if that cannot be done."""
        try:
            self.checkpoint(LATEST).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.vocabulary) as temporary:
                temporary.write_text("\n".join(vocabulary.words) + "\n", encoding="utf-8")
            with atomic_write(self.config) as temporary:
                temporary.write_text(to_toml(config), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot make the run's folder: {error.strerror or error}"
            ) from None

    def locked(self) -> AbstractContextManager[None]:
        """Context that keeps a second process from going on with the same run; InputError for that one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return exclusive_lock(self.path)

    def check_unused(self) -> None:
        """Raise an InputError if a run lies here already, or if nothing can be written here."""
        try:
            used = self.config.exists() or self.metrics.exists() or self.checkpoint(LATEST).exists()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be looked into: {error.strerror}") from None
        if used:
            raise InputError(
                f"{self.path}: holds a run already; add --resume to go on with it, "
                "or choose another --run-dir"
            )
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise InputError(f"{above}: nothing can be written there; choose another --run-dir")

    @property
    def is_imported(self) -> bool:
        """Whether these are weights that `train.import_weights` brought: no training left a row."""
        return self.checkpoint(BEST).exists() and not self.metrics.exists()

    def check_resumable(self) -> None:
        """Raise an InputError if training has come to weights here, but cannot go on from them."""
        latest = self.checkpoint(LATEST)
        if self.has_latest() or not self.checkpoint(BEST).exists():
            return
        if self.is_imported:
            raise InputError(
                f"{self.path}: holds imported weights alone, which cannot be trained on; "
                "train anew in another --run-dir"
            )
        raise InputError(f"{latest}: is missing, and the run cannot go on without it; bring it back")

    def read_vocabulary(self) -> Vocabulary:
        """The words of the run; InputError if the file is missing or no vocabulary."""
        try:
            return Vocabulary(self.vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        except (OSError, UnicodeDecodeError, InputError) as error:
            raise InputError(
                f"{self.vocabulary}: cannot be read as the words of a run ({error}); "
                "bring the file back from where it was copied, or train anew"
            ) from None


@dataclass
class Position:
    """Where a run stands: all that a resumed one needs besides weights, optimizer and state."""

    step: int = 0  # updates made
    epoch: int = 0  # epochs finished
    window: int = 0  # windows of the current epoch done
    tokens: int = 0  # targets trained on, over all ranks
    loss_sum: float = 0.0  # of the steps since the last row of metrics.jsonl,
    loss_steps: int = 0  # and how many those are
    skipped_steps: int = 0  # windows that made no update: their loss or gradient was not finite,
    bad_steps: int = 0  # and how many of those came last, one after the other
    seconds: float = 0.0  # spent in training, over all resumptions
    best: dict[str, Any] | None = None  # the evaluation with the lowest validation loss, and its step
    pending: bool = False  # the validation of this step, where one is due, is still to be made

    @staticmethod
    def of(path: Path, facts: dict[str, Any]) -> Position:
        """The position that the checkpoint at `path` holds; InputError if it is not this version's."""
        saved = facts.get("position", {})
        missing, foreign = _OWN - saved.keys(), saved.keys() - _OWN
        if missing or foreign:
            differing = [f"lacks {name}" for name in sorted(missing)]
            differing += [f"has {name}" for name in sorted(foreign)]
            raise InputError(
                f"{path}: its position in the run is of another version of this program "
                f"({', '.join(differing)}); resume with that version, or start anew in another --run-dir"
            )
        return Position(**saved)


# Checkpoints from before there were other windows say nothing about theirs.
_WINDOWS_ONCE = {
    "carry_state": True,
    "random_start": False,
    "shuffle_windows": False,
    "variable_window": False,
}
# What decides which weights a model has and what they mean; dropouts and losses may change.
_ARCHITECTURE = (
    "vocab_size", "embedding_size", "hidden_size", "num_layers",
    "last_hidden_size", "tied_weights", "layer_norm", "layer_norm_epsilon", "residual",
)  # fmt: skip
_OWN = {field.name for field in dataclasses.fields(Position)}


def save_run(
    path: Path,
    model: LanguageModel,
    facts: dict[str, Any],
    optimizer: Optimizer | None,
    state: State | None,
    communicator: Communicator,
    keep: int | None = None,
) -> None:
    """Write a checkpoint; every rank calls it, the root writes.

    Args:
        path: the file.
        model: its weights, equal on every rank; in mixed precision the masters.
        facts: what `checkpoint_facts` gives.
        optimizer, state: None leaves them out, as the best weights' checkpoint does. The state's rows are
            gathered over the ranks, so the checkpoint can be resumed on another number of them.
        keep: as in `save_checkpoint`.
    """
    rows = (
        None
        if state is None
        else [[communicator.gather_rows(to_host(part)) for part in pair] for pair in state]
    )
    if not communicator.is_root:
        return
    arrays: dict[str, np.ndarray] = {"parameters": to_host(model.flat_parameters)}
    if optimizer is not None:
        slots = optimizer.state()
        facts = {**facts, "optimizer_t": slots.pop("t")}
        arrays |= {f"optimizer/{name}": to_host(slot) for name, slot in slots.items()}
    for index, pair in enumerate(rows or []):
        for name, part in zip("hc", pair, strict=True):
            assert part is not None
            arrays[f"state/{index}/{name}"] = part
    save_checkpoint(path, arrays, facts, keep)


def checkpoint_facts(
    model: LanguageModel,
    position: Position,
    fingerprint: str,
    streams: dict[str, Any],
    scaler: LossScaler | None = None,
) -> dict[str, Any]:
    """What a checkpoint says in words and numbers beside its arrays.

    Args:
        streams: what the position and the state mean nothing without: seed, batch_size, how the windows are
            cut, and the tokens of the training split.
        scaler: of the loss, in mixed precision.
    """
    return {
        "model": vars(model.config).copy(),
        "parameters": [[name, list(parameter.shape)] for name, parameter in model.named_parameters()],
        "position": vars(position).copy(),
        "streams": streams,
        "vocabulary": fingerprint,
        **({"loss_scaler": scaler.state()} if scaler else {}),
    }


def restore_run(
    found: Newest,
    model: LanguageModel,
    fingerprint: str,
    optimizer: Optimizer,
    rows: slice,
    streams: dict[str, Any],
    scaler: LossScaler | None = None,
    dtype: Any = np.float32,
) -> tuple[Position, State | None]:
    """Load weights and optimizer in place; returns the position and this rank's rows of the state.

    A checkpoint does not depend on the precision that a run computes in: weights and moments are float32
    always, and float16 are only the rows of the state.

    Args:
        scaler: of the loss, goes on as saved; a run that was float32 until then begins with its own.
        dtype: of the state: what is computed with.

    Raises:
        InputError: the checkpoint is of another model, optimizer, vocabulary, seed, batch or text.
    """
    path, arrays, facts = found.path, found.arrays, found.meta
    load_weights(path, model, arrays, facts, fingerprint)
    refuse_differences(path, "run", {**_WINDOWS_ONCE, **facts.get("streams", {})}, streams)
    slots: dict[str, Any] = {
        name.removeprefix("optimizer/"): array
        for name, array in arrays.items()
        if name.startswith("optimizer/")
    }
    try:
        optimizer.load_state({"t": facts["optimizer_t"], **slots})
    except KeyError:
        raise InputError(
            f"{path}: holds weights alone and cannot be resumed from; use the latest one"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error}; resume with the optimizer that the run began with") from None
    position = Position.of(path, facts)
    if scaler:
        scaler.load_state(facts.get("loss_scaler"))
    if "state/0/h" not in arrays:
        return position, None
    state = [
        (arrays[f"state/{index}/h"][rows].astype(dtype), arrays[f"state/{index}/c"][rows].astype(dtype))
        for index in range(len(model.layers))
    ]
    return position, state


def load_weights(
    path: Path, model: LanguageModel, arrays: dict[str, np.ndarray], facts: dict[str, Any], fingerprint: str
) -> None:
    """Copy a checkpoint's weights into the model.

    Raises:
        InputError: it is of another model or vocabulary; the message names what differs.
    """
    own = {name: getattr(model.config, name) for name in _ARCHITECTURE}
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(ModelConfig)
        if field.name in own and field.default is not dataclasses.MISSING
    }
    refuse_differences(path, "model", {**defaults, **facts.get("model", {})}, own)
    if facts.get("vocabulary") != fingerprint:
        raise InputError(
            f"{path}: was trained with another vocabulary than the data's; give --data the text of that run"
        )
    weights = arrays.get("parameters")
    if weights is None or weights.shape != model.flat_parameters.shape:
        raise InputError(f"{path}: must hold {model.flat_parameters.size} parameters; it does not")
    model.flat_parameters[...] = get_array_module(model.flat_parameters).asarray(weights)


def refuse_differences(path: Path, what: str, saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise an InputError that names what is saved otherwise than it is here; `what`: run, model, …"""
    differing = [
        f"{name} {saved.get(name)} there, {value} here"
        for name, value in own.items()
        if saved.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{path}: is of another {what}: {'; '.join(differing)}; "
            f"give it the configuration that it was made with (the run's config.toml), or take another {what}"
        )


def load_trained(
    path: str | Path, which: str = BEST, averaged: bool = True
) -> tuple[LanguageModel, RunConfig, Vocabulary, dict[str, Any]]:
    """A run's trained model, ready to be used; the run's folder is all that it takes.

    Args:
        path: the run's folder.
        which: `best` or `latest`; the latest stands in for a best that is not there yet.
        averaged: where the optimizer averages, the weights are its average; false: those that its last step
            left, which the latest checkpoint alone keeps beside it.

    Returns:
        The model, the run's configuration, its vocabulary, and the checkpoint's facts.

    Raises:
        InputError: no run there, no checkpoint in it, or one that does not fit the rest.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise InputError(
            f"{path}: expected the folder of a run, with config.toml in it; train one: python -m train.wt103"
        )
    config, vocabulary = load_run_config(folder.config), folder.read_vocabulary()
    file = folder.checkpoint(which)
    if which == BEST and not file.exists():
        file = folder.checkpoint(LATEST)
    if not file.exists():
        raise InputError(
            f"{path}: has no checkpoint yet; let the run go on (--resume) until it has saved one"
        )
    arrays, facts = load_checkpoint(file)
    model = LanguageModel(config.model_config(len(vocabulary)))
    if averaged and f"optimizer/{AVERAGE}" in arrays:
        arrays["parameters"] = arrays[f"optimizer/{AVERAGE}"]
    load_weights(file, model, arrays, facts, vocabulary.fingerprint())
    return model, config, vocabulary, facts
