"""The commands with --device cuda on a GPU made of NumPy: whole runs beside those of the CPU."""

import json

import numpy as np
import pytest
from fake_cupy import CUDARuntimeError
from fake_gpu import fake_gpu
from tiny import flags, rows_of, write_text

from autograd.errors import InputError
from minilstm import LanguageModel, ModelConfig
from train import evaluate, generate, wt103
from train.checkpoint import load_checkpoint
from train.config import TrainConfig
from train.device import Host
from train.memory import fitting_batch, gpu_memory_parts, told_of_gpu_memory

KNOBS = {"max_steps": 4, "embedding_size": 8, "hidden_size": 8, "evaluation_batch_size": 2, "clip_norm": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, host_runner):
    """The same tiny run on the CPU, on the GPU, and on the GPU in two parts of two steps."""
    folder = tmp_path_factory.mktemp("cuda")
    text = write_text(folder / "text.txt", lines=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILSTM_DATA", str(folder / "prepared"))
        assert wt103.main(flags(text, folder / "cpu", **KNOBS, save_every=2)) == 0
        with fake_gpu(host_runner):
            on_gpu = {**KNOBS, "device": "cuda", "graphs": "false", "save_every": 2}
            assert wt103.main(flags(text, folder / "cuda", **on_gpu)) == 0
            assert wt103.main(flags(text, folder / "parts", **{**on_gpu, "max_steps": 2})) == 0
            assert wt103.main([*flags(text, folder / "parts", **on_gpu), "--resume"]) == 0
            mixed = {**on_gpu, "precision": "mixed", "max_steps": 3, "evaluate_every": 100}
            assert wt103.main(flags(text, folder / "mixed", **mixed)) == 0
        yield folder


def weights_of(run):
    return load_checkpoint(run / "checkpoints" / "latest.h5")[0]["parameters"]


def test_a_run_on_a_gpu_learns_what_the_cpu_s_does(runs):
    np.testing.assert_allclose(weights_of(runs / "cuda"), weights_of(runs / "cpu"), rtol=5e-3, atol=5e-4)
    scores = [json.loads((runs / run / "result.json").read_text())["test"]["loss"] for run in ("cpu", "cuda")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


def test_its_rows_are_the_cpu_s(runs):
    """Every row tells of the step that it is named after, whenever the host has heard of it."""
    assert_equal_rows(runs / "cuda", runs / "cpu", rtol=1e-4)


def assert_equal_rows(run, expected, rtol):
    """Counts, rates and scales to the bit, losses and norms to rounding; not the clock's."""
    rows, expected_rows = rows_of(run), rows_of(expected)
    assert len(rows) == len(expected_rows)
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row.keys() == wanted.keys()
        for name in row.keys() - {"seconds", "tokens_per_second"}:
            about = name in ("loss", "perplexity", "grad_norm")
            assert row[name] == (pytest.approx(wanted[name], rel=rtol) if about else wanted[name]), name


class SpoiledModel:
    """Lets the loss of some windows be no number, on the CPU and on the GPU."""

    def __init__(self, patch, windows):
        self.windows, self.objective = windows, LanguageModel.objective
        patch.setattr(LanguageModel, "objective", lambda model, *args: self.spoiled(model, *args))

    def spoiled(self, model, inputs, targets, state, masks):
        result = self.objective(model, inputs, targets, state, masks)
        if masks.window not in self.windows:
            return result
        return result._replace(objective=result.objective * np.nan, loss=result.loss * np.nan)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_skipped_steps_are_counted_as_on_the_cpu(tmp_path, host_runner, precision):
    """The first, one in the middle, the last before a checkpoint: rows, position and Adam's count."""
    text, runs = write_text(tmp_path / "text.txt", lines=30), {}
    knobs = {**KNOBS, "max_steps": 5, "save_every": 2, "evaluate_every": 4, "precision": precision}
    knobs |= {"schedule": "cosine", "warmup_steps": 2, "initial_loss_scale": 2**10, "graphs": "false"}
    knobs |= {"loss_scale_growth_steps": 2} if precision == "mixed" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILSTM_DATA", str(tmp_path / "prepared"))
        SpoiledModel(patch, {0, 2, 5, 6})
        for device in ("cpu", "cuda"):
            with fake_gpu(host_runner):
                run = runs[device] = tmp_path / device
                assert wt103.main(flags(text, run, **{**knobs, "device": device})) == 0
    assert_equal_rows(runs["cuda"], runs["cpu"], rtol=2e-3)
    facts, cpu_facts = (
        load_checkpoint(runs[device] / "checkpoints" / "latest.h5")[1] for device in ("cuda", "cpu")
    )
    for what in (facts, cpu_facts):
        del what["position"]["seconds"], what["position"]["best"], what["position"]["loss_sum"]
    assert facts["position"] == cpu_facts["position"]
    assert facts["position"]["skipped_steps"] == 4
    assert facts.get("loss_scaler") == cpu_facts.get("loss_scaler")
    assert facts["optimizer_t"] == cpu_facts["optimizer_t"] == 5


def test_resumed_on_a_gpu_to_equal_bits(runs):
    assert weights_of(runs / "parts").tobytes() == weights_of(runs / "cuda").tobytes()


def test_a_mixed_run_on_a_gpu_goes_the_same_way(runs):
    cpu, mixed = (
        [row["loss"] for row in rows_of(runs / run) if row["kind"] == "train"] for run in ("cpu", "mixed")
    )
    np.testing.assert_allclose(mixed, cpu[:3], rtol=2e-3)
    assert rows_of(runs / "mixed")[0]["loss_scale"] == 2.0**14


def test_evaluation_and_generation_on_a_gpu(runs, host_runner, monkeypatch, capsys):
    monkeypatch.setenv("MINILSTM_DATA", str(runs / "prepared"))
    results = {}
    with fake_gpu(host_runner):
        for device in ("cpu", "cuda"):
            capsys.readouterr()
            assert evaluate.main([str(runs / "cpu"), "--device", device, "--split", "valid", "--json"]) == 0
            scored = json.loads(capsys.readouterr().out)
            prompt = ["--prompt", "the cat", "--words", "5", "--json"]
            assert generate.main([str(runs / "cpu"), "--device", device, *prompt]) == 0
            results[device] = scored["loss"], json.loads(capsys.readouterr().out)["texts"][0]
    (loss, text), (device_loss, device_text) = results["cpu"], results["cuda"]
    assert device_loss == pytest.approx(loss, rel=1e-5)
    assert device_text["words"] == text["words"]
    assert device_text["log_prob"] == pytest.approx(text["log_prob"], rel=1e-4)


@pytest.mark.parametrize("mode", ["--pointer", "--dynamic"])
def test_what_runs_on_the_cpu_alone_says_so(runs, mode):
    with pytest.raises(InputError, match=f"--device cuda: does not act with {mode}"):
        evaluate.main([str(runs / "cpu"), "--device", "cuda", mode])


# Memory.

CARD = ModelConfig(vocab_size=267_735)
BATCH = TrainConfig(batch_size=224, window=96, device="cuda")


class FullGpu(Host):
    is_gpu = True

    def memory(self):
        return 1 << 20, 16 << 30


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError("Out of memory allocating 11,512,315,904 bytes"),
        CUDARuntimeError(2, "cudaErrorMemoryAllocation: out of memory"),
    ],
)
def test_a_lack_of_memory_says_how_much_was_needed_and_what_would_fit(lack):
    with pytest.raises(InputError) as told, told_of_gpu_memory(FullGpu(), CARD, BATCH, 1):
        raise lack
    fits = fitting_batch(CARD, BATCH, 1, int(0.95 * (16 << 30)))
    needed = sum(gpu_memory_parts(CARD, BATCH, 224).values()) / 2**20
    assert f"224 rows of 96 steps a rank need about {needed:,.0f} MB, and the GPU has 16,384 MB" in str(
        told.value
    )
    assert f"batch_size = {min(fits, 112)} would fit" in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_said_to_fit_fits_and_one_row_more_does_not():
    total = sum(gpu_memory_parts(CARD, BATCH, 100).values())
    assert fitting_batch(CARD, BATCH, 1, total) == 100
    assert fitting_batch(CARD, BATCH, 1, total - 1) == 99
    assert fitting_batch(CARD, BATCH, 4, total) == 4 * 56  # no more than there are
    assert fitting_batch(CARD, BATCH, 1, 1 << 20) == 0


def test_a_model_that_fits_nowhere_is_told_so():
    with (
        pytest.raises(InputError, match="a rank need about"),
        told_of_gpu_memory(FullGpu(), CARD, BATCH, 224),
    ):
        raise MemoryError


def test_a_lack_of_the_host_s_memory_stays_what_it_is():
    with pytest.raises(MemoryError), told_of_gpu_memory(Host(), CARD, BATCH, 1):
        raise MemoryError
    with pytest.raises(CUDARuntimeError), told_of_gpu_memory(FullGpu(), CARD, BATCH, 1):
        raise CUDARuntimeError(700, "cudaErrorIllegalAddress: an illegal memory access")


def test_mixed_precision_needs_less_than_float32():
    sums = [
        sum(gpu_memory_parts(CARD, TrainConfig(batch_size=112, window=96, precision=precision), 112).values())
        for precision in ("float32", "mixed")
    ]
    assert sums[1] < sums[0]


def test_the_dry_run_shows_the_gpu_s_memory_without_a_gpu(capsys):
    assert wt103.main(["--device", "cuda", "--set", "vocab_size=1000", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "memory of each rank's GPU, reckoned" in shown
    assert "cuBLAS" in shown
