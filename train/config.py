"""A run's configuration: TrainConfig beside the model's knobs, from presets, TOML files and flags.

Keys of [model] are the fields of `minilstm.ModelConfig`, keys of [train] those of `TrainConfig`, and no name
is in both. Values come in layers (a preset, a file, flags), each checked where it enters, so that a message
can name the place. `train/flags.py` stacks the layers that a command line asks for.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from autograd.errors import InputError
from train.checked_types import (
    AboveZero,
    AtLeastZero,
    Count,
    CountOrOff,
    Fraction,
    LossScale,
    NonEmpty,
    RisingCounts,
    Sections,
    Seed,
    checked,
    shown,
)
from train.nearest import nearest

if TYPE_CHECKING:
    from minilstm.config import ModelConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS = ("model", "train")
PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "wt103"
MAX_VOCAB_SIZE = 2**31 - 1  # token ids are int32


@dataclass(frozen=True)
class TrainConfig:
    """How a run goes; one line a knob, its unit and what 0 means beside it.

    Sizes are of the whole run, over all ranks. Integers are taken for floats; nothing else is converted.

    Raises:
        InputError: a value of another type or out of its range; the message names the knob.
    """

    data: NonEmpty = "python-docs"  # name of a prepared dataset, or a path to text or to a tokens.h5
    preset: NonEmpty = DEFAULT_PRESET  # what the run started from; for the record

    min_count: CountOrOff = 0  # words seen less often in the training split are <unk>; 0: the data's own
    batch_size: Count = 20  # rows of the batch of one update, over all ranks
    accumulate: Count = 1  # groups of rows that an update goes through one after the other: less memory
    window: Count = 35  # T: time steps that the gradient goes back through
    carry_state: bool = True  # each window starts from the state that the one before left; false: from zero
    random_start: bool = False  # each epoch starts at a step drawn from [0, T - 1]
    shuffle_windows: bool = False  # each epoch's windows in random order; needs carry_state = false
    variable_window: bool = False  # lengths drawn about T, learning rate · length / T; needs carry_state
    epochs: Count = 1  # passes over the training split
    max_steps: CountOrOff = 0  # updates after which the run ends; 0: the epochs decide
    max_tokens: CountOrOff = 0  # training tokens after which the run ends; 0: the epochs decide

    optimizer: Literal["adam", "sgd", "nt_asgd"] = "adam"  # "adam", "sgd", or "nt_asgd" of AWD-LSTM
    learning_rate: AboveZero = 1e-3  # peak, after the warm-up
    beta1: Fraction = 0.9  # Adam: decay of the mean of the gradients
    beta2: Fraction = 0.999  # Adam: decay of the mean of their squares
    epsilon: AboveZero = 1e-8  # Adam: keeps the denominator off 0
    momentum: Fraction = 0.0  # SGD: heavy-ball momentum
    nonmono: Count = 5  # NT-ASGD: averages once a validation is worse than the best before the last n
    weight_decay: AtLeastZero = 0.0  # decoupled: W ← W − learning rate · weight_decay · W
    l2_tied: AtLeastZero = 0.0  # ½ · this · ‖W‖² of the tied matrix is minimised too; not in the printed loss
    max_bad_steps: Count = 10  # steps in a row without a finite gradient that end the run; fewer are skipped
    detect_anomaly: bool = False  # name where the first value arose that is not finite; slower
    clip_norm: AtLeastZero = 0.25  # ceiling of the gradient's global norm; 0: no clipping

    # of the learning rate after the warm-up: "fixed", "step", "exponential", "cosine" or "inverse_sqrt"
    schedule: Literal["fixed", "step", "exponential", "cosine", "inverse_sqrt"] = "fixed"
    warmup_steps: CountOrOff = 0  # updates of linear warm-up from 0 to learning_rate
    decay_steps: CountOrOff = 0  # step, exponential: updates per decay; cosine: to its end; 0: the whole run
    decay_epochs: RisingCounts = ()  # step: decays after these epochs instead, [12] say
    decay_factor: AboveZero = 0.5  # step, exponential: learning rate × this at each decay
    final_learning_rate: AtLeastZero = 0.0  # cosine: where it ends

    evaluate_every: CountOrOff = 0  # updates between validations; 0: after every epoch
    evaluation_protocol: Literal["carried", "zero"] = "carried"  # zero: the state is 0 at every window
    evaluation_batch_size: CountOrOff = 0  # rows scored at a time, over all ranks; 0: as many as pay
    evaluation_window: Count = 70  # time steps scored at a time: for speed only, but for protocol zero
    log_every: Count = 10  # updates per row of metrics.jsonl and refresh of the display
    save_every: CountOrOff = 0  # updates between checkpoints; 0: whenever the run validates
    keep_checkpoints: Count = 2  # newest checkpoints that stay, beside the best: should one be damaged

    rank_timeout: AtLeastZero = 20.0  # seconds without a sign of life after which a rank is dead; 0: no watch
    stall_timeout: AtLeastZero = 1800.0  # seconds in which no rank gets on that end the run; 0: any
    check_ranks_every: CountOrOff = (
        500  # updates between checks that ranks hold equal weights; 0: when saving
    )

    seed: Seed = 0  # of the initial weights, of every dropout mask and of every window
    device: Literal["cpu", "cuda"] = "cpu"  # "cuda": one GPU for each rank
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"  # "mixed": float16, float32 masters
    graphs: bool = True  # cuda: forward and backward of a window are captured and launched as one graph
    wavefront: Literal["graphs", "always", "never"] = "graphs"  # cuda: when layers run side by side
    share_gpus: bool = False  # cuda: let several ranks have one GPU; slower than one each
    allreduce_dtype: Literal["float32", "float16"] = "float32"  # of gradients on their way between ranks
    loss_scaler: Literal["backoff", "log_max"] = "backoff"  # mixed: what chooses the scale of the loss
    initial_loss_scale: LossScale = 16384.0  # mixed: the first one; log_max never goes above 2^14
    loss_scale_growth_steps: Count = 2000  # mixed, backoff: steps without overflow that double the scale

    def __post_init__(self) -> None:
        for name, kind in field_kinds(TrainConfig).items():
            object.__setattr__(self, name, checked(f"train: {name}", getattr(self, name), kind))
        for contradiction, what_to_do in self._contradictions():
            if contradiction:
                raise InputError(f"train: {what_to_do}")

    def _contradictions(self) -> list[tuple[bool, str]]:
        """(does it stand here, what it is and what to do) for everything that cannot be meant together."""
        stepwise, milestones = self.schedule == "step", bool(self.decay_epochs)
        cosine_end = self.decay_steps or self.max_steps  # 0: where it ends is not known yet
        end = {"cosine": cosine_end, "exponential": 0 if self.decay_steps else self.max_steps}
        return [
            (
                0 < end.get(self.schedule, 0) <= self.warmup_steps,
                f"schedule {self.schedule!r} decays until step {end.get(self.schedule)}, which must be "
                f"beyond its warm-up of {self.warmup_steps} steps; lower warmup_steps, or raise "
                + ("decay_steps" if self.decay_steps else "max_steps"),
            ),
            (
                stepwise and not self.decay_steps and not milestones,
                "decay_steps must be at least 1 with schedule 'step', or decay_epochs given; got 0",
            ),
            (
                milestones and not stepwise,
                f"decay_epochs belong to schedule 'step', not {self.schedule!r}; --set decay_epochs=[]",
            ),
            (
                milestones and self.decay_steps > 0,
                "decay_steps and decay_epochs both say when to decay; set decay_steps=0 or decay_epochs=[]",
            ),
            (
                self.precision == "bfloat16",
                "precision 'bfloat16': NumPy and CuPy have it as a foreign type alone, whose products "
                "silently become float32; take precision 'mixed', whose loss scale makes up for its range",
            ),
            (
                self.shuffle_windows and self.carry_state,
                "shuffle_windows needs carry_state=false: a state cannot be carried to a window that does "
                "not follow; set one of the two to false",
            ),
            (
                self.variable_window and not self.carry_state,
                "variable_window needs carry_state=true: it varies where a carried state's gradient is cut; "
                "set one of the two otherwise, or random_start=true for cuts that vary without a state",
            ),
            (
                self.loss_scaler == "log_max" and self.initial_loss_scale > 2**14,
                "initial_loss_scale must be at most 16384 with loss_scaler 'log_max', which never goes "
                f"above; got {self.initial_loss_scale:g}; lower it, or set loss_scaler='backoff'",
            ),
            (
                self.momentum > 0 and self.optimizer != "sgd",
                f"momentum belongs to optimizer 'sgd', not {self.optimizer!r}; set momentum=0",
            ),
        ]


@dataclass(frozen=True)
class RunConfig:
    """What makes a run: every knob of the model, and how it is trained.

    Args:
        model: fields of `minilstm.ModelConfig`; those left out take their defaults. Only `vocab_size` may
            stay unset, until the data is known.
        train: the rest.

    Raises:
        InputError: an unknown knob of the model, or a value that `ModelConfig` refuses.
    """

    model: dict[str, Any]
    train: TrainConfig

    def __post_init__(self) -> None:
        config_class = _model_config_class()
        knobs = _checked_section("model", self.model, "model")
        # Refused now, not after the data has been prepared; the largest vocabulary stands in while unknown.
        model = dataclasses.asdict(config_class(**{"vocab_size": MAX_VOCAB_SIZE, **knobs}))
        if "vocab_size" not in self.model:
            del model["vocab_size"]
        if self.train.l2_tied and not model["tied_weights"]:
            raise InputError(
                "l2_tied is of the matrix that embedding and decoder share; "
                "set tied_weights=true or l2_tied=0"
            )
        object.__setattr__(self, "model", model)

    def model_config(self, vocab_size: int | None = None) -> ModelConfig:
        """The model's configuration for data with `vocab_size` words, or with the configured number of them.

        Raises:
            InputError: neither is known, or they differ.
        """
        configured = self.model.get("vocab_size", vocab_size)
        if configured is None:
            raise InputError("model: vocab_size is unknown; give data, or --set vocab_size=N")
        if vocab_size not in (None, configured):
            raise InputError(
                f"model: vocab_size is {configured} as configured, but the data has {vocab_size} words; "
                "leave vocab_size out, or give the data that it was set for"
            )
        return _model_config_class()(**{**self.model, "vocab_size": configured})

    def with_epsilon_of_precision(self) -> RunConfig:
        """The same configuration, with the epsilon that layer normalisation needs in float16 written down.

        The float32 masters of a mixed run must compute the function that its float16 copies learn.
        """
        from minilstm.lstm_cell import epsilon_for  # here, not above: the flags and --help need no model

        left_open = self.model["layer_norm"] and not self.model["layer_norm_epsilon"]
        if not left_open or self.train.precision == "float32":
            return self
        return dataclasses.replace(self, model={**self.model, "layer_norm_epsilon": epsilon_for("float16")})

    def with_vocab_size(self, vocab_size: int) -> RunConfig:
        """The same configuration, with the vocabulary's size filled in; raises as `model_config` does."""
        return dataclasses.replace(self, model=dataclasses.asdict(self.model_config(vocab_size)))

    def to_dict(self) -> Sections:
        """{"model": {…}, "train": {…}}: plain values for JSON and TOML; `from_dict` is its inverse."""
        sections = {"model": self.model, "train": vars(self.train)}
        return {name: {key: _plain(value) for key, value in part.items()} for name, part in sections.items()}

    @staticmethod
    def from_dict(sections: Sections, where: str = "configuration") -> RunConfig:
        """A configuration from its sections; InputError, naming `where`, for unknown keys, wrong values."""
        return run_config_of(checked_sections(sections, where))


