"""What each regulariser brings: python -m benchmarks.ablation --data data/wikitext-2

Trains the recipe of AWD-LSTM (Merity et al. 2018, preset awd-wt2) at a reduced size on the first tokens of
a text, then the same with each of its regularisers off in turn, and an LSTM with plain dropout alone (Zaremba
et al. 2014), once with the recipe's optimizer and its averaging, once with Adam; each for as many epochs, so
that those which over-fit have the time to. Every run is an ordinary run of `train.wt103`, whose command is
kept beside its figures:

    WORK_DIR/text/           the text, its splits cut at a line's end where --tokens and --score-tokens say so
    WORK_DIR/VARIANT-SEED/   a run folder each; VARIANT-SEED.log is what it printed. The same command, given
                             again, goes on where it was stopped; with more --epochs, where it ended

Prints a table of the validation perplexities, and draws them (--plot): the best of each run, and the last,
which tells how far it over-fits.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.report import add_report_flags, check_report_flags, report
from train.config import load_run_config
from train.environment import environment
from train.files import atomic_write
from train.flags import config_from_args, parse_setting
from train.log import progress
from train.metrics import read_metrics
from train.nearest import nearest
from train.plot import styled_figure
from train.prepare import prepare
from train.run_folder import RunFolder
from train.threads import BLAS_VARIABLES

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
PLAIN_DROPOUT = {
    **NO_DROPOUT,
    "activation_dropout": "per_step",
    "encoder_emb_output_keep_prob": PLAIN_KEEP_PROB,
    "encoder_dp_output_keep_prob": PLAIN_KEEP_PROB,
    "encoder_last_output_keep_prob": PLAIN_KEEP_PROB,
    "activation_regularization": 0.0,
    "temporal_activation_regularization": 0.0,
    "weight_decay": 0.0,
    "variable_window": False,
}
EMPHASIZED = ("awd", "plain-dropout", "plain-dropout-adam", "no-dropout")
VARIANTS: dict[str, dict[str, Any]] = {
    "awd": {},
    "plain-dropout": PLAIN_DROPOUT,
    "plain-dropout-adam": {**PLAIN_DROPOUT, "optimizer": "adam", "learning_rate": 1e-3},
    "no-dropout": NO_DROPOUT,
    "no-averaging": {"optimizer": "sgd"},
    "no-weight-dropout": {"recurrent_weight_keep_prob": 1.0},
    "no-input-dropout": {"encoder_emb_output_keep_prob": 1.0},
    "no-output-dropout": {"encoder_last_output_keep_prob": 1.0},
    "no-hidden-dropout": {"encoder_dp_output_keep_prob": 1.0},
    "no-embedding-dropout": {"encoder_emb_keep_prob": 1.0},
    "no-ar-tar": {"activation_regularization": 0.0, "temporal_activation_regularization": 0.0},
    "fixed-windows": {"variable_window": False},
    "no-weight-decay": {"weight_decay": 0.0},
}
"""What each run has other than the recipe; the most telling first, should the runs be cut short."""


class Ablation:
    """All runs of one text, one size and one number of epochs.

    Args:
        data: the prepared text.
        work_dir: where the runs go.
        epochs: of every run.
        settings: knobs for all runs, on top of the reduced size.
        threads: of each run.
    """

    def __init__(
        self, data: Path, work_dir: Path, epochs: int, settings: dict[str, Any], threads: int
    ) -> None:
        self.data, self.work_dir, self.epochs = data, work_dir, epochs
        self.settings, self.threads = settings, threads
        self._begun: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    def command(self, variant: str, seed: int) -> list[str]:
        """What follows `python` in the command that makes the run."""
        knobs = {**REDUCED, "epochs": self.epochs, **self.settings, **VARIANTS[variant]}
        command = ["-m", "train.wt103", "--preset", "awd-wt2", "--data", str(self.data)]
        command += ["--seed", str(seed), "--run-dir", str(self.run_folder(variant, seed).path)]
        for key, value in knobs.items():
            command += ["--set", f"{key}={json.dumps(value) if isinstance(value, bool) else value}"]
        return command

    def run_folder(self, variant: str, seed: int) -> RunFolder:
        return RunFolder(self.work_dir / f"{variant}-{seed}")

    def check_runs(self, runs: list[tuple[str, int]]) -> None:
        """Refuse runs of the work folder that were made, or begun, with other knobs than these.

        Raises:
            InputError: the message names the first such run and what differs.
        """
        for variant, seed in runs:
            folder = self.run_folder(variant, seed)
            wanted = config_from_args(self.command(variant, seed)[2:])[0].to_dict()
            if not folder.config.exists():
                continue
            made = load_run_config(folder.config).to_dict()
            made["train"]["epochs"] = self._epochs_from(made["train"])
            for section, values in wanted.items():
                for key, value in values.items():
                    if made[section][key] != value:
                        raise InputError(
                            f"{folder.path}: was made with {key} = {made[section][key]}, not {value}; "
                            "choose another --work-dir, or the options that it was made with"
                        )

    def _epochs_from(self, made: dict[str, Any]) -> int:
        """The epochs asked for, where a run with these knobs only has to go on for that; else its own."""
        can_go_on = made["schedule"] == "fixed" and made["epochs"] < self.epochs
        return self.epochs if can_go_on else int(made["epochs"])

    def run(self, variant: str, seed: int) -> dict[str, Any]:
        """The figures of a run, which is made or finished first if need be; its output goes into a file.

        Raises:
            InputError: the run's command failed.
        """
        folder, command = self.run_folder(variant, seed), self.command(variant, seed)
        if not self._is_finished(folder):
            resume = ["--resume"] if folder.config.exists() else []
            environment = {**os.environ, **dict.fromkeys(BLAS_VARIABLES, str(self.threads))}
            log = self.work_dir / f"{variant}-{seed}.log"
            with open(log, "ab") as output:
                arguments = [sys.executable, *command, *resume]
                child = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
                self._begun.append(child)
                if self._stopped:  # while this one began
                    child.terminate()
            if status := child.wait():
                raise InputError(f"{shlex.join(command)}: ended with status {status}; see {log}")
        return self._figures(variant, seed)

    def stop(self) -> None:
        """Let the runs under way save and end; the same command goes on with them."""
        self._stopped = True
        for child in self._begun:
            child.terminate()

    def _is_finished(self, folder: RunFolder) -> bool:
        if not folder.result.exists():
            return False
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        return bool(result["configuration"]["train"]["epochs"] == self.epochs)

    def _figures(self, variant: str, seed: int) -> dict[str, Any]:
        folder = self.run_folder(variant, seed)
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        rows = read_metrics(folder.metrics)
        scores = [row for row in rows if row["kind"] == "evaluation" and row["split"] == "valid"]
        return {
            "variant": variant,
            "seed": seed,
            "tokens": result["tokens"],
            "seconds": result["seconds"],
            "best_valid_perplexity": result["valid"]["perplexity"],
            "last_valid_perplexity": scores[-1]["perplexity"],
            "test_perplexity": result["test"]["perplexity"],
            "train_loss": [row["loss"] for row in rows if row["kind"] == "train"][-1],
            "curve": [(row["tokens"], row["perplexity"]) for row in scores],
            "command": "python " + shlex.join(self.command(variant, seed)),
        }


def make_runs(ablation: Ablation, wanted: list[tuple[str, int]], jobs: int) -> list[dict[str, Any]]:
    """The figures of all runs, `jobs` of them made at a time; if one fails, or at a signal, none goes on."""
    rows = []
    with ThreadPoolExecutor(jobs) as pool, progress(len(wanted), "training", "runs") as bar:
        try:
            for run in [pool.submit(ablation.run, variant, seed) for variant, seed in wanted]:
                row = run.result()
                rows.append(row)
                best = f"best validation perplexity {row['best_valid_perplexity']:.1f}"
                bar.message(f"{_words(row['variant'])}, seed {row['seed']}: {best}, {row['seconds']:,.0f} s")
                bar.update(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            ablation.stop()
            raise
    return rows


def cut_text(data: Path, tokens: int, score_tokens: int, min_count: int, folder: Path) -> Path:
    """A text in WikiText form prepared, each split ending with the line that brings it to its size.

    Args:
        data: a folder with wiki.{train,valid,test}.tokens.
        tokens: of the train split; 0: all.
        score_tokens: of valid and of test, which cost as much as training where the text is short; 0: all.
        min_count: words seen less often in the train split become <unk>.
        folder: made if need be; a text that lies there already is taken if it is the same.

    Returns:
        the prepared file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", tokens), ("valid", score_tokens), ("test", score_tokens)):
        text, path = _first_lines(_split(data, split), size), _split(folder, split)
        if path.exists() and path.read_bytes() != text:
            raise InputError(
                f"{path}: holds another text than --data, --tokens and --score-tokens say; "
                "choose another --work-dir"
            )
        with atomic_write(path) as temporary:
            temporary.write_bytes(text)
    return prepare(folder, folder / "text.h5", min_count=min_count)


