"""The training of a text classifier: its knobs, its folder, and its loop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from autograd.errors import InputError
from minilstm import LanguageModel, MaskStream
from train.checked_types import AboveZero, AtLeastZero, Count, CountOrOff, Fraction, Rule, Seed, checked
from train.checkpoint import load_checkpoint, save_checkpoint
from train.classification_data import Rows
from train.classification_scores import scores, summary
from train.classifier import Classifier, HeadConfig, check_features
from train.communicator import SingleProcess
from train.config import field_kinds
from train.corpus import Vocabulary
from train.files import atomic_write
from train.log import Progress, progress
from train.metrics import MetricsLog
from train.parameter_groups import GroupedAdam, depth_groups
from train.run_folder import BEST, LATEST, RunFolder, refuse_differences
from train.schedules import make_schedule
from train.signals import StopRequest, StopRequestedError

POOL = 50
"""Batches whose texts are sorted by length together: long ones meet long ones, chance still mixes them."""
SCORING_BATCH = 64  # texts scored at a time: for speed alone
KeepProb = Annotated[float, Rule("a keep probability in (0, 1]", lambda x: 0 < x <= 1)]
Share = Annotated[float, Rule("a number in [0, 1]", lambda x: 0 <= x <= 1)]
AtLeastOne = Annotated[float, Rule("a number of at least 1", lambda x: x >= 1)]

HELP = {
    "features": "of h, c, mean, max: last output and cell of the last layer, pools over the text",
    "head_hidden": "units of a hidden layer in the head; 0: none",
    "head_keep_prob": "kept by the head's dropout",
    "dropout_scale": "the dropouts that the run was trained with, times this; 0: none",
    "from_scratch": "random weights of the run's sizes instead of its own: what they are worth",
    "epochs": "passes over the training texts",
    "batch_size": "texts of an update",
    "max_length": "words read of a text, the last ones; 0: all",
    "learning_rate": "peak, of the head",
    "layer_decay": "each lower layer's learning rate is divided by this; ULMFiT: 2.6",
    "unfreeze": "what is trained: all; the head alone; gradual: from the head down, a layer more each epoch",
    "schedule": "of the learning rate",
    "warmup_share": "part of all updates in which the learning rate rises",
    "weight_decay": "decoupled: W ← W − learning rate · this · W",
    "clip_norm": "ceiling of the gradient's global norm; 0: none",
    "class_weights": "balanced: a rare class weighs as much in the loss as a frequent one",
    "select": "the validation score that makes a checkpoint the best",
    "seed": "of the head, the order of the texts, the dropouts and the valid part",
}


@dataclass(frozen=True)
class ClassifyConfig:
    """How a classifier is made; each field is a flag of the command, and `HELP` says what it is.

    Raises:
        InputError: a value of another type or out of its range; the message names the flag.
    """

    features: str = "h,c"
    head_hidden: CountOrOff = 0
    head_keep_prob: KeepProb = 0.8
    dropout_scale: Share = 1.0
    from_scratch: bool = False

    epochs: Count = 5
    batch_size: Count = 32
    max_length: CountOrOff = 400
    learning_rate: AboveZero = 1e-3
    layer_decay: AtLeastOne = 1.0
    unfreeze: Literal["all", "gradual", "head"] = "all"
    schedule: Literal["fixed", "cosine"] = "cosine"
    warmup_share: Fraction = 0.1
    weight_decay: AtLeastZero = 0.0
    clip_norm: AtLeastZero = 1.0
    class_weights: Literal["equal", "balanced"] = "equal"
    select: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, kind in field_kinds(ClassifyConfig).items():
            flag = "--" + name.replace("_", "-")
            object.__setattr__(self, name, checked(flag, getattr(self, name), kind))
        check_features(self.feature_names)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """`features`, cut at its commas."""
        return tuple(name.strip() for name in self.features.split(","))


class ClassifierFolder(RunFolder):
    """OUT/: classifier.json, vocabulary.txt, metrics.jsonl, checkpoints/, result.json."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.config = self.path / "classifier.json"

    def create_for(self, settings: dict[str, Any], vocabulary: Vocabulary) -> None:
        """Make the folder and write what stays as it is; InputError if it cannot be made or holds a run."""
        self.check_unused()
        try:
            self.checkpoint(LATEST).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.vocabulary) as temporary:
                temporary.write_text("\n".join(vocabulary.words) + "\n", encoding="utf-8")
            with atomic_write(self.config) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot make the classifier's folder: {error.strerror or error}"
            ) from None

    def check_unused(self) -> None:
        """Raise an InputError if a run of either kind lies here, or nothing can be written here."""
        RunFolder(self.path).check_unused()
        super().check_unused()

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise an InputError unless the classifier here was begun with these settings and this data."""
        try:
            saved = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{self.path}: holds no classifier to go on with; leave --resume out to begin one"
            ) from None
        refuse_differences(self.path, "classifier", saved, settings)


@dataclass
class Position:
    """Where the training of a classifier stands: at the end of an epoch, unless a signal stopped it."""

    step: int = 0  # updates made
    epoch: int = 0  # epochs finished, all their updates made
    seconds: float = 0.0  # spent, validation included
    best: dict[str, Any] | None = None  # the evaluation of the best checkpoint, with its step and epoch
    losses: list[float] = field(default_factory=list)  # of each update of the epoch that is under way
    norms: list[float] = field(default_factory=list)
    pending: bool = False  # the last epoch is still to be validated


class ClassifierTraining:
    """The training of one classifier: model, texts, optimizer, and where it stands."""

    def __init__(
        self,
        config: ClassifyConfig,
        classifier: Classifier,
        parts: dict[str, Rows],
        folder: ClassifierFolder,
        fingerprint: str,
    ) -> None:
        self.config, self.classifier, self.parts, self.folder = config, classifier, parts, folder
        self.fingerprint = fingerprint
        self.steps_per_epoch = -(-len(parts["train"]) // config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.schedule = make_schedule(
            config.schedule,
            config.learning_rate,
            warmup_steps=int(config.warmup_share * self.total_steps),
            total_steps=self.total_steps,
        )
        self.groups = depth_groups(classifier)
        self.optimizer = GroupedAdam(self.groups, config.layer_decay, config.clip_norm, config.weight_decay)
        self.class_weights = _balanced(parts["train"]) if config.class_weights == "balanced" else None
        self.position = Position()

    def train(self) -> None:
        """All epochs that are still to be made; after each one validation and a checkpoint.

        SIGTERM and SIGINT end it after the update, or the batch of the validation, that it is in: it saves,
        and raises SystemExit with status 128 + signal.
        """
        position, began = self.position, time.perf_counter() - self.position.seconds
        with (
            MetricsLog(self.folder.metrics, position.step, pending=position.pending) as metrics,
            progress(self.total_steps, "training", "updates", initial=position.step) as display,
            StopRequest(SingleProcess()) as stop,
        ):
            try:
                while position.pending or position.epoch < self.config.epochs:
                    self._one_epoch(metrics, display, stop, began)
            except StopRequestedError as stopped:
                position.seconds = time.perf_counter() - began
                self._save(LATEST)
                display.message(
                    f"{stopped}: stopped after update {position.step:,} of {self.total_steps:,} and saved; "
                    "go on with --resume"
                )
                raise SystemExit(128 + stopped.signal_number) from None

    def _one_epoch(self, metrics: MetricsLog, display: Progress, stop: StopRequest, began: float) -> None:
        """What is left of an epoch: its updates, its validation, its checkpoints."""
        position = self.position
        if not position.pending:
            metrics.write(self._updates(display, stop, began))
        score = self._score("valid", stop)
        metrics.write(self._evaluation_row("valid", score))
        display.message(f"epoch {position.epoch}: valid {summary(score)}")
        position.seconds, position.pending = time.perf_counter() - began, False
        if position.best is None or self._merit(score) > self._merit(position.best):
            position.best = {"step": position.step, "epoch": position.epoch, **score}
            self._save(BEST)
        self._save(LATEST)

    def _updates(self, display: Progress, stop: StopRequest, began: float) -> dict[str, Any]:
        """One pass over the training texts, or the rest of one; returns its row of metrics.jsonl."""
        position, train = self.position, self.parts["train"]
        losses, norms = position.losses, position.norms
        self.optimizer.thaw(self._trained_groups())
        chosen_in_turn = batches(train, self.config.batch_size, [self.config.seed, position.epoch])
        for chosen in itertools.islice(chosen_in_turn, len(losses), None):
            stop.leave_if_wanted()
            masks = MaskStream(self.config.seed, position.step)
            texts = [train.ids[k] for k in chosen]
            loss = self.classifier.loss(texts, train.labels[chosen], masks, self.class_weights)
            self.optimizer.zero_grads()
            loss.backward()
            norms.append(self.optimizer.update(self.schedule(position.step)))
            losses.append(loss.item())
            if not (math.isfinite(losses[-1]) and math.isfinite(norms[-1])):
                raise InputError(
                    f"training diverged at update {position.step + 1}: loss {losses[-1]}, gradient norm "
                    f"{norms[-1]}; lower --learning-rate or --clip-norm"
                )
            position.step += 1
            display.update(1, f"loss {np.mean(losses[-20:]):.3f}")
        position.epoch += 1
        position.losses, position.norms, position.pending = [], [], True
        return {
            "kind": "train",
            "step": position.step,
            "epoch": position.epoch,
            "loss": float(np.mean(losses)),
            "learning_rate": self.schedule(position.step - 1),
            "grad_norm": float(np.mean(norms)),
            "trained_groups": len(self.optimizer.trained),
            "seconds": time.perf_counter() - began,
        }

    def _trained_groups(self) -> int:
        gradual = min(self.position.epoch + 1, len(self.groups))
        return {"all": len(self.groups), "gradual": gradual, "head": 1}[self.config.unfreeze]

    def _score(self, part: str, stop: StopRequest | None = None) -> dict[str, Any]:
        rows = self.parts[part]
        before_each = stop.leave_if_wanted if stop else lambda: None
        log_probs = self.classifier.log_probs(rows.ids, SCORING_BATCH, before_each)
        return scores(rows.labels, log_probs, self.classifier.config.classes)

    def _merit(self, score: dict[str, Any]) -> tuple[float, float]:
        """The larger, the better; equal choices are told apart by the loss."""
        chosen = self.config.select
        return (0.0 if chosen == "loss" else score[chosen]), -score["loss"]

    def _evaluation_row(self, part: str, score: dict[str, Any]) -> dict[str, Any]:
        position = self.position
        return {"kind": "evaluation", "split": part, "step": position.step, "epoch": position.epoch, **score}

    def _save(self, which: str) -> None:
        """`latest` holds all that a resumed training needs, `best` the weights."""
        arrays, facts = self.classifier.arrays(), self.classifier.facts()
        facts |= {"position": vars(self.position).copy(), "max_length": self.config.max_length}
        facts["vocabulary"] = self.fingerprint
        if which == LATEST:
            moments, counts = self.optimizer.state()
            arrays |= {f"optimizer/{name}": array for name, array in moments.items()}
            facts["optimizer_t"] = counts
        save_checkpoint(self.folder.checkpoint(which), arrays, facts)

    def restore(self) -> None:
        """Go on from the latest checkpoint, where there is one."""
        latest = self.folder.checkpoint(LATEST)
        if not latest.exists():
            return
        arrays, facts = load_checkpoint(latest)
        self.classifier.load_arrays(latest, arrays)
        moments = {
            name.removeprefix("optimizer/"): array
            for name, array in arrays.items()
            if name.startswith("optimizer/")
        }
        self.optimizer.load_state(moments, facts["optimizer_t"])
        self.position = Position(**facts["position"])
        print(f"going on after update {self.position.step:,} of {self.total_steps:,}", file=sys.stderr)

    def finish(self) -> dict[str, Any]:
        """The best weights' scores; on the test part too, where there is one."""
        arrays, facts = load_checkpoint(self.folder.checkpoint(BEST))
        self.classifier.load_arrays(self.folder.checkpoint(BEST), arrays)
        result = {"valid": facts["position"]["best"], "test": None}
        if "test" in self.parts:
            result["test"] = self._score("test")
            with MetricsLog(self.folder.metrics, self.position.step) as metrics:
                metrics.write(self._evaluation_row("test", result["test"]))
        return result


