"""Benchmarks of single Functions and of memory, too small to measure anything; how benchmarks end."""

import argparse
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
from mpi import run_ranks

from autograd import Variable
from autograd import function_cases as engine_cases
from autograd.check import kinds_behind
from autograd.errors import InputError
from benchmarks import evaluation, kernels, levers, memory, mixed_precision, performance
from benchmarks.kernel_cases import Case, make_cases
from benchmarks.report import check_report_flags, report
from benchmarks.sizes import SIZES, size_of
from benchmarks.training_step_worker import step_timer
from minilstm import ModelConfig
from minilstm import function_cases as model_cases

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@needs_torch
def test_every_function_computes_what_torch_computes(tmp_path, capsys):
    out = tmp_path / "kernels.json"
    assert kernels.main(["--against", "torch", "--scale", "0.02", "--rounds", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result["kernels"]) == set(make_cases(0.02))
    assert [name for name, row in result["kernels"].items() if row["torch"] is None] == [
        "sampled_softmax_loss",
        "adaptive_softmax_loss",
        "layer_norm_lstm",
    ]
    shown = capsys.readouterr().out
    assert "GEMM" in shown
    assert "tied_softmax_loss" in shown


def test_every_function_is_measured():
    measured = set()
    for case in make_cases(0.02).values():
        inputs = [Variable(array, requires_grad=True) for array in case.inputs.values()]
        measured |= kinds_behind([case.ours(*inputs, *case.constants.values())])
    known = {case.kind for module in (engine_cases, model_cases) for case in module.CASES}
    elsewhere = ("_cuda", "gradient_check")  # a GPU's have benchmarks.gpu_kernels; one only tests the tests
    assert {kind for kind in known if not kind.__module__.endswith(elsewhere)} <= measured


def answer(seconds, *norms):
    return {"seconds": seconds, "norms": list(norms)}


def test_figures_of_a_function_by_hand():
    case = Case(None, {"x": np.zeros((10, 10), np.float32), "W": np.zeros(50, np.float32)}, flops=6e9)
    answers = {"ours": [answer(s, 1.0, 2.0) for s in (1.0, 2.0, 9.0)], "torch": [answer(4.0, 1.0, 2.002)] * 3}
    row = kernels.summarize(case, answers, gemm=6e9, copy=2000.0)
    assert (row["ours"], row["torch"], row["speedup"]) == (2.0, 4.0, 2.0)
    assert (row["gflops"], row["of_gemm"]) == (3.0, 0.5)
    assert case.num_bytes == 4 * (5 * 100 + 2 * 50)
    assert row["of_copy"] == pytest.approx(2400 / 2 / 2000)
    assert row["difference"] == pytest.approx(0.002 / 2.002)


def test_sides_that_differ_fail(monkeypatch, capsys):
    def measure(names, *_):
        one, other = [answer(1.0, 1.0)], [answer(1.0, 1.1)]
        rates = {"gemm": [{"seconds": 1.0}], "copy": [{"bytes_per_second": 1e9}]}
        return {name: {"ours": one, "torch": other if name == "tanh" else one} for name in names}, rates

    monkeypatch.setattr(kernels, "measure", measure)
    with pytest.raises(SystemExit, match="do not compute the same: tanh$"):
        kernels.main(["--scale", "0.02"])


def test_memory_of_a_step_and_what_was_reckoned(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "VARIED", {"window": (300,), "batch_size": (4,)})
    monkeypatch.setitem(SIZES, "small", SIZES["tiny"])
    out, plot = tmp_path / "memory.json", tmp_path / "memory.png"
    assert memory.main(["--out", str(out), "--plot", str(plot)]) == 0
    long, short = json.loads(out.read_text())["rows"]
    assert (long["varied"], long["value"], short["varied"]) == ("window", 300, "batch_size")
    assert long["ours"] > short["ours"] > 20
    assert long["reckoned_mb"] > short["reckoned_mb"]
    assert "T=300" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_size_is_read_from_its_own_words():
    for size in SIZES.values():
        assert str(size_of(str(size))) == str(size)
    assert size_of("wt2") is SIZES["wt2"]
    with pytest.raises(InputError, match="expected tiny, small"):
        size_of("V=10")


def test_a_report_is_a_table_or_json_and_a_file(tmp_path, capsys):
    out = tmp_path / "result.json"
    report(argparse.Namespace(out=out, json=False), {"speed": 2}, "speed 2")
    assert capsys.readouterr().out == "speed 2\n"
    report(argparse.Namespace(out=None, json=True), {"speed": 2}, "speed 2")
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text()) == {"speed": 2}


