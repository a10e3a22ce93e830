"""The command line of a training run: its flags, and the configuration that they ask for.

Later layers win: preset < --config file < --set < dedicated flag. With --resume, the configuration that the
run was started with stands in the preset's place: the command that started it goes on with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from train.checked_types import Sections, choices_of, plain_type
from train.config import (
    DEFAULT_PRESET,
    RunConfig,
    TrainConfig,
    field_kinds,
    load_preset,
    preset_names,
    read_config_file,
    run_config_of,
    sections_of,
    tomllib,
)

# Fields of TrainConfig that are changed so often that each has its own flag; --set reaches all the others.
_FLAG_HELP = {
    "data": "dataset (python-docs, wikitext-2, wikitext-103), or a path to text or to a prepared .h5 file",
    "seed": "of the initial weights, of every dropout mask and of every window",
    "max_steps": "end after this many updates; 0: the epochs decide",
    "max_tokens": "end after this many training tokens; 0: the epochs decide",
    "device": "cpu, or cuda: one GPU a rank (docs/gpu.md)",
    "precision": "mixed computes in float16 and learns in float32: docs/mixed_precision.md",
}


def argument_parser(prog: str = "python -m train.wt103") -> argparse.ArgumentParser:
    """The parser of the flags that stay; a command may add its own before it calls `config_from_args`."""
    parser = Parser(
        prog=prog,
        description="Train the tied LSTM language model, on one process or under mpirun on many.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    presets = f"{', '.join(preset_names())} (default: {DEFAULT_PRESET})"
    parser.add_argument("--preset", metavar="NAME", help=presets)
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="knobs over the preset's")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="one knob; repeatable"
    )
    kinds = field_kinds(TrainConfig)
    for name, text in _FLAG_HELP.items():
        choices = choices_of(kinds[name])
        metavar = None if choices else "N" if plain_type(kinds[name]) is int else "NAME"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, help=text, type=plain_type(kinds[name]), choices=choices, metavar=metavar)
    parser.add_argument(
        "--detect-anomaly",
        action="store_true",
        default=None,
        help="name the function and the parameter where the first value arose that is not finite; slower",
    )
    parser.add_argument(
        "--run-dir", metavar="RUN", type=Path, help="folder of the run (default: runs/DATA-PRESET)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in --run-dir")
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        nargs="?",
        type=int,
        const=20,
        help="print where the time of some steps (default: 20) goes; write them to RUN/trace.json",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the model, its size and memory; stop")
    parser.add_argument(
        "--knobs",
        action=_ShowKnobs,
        nargs=0,
        help="print every key of --set, its default, what it means; stop",
    )
    return parser


def config_from_args(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> tuple[RunConfig, argparse.Namespace]:
    """The configuration that a command line asks for, and the parsed flags; `run_dir` is always filled in.

    Args:
        argv: arguments after the command's name; None: those of this process.
        parser: from `argument_parser`, with flags added; None: without.

    Raises:
        InputError: unknown preset or key (with the nearest known one), a wrong value, an unreadable --config
            file, nothing to resume.
    """
    args = (parser or argument_parser()).parse_args(argv)
    if args.profile is not None and args.profile < 1:
        raise InputError(f"--profile: expected at least 1 step; got {args.profile}")
    config_file = read_config_file(args.config) if args.config else sections_of([], "--config")
    settings = sections_of([parse_setting(text) for text in args.set], "--set")
    given = ((name, getattr(args, name)) for name in ("preset", "detect_anomaly", *_FLAG_HELP))
    flags = sections_of(((name, value) for name, value in given if value is not None), "command line")

    layers = (config_file, settings, flags)
    named = [layer["train"]["preset"] for layer in reversed(layers) if "preset" in layer["train"]]
    base = load_preset(named[0] if named else DEFAULT_PRESET)
    args.run_dir = args.run_dir or default_run_dir(run_config_of(base, *layers).train)
    if args.resume:
        base = _resumed(args.run_dir, named)
    return run_config_of(base, *layers), args


def default_run_dir(train: TrainConfig) -> Path:
    """runs/DATA-PRESET: the same on every rank and at every start."""
    return Path("runs") / f"{Path(train.data).stem}-{train.preset}"


def _resumed(run_dir: Path, named_presets: list[str]) -> Sections:
    """The configuration saved in the run folder that goes on."""
    saved = run_dir / "config.toml"
    if not saved.is_file():
        raise InputError(
            f"--resume: {saved} is not there; name the run by --run-dir, or start without --resume"
        )
    sections = read_config_file(saved)
    preset = sections["train"].get("preset", DEFAULT_PRESET)
    if named_presets and named_presets[0] != preset:
        raise InputError(
            f"--resume: {run_dir} was started with preset {preset!r}, not {named_presets[0]!r}; "
            "leave --preset out, or start anew in another --run-dir"
        )
    return sections


def parse_setting(text: str) -> tuple[str, Any]:
    """(key, value) of one --set: TOML's syntax for the value, and a bare word is a text.

    Raises:
        InputError: not of the form KEY=VALUE. Whether there is such a key, `train.config` knows.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set: expected KEY=VALUE; got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value.strip()


class _ShowKnobs(argparse.Action):
    """Prints them and ends the command, as --help does with its own text."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from train.knobs import describe_knobs

        print(describe_knobs())
        parser.exit()


def _epilog() -> str:
    names = ", ".join(field.name for field in dataclasses.fields(TrainConfig))
    text = textwrap.fill(names, width=100, initial_indent="  ", subsequent_indent="  ")
    return (
        f"keys of --set, and of [train] in FILE.toml:\n{text}\n"
        "those of [model], the dropouts among them, and what each means: --knobs"
    )
