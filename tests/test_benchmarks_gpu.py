"""benchmarks.gpu without a GPU: its plan, each of its parts at a toy size, and what it writes down."""

import importlib.util
import json
import math
import signal
import subprocess
import time

import pytest
from mpi import find_mpirun
from tiny import write_text

from autograd.errors import InputError
from benchmarks import gpu, gpu_parts
from benchmarks.gpu import PARTS, Part, Run
from train.device import Host

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
STEP_FIGURES = {"seconds", "fastest", "slowest", "tokens_per_second", "tflops", "peak_memory_mb", "loss"}


def run_part(kind, data="python-docs", **options):
    """One part in this process, at a toy size; what it gives survives JSON."""
    options = {"device": "cpu", "tiny": True, "data": str(data), **options}
    return json.loads(json.dumps(gpu_parts.KINDS[kind](options, Host())))


def test_the_plan_names_every_part_and_needs_no_gpu(capsys):
    assert gpu.main(["--plan", "--minutes", "8"]) == 0
    shown = capsys.readouterr().out
    for part in PARTS:
        assert f"| {part.name} |" in shown
    assert "all of it fits" in shown
    assert "nothing here was measured" in shown


def test_a_plan_that_does_not_fit_says_so(capsys):
    assert gpu.main(["--plan", "--minutes", "1"]) == 0
    assert "parts for which the time is too short are left out" in capsys.readouterr().out


def test_every_part_s_memory_is_reckoned_and_fits_one_h200():
    for part in PARTS:
        memory = gpu.memory_mb(part, tiny=False)
        assert 500 < memory < 140_000
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)


def test_the_machine_s_rates():
    rates = run_part("machine")
    assert all(rates[name] > 0 for name in ("gemm_float16_tflops", "gemm_float32_tflops", "copy_gbytes"))
    assert rates["name"] == "cpu"


def test_losses_agree_in_all_precisions():
    differences = run_part("agreement")["relative_differences"]
    assert differences["float32"] == 0  # the same device here
    assert 0 < differences["mixed"] < 2e-3


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_a_step_of_ours(precision, softmax):
    figures = run_part("ours", precision=precision, softmax=softmax)
    assert figures.keys() >= STEP_FIGURES
    assert 0 < figures["fastest"] <= figures["seconds"] <= figures["slowest"]
    assert math.isfinite(figures["loss"])


@needs_torch
@pytest.mark.parametrize(
    ("precision", "softmax"), [("float32", "full"), ("mixed", "full"), ("mixed", "sampled")]
)
def test_a_step_of_torch(precision, softmax):
    try:
        figures = run_part("torch", precision=precision, softmax=softmax)
    except RuntimeError as error:
        if precision == "mixed" and "primitive descriptor for the LSTM" in str(error):
            pytest.skip("PyTorch's LSTM knows no bfloat16 on this CPU, which has no AVX-512")
        raise
    assert figures.keys() >= STEP_FIGURES
    assert math.isfinite(figures["loss"])
    assert "torch" in figures


def test_where_the_time_goes():
    parts = run_part("where", precision="mixed")
    assert parts.keys() == {"layers forward", "softmax forward", "backward"}
    assert all(seconds > 0 for seconds in parts.values())


def test_each_kernel_against_its_twin():
    results = run_part("kernels")
    assert results.keys() == {
        "lstm",
        "layer_norm_lstm",
        "tied_softmax_loss",
        "sampled_softmax_loss",
        "embedding",
        "step_dropout",
        "weight_dropout",
        "adam",
        "sgd",
    }
    assert all(result["error"] == 0 for result in results.values())  # the twin itself, here


def test_the_flops_of_a_sampled_softmax_are_of_the_drawn_words():
    size = gpu_parts.CARD
    full, sampled = (
        gpu_parts.model_config({"tiny": False, "softmax": kind}, size) for kind in ("full", "sampled")
    )
    assert gpu_parts.step_flops(full, size) == size.flops
    difference = gpu_parts.step_flops(full, size) - gpu_parts.step_flops(sampled, size)
    assert difference == 6 * (267_735 - 8192) * 400 * 96 * 112


def test_ranks_and_perplexity_train_for_real(tmp_path, monkeypatch):
    find_mpirun()  # skips without one
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
    text = write_text(tmp_path / "text.txt", lines=400)
    shared = run_part("ranks", text)
    assert shared["ranks"] == 2
    assert shared["steps"] == 8
    assert shared["relative_difference"] < 1e-5
    trained = run_part("perplexity", text)
    assert trained["mixed"]["valid_perplexity"] == pytest.approx(
        trained["float32"]["valid_perplexity"], rel=0.05
    )


# The command.

QUICK = [
    Part("machine", 1, "rates"),
    Part("where", 1, "a part that fails", {"precision": "float99"}),
    Part("ours", 1, "a step", {"precision": "mixed", "softmax": "full"}),
    Part("torch", 1000, "a part that takes too long", {"precision": "mixed", "softmax": "full"}),
]


def test_a_part_that_fails_is_recorded_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", QUICK)
    monkeypatch.setattr(gpu, "SHORTEST_LIMIT", 300.0)
    options = {"device": "cpu", "tiny": True, "data": "python-docs"}
    run = Run(tmp_path / "out", {**options, "softmax": "full"}, time.monotonic() + 280)
    in_a_process, broken = gpu._in_a_process, {"tiny": "not a truth", "device": "no such"}
    monkeypatch.setattr(
        gpu,
        "_in_a_process",
        lambda kind, options, limit: in_a_process(
            kind, {**options, **(broken if kind == "where" else {})}, limit
        ),
    )
    run.all_parts([])
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    states = {name: part["status"] for name, part in record["parts"].items()}
    assert states == {
        "machine": "done",
        "where float99": "failed",
        "ours mixed full": "done",
        "torch mixed full": "left out",
    }
    assert "device must be cpu or cuda; got 'no such'" in record["parts"]["where float99"]["error"]
    assert "it takes about 1000" in record["parts"]["torch mixed full"]["error"]
    shown = (tmp_path / "out" / "gpu.md").read_text()
    assert shown.startswith("# cpu\n")
    assert "| ours mixed full |" in shown
    assert "| where float99 | failed: " in shown


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit(143)])
def test_a_part_does_not_outlive_a_run_that_is_stopped(monkeypatch, reason):
    """It has a session of its own, in which neither Ctrl-C nor a SIGTERM to the run is heard."""
    started, communicate = [], subprocess.Popen.communicate

    def stopped_once(process, timeout=None):
        started.append(process)
        if timeout is not None:
            raise reason
        return communicate(process)

    monkeypatch.setattr(subprocess.Popen, "communicate", stopped_once)
    try:
        with pytest.raises(type(reason) if isinstance(reason, SystemExit) else reason):
            gpu._in_a_process("machine", {"device": "cpu", "tiny": True}, limit=60.0)
        assert started[0].poll() == -signal.SIGKILL
    finally:
        started[0].kill()
        started[0].wait()


def test_what_hangs_is_ended(monkeypatch):
    started = time.monotonic()
    outcome = gpu._in_a_process("machine", {"device": "cpu", "tiny": True}, limit=0.05)
    assert outcome["status"] == "failed"
    assert "ended after" in outcome["error"]
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes: must be above 0"),
        ([], "--out DIR: is needed"),
        (["--out", "x", "--tiny"], "go together"),
        (["--out", "x", "--device", "cpu"], "go together"),
    ],
)
def test_flags_that_cannot_be_meant(arguments, message):
    with pytest.raises(InputError, match=message):
        gpu.main(arguments)
