"""What each regulariser brings: python -m benchmarks.ablation --data wikitext-2 --tokens 200000

Trains the recipe of AWD-LSTM (Merity et al. 2018, preset awd-wt2) at a reduced size on the first tokens of
a text, then the same with each of its regularisers off in turn, and an LSTM with plain dropout alone (Zaremba
et al. 2014); each for as many epochs, so that those which over-fit have the time to. Every run is an ordinary
run of `train.wt103`, whose command is kept beside its figures:

    WORK_DIR/text/           the text: the train split cut at a line's end, valid and test whole
    WORK_DIR/VARIANT-SEED/   a run folder each; the same command, given again, goes on where it was stopped

Prints a table of the validation perplexities, and draws them (--plot): the best of each run, and the last,
which tells how far it over-fits.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from train.files import atomic_write
from train.metrics import read_metrics
from train.plot import styled_figure
from train.run_folder import RunFolder

REDUCED = {
    "embedding_size": 150,
    "hidden_size": 300,
    "batch_size": 20,
    "evaluate_every": 0,
    "log_every": 50,
    "save_every": 0,
}
"""What makes the preset fit a small machine: its size, and a batch that makes many updates of little text."""

NO_DROPOUT = {
    "encoder_emb_keep_prob": 1.0,
    "encoder_emb_output_keep_prob": 1.0,
    "encoder_dp_output_keep_prob": 1.0,
    "encoder_last_output_keep_prob": 1.0,
    "recurrent_weight_keep_prob": 1.0,
}
PLAIN_KEEP_PROB = 0.5
EMPHASIZED = ("awd", "plain-dropout", "no-dropout")
VARIANTS: dict[str, dict[str, Any]] = {
    "awd": {},
    "no-weight-dropout": {"recurrent_weight_keep_prob": 1.0},
    "no-embedding-dropout": {"encoder_emb_keep_prob": 1.0},
    "no-input-dropout": {"encoder_emb_output_keep_prob": 1.0},
    "no-hidden-dropout": {"encoder_dp_output_keep_prob": 1.0},
    "no-output-dropout": {"encoder_last_output_keep_prob": 1.0},
    "no-ar-tar": {"activation_regularization": 0.0, "temporal_activation_regularization": 0.0},
    "no-weight-decay": {"weight_decay": 0.0},
    "no-averaging": {"optimizer": "sgd"},
    "fixed-windows": {"variable_window": False},
    "plain-dropout": {
        **NO_DROPOUT,
        "activation_dropout": "per_step",
        "encoder_emb_output_keep_prob": PLAIN_KEEP_PROB,
        "encoder_dp_output_keep_prob": PLAIN_KEEP_PROB,
        "encoder_last_output_keep_prob": PLAIN_KEEP_PROB,
        "activation_regularization": 0.0,
        "temporal_activation_regularization": 0.0,
        "weight_decay": 0.0,
        "variable_window": False,
    },
    "no-dropout": NO_DROPOUT,
}
"""What each run has other than the recipe."""


class Ablation:
    """All runs of one text, one size and one number of epochs.

    Args:
        text: a folder in WikiText form.
        work_dir: where the runs go.
        epochs: of every run.
        settings: knobs for all runs, on top of the reduced size.
    """

    def __init__(self, text: Path, work_dir: Path, epochs: int, settings: dict[str, Any]) -> None:
        self.text, self.work_dir, self.epochs, self.settings = text, work_dir, epochs, settings

    def command(self, variant: str, seed: int) -> list[str]:
        """The command that makes the run, or goes on with it."""
        folder = self.run_folder(variant, seed)
        knobs = {**REDUCED, "epochs": self.epochs, **self.settings, **VARIANTS[variant]}
        command = ["-m", "train.wt103", "--preset", "awd-wt2", "--data", str(self.text)]
        command += ["--seed", str(seed), "--run-dir", str(folder.path)]
        for key, value in knobs.items():
            command += ["--set", f"{key}={json.dumps(value) if isinstance(value, bool) else value}"]
        return command + (["--resume"] if folder.config.exists() else [])

    def run_folder(self, variant: str, seed: int) -> RunFolder:
        return RunFolder(self.work_dir / f"{variant}-{seed}")

    def row(self, variant: str, seed: int) -> dict[str, Any]:
        """The figures of a run, which is made or finished first if need be.

        Raises:
            InputError: the run's command failed.
        """
        folder = self.run_folder(variant, seed)
        command = self.command(variant, seed)
        if not folder.result.exists():
            print(f"{variant}, seed {seed}", flush=True)
            status = subprocess.run([sys.executable, *command], check=False).returncode
            if status:
                raise InputError(f"{shlex.join(command)}: ended with status {status}")
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        scores = [
            row
            for row in read_metrics(folder.metrics)
            if row["kind"] == "evaluation" and row["split"] == "valid"
        ]
        return {
            "variant": variant,
            "seed": seed,
            "tokens": result["tokens"],
            "seconds": result["seconds"],
            "best_valid_perplexity": result["valid"]["perplexity"],
            "last_valid_perplexity": scores[-1]["perplexity"],
            "test_perplexity": result["test"]["perplexity"],
            "curve": [(row["tokens"], row["perplexity"]) for row in scores],
            "train_loss": [row["loss"] for row in read_metrics(folder.metrics) if row["kind"] == "train"][-1],
            "command": "python " + shlex.join([part for part in command if part != "--resume"]),
        }


def cut_text(data: Path, tokens: int, folder: Path) -> Path:
    """A copy of a text in WikiText form whose train split ends with the line that brings it to `tokens`.

    Raises:
        InputError: `data` is no such folder.
    """
    for split in ("train", "valid", "test"):
        if not (data / f"wiki.{split}.tokens").is_file():
            raise InputError(f"--data: expected a folder with wiki.train.tokens and the others; got {data}")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("valid", "test"):
        (folder / f"wiki.{split}.tokens").write_bytes((data / f"wiki.{split}.tokens").read_bytes())
    lines, count = [], 0
    with open(data / "wiki.train.tokens", encoding="utf-8") as file:
        for line in file:
            lines.append(line)
            count += len(line.split()) + 1  # <eos>
            if tokens and count >= tokens:
                break
    with atomic_write(folder / "wiki.train.tokens") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return folder


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: each variant's perplexities, and how far its best is from the recipe's."""
    whole = next((row for row in rows if row["variant"] == "awd"), None)
    lines = [
        "| variant | best valid | against the recipe | last valid | test at the best | last training loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        change = row["best_valid_perplexity"] / whole["best_valid_perplexity"] - 1 if whole else math.nan
        lines.append(
            f"| {row['variant'].replace('-', ' ')} | {row['best_valid_perplexity']:.1f} | {change:+.1%} "
            f"| {row['last_valid_perplexity']:.1f} | {row['test_perplexity']:.1f} | {row['train_loss']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Curves of the validation perplexity on the left, the best of each variant on the right."""
    ordered = sorted(rows, key=lambda row: row["best_valid_perplexity"])
    names = [row["variant"].replace("-", " ") for row in ordered]
    best = [row["best_valid_perplexity"] for row in ordered]
    colours = [f"C{index % 10}" for index in range(len(ordered))]
    with styled_figure(11, 4.6) as figure:
        curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        for row, name, colour in zip(ordered, names, colours, strict=True):
            tokens, perplexities = np.array(row["curve"]).T
            width = 2 if row["variant"] in EMPHASIZED else 1
            curves.plot(tokens / 1e6, perplexities, color=colour, linewidth=width, label=name)
        curves.set(xlabel="million tokens", ylabel="validation perplexity", yscale="log")
        curves.set_ylim(best[0] * 0.95, best[0] * 2.5)
        curves.legend(fontsize=7, frameon=False, ncols=2)
        bars.barh(names[::-1], best[::-1], color=colours[::-1])
        bars.set(xlim=(best[0] * 0.9, best[-1] * 1.06), xlabel="best validation perplexity")
        for index, value in enumerate(best[::-1]):
            bars.text(value, index, f" {value:.1f}", va="center", fontsize=8)
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        raise InputError(f"--variants: unknown {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    settings: dict[str, Any] = {}
    for pair in options.settings:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, got {pair!r}")
        settings[key] = value
    text = cut_text(options.data, options.tokens, options.work_dir / "text")
    ablation = Ablation(text, options.work_dir, options.epochs, settings)
    rows = [ablation.row(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    if options.out:
        with atomic_write(options.out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(rows, options.title, options.plot)
    print(json.dumps(rows) if options.json else table(rows))
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.ablation", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="a text in WikiText form")
    parser.add_argument("--tokens", type=int, default=200_000, metavar="N", help="of the train split; 0: all")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of every run; default: 20")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each variant; default: 1")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help="default: all")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="knob of all runs"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    parser.add_argument("--title", default="What each regulariser brings", help="of the plot")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures here as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
