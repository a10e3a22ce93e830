"""What is learned from the same text: python -m benchmarks.convergence --data ../shared/data/wikitext-2

Trains a preset with MiniLSTM and with PyTorch's nn.LSTM and compares their validation perplexities.
Both sides share, seed by seed, the initial weights; and all of the protocol: the windows of text, the state
carried from each to the next, locked dropout, Adam, clipping, the number of tokens. Their masks are drawn
apart. nn.LSTM keeps its second bias, which starts at zero. Each side scores the split by itself, every token
once, the state carried through: PyTorch as one single stream, MiniLSTM by `train.evaluate`.

Every finished run is one line of WORK_DIR/runs.jsonl; the same command, given again, goes on after the last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.systems import make_system, require_torch
from minilstm import ModelConfig
from train.batches import Batches, RankRows, Read
from train.config import RunConfig, TrainConfig, load_preset, preset_names, run_config_of
from train.corpus import Corpus, open_corpus
from train.environment import environment
from train.evaluate import PROTOCOL
from train.files import exclusive_lock
from train.log import Progress, progress
from train.metrics import MetricsLog, read_metrics
from train.plan import total_steps, windows_of
from train.prepare import ensure_prepared

SYSTEMS = ("ours", "torch")

Row = dict[str, Any]


class Comparison:
    """What is trained on what, the same for every run.

    Args:
        config: of the model and the training; it must use Adam at a fixed learning rate.
        corpus: read into memory, train and validation split.
        tokens: that every run is trained on, rounded up to a whole window; as many epochs as they take.

    Raises:
        InputError: the configuration has something that the PyTorch side lacks, or the text is too short.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, tokens: int) -> None:
        if tokens < 1:
            raise InputError(f"tokens: expected at least 1, got {tokens}")
        _refuse_what_torch_lacks(config.train)
        self.model: ModelConfig = config.model_config(len(corpus.vocabulary))
        num_tokens, batch_size = corpus.num_tokens("train"), config.train.batch_size
        text, rows = corpus.read("train", 0, num_tokens), RankRows.of(0, 1, batch_size)
        read: Read = lambda start, stop: text[start:stop]  # noqa: E731
        self.batches = Batches(read, num_tokens, batch_size, config.train.window, rows)
        epochs = -(-tokens // (self.batches.length * batch_size))
        self.train = dataclasses.replace(config.train, max_tokens=tokens, epochs=epochs, max_steps=0)
        self.steps = total_steps(self.train, self.batches.length)
        self.valid: np.ndarray = corpus.read("valid", 0, corpus.num_tokens("valid"))
        self.eos_id = corpus.vocabulary.eos_id
        settings = {name: value for name, value in vars(self.train).items() if name != "seed"}
        self.facts = {"model": vars(self.model), "train": settings, "vocabulary": corpus.fingerprint}
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode() + text.tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Targets that one run is trained on."""
        epochs, windows = divmod(self.steps, len(self.batches))
        steps_of_time = epochs * self.batches.length + min(windows * self.train.window, self.batches.length)
        return steps_of_time * self.train.batch_size

    def run(self, system_name: str, seed: int, advance: Callable[[int, float], None]) -> Row:
        """Train one system from one seed, and score it.

        Args:
            advance: called after every update with its number of tokens and its loss.

        Raises:
            InputError: the training diverged.
        """
        system = make_system(system_name, self.model, self.train, seed)
        step, tokens, losses, began = 0, 0, [], time.perf_counter()
        while step < self.steps:
            system.start_stream()
            for inputs, targets in self.batches.windows():
                losses.append(system.step(inputs, targets))
                step, tokens = step + 1, tokens + targets.size
                if not math.isfinite(losses[-1]):
                    raise InputError(f"{system_name}, seed {seed}: loss {losses[-1]} at step {step}")
                advance(targets.size, losses[-1])
                if step == self.steps:
                    break
        seconds = time.perf_counter() - began
        loss = system.score(self.valid, self.eos_id)
        return {
            "kind": "convergence",
            "comparison": self.fingerprint,
            "system": system_name,
            "seed": seed,
            "step": step,
            "tokens": tokens,
            "train_loss": mean(losses[-100:]),
            "valid_loss": loss,
            "valid_perplexity": math.exp(loss),
            "seconds": seconds,
            "scoring_seconds": time.perf_counter() - began - seconds,
        }


def _refuse_what_torch_lacks(train: TrainConfig) -> None:
    simple = train.optimizer == "adam" and train.schedule == "fixed" and not train.warmup_steps
    cuts = windows_of(train)
    same_windows = cuts.all_epochs_alike and not cuts.shuffled and train.carry_state
    if not simple or not same_windows or train.weight_decay or train.l2_tied or train.accumulate > 1:
        raise InputError(
            "convergence: expected Adam at a fixed learning rate without warm-up, weight decay, l2_tied or "
            "accumulation, on windows in their order with the state carried; "
            f"preset {train.preset} has something else"
        )


def compare(comparison: Comparison, num_seeds: int, work_dir: Path) -> list[Row]:
    """The rows of all runs, one for each system and seed; those in work_dir/runs.jsonl are not made again.

    Raises:
        InputError: work_dir cannot be made, or another process is at work there.
    """
    path = work_dir / "runs.jsonl"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work_dir}: cannot be made: {error.strerror}") from None
    with exclusive_lock(path):
        rows = {
            (row["system"], row["seed"]): row
            for row in (read_metrics(path) if path.exists() else [])
            if row.get("comparison") == comparison.fingerprint
        }
        wanted = [(system, seed) for seed in range(num_seeds) for system in SYSTEMS]
        missing = [run for run in wanted if run not in rows]
        total, done = (count * comparison.tokens for count in (len(wanted), len(wanted) - len(missing)))
        with (
            MetricsLog(path, resume_step=sys.maxsize) as log,
            progress(total, "training", " tokens", unit_scale=True, initial=done) as bar,
        ):
            for system, seed in missing:
                row = comparison.run(system, seed, _advance(bar, f"{system}, seed {seed}"))
                log.write(row)
                rows[system, seed] = row
                bar.message(
                    f"{system}, seed {seed}: validation perplexity {row['valid_perplexity']:,.2f} after "
                    f"{row['tokens']:,} tokens in {row['seconds']:,.0f} s"
                )
    return [rows[run] for run in wanted]


def _advance(bar: Progress, run: str) -> Callable[[int, float], None]:
    return lambda tokens, loss: bar.update(tokens, f"{run}: loss {loss:.3f}")


def summarize(rows: list[Row]) -> dict[str, Any]:
    """Mean and spread of each system, and whether ours is no worse within the noise of the seeds.

    Returns:
        ours, torch: {perplexities, mean, deviation (of a seed, n - 1 in the denominator), min, max, seconds
        (median of a run's training)}; difference: our mean - torch's; standard_error: of that difference;
        no_worse: difference ≤ 2 · standard_error. With a single seed, deviation, standard_error and no_worse
        are null.
    """
    sides = [_figures([row for row in rows if row["system"] == name]) for name in SYSTEMS]
    difference = sides[0]["mean"] - sides[1]["mean"]
    error = None
    if all(side["deviation"] is not None for side in sides):
        error = math.sqrt(sum(side["deviation"] ** 2 / len(side["perplexities"]) for side in sides))
    no_worse = None if error is None else difference <= 2 * error
    return {
        **dict(zip(SYSTEMS, sides, strict=True)),
        "difference": difference,
        "standard_error": error,
        "no_worse": no_worse,
    }


def _figures(rows: list[Row]) -> dict[str, Any]:
    perplexities = [row["valid_perplexity"] for row in rows]
    return {
        "perplexities": perplexities,
        "mean": mean(perplexities),
        "deviation": stdev(perplexities) if len(perplexities) > 1 else None,
        "min": min(perplexities),
        "max": max(perplexities),
        "seconds": median(row["seconds"] for row in rows),
    }


def table(result: dict[str, Any]) -> str:
    """The comparison for people."""
    lines = [
        f"{result['data']}, preset {result['preset']}, {result['tokens']:,} tokens: validation perplexity",
        f"{'':6}{'mean':>9}{'±':>7}{'lowest':>9}{'highest':>9}{'seconds':>9}",
    ]
    for name in SYSTEMS:
        side = result[name]
        deviation = "" if side["deviation"] is None else f"{side['deviation']:.2f}"
        lines.append(
            f"{name:6}{side['mean']:9.2f}{deviation:>7}{side['min']:9.2f}{side['max']:9.2f}{side['seconds']:9.0f}"
        )
    summary = f"ours - torch = {result['difference']:+.2f}"
    if result["standard_error"] is not None:
        verdict = "no worse" if result["no_worse"] else "worse"
        summary += f" ± {result['standard_error']:.2f} (standard error): {verdict} within two of these"
    return "\n".join([*lines, summary])


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.seeds < 1:
        raise InputError(f"--seeds: expected at least 1, got {options.seeds}")
    check_report_flags(options)
    require_torch()
    config = run_config_of(load_preset(options.preset))
    with open_corpus(ensure_prepared(options.data)) as corpus:
        comparison = Comparison(config, corpus, options.tokens)
    rows = compare(comparison, options.seeds, options.work_dir)
    result = {
        "data": Path(options.data).stem,
        "preset": options.preset,
        "tokens": rows[0]["tokens"],
        "scored_tokens": len(comparison.valid),
        "protocol": PROTOCOL,
        **summarize(rows),
        "runs": rows,
        **comparison.facts,
        "environment": environment(),
    }
    report(options, result, table(result))
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.convergence", __doc__)
    parser.add_argument(
        "--data", default="wikitext-2", metavar="NAME", help="as for train.wt103; default: wikitext-2"
    )
    parser.add_argument("--preset", choices=preset_names(), default="wt2-small", help="default: wt2-small")
    parser.add_argument(
        "--tokens", type=int, default=2_000_000, metavar="N", help="of every run; default: 2,000,000"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each side; default: 3")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("runs/convergence"), help="default: runs/convergence"
    )
    add_report_flags(parser)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