def batches(rows: Rows, batch_size: int, seed: list[int]) -> Iterator[np.ndarray]:
    """The texts' numbers in random order, batch by batch, texts of like length together."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    lengths = np.array([len(ids) for ids in rows.ids])
    found = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        found += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return (found[k] for k in rng.permutation(len(found)))


def _balanced(rows: Rows) -> np.ndarray:
    """(classes,): inverse to how many texts a class has, 1 on average over the texts."""
    counts = np.array(list(rows.facts["classes"].values()), float)
    return np.divide(counts.sum() / np.count_nonzero(counts), counts, out=counts, where=counts > 0)


def make_classifier(encoder: LanguageModel, config: ClassifyConfig, classes: list[str]) -> Classifier:
    """A classifier with a fresh head on a copy of the encoder, its dropouts scaled."""
    dropped = {
        name: 1 - config.dropout_scale * (1 - keep)
        for name, keep in vars(encoder.config).items()
        if name.endswith("_keep_prob")
    }
    model_config = dataclasses.replace(encoder.config, **dropped)
    scaled = LanguageModel(model_config, seed=config.seed)
    if not config.from_scratch:
        scaled.flat_parameters[...] = encoder.flat_parameters
    head = HeadConfig(tuple(classes), config.feature_names, config.head_hidden, config.head_keep_prob)
    return Classifier(scaled, head, config.seed)
