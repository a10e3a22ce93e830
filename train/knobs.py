"""Every knob with its default and its meaning, read from where it is defined: `train.wt103 --knobs`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from train.config import TrainConfig

WIDTH = 100
_FIELD = re.compile(r"^    (\w+): ")
_ARGUMENT = re.compile(r"^ {8}(\w+(?:, \w+)*): ", re.MULTILINE)


def describe_knobs() -> str:
    """All of them, under [model] and [train] as in a configuration file."""
    from minilstm.config import ModelConfig

    sections = {"model": (ModelConfig, meanings_of_model()), "train": (TrainConfig, meanings_of_training())}
    lines = []
    for section, (config, meanings) in sections.items():
        lines += [f"[{section}]"]
        for field in dataclasses.fields(config):
            default = "" if field.default is dataclasses.MISSING else f" = {_toml(field.default)}"
            text = textwrap.wrap(meanings[field.name], WIDTH - 6)
            lines += [f"  {field.name}{default}", *(f"      {line}" for line in text)]
        lines += [""]
    return "\n".join(lines).rstrip()


def meanings_of_model() -> dict[str, str]:
    """What the docstring of `minilstm.ModelConfig` says of each of its fields."""
    from minilstm.config import ModelConfig

    text = (ModelConfig.__doc__ or "").partition("    Args:\n")[2].partition("    Raises:")[0]
    _, *parts = _ARGUMENT.split(text)
    return {
        name: " ".join(meaning.split())
        for names, meaning in zip(parts[::2], parts[1::2], strict=True)
        for name in names.split(", ")
    }


def meanings_of_training() -> dict[str, str]:
    """The comment above or beside each field of `train.config.TrainConfig`."""
    meanings, above = {}, ""
    for line in inspect.getsource(TrainConfig).partition("    def ")[0].splitlines():
        field, (code, _, comment) = _FIELD.match(line), line.partition("# ")
        if field:
            name = field[1]
            meanings[name] = above
        above = "" if code.strip() else comment
        if code.strip() and comment:
            meanings[name] = comment
    return meanings


def _toml(value: Any) -> str:
    """As it is written in a configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