def to_toml(run_config: RunConfig) -> str:
    """The whole configuration as TOML that `--config` and `load_run_config` read back to an equal one."""
    lines = ["# Every knob of this run; `--config` with this file starts another like it."]
    for section, values in run_config.to_dict().items():
        lines += ["", f"[{section}]"] + [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def load_run_config(path: str | Path) -> RunConfig:
    """The configuration in a TOML file, a run folder's config.toml say; keys left out take their defaults.

    Raises:
        InputError: no such file, not TOML, an unknown key or a wrong value.
    """
    return run_config_of(read_config_file(path))


def read_config_file(path: str | Path) -> Sections:
    """The sections of a TOML file, checked, with nothing filled in; raises as `load_run_config` does."""
    try:
        sections = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: cannot be read ({reason}); expected a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a TOML file: {error}".replace("\n", " ")) from None
    return checked_sections(sections, str(path))


def preset_names() -> list[str]:
    """Names that `--preset` takes, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> Sections:
    """The sections of a preset; InputError for an unknown name, with the nearest known one."""
    if name not in preset_names():
        raise InputError(f"unknown preset {name!r}; {nearest('preset', name, preset_names())}")
    return read_config_file(PRESETS / f"{name}.toml")


def checked_sections(sections: dict[str, Any], where: str) -> Sections:
    """Both sections, with every key known and every value of its type and range; InputError else."""
    for name, values in sections.items():
        if name not in SECTIONS:
            if not isinstance(values, dict):
                raise InputError(f"{where}: {name} stands outside [model] and [train]; move it into one")
            raise InputError(f"{where}: unknown section [{name}]; expected [model] or [train]")
        if not isinstance(values, dict):
            raise InputError(f"{where}: {name} must be a section of keys; got {shown(values)}")
    return {name: _checked_section(name, sections.get(name, {}), where) for name in SECTIONS}


def sections_of(values: Iterable[tuple[str, Any]], where: str) -> Sections:
    """Bare keys sorted into [model] and [train], checked; later ones win; InputError for an unknown key."""
    sections: Sections = {name: {} for name in SECTIONS}
    for key, value in values:
        section = next((name for name in sections if key in _section_kinds(name)), None)
        if section is None:
            known = [*_section_kinds("model"), *_section_kinds("train")]
            hint = "dropouts are the keys that end in _keep_prob" if "dropout" in key else ""
            raise InputError(
                f"{where}: unknown key {key!r}; {hint or nearest('key', key, known)}; --knobs lists them all"
            )
        sections[section][key] = value
    return checked_sections(sections, where)


def run_config_of(*layers: Sections) -> RunConfig:
    """Checked layers laid over the defaults; later ones win."""
    model, train = {}, {}
    for layer in layers:
        model.update(layer["model"])
        train.update(layer["train"])
    return RunConfig(model, TrainConfig(**train))


def _checked_section(section: str, values: dict[str, Any], where: str) -> dict[str, Any]:
    kinds = _section_kinds(section)
    for key in values:
        if key not in kinds:
            raise InputError(f"{where}: unknown key {key!r} in [{section}]; {nearest('key', key, kinds)}")
    return {key: checked(f"{where}: {key}", value, kinds[key]) for key, value in values.items()}


def _section_kinds(section: str) -> dict[str, Any]:
    config_class: type = _model_config_class() if section == "model" else TrainConfig
    return field_kinds(config_class)


@cache
def field_kinds(config_class: type) -> dict[str, Any]:
    """The type of each field, with what `Annotated` adds to it."""
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _model_config_class() -> type[ModelConfig]:
    from minilstm.config import ModelConfig  # here, not above: the flags and --help need no model

    return ModelConfig


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _toml_value(value: bool | int | float | str | list[int]) -> str:
    if isinstance(value, str):
        # TOML's texts are JSON's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