def test_files_that_cannot_be_written_are_refused_before_the_measurement(tmp_path):
    with pytest.raises(InputError, match="--out: expected a file in an existing folder"):
        check_report_flags(argparse.Namespace(out=tmp_path))
    with pytest.raises(InputError, match="--plot: expected a file in an existing folder"):
        memory.main(["--plot", str(tmp_path / "gone/x.png")])


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--scale", "0"], ["--scale", "2"]])
def test_numbers_out_of_range_are_named(arguments):
    with pytest.raises(InputError, match=f"{arguments[0]}: expected"):
        kernels.main(arguments)


ALL_LEVERS_OFF = """
import json
from benchmarks.levers import LEVERS
from benchmarks.sizes import size_of
from benchmarks.training_step_worker import step_timer
from minilstm import ModelConfig
from minilstm import function_cases as model_cases

for lever in LEVERS.values():
    lever.switch_off()
step = step_timer("ours", size_of("tiny"))
print(json.dumps([step()["loss"] for _ in range(3)]))
"""


def test_without_its_levers_a_step_computes_the_same():
    found = run_ranks(1, ALL_LEVERS_OFF)
    assert found.returncode == 0, found.stderr
    step = step_timer("ours", size_of("tiny"))
    assert json.loads(found.stdout) == pytest.approx([step()["loss"] for _ in range(3)], abs=1e-6)


def test_levers_are_measured_in_turns(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(levers, "LEVERS", {"panels": levers.LEVERS["panels"]})
    out = tmp_path / "levers.json"
    assert levers.main(["--size", "tiny", "--rounds", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["levers"]
    assert set(rows) == {"all", "panels"}
    assert rows["panels"]["gain"] == rows["panels"]["seconds"] / rows["all"]["seconds"]
    assert "panels" in capsys.readouterr().out


@needs_torch
def test_both_sides_score_a_text_alike(tmp_path):
    out = tmp_path / "evaluation.json"
    flags = ["--size", "tiny", "--tokens", "300", "--rounds", "1"]
    assert evaluation.main([*flags, "--against", "torch", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["speedup"] == result["ours"] / result["torch"]
    assert result["loss_difference"] < 1e-5


def test_a_result_keeps_its_command_without_the_place_of_the_checkout(monkeypatch):
    commands, done = [], SimpleNamespace(returncode=0, stdout="")
    monkeypatch.setattr(performance.subprocess, "run", lambda command, **_: commands.append(command) or done)
    performance.run_part("memory", performance.parts(short=True, against=[])["memory"], performance.RESULTS)
    assert commands[0][-3:] == ["docs/images/memory.png", "--out", "benchmarks/results/memory.json"]


def test_a_table_stands_between_its_marks():
    document = "# P\n\n<!-- a -->\nold\n<!-- end a -->\n\ntext\n"
    plot = str(performance.IMAGES / "memory.png")
    found = performance.with_table(document, "a", ["benchmarks.memory", "--plot", plot], "x  \ny")
    assert found == (
        "# P\n\n<!-- a -->\n\n    .venv/bin/python -m benchmarks.memory --plot docs/images/memory.png\n\n"
        "    x\n    y\n\n<!-- end a -->\n\ntext\n"
    )
    assert performance.with_table(found, "a", ["benchmarks.memory", "--plot", plot], "x  \ny") == found
    assert performance.with_table(document, "b", [], "x") == document


def test_every_part_has_its_place_in_the_document():
    document = performance.DOCUMENT.read_text(encoding="utf-8")
    for name in performance.parts(short=False, against=[]):
        assert f"<!-- {name} -->\n" in document
        assert f"<!-- end {name} -->\n" in document
    with pytest.raises(InputError, match="--only: unknown 'kernel'"):
        performance.main(["--only", "kernel"])


def test_gradients_in_float16_are_lost_without_a_scale_and_overflow_with_too_large_a_one(
    tmp_path, monkeypatch, capsys
):
    config = ModelConfig(vocab_size=300, embedding_size=8, hidden_size=12, num_layers=1)
    monkeypatch.setattr(mixed_precision, "CONFIG", config)
    out, plot = tmp_path / "result.json", tmp_path / "plot.png"
    options = ["--steps", "2", "--repeats", "1", "--out", str(out), "--plot", str(plot)]
    assert mixed_precision.main(options) == 0
    assert "2^30         overflow" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {row["scale_exponent"]: row for row in json.loads(out.read_text())["gradients"]}
    assert rows[-6]["rounded_to_zero"] > rows[0]["rounded_to_zero"] >= rows[14]["rounded_to_zero"]
    assert rows[-6]["relative_error"] > 10 * rows[14]["relative_error"]
    assert rows[30]["relative_error"] is None