def _first_lines(path: Path, tokens: int) -> bytes:
    """The lines until `tokens` words and line ends are reached; 0: the whole text."""
    lines, count = [], 0
    with open(path, "rb") as file:
        for line in file:
            lines.append(line)
            count += len(line.split()) + 1  # <eos>
            if tokens and count >= tokens:
                break
    return b"".join(lines)


def _split(folder: Path, split: str) -> Path:
    return folder / f"wiki.{split}.tokens"


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a variant, in the order of their first runs: means over the seeds, the best's spread."""
    summary = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        runs = [row for row in rows if row["variant"] == variant]
        best = [row["best_valid_perplexity"] for row in runs]
        means = {
            key: mean(row[key] for row in runs)
            for key in ("best_valid_perplexity", "last_valid_perplexity", "test_perplexity", "train_loss")
        }
        spread = stdev(best) if len(best) > 1 else None
        curve = np.mean([row["curve"] for row in runs], axis=0).tolist()
        summary.append({"variant": variant, "seeds": len(runs), **means, "deviation": spread, "curve": curve})
    return summary


def table(summary: list[dict[str, Any]]) -> str:
    """A Markdown table: each variant's perplexities, and how far its best is from the recipe's."""
    recipe = next((row["best_valid_perplexity"] for row in summary if row["variant"] == "awd"), None)
    lines = [
        "| variant | best valid | against the recipe | last valid | test at the best | last training loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary:
        best = row["best_valid_perplexity"]
        change = f"{best / recipe - 1:+.1%}" if recipe else "–"
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.1f}"
        lines.append(
            f"| {_words(row['variant'])} | {best:.1f}{spread} | {change} "
            f"| {row['last_valid_perplexity']:.1f} | {row['test_perplexity']:.1f} | {row['train_loss']:.3f} |"
        )
    return "\n".join(lines)


