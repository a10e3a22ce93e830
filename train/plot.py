"""python -m train.plot RUN … [--out FILE.png]: learning curves of one run, or of several over each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from train.config import RunConfig, load_run_config
from train.files import atomic_write
from train.log import format_perplexity, scaled
from train.metrics import read_metrics
from train.run_folder import RunFolder

# Okabe & Ito's colours, told apart with any kind of colour vision; validation differs in its marks as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#5f6368"
HIGHEST_LOSS = 30.0  # that is shown, in nats: a run that blew up is still drawable
SMOOTHED_SHARE = 0.03  # of a run's rows, averaged into each point of the solid lines

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#e4e6e9",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}


@dataclass
class Run:
    """One run folder, as a plot needs it: its configuration and its rows, by kind."""

    path: Path
    config: RunConfig
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.resolve().name

    def column(self, key: str) -> np.ndarray:
        """One number of every training row, float64; nan where there is none."""
        return _column(self.train, key)

    def scores(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens trained on and perplexity, at each evaluation of a split."""
        rows = [row for row in self.evaluations if row.get("split") == split]
        return _column(rows, "tokens"), _column(rows, "perplexity")

    def summary(self) -> str:
        """In words what came out: validation 123.4 at best, test 117.8; only what there is."""
        valid, test = self.scores("valid")[1], self.scores("test")[1]
        found = (
            [f"validation {format_perplexity(np.nanmin(valid), 1)} at best"]
            if np.isfinite(valid).any()
            else []
        )
        found += [f"test {format_perplexity(_last(test), 1)}"] if np.isfinite(test).any() else []
        return ", ".join(found) or "not evaluated yet"


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: no such folder, no metrics in it, no training row among them.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such run; expected a folder that train.wt103 wrote with --run-dir")
    folder = RunFolder(path)
    if folder.is_imported:
        raise InputError(
            f"{path}: holds imported weights, whose training left no curves here; plot a run that was trained"
        )
    rows = read_metrics(folder.metrics)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "evaluation")}
    if not kinds["train"]:
        raise InputError(f"{path}: no training rows in metrics.jsonl; let the run make some steps first")
    return Run(path, load_run_config(folder.config), kinds["train"], kinds["evaluation"])


