"""The parts of `benchmarks.gpu`, each in a process of its own: a part that fails, hangs or runs out of memory
takes nothing with it, and the memory in use at its end is its own peak (pools keep what they once had)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autograd.backend import matmul
from autograd.errors import InputError
from benchmarks.child import peak_rss_mb
from benchmarks.gpu_kernels import compare_kernels
from benchmarks.sizes import Size, zipf_windows
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.sampled_softmax import LogUniformSampler
from train.communicator import SingleProcess
from train.config import TrainConfig
from train.device import Host, open_device
from train.device_step import DeviceStep
from train.mixed_precision import make_loss_scaler
from train.plan import make_optimizer
from train.step import StepUnderWay, TrainingStep

ROOT = Path(__file__).resolve().parent.parent
CARD = Size(267_735, 400, 1024, 3, batch_size=112, window=96, steps=20)
TINY = Size(300, 12, 16, 2, batch_size=4, window=6, steps=2)
SAMPLES, TINY_SAMPLES = 8192, 40
RANKS = 4
WARM_UP, BLOCKS = 4, 5
"""Steps before the clock runs (the first compiles, the second is captured), and measured blocks of steps."""

Options = dict[str, Any]
Result = dict[str, Any]


def size_of(options: Options) -> Size:
    """Rows, window and model of a part; mixed precision has twice the rows."""
    size = TINY if options["tiny"] else CARD
    factor = 2 if options.get("precision") == "mixed" else 1
    return dataclasses.replace(size, batch_size=size.batch_size * factor)


def model_config(options: Options, size: Size) -> ModelConfig:
    if options.get("softmax") != "sampled":
        return size.model_config()
    samples = TINY_SAMPLES if options["tiny"] else SAMPLES
    return dataclasses.replace(size.model_config(), softmax="sampled", num_samples=samples)


def step_flops(config: ModelConfig, size: Size) -> int:
    """Of one step's matrix products; a sampled softmax multiplies with the drawn words alone."""
    words = config.num_samples if config.softmax == "sampled" else size.vocab_size
    return size.flops - 6 * (size.vocab_size - words) * size.embedding_size * size.tokens


def make_step(config: ModelConfig, options: Options, device: Host) -> TrainingStep | DeviceStep:
    """What `train.wt103` would step with."""
    mixed = options.get("precision") == "mixed"
    train = TrainConfig(precision="mixed" if mixed else "float32")
    model = LanguageModel(config, seed=1)
    model.move_to(device.xp)
    optimizer, scaler = (
        make_optimizer(model, train),
        make_loss_scaler("backoff", 2.0**14, 2000) if mixed else None,
    )
    if not device.is_gpu:
        return TrainingStep(model, optimizer, SingleProcess(), 0.25, scaler=scaler)
    chosen = {name: options[name] for name in ("graphs", "wavefront") if name in options}
    return DeviceStep(model, optimizer, SingleProcess(), device, 0.25, scaler=scaler, tell=_note, **chosen)


_notes: list[str] = []


def _note(line: str) -> None:
    _notes.append(line)


def timed_blocks(step: Callable[[], None], synchronize: Callable[[], None], steps: int) -> list[float]:
    """Seconds of one step, block by block; the device is waited for at both ends of a block."""
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(BLOCKS):
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        seconds.append((time.perf_counter() - start) / steps)
    return seconds


def step_figures(seconds: list[float], config: ModelConfig, size: Size, memory: int | None) -> Result:
    """Of a whole training step; memory is in 10⁶ bytes, of the GPU or of the process."""
    middle = median(seconds)
    return {
        "seconds": middle,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "tokens_per_second": size.tokens / middle,
        "tflops": step_flops(config, size) / middle / 1e12,
        "peak_memory_mb": peak_rss_mb() if memory is None else memory / 1e6,
    }


def _edge(tiny: bool) -> int:
    """Of the square matrices whose product is timed."""
    return 64 if tiny else 8192


def rates_bytes(tiny: bool) -> int:
    """What `machine` holds at its peak: two float32 matrices, and two arrays four times as large."""
    return 4 * _edge(tiny) ** 2 * (2 + 2 * 4)


def agreement_rows(tiny: bool) -> int:
    """A batch that the CPU is through with in seconds."""
    return 4 if tiny else 8