def _words(variant: str) -> str:
    names = {"awd": "the recipe", "no-ar-tar": "no AR and TAR", "plain-dropout-adam": "plain dropout, Adam"}
    return names.get(variant, variant.replace("-", " "))


def draw(summary: list[dict[str, Any]], title: str, path: Path) -> None:
    """Curves of the validation perplexity on the left; on the right how far each is from the recipe's.

    There a dot is the best, a ring the last of them.
    """
    ordered = sorted(summary, key=lambda row: row["best_valid_perplexity"])
    best = [row["best_valid_perplexity"] for row in ordered]
    recipe = next((row["best_valid_perplexity"] for row in summary if row["variant"] == "awd"), best[0])
    with styled_figure(11, 4.6) as figure:
        curves, changes = figure.subplots(1, 2, width_ratios=(3, 2))
        for index, row in enumerate(ordered):
            tokens, perplexities = np.array(row["curve"]).T
            style = {"color": f"C{index % 10}", "linewidth": 2 if row["variant"] in EMPHASIZED else 1}
            dashes = "-" if index < 10 else "--"  # there are ten colours
            curves.plot(tokens / 1e6, perplexities, dashes, label=_words(row["variant"]), **style)
            changes.plot([recipe, best[index]], [index, index], dashes, **style)
            changes.plot(row["last_valid_perplexity"], index, "o", markerfacecolor="white", **style)
            changes.plot(best[index], index, "o", **style)
            changes.annotate(
                f"{best[index]:.1f}", (best[index], index), (0, 5), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        curves.set(xlabel="million tokens", ylabel="validation perplexity")
        curves.set_yscale("log", subs=range(1, 10))
        for axis in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
            axis("{x:g}")
        curves.legend(fontsize=7, frameon=False, ncols=2)
        changes.axvline(recipe, color="grey", linewidth=1)
        changes.set_yticks(range(len(ordered)), [_words(row["variant"]) for row in ordered])
        changes.set_ylim(len(ordered) - 0.5, -0.8)
        changes.margins(x=0.12)
        changes.set(xlabel="validation perplexity: best (dot), last (ring)")
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    data = cut_text(
        options.data, options.tokens, options.score_tokens, options.min_count, options.work_dir / "text"
    )
    settings = dict(map(parse_setting, options.settings))
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    ablation = Ablation(data, options.work_dir, options.epochs, settings, threads)
    wanted = [(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    ablation.check_runs(wanted)
    rows = make_runs(ablation, wanted, options.jobs)
    summary = summarize(rows)
    if options.plot:
        draw(summary, options.title, options.plot)
    report(options, {"runs": rows, "environment": environment()}, table(summary))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what would only be found after hours of training."""
    at_least = {"epochs": 1, "seeds": 1, "jobs": 1, "tokens": 0, "score_tokens": 0, "min_count": 1}
    for name, least in at_least.items():
        if getattr(options, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: expected at least {least}, got {getattr(options, name)}")
    for split in ("train", "valid", "test"):
        if not _split(options.data, split).is_file():
            raise InputError(f"--data: expected a folder with wiki.{split}.tokens in it; got {options.data}")
    for pair in options.settings:
        parse_setting(pair)
    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        raise InputError(f"--variants: unknown {unknown[0]!r}; {nearest('variant', unknown[0], VARIANTS)}")
    check_report_flags(options)


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.ablation", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="a text in WikiText form")
    parser.add_argument("--tokens", type=int, default=200_000, metavar="N", help="of the train split; 0: all")
    parser.add_argument(
        "--score-tokens", type=int, default=0, metavar="N", help="of valid and of test; default: 0, all"
    )
    parser.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="rarer words become <unk>; default: 1"
    )
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of every run; default: 20")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each variant; default: 1")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help="default: all")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side; default: 1")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="knob of all runs"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    parser.add_argument("--title", default="What each regulariser brings", help="of the plot")
    add_report_flags(parser, plot=True)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
