"""The benchmarks at a size at which they measure nothing, and the arithmetic of what they report."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from wikitext import write_wikitext

from autograd.errors import InputError
from benchmarks import ablation, convergence, training_step
from benchmarks.child import Child, peak_rss_mb
from benchmarks.floor import step_products
from benchmarks.sizes import SIZES, zipf_ids, zipf_windows
from benchmarks.systems import make_system
from benchmarks.training_step import Samples
from minilstm import ModelConfig
from train.config import RunConfig, TrainConfig
from train.corpus import open_corpus
from train.flags import config_from_args
from train.prepare import prepare

FIELDS = {
    "size", "ours", "torch", "speedup", "memory_ratio", "loss_difference",
    "floor", "floor_ratio", "others", "gemm_peak_gflops", "peak_fraction",
    "bare_speedup", "speedup_limit", "environment",
}  # fmt: skip
SIDE_FIELDS = {
    "seconds", "fastest_seconds", "slowest_seconds", "tokens_per_second", "gflops", "peak_rss_mb",
}  # fmt: skip

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def run_tiny(capsys, *arguments):
    assert training_step.main(["--size", "tiny", "--steps", "2", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@needs_torch
def test_a_step_against_torch_reports_every_field(capsys):
    result = run_tiny(capsys, "--against", "torch", "--threads", "1")
    assert set(result) == FIELDS
    assert result["size"] == "tiny"
    for name in ("ours", "torch"):
        side = result[name]
        assert set(side) == SIDE_FIELDS
        flops = 6 * (500 * 16 + 4 * 24 * (16 + 24) + 4 * 16 * (24 + 16)) * 5 * 4
        assert side["gflops"] == pytest.approx(flops / side["seconds"] / 1e9)
        assert side["tokens_per_second"] == pytest.approx(5 * 4 / side["seconds"])
        assert 10 < side["peak_rss_mb"] < 2000
    assert result["speedup"] == pytest.approx(result["torch"]["seconds"] / result["ours"]["seconds"])
    assert result["memory_ratio"] == result["ours"]["peak_rss_mb"] / result["torch"]["peak_rss_mb"]
    assert 0 <= result["loss_difference"] < 1e-5
    assert result["gemm_peak_gflops"] > 1
    assert result["peak_fraction"] == result["ours"]["gflops"] / result["gemm_peak_gflops"]


def test_a_step_alone_leaves_the_comparison_out(capsys):
    result = run_tiny(capsys, "--against", "none")
    assert set(result) == FIELDS
    assert [name for name, value in result.items() if value is None] == [
        "torch", "speedup", "memory_ratio", "loss_difference", "bare_speedup", "speedup_limit",
    ]  # fmt: skip


def measured(torch_losses):
    """What `measure` gives, made up."""
    return {
        "ours": Samples([1.0, 2.0, 9.0], [6.0] * 7, 50.0, 1),
        "torch": Samples([4.0, 4.0, 4.0], torch_losses, 100.0, 1),
        "floor": Samples([1.0, 1.0, 1.5], [], 40.0, 1),
        "others": Samples([0.5, 0.5, 0.5], [], 40.0, 1),
        "gemm": Samples([0.1, 0.1, 0.2], [], 30.0, 1),
    }


def test_figures_are_medians(monkeypatch, capsys):
    monkeypatch.setattr(training_step, "measure", lambda *_: measured([6.0] * 7))
    result = run_tiny(capsys, "--against", "none")
    assert (result["ours"]["seconds"], result["speedup"], result["memory_ratio"]) == (2.0, 2.0, 0.5)
    assert (result["floor"]["seconds"], result["floor_ratio"]) == (1.0, 2.0)
    assert result["gemm_peak_gflops"] == pytest.approx(2 * 2048**3 / 0.1 / 1e9)
    least = SIZES["tiny"].flops / (2 * 2048**3 / 0.1) + 0.5
    assert (result["others"]["seconds"], result["bare_speedup"]) == (0.5, pytest.approx(4.0 / 1.5))
    assert result["speedup_limit"] == pytest.approx(4.0 / least)
    assert training_step.main(["--size", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "2.00× PyTorch's speed in 0.50× its memory" in shown
    assert "9.0000" in shown  # the slowest step


@pytest.mark.parametrize("name", SIZES)
def test_the_floor_makes_the_products_that_are_counted(name):
    size = SIZES[name]
    made = sum(2 * p.rows * p.depth * p.columns * p.count for p in step_products(size))
    assert made == size.flops


@pytest.mark.parametrize("loss", [6.001, math.nan])
def test_sides_that_compute_something_else_fail(monkeypatch, capsys, loss):
    monkeypatch.setattr(training_step, "measure", lambda *_: measured([6.0, 6.0, loss, 6.0, 6.0, 6.0, 6.0]))
    with pytest.raises(SystemExit, match="losses of one step differ"):
        training_step.main(["--size", "tiny"])


def test_late_losses_may_drift_apart(monkeypatch, capsys):
    monkeypatch.setattr(training_step, "measure", lambda *_: measured([6.0] * 6 + [6.001]))
    assert run_tiny(capsys)["loss_difference"] == 0


@pytest.mark.parametrize("module", [training_step, convergence])
def test_without_torch_one_line_says_so(monkeypatch, module):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; pip install torch"):
        module.main(["--against", "torch"] if module is training_step else [])


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (training_step, ["--steps", "0"]),
        (training_step, ["--threads", "-1"]),
        (convergence, ["--seeds", "0"]),
        (convergence, ["--out", "/no/such/folder/result.json"]),
    ],
)
def test_values_out_of_range_are_named(module, arguments):
    with pytest.raises(InputError, match=f"{arguments[0]}: expected"):
        module.main(arguments)


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        training_step.main(["--help"])
    shown = capsys.readouterr().out
    assert [
        name for name in FIELDS | SIDE_FIELDS if f"  {name}" not in shown and f", {name}" not in shown
    ] == []


def test_a_child_that_ends_is_an_error():
    with (
        Child("gemm", "benchmarks.training_step_worker", ["gemm", "no-such-size"]) as child,
        pytest.raises(InputError, match="process of 'gemm' ended with status 2"),
    ):
        child.ask("step")


def test_peak_memory_remembers_what_was_freed():
    before = peak_rss_mb()
    block = np.ones(300_000_000, np.uint8)
    held = peak_rss_mb()
    del block
    assert held >= max(before, 290)
    assert peak_rss_mb() >= 0.99 * held  # Linux counts in lots of pages, for each thread by itself


def test_sizes_are_those_that_are_claimed():
    assert SIZES["wt103"].model_config().num_parameters() == 123_871_239
    assert SIZES["small"].flops == 6 * (10_000 * 200 + 2 * 4 * 200 * 400) * 20 * 35
    assert str(SIZES["wt2"]) == "V=33,278 E=400 H=1,150 L=3 B=20 T=70"


def test_words_follow_zipf():
    ids = zipf_ids(np.random.default_rng(0), (200_000,), 1000)
    assert ids.dtype == np.int32
    assert ids.min() == 0
    assert ids.max() == 999
    share = np.bincount(ids)[:3] / len(ids)
    np.testing.assert_allclose(share, np.log([2, 3 / 2, 4 / 3]) / np.log(1001), rtol=0.03)
    (x, y), (x2, _) = (next(zipf_windows(SIZES["tiny"], seed)) for seed in (1, 2))
    assert x.shape == y.shape == (5, 4)
    np.testing.assert_array_equal(x[1:], y[:-1])
    assert (x != x2).any()


# Convergence


@pytest.fixture
def corpus(tmp_path):
    words = [f"w{index}" for index in zipf_ids(np.random.default_rng(3), (2000,), 30)]
    text = "\n".join(" ".join(words[start : start + 20]) for start in range(0, len(words), 20)).encode()
    folder = write_wikitext(tmp_path / "text", b"<unk>\n" + text, text[:500], text[:100])
    with open_corpus(prepare(folder, tmp_path / "tokens.h5")) as corpus:
        yield corpus


def tiny_config(**knobs):
    keep = {"encoder_dp_input_keep_prob": 0.8, "encoder_last_output_keep_prob": 0.8}
    model = {"embedding_size": 6, "hidden_size": 8, "num_layers": 2, **keep}
    return RunConfig(model, TrainConfig(batch_size=4, window=5, **knobs))


@needs_torch
def test_convergence_runs_and_goes_on(corpus, tmp_path, monkeypatch):
    comparison = convergence.Comparison(tiny_config(), corpus, tokens=90)
    rows = convergence.compare(comparison, 2, tmp_path / "work")
    assert [(row["system"], row["seed"]) for row in rows] == [
        ("ours", 0), ("torch", 0), ("ours", 1), ("torch", 1),
    ]  # fmt: skip
    assert {(row["step"], row["tokens"]) for row in rows} == {(5, 100)}
    perplexities = [row["valid_perplexity"] for row in rows]
    assert all(10 < perplexity < 60 for perplexity in perplexities)
    assert abs(perplexities[0] - perplexities[1]) < 1
    assert len(set(perplexities)) == 4

    # Killed while the third line was being written: the first two are kept, the others made again.
    file = tmp_path / "work" / "runs.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:30])
    made, run = [], convergence.Comparison.run
    monkeypatch.setattr(
        convergence.Comparison, "run", lambda self, *args: made.append(args[:2]) or run(self, *args)
    )
    again = convergence.compare(comparison, 2, tmp_path / "work")
    assert made == [("ours", 1), ("torch", 1)]
    assert [row["valid_perplexity"] for row in again] == perplexities

    # Rows of another comparison are not taken for this one's.
    made.clear()
    convergence.compare(convergence.Comparison(tiny_config(), corpus, tokens=40), 1, tmp_path / "work")
    assert made == [("ours", 0), ("torch", 0)]


@needs_torch
def test_the_convergence_command_writes_what_it_prints(corpus, tmp_path, capsys):
    out = tmp_path / "result.json"
    command = ["--data", str(corpus.path), "--tokens", "700", "--seeds", "1", "--out", str(out)]
    command += ["--work-dir", str(tmp_path / "work")]
    assert convergence.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert (result["tokens"], result["scored_tokens"]) == (700, corpus.num_tokens("valid"))
    assert result["model"]["encoder_last_input_keep_prob"] == 0.8
    assert len(result["ours"]["perplexities"]) == len(result["torch"]["perplexities"]) == 1

    assert convergence.main(command) == 0  # from what is kept
    shown = capsys.readouterr().out
    assert f"{result['ours']['mean']:.2f}" in shown
    assert f"ours - torch = {result['difference']:+.2f}" in shown


def test_tokens_over_several_epochs_are_counted(corpus):
    comparison = convergence.Comparison(tiny_config(), corpus, tokens=5000)
    windows = [targets.size for _, targets in comparison.batches.windows()]
    whole, rest = divmod(comparison.steps, len(windows))
    assert whole == 2
    assert comparison.tokens == 2 * sum(windows) + sum(windows[:rest])
    assert 5000 <= comparison.tokens < 5000 + 20


@pytest.mark.parametrize("knobs", [{"optimizer": "sgd"}, {"schedule": "cosine"}, {"weight_decay": 0.1}])
def test_a_protocol_that_torch_lacks_is_refused(corpus, knobs):
    with pytest.raises(InputError, match="expected Adam at a fixed learning rate"):
        convergence.Comparison(tiny_config(**knobs), corpus, 100)


def test_no_worse_means_within_the_noise_of_the_seeds():
    def rows(ours, torch):
        runs = [("ours", value) for value in ours] + [("torch", value) for value in torch]
        return [{"system": name, "valid_perplexity": value, "seconds": 1.0} for name, value in runs]

    close = convergence.summarize(rows([101.0, 102.0, 103.0], [100.0, 101.0, 102.0]))
    assert (close["ours"]["mean"], close["ours"]["deviation"], close["difference"]) == (102, 1, 1)
    assert close["standard_error"] == pytest.approx(math.sqrt(2 / 3))
    assert close["no_worse"] is True
    assert convergence.summarize(rows([104.0, 105.0, 106.0], [100.0, 101.0, 102.0]))["no_worse"] is False
    assert convergence.summarize(rows([104.0], [100.0]))["no_worse"] is None


@needs_torch
def test_both_systems_start_train_and_score_alike():
    config, train = ModelConfig(40, 6, 8, 2), TrainConfig(clip_norm=0.05)
    ours, torch = (make_system(name, config, train, seed=4, one_bias=True) for name in ("ours", "torch"))
    text = zipf_ids(np.random.default_rng(5), (600,), 40)
    assert ours.score(text, 3) == pytest.approx(torch.score(text, 3), rel=1e-6)
    windows = [text[start : start + 36].reshape(9, 4) for start in range(0, 360, 36)]
    losses = [[side.step(window[:-1], window[1:]) for window in windows] for side in (ours, torch)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert ours.score(text, 3) == pytest.approx(torch.score(text, 3), rel=1e-5)
    for side in (ours, torch):
        side.start_stream()
    assert ours.step(*windows[:2]) == pytest.approx(torch.step(*windows[:2]), rel=1e-5)


@needs_torch
def test_torch_drops_the_same_units_at_all_steps():
    import torch

    from benchmarks.torch_system import TorchModel

    model = TorchModel(ModelConfig(10, 4, 4, 1), torch.Generator().manual_seed(0))
    y = model._locked_dropout(torch.ones(3, 50, 40), 0.8)
    assert (y == y[0]).all()
    assert set(np.unique(y.numpy())) == {0.0, np.float32(1.25)}
    assert 0.75 < (y > 0).float().mean() < 0.85
    assert (model._locked_dropout(torch.ones(3, 50, 40), 0.8) != y).any()
    model.eval()
    assert (model._locked_dropout(torch.ones(3, 50, 40), 0.8) == 1).all()


@needs_torch
def test_dropouts_that_the_torch_side_lacks_are_refused():
    config = ModelConfig(10, 4, 4, 1, recurrent_weight_keep_prob=0.5)
    with pytest.raises(InputError, match="lacks recurrent_weight_keep_prob = 0.5"):
        make_system("torch", config, TrainConfig(), 0)


@pytest.fixture
def small_text(tmp_path):
    """A folder in WikiText form, and what makes a run on it take a second."""
    rng = np.random.default_rng(0)
    for split, lines in (("train", 300), ("valid", 40), ("test", 40)):
        words = [" ".join(f"w{word}" for word in rng.integers(0, 30, 8)) for _ in range(lines)]
        (tmp_path / f"wiki.{split}.tokens").write_text("\n".join(words) + "\n")
    sizes = {"embedding_size": 6, "hidden_size": 7, "batch_size": 4}
    settings = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    return [*("--data", str(tmp_path), "--work-dir", str(tmp_path / "work")), "--tokens", "1000", *settings]


def test_an_ablation_is_made_of_ordinary_runs_and_goes_on_with_them(
    small_text, tmp_path, monkeypatch, capsys
):
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    command = [*small_text, "--epochs", "2", "--variants", "awd", "plain-dropout", "--jobs", "2"]
    assert ablation.main([*command, "--out", str(out), "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    runs = json.loads(out.read_text())["runs"]
    assert [run["variant"] for run in runs] == ["awd", "plain-dropout"]
    for run in runs:
        result = json.loads((tmp_path / "work" / f"{run['variant']}-0" / "result.json").read_text())
        assert run["best_valid_perplexity"] == result["valid"]["perplexity"]
        assert f"| {result['valid']['perplexity']:.1f} |" in table
        assert 1000 <= run["curve"][-1][0] / 2 < 1020
        assert len(run["curve"]) == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    model = json.loads((tmp_path / "work" / "plain-dropout-0" / "result.json").read_text())["configuration"]
    assert model["model"]["recurrent_weight_keep_prob"] == 1
    assert model["model"]["activation_dropout"] == "per_step"

    made = (tmp_path / "work" / "awd-0" / "metrics.jsonl").read_bytes()
    assert ablation.main([*small_text, "--epochs", "2", "--variants", "awd"]) == 0
    assert (tmp_path / "work" / "awd-0" / "metrics.jsonl").read_bytes() == made
    for other, message in (
        (["--epochs", "1"], "made with epochs = 2, not 1"),
        (["--epochs", "3", "--set", "schedule=cosine"], "made with schedule = fixed, not cosine"),
        (["--tokens", "500"], "another text"),
        (["--score-tokens", "100"], "another text"),
    ):
        with pytest.raises(InputError, match=message):
            ablation.main([*small_text, "--epochs", "2", "--variants", "awd", *other])


def test_an_ablation_of_more_epochs_goes_on_as_if_there_had_been_as_many_at_once(small_text, tmp_path):
    command, work, curves = [*small_text, "--variants", "awd"], tmp_path / "work", []
    for epochs in ("1", "3"):
        assert ablation.main([*command, "--epochs", epochs]) == 0
    for folder in (work, tmp_path / "at once"):
        out = tmp_path / "out.json"
        assert ablation.main([*command, "--epochs", "3", "--work-dir", str(folder), "--out", str(out)]) == 0
        curves.append(json.loads(out.read_text())["runs"][0]["curve"])
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3


def test_an_ablation_whose_run_fails_stops_the_others(tmp_path, monkeypatch):
    runs = ablation.Ablation(Path("text.h5"), tmp_path, 1, {}, 1)
    program = {"awd": "raise SystemExit(3)"}
    endless = "import time; time.sleep(600)"
    monkeypatch.setattr(runs, "command", lambda variant, seed: ["-c", program.get(variant, endless)])
    with pytest.raises(InputError, match="ended with status 3; see .*awd-0.log"):
        ablation.make_runs(runs, [(variant, 0) for variant in ablation.VARIANTS], 2)
    assert len(list(tmp_path.glob("*.log"))) <= 3


def test_the_splits_of_an_ablation_end_with_the_line_that_fills_them(small_text, tmp_path):
    ablation.cut_text(tmp_path, 25, 10, 1, tmp_path / "cut")
    for split, lines in (("train", 3), ("valid", 2), ("test", 2)):  # of nine tokens each, <eos> counted
        whole = (tmp_path / f"wiki.{split}.tokens").read_text().splitlines()
        assert (tmp_path / "cut" / f"wiki.{split}.tokens").read_text().splitlines() == whole[:lines]


def test_every_variant_is_a_configuration_of_its_own():
    configs = []
    for variant in ablation.VARIANTS:
        command = ablation.Ablation(Path("text.h5"), Path("work"), 1, {}, 1).command(variant, 0)
        config = config_from_args(command[2:])[0].to_dict()
        configs.append(json.dumps([config["model"], config["train"]]))
    assert len(set(configs)) == len(ablation.VARIANTS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants", "ad"], "unknown 'ad'; the nearest known variant is 'awd'"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--score-tokens", "-1"], "--score-tokens: expected at least 0, got -1"),
        (["--set", "clip_norm"], "expected KEY=VALUE"),
        (["--plot", "/nowhere/plot.png"], "--plot: expected a file in an existing folder"),
        (["--data", "/nowhere"], "expected a folder with wiki.train.tokens"),
    ],
)
def test_an_ablation_refuses_bad_input_before_it_writes(flags, message, small_text, tmp_path):
    with pytest.raises(InputError, match=message):
        ablation.main([*small_text, *flags])
    assert not (tmp_path / "work").exists()