def machine(options: Options, device: Host) -> Result:
    """GEMM peaks and copy rate, by this project's own products; and who measured what on what."""
    edge, repeats = _edge(options["tiny"]), 2 if options["tiny"] else 10
    rates: Result = {}
    for dtype in ("float16", "float32"):
        a = device.to_device(np.ones((edge, edge), dtype))
        out = device.xp.empty_like(a)

        def product(a: Any = a, out: Any = out) -> None:
            matmul(a, a, out=out)

        rates[f"gemm_{dtype}_tflops"] = (
            2 * edge**3 / min(timed_blocks(product, device.synchronize, repeats)) / 1e12
        )
    source = device.to_device(np.ones(edge * edge * 4, np.float32))
    target = device.xp.empty_like(source)

    def copy() -> None:
        target[...] = source

    rates["copy_gbytes"] = 2 * source.nbytes / min(timed_blocks(copy, device.synchronize, repeats)) / 1e9
    memory = device.memory()
    return {
        "name": device.name,
        "memory_mb": memory[1] / 1e6 if memory else None,
        **rates,
        **_cuda_versions(device),
    }


def _cuda_versions(device: Host) -> Result:
    if not device.is_gpu:
        return {}
    runtime = device.xp.cuda.runtime
    versions = {
        "cupy": device.xp.__version__,
        "cuda": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
    }
    return {**versions, "capability": device.xp.cuda.Device().compute_capability}


def tests(options: Options, device: Host) -> Result:
    """The tests marked `gpu`, where pytest is installed."""
    if importlib.util.find_spec("pytest") is None:
        raise InputError(
            "pytest is not installed here: the tests were not run; `kernels` compares with the twins"
        )
    mark = "not gpu and not slow" if options["tiny"] else "gpu"
    files = ["tests/test_lstm_kernels.py"] if options["tiny"] else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", mark, "-p", "no:cacheprovider", *files]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode:
        raise InputError("the tests fail: " + " / ".join(ran.stdout.strip().splitlines()[-4:]))
    return {"summary": ran.stdout.strip().splitlines()[-1]}


def kernels(options: Options, device: Host) -> Result:
    """Each Function and optimizer on the device against its NumPy twin: largest error, and seconds."""
    return compare_kernels(options["tiny"], device)


def agreement(options: Options, device: Host) -> Result:
    """Losses of the same weights and batch: float32 here on the CPU, float32 and mixed on the device."""
    size = dataclasses.replace(size_of(options), batch_size=agreement_rows(options["tiny"]))
    config = model_config(options, size)
    inputs, targets = next(zipf_windows(size, 3))
    losses = {}
    for name, where, precision in (
        ("cpu", Host(), "float32"),
        ("float32", device, "float32"),
        ("mixed", device, "mixed"),
    ):
        step = make_step(config, {**options, "precision": precision, "graphs": False}, where)
        losses[name] = step(inputs, targets, None, MaskStream(0), 1e-3).loss
    differences = {name: abs(losses[name] / losses["cpu"] - 1) for name in ("float32", "mixed")}
    return {"losses": losses, "relative_differences": differences}


def ours(options: Options, device: Host) -> Result:
    """A whole training step of this project."""
    size = size_of(options)
    config = model_config(options, size)
    step, windows = make_step(config, options, device), zipf_windows(size, 1)
    state, masks, loss = None, MaskStream(0), 0.0
    late: StepUnderWay | None = None

    def one() -> None:
        nonlocal state, masks, loss, late
        before, late = late, step.begin(*next(windows), state, masks, 1e-3)
        state, masks = late.state, masks.next_window()
        if before is not None:  # as a run does: the result of one step while the next one runs
            loss = before.finish().loss

    seconds = timed_blocks(one, device.synchronize, size.steps)
    memory = device.memory()
    used = memory[1] - memory[0] if memory else None
    return {**step_figures(seconds, config, size, used), "loss": loss, "notes": list(_notes)}


def where(options: Options, device: Host) -> Result:
    """Where the time of a step goes, launched piece by piece and waited for after each."""
    size = size_of(options)
    config = model_config(options, size)
    model = LanguageModel(
        config, seed=1, dtype=np.float16 if options.get("precision") == "mixed" else np.float32
    )
    model.move_to(device.xp)
    inputs, targets = model.ids_here(*next(zipf_windows(size, 1)))
    parts: dict[str, list[float]] = {"layers forward": [], "softmax forward": [], "backward": []}
    for _ in range(WARM_UP + BLOCKS):
        times = [time.perf_counter()]
        for work in _passes(model, inputs, targets):
            work()
            device.synchronize()
            times.append(time.perf_counter())
        for name, before, after in zip(parts, times[:-1], times[1:], strict=True):
            parts[name].append(after - before)
    return {name: median(seconds[WARM_UP:]) for name, seconds in parts.items()}


