"""Learning curves: drawn from any metrics that a run can leave behind, and refused in one line without."""

import math
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from autograd.errors import InputError
from train import plot
from train.config import RunConfig, TrainConfig, to_toml
from train.metrics import MetricsLog
from train.plot import draw, load_run, main, plot_runs


def train_row(step, loss):
    rates = {"learning_rate": 1e-3 / step, "grad_norm": 0.3, "tokens_per_second": 9000.0 + step}
    return {
        "kind": "train",
        "step": step,
        "tokens": 700 * step,
        "loss": loss,
        **rates,
    }


def score_row(step, split, loss):
    scores = {"loss": loss, "perplexity": math.exp(loss)}
    return {"kind": "evaluation", "split": split, "step": step, "tokens": 700 * step, **scores}


ROWS = [train_row(step, 7 - 0.02 * step) for step in range(1, 101)]
ROWS += [score_row(50, "valid", math.log(400)), score_row(100, "valid", math.log(200))]
ROWS += [score_row(100, "test", math.log(190))]


def make_run(folder, rows, vocab_size=1000, **train):
    folder.mkdir()
    config = RunConfig(
        {"vocab_size": vocab_size, "hidden_size": 8, "embedding_size": 8}, TrainConfig(**train)
    )
    (folder / "config.toml").write_text(to_toml(config))
    with MetricsLog(folder / "metrics.jsonl") as log:
        for row in rows:
            log.write(row)
    return folder


def drawn(paths):
    """The figure of some runs, and its axes: perplexity, learning rate, gradient norm, speed."""
    figure = draw([load_run(path) for path in paths])
    return figure, figure.axes


def test_the_command_writes_a_picture_into_the_run(tmp_path, capsys):
    run = make_run(tmp_path / "run", ROWS)
    assert main([str(run)]) == 0
    assert (run / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{run / 'plot.png'}\n"
    assert sorted(entry.name for entry in run.iterdir()) == ["config.toml", "metrics.jsonl", "plot.png"]


def test_the_figure_shows_what_was_measured(tmp_path):
    figure, axes = drawn([make_run(tmp_path / "run", ROWS, data="python-docs", clip_norm=0.4)])
    raw, smoothed, valid, test = axes[0].get_lines()
    np.testing.assert_allclose(raw.get_xdata(), 700 * np.arange(1, 101))
    np.testing.assert_allclose(np.log(raw.get_ydata()), 7 - 0.02 * np.arange(1, 101))
    np.testing.assert_allclose(smoothed.get_ydata()[5:-5], raw.get_ydata()[5:-5])  # a straight line stays one
    np.testing.assert_allclose(valid.get_data(), [[35_000, 70_000], [400, 200]])
    np.testing.assert_allclose(test.get_data(), [[70_000], [190]])
    np.testing.assert_allclose(axes[1].get_lines()[0].get_ydata(), 1e-3 / np.arange(1, 101))
    assert axes[2].get_lines()[-1].get_ydata()[0] == 0.4
    assert axes[3].get_lines()[0].get_ydata()[-1] == 9100
    assert figure.get_suptitle() == "python-docs: perplexity validation 200.0 at best, test 190.0"
    # 1000 · (8 + 1) + 3 layers · 4 · 8 · (8 + 8 + 1) = 10,632
    assert axes[0].get_title(loc="left").startswith("3-layer LSTM, H 8, E 8, 10.6k parameters")


def test_every_axis_says_what_it_measures(tmp_path):
    _, axes = drawn([make_run(tmp_path / "run", ROWS)])
    assert axes[0].get_ylabel() == "perplexity (log scale)"
    assert [child.get_ylabel() for child in axes[0].child_axes] == ["loss, nats per token"]
    assert {one.get_xlabel() for one in axes} == {"training tokens"}
    titles = [one.get_title(loc="left") for one in axes[1:]]
    assert titles == ["learning rate", "gradient norm, before clipping", "speed, tokens per second"]


def test_several_runs_lie_over_each_other_in_colours_of_their_own(tmp_path):
    worse = [row | {"loss": row["loss"] + 1, "perplexity": math.exp(row["loss"] + 1)} for row in ROWS]
    runs = [make_run(tmp_path / "one", ROWS), make_run(tmp_path / "two", worse)]
    _, axes = drawn(runs)
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert texts == [
        "one: validation 200.0 at best, test 190.0",
        f"two: validation {200 * math.e:.1f} at best, test {190 * math.e:.1f}",
    ]
    colours = [line.get_color() for line in axes[1].get_lines()]
    assert len(set(colours)) == 2
    assert main([*map(str, runs), "--out", str(tmp_path / "both.svg")]) == 0
    assert "<svg" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:1],
        ROWS[:3],
        ROWS[:100],
        [train_row(1, None), train_row(2, None)],
        [*ROWS[:9], train_row(10, None), *ROWS[10:30]],
        [{"kind": "train", "step": 1, "tokens": 700, "loss": 6.0}],
        [train_row(1, 800.0)],
    ],
    ids=["one row", "three", "unevaluated", "all nan", "one nan", "bare", "huge"],
)
@pytest.mark.filterwarnings("error")
def test_it_draws_whatever_a_run_can_leave_behind(tmp_path, rows):
    plot_runs([make_run(tmp_path / "run", rows)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_the_average_skips_what_is_not_a_number():
    values = np.full(200, 3.0)
    values[50:53] = np.nan
    np.testing.assert_allclose(plot._smoothed(values), 3.0, rtol=1e-12)
    assert plot._smoothed(np.array([1.0])).tolist() == [1.0]


def test_runs_that_are_not_there_are_refused(tmp_path):
    out = tmp_path / "plot.png"
    with pytest.raises(InputError, match="absent: no such run; expected a folder"):
        plot_runs([tmp_path / "absent"], out)
    with pytest.raises(InputError, match="metrics.jsonl: no such file"):
        plot_runs([tmp_path], out)
    with pytest.raises(InputError, match="no training rows in metrics.jsonl"):
        plot_runs([make_run(tmp_path / "empty", [])], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["run", "run"], "several runs need --out"),
        (["run", "--out", "plot.docx"], "expected a name ending in .png, .svg or .pdf; got 'plot.docx'"),
        (["run", "--out", "absent/plot.png"], "there is no folder absent"),
        (["absent"], "absent: no such run; expected a folder that train.wt103 wrote"),
    ],
)
def test_places_where_no_picture_can_go_are_refused(tmp_path, monkeypatch, flags, expected):
    make_run(tmp_path / "run", ROWS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected):
        main(flags)


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", ROWS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install matplotlib"):
        plot_runs([run], tmp_path / "plot.png")


@pytest.mark.filterwarnings("error")
def test_what_lies_far_outside_the_axes_leaves_them_their_room(tmp_path):
    """A ceiling that no gradient comes near, and a validation that blew up."""
    rows = [*ROWS, score_row(100, "valid", 600.0)]
    usual, _ = drawn([make_run(tmp_path / "usual", ROWS, clip_norm=0.25)])
    far, axes = drawn([make_run(tmp_path / "far", rows, clip_norm=10)])
    for figure in (usual, far):
        figure.canvas.draw()
    widths = [[one.get_position().width for one in figure.axes] for figure in (usual, far)]
    np.testing.assert_allclose(*widths, rtol=0.05)
    assert [text.get_text() for text in axes[2].texts] == ["clipped at 10, above"]
    assert [text.get_text() for text in usual.axes[2].texts] == ["clipped at 0.25"]
