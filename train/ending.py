"""What a finished run leaves for a person: result.json, the plot, and a few lines with a sample of text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.environment import environment
from train.files import atomic_write
from train.generate import as_text, generate
from train.log import duration, format_perplexity
from train.run_folder import RunFolder

if TYPE_CHECKING:
    from train.training_run import TrainingRun


def end_run(run: TrainingRun, test: dict[str, Any]) -> None:
    """Write result.json and the plot, and print the summary; of many ranks, on the root alone.

    Args:
        run: it holds its best weights.
        test: their score on the test split.
    """
    with atomic_write(run.folder.result) as temporary:
        temporary.write_text(json.dumps(_result(run, test), indent=2) + "\n", encoding="utf-8")
    _plot(run.folder)
    _print_summary(run, test)


def _result(run: TrainingRun, test: dict[str, Any]) -> dict[str, Any]:
    position = run.position
    return {
        "valid": position.best,
        "test": test,
        "steps": position.step,
        "tokens": position.tokens,
        "seconds": position.seconds,
        "tokens_per_second": position.tokens / max(position.seconds, 1e-9),
        "parameters": run.model.config.num_parameters(),
        "ranks": run.communicator.size,
        "seed": run.train_config.seed,
        "configuration": run.config.to_dict(),
        "vocabulary": run.corpus.fingerprint,
        "environment": environment(),
    }


def _plot(folder: RunFolder) -> None:
    """The learning curves, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    from train.plot import plot_runs

    plot_runs([Path(folder.path)], folder.plot)


def _print_summary(run: TrainingRun, test: dict[str, Any]) -> None:
    position, vocabulary = run.position, run.corpus.vocabulary
    assert position.best is not None
    print(f"trained on {position.tokens:,} tokens in {duration(position.seconds)}")
    print(
        f"valid perplexity {format_perplexity(position.best['perplexity'])}, "
        f"test perplexity {format_perplexity(test['perplexity'])}"
    )
    print(f"({test['protocol']}; weights of step {position.best['step']:,})")
    words = generate(run.model, vocabulary, [], 40, temperature=0.8, seed=run.train_config.seed)
    print("it writes: " + "".join(as_text(vocabulary.words[word]) for word in words).replace("\n", "/ "))
    print(f"run: {run.folder.path}")