def _passes(model: LanguageModel, inputs: Any, targets: Any) -> list[Callable[[], None]]:
    held: dict[str, Any] = {}

    def layers() -> None:
        model.zero_grads()
        held["h"] = model.encode(inputs, None, MaskStream(0))[0]

    def softmax() -> None:
        h = held["h"].reshape(-1, model.config.output_size)
        held["loss"] = model._loss(h, targets.reshape(-1), MaskStream(0))

    return [layers, softmax, lambda: held["loss"].backward()]


def torch(options: Options, device: Host) -> Result:
    """The same step in PyTorch; the two share no process."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed here")
    from benchmarks import torch_gpu

    size = size_of(options)
    config = model_config(options, size)
    kind = options["device"]
    mixed = options.get("precision") == "mixed"
    step = torch_gpu.torch_step(config, size.batch_size, kind, mixed, options.get("compiled", False))
    windows, rng = zipf_windows(size, 1), np.random.default_rng(1)
    loss: Any = None
    sampler = LogUniformSampler(size.vocab_size)

    def one() -> None:
        nonlocal loss
        sample = sampler.sample(config.num_samples, rng).ids if config.softmax == "sampled" else None
        loss = step(*next(windows), sample)

    seconds = timed_blocks(one, lambda: torch_gpu.synchronize(kind), size.steps)
    figures = step_figures(seconds, config, size, torch_gpu.device_bytes_in_use(kind))
    return {**figures, "loss": float(loss), **torch_gpu.versions()}


def ranks(options: Options, device: Host) -> Result:
    """Four ranks that share the GPU learn what one rank does."""
    mpirun = shutil.which(
        "mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if mpirun is None:
        raise InputError("there is no mpirun here")
    count = 2 if options["tiny"] else RANKS
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, count):
            launch = [mpirun, "-np", str(number)] if number > 1 else []
            losses[number] = _train(Path(folder) / str(number), launch, options, "float32", max_steps=8)[
                "losses"
            ]
    one, many = np.array(losses[1]), np.array(losses[count])
    return {"ranks": count, "steps": len(one), "relative_difference": float(np.abs(many / one - 1).max())}


def perplexity(options: Options, device: Host) -> Result:
    """Validation perplexity of wt2-small after the same tokens, in float32 and in mixed precision."""
    tokens = 4_000 if options["tiny"] else options.get("tokens", 2_000_000)
    with tempfile.TemporaryDirectory() as folder:
        return {
            precision: _train(Path(folder) / precision, [], options, precision, max_tokens=tokens)
            for precision in ("float32", "mixed")
        }


def _train(run: Path, launch: list[str], options: Options, precision: str, **limits: int) -> Result:
    """What `train.wt103` leaves behind, trained with these limits."""
    knobs: dict[str, Any] = {"log_every": 1, "share_gpus": "true", **limits}
    if options["tiny"]:
        knobs |= {"hidden_size": 16, "embedding_size": 12, "num_layers": 2, "batch_size": 8, "window": 10}
    settings = [part for key, value in knobs.items() for part in ("--set", f"{key}={value}")]
    command = [
        *launch,
        sys.executable,
        "-m",
        "train.wt103",
        "--preset",
        "wt2-small",
        "--data",
        options["data"],
    ]
    command += ["--run-dir", str(run), "--device", options["device"], "--precision", precision, *settings]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise InputError(f"train.wt103 ends with {ran.returncode}: {ran.stderr.strip()[-300:]}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    return {
        "losses": [row["loss"] for row in rows if row["kind"] == "train"][:50],
        "valid_perplexity": result["valid"]["perplexity"],
        "tokens": result["tokens"],
        "tokens_per_second": result["tokens_per_second"],
    }


KINDS: dict[str, Callable[[Options, Host], Result]] = {
    function.__name__: function
    for function in (machine, tests, kernels, agreement, ours, where, torch, ranks, perplexity)
}


def main(argv: list[str] | None = None) -> int:
    """KIND OPTIONS FILE: run one part and write what it found to a file, as JSON."""
    kind, options_text, file = sys.argv[1:] if argv is None else argv
    options = json.loads(options_text)
    # PyTorch's parts and those that start commands leave the GPU to them.
    apart = kind in ("torch", "tests", "ranks", "perplexity")
    device = Host() if apart else open_device(options["device"], options.get("precision", "float32"), None)
    Path(file).write_text(json.dumps(KINDS[kind](options, device)))
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