def plot_runs(paths: list[Path], out: Path) -> None:
    """Draw the learning curves of the runs in folders `paths` into the picture `out` (PNG, SVG or PDF).

    Raises:
        InputError: a run that `load_run` refuses, an unknown kind of picture, matplotlib not installed.
    """
    runs = [load_run(path) for path in paths]  # first: a run that is not there has no place for its picture
    kind = out.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise InputError(f"--out: expected a name ending in .png, .svg or .pdf; got {str(out)!r}")
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}; make it first")
    figure = draw(runs)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib Figure of so many inches, in the style of all plots while the context lasts.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib; install it with: pip install matplotlib") from None
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def draw(runs: list[Run]) -> Any:
    """The matplotlib Figure: perplexity on top; learning rate, gradient norm and speed in a row below."""
    with styled_figure(11, 7.5) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=(2.4, 1))
        _draw_perplexity(figure.add_subplot(grid[0, :]), runs)
        _draw_small(figure.add_subplot(grid[1, 0]), runs, "learning_rate", "learning rate", smooth=False)
        _draw_gradient_norm(figure.add_subplot(grid[1, 1]), runs)
        _draw_small(figure.add_subplot(grid[1, 2]), runs, "tokens_per_second", "speed, tokens per second")
        figure.suptitle(_title(runs), x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def _draw_perplexity(axes: Any, runs: list[Run]) -> None:
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        tokens, loss = run.column("tokens"), run.column("loss")
        label = "training, smoothed" if len(runs) == 1 else f"{run.name}: {run.summary()}"
        if len(runs) == 1:
            axes.plot(tokens, _exp(loss), color=colour, alpha=0.25, linewidth=0.8, label="training, each row")
        axes.plot(tokens, _exp(_smoothed(loss)), color=colour, linewidth=1.8, label=label, **_dot(tokens))
        _draw_scores(axes, run, COLOURS[1] if len(runs) == 1 else colour, labelled=len(runs) == 1)
    axes.set_yscale("log")
    axes.set_ylim(*_perplexity_limits(runs))
    _format_axes(axes, log=True)
    axes.set_ylabel("perplexity (log scale)")
    axes.set_xlabel("training tokens")
    axes.set_title(_subtitle(runs), color=GREY)
    axes.legend(
        loc="upper right", title=None if len(runs) == 1 else "line: training · dots: validation · star: test"
    )
    _add_loss_axis(axes)


def _draw_scores(axes: Any, run: Run, colour: str, labelled: bool) -> None:
    """Validation as a dotted line of marks, test as a star; in a plot of one run with their last values."""
    for split, marker, size, line in (("valid", "o", 6, ":"), ("test", "*", 13, "")):
        tokens, perplexities = run.scores(split)
        if not np.isfinite(perplexities).any():
            continue
        name = {"valid": "validation", "test": "test"}[split]
        label = f"{name}: {format_perplexity(_last(perplexities), 1)} at the end" if labelled else None
        style = {"marker": marker, "markersize": size, "markeredgecolor": "white", "linestyle": line}
        shown = np.minimum(perplexities, _exp(HIGHEST_LOSS))  # marks are not clipped at the axes' edge
        axes.plot(tokens, shown, color=colour, label=label, zorder=3, clip_on=False, **style)


def _draw_small(axes: Any, runs: list[Run], key: str, title: str, smooth: bool = True) -> None:
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        tokens, values = run.column("tokens"), run.column(key)
        if smooth and len(runs) == 1:
            axes.plot(tokens, values, color=colour, alpha=0.25, linewidth=0.8)
        values = _smoothed(values) if smooth else values
        axes.plot(tokens, values, color=colour, linewidth=1.5, **_dot(tokens))
    axes.set_title(title, color=GREY)
    axes.set_xlabel("training tokens")
    axes.set_ylim(0, 1.15 * max(_high(run.column(key)) for run in runs) or None)
    _format_axes(axes)


def _draw_gradient_norm(axes: Any, runs: list[Run]) -> None:
    _draw_small(axes, runs, "grad_norm", "gradient norm, before clipping")
    clip_norms = {run.config.train.clip_norm for run in runs} - {0}
    top = axes.get_ylim()[1]
    top = max([top, *(1.15 * clip_norm for clip_norm in clip_norms if clip_norm < 2 * top)])
    axes.set_ylim(top=top)
    for clip_norm in clip_norms:
        # A ceiling above the picture is named at its upper edge: out there it would push the axes away.
        inside = clip_norm < top
        if inside:
            axes.axhline(clip_norm, color=GREY, linestyle=":", linewidth=1.2)
        axes.annotate(
            f"clipped at {clip_norm:g}" + ("" if inside else ", above"),
            (1, clip_norm if inside else top),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3 if inside else -3),
            textcoords="offset points",
            ha="right",
            va="bottom" if inside else "top",
            color=GREY,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def _format_axes(axes: Any, log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    thousands = FuncFormatter(lambda value, position: scaled(value) if value >= 1000 else f"{value:g}")
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(10 if log else 5))
    if log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _add_loss_axis(axes: Any) -> None:
    """The same curve read as loss: the logarithm of the perplexity."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    loss = axes.secondary_yaxis("right", functions=(_log, _exp))
    loss.yaxis.set_major_locator(MaxNLocator(8))
    loss.yaxis.set_minor_locator(NullLocator())
    loss.yaxis.set_major_formatter(ScalarFormatter())
    loss.set_ylabel("loss, nats per token")


def _dot(tokens: np.ndarray) -> dict[str, Any]:
    """Keywords of `plot`: a line through a single row would not be seen."""
    return {"marker": "."} if len(tokens) == 1 else {}


def _title(runs: list[Run]) -> str:
    datasets = ", ".join(dict.fromkeys(Path(run.config.train.data).stem for run in runs))
    return (
        f"{datasets}: perplexity {runs[0].summary()}" if len(runs) == 1 else f"{datasets}: {len(runs)} runs"
    )


def _subtitle(runs: list[Run]) -> str:
    """What the runs have in common: the model and its batches; nothing when they differ there."""
    subtitles = {_model_in_words(run.config) for run in runs}
    return subtitles.pop() if len(subtitles) == 1 else ""


def _model_in_words(config: RunConfig) -> str:
    model, train = config.model, config.train
    words = f"{model['num_layers']}-layer LSTM, H {model['hidden_size']}, E {model['embedding_size']}"
    if "vocab_size" in model:
        words += f", {scaled(config.model_config().num_parameters())} parameters"
    return f"{words} · {train.optimizer}, batches of {train.batch_size} × {train.window} tokens"


def _perplexity_limits(runs: list[Run]) -> tuple[float, float]:
    """From the lowest point to where the curves are after a twentieth of the way; before, they only fall."""
    shown = []
    for run in runs:
        smoothed = _smoothed(run.column("loss"))
        shown += [
            smoothed[len(smoothed) // 20 :],
            np.log(run.scores("valid")[1]),
            np.log(run.scores("test")[1]),
        ]
    losses = np.concatenate(shown)
    losses = np.minimum(losses[np.isfinite(losses)], HIGHEST_LOSS)
    if losses.size == 0:
        return 1.0, 10.0
    return float(_exp(losses.min() - 0.15)), float(_exp(losses.max() + 0.25))


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a share of the rows; nan counts for nothing."""
    weights = np.ones(max(1, 2 * (int(SMOOTHED_SHARE * len(values)) // 2) + 1))
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0), weights, mode="same")
    counts = np.convolve(known, weights, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _high(values: np.ndarray) -> float:
    """The value that all but a hundredth stay under: a spike must not flatten the rest. 0 for no value."""
    values = values[np.isfinite(values)]
    return float(np.percentile(values, 99)) if values.size else 0.0


def _last(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)][-1])


def _exp(loss: Any) -> Any:
    return np.exp(np.minimum(loss, 700.0))  # beyond, float64 ends


def _log(perplexity: Any) -> Any:
    return np.log(np.maximum(perplexity, 1e-300))


def main(argv: list[str] | None = None) -> int:
    """The command; writes RUN/plot.png, or --out."""
    parser = Parser(prog="python -m train.plot", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="folder of a run; several: compared"
    )
    parser.add_argument(
        "--out", metavar="FILE.png", type=Path, help="default: RUN/plot.png; needed for several"
    )
    args = parser.parse_args(argv)
    if args.out is None and len(args.runs) > 1:
        raise InputError("several runs need --out FILE.png: the picture belongs to none of them alone")
    out = args.out or args.runs[0] / "plot.png"
    plot_runs(args.runs, out)
    print(out)
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
