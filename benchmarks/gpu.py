"""Everything that is claimed of a GPU, measured in one go: python -m benchmarks.gpu --minutes 8 --out DIR

Parts run one after the other, each in a process of its own. DIR/gpu.json and DIR/gpu.md are written anew
after each, so that a run that is cut off counts as far as it came. A part that fails is recorded with its
error, and the next one goes on; one for which the time is too short is left out and recorded as such.

It needs CuPy, torch, numpy, h5py, mpi4py and tqdm, and installs nothing. `--plan` prints the parts with the
time and memory that each will take, reckoned and not measured; it needs no GPU. `--device cpu --tiny` runs
all of it at a size at which it measures nothing, to try the command out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.gpu_parts import RANKS, ROOT, Options, agreement_rows, model_config, rates_bytes, size_of
from minilstm import ModelConfig
from train.config import TrainConfig, load_preset
from train.environment import environment
from train.files import atomic_write
from train.memory import CUDA_CONTEXT, gpu_memory_parts

START_SECONDS = 8.0
"""Of a process that imports its libraries, compiles kernels and makes a model's weights; reckoned."""
LONGEST = 3.0
"""A part that takes so many times what was reckoned is ended."""
MOST_WORDS = 33_278
"""Of the data that perplexity and ranks are trained on: WikiText-2's vocabulary, or a smaller one."""
SHORTEST_LIMIT = 45.0
"""Seconds that every part is given at least, as long as there are any."""


@dataclass(frozen=True)
class Part:
    """One part of the run.

    Attributes:
        kind: the function of benchmarks.gpu_parts.
        seconds: that it will take on an H200, reckoned.
        what: it measures, in words.
        options: of the function.
    """

    kind: str
    seconds: float
    what: str
    options: Options = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.options.get("precision"), self.options.get("softmax")]
        words += ["compiled"] if self.options.get("compiled") else []
        words += ["without graphs"] if self.options.get("graphs") is False else []
        words += ["without wavefront"] if self.options.get("wavefront") == "never" else []
        return " ".join([self.kind, *filter(None, words)])


def _step(kind: str, precision: str, softmax: str = "full", seconds: float = 20.0, **more: Any) -> Part:
    side = "this project" if kind == "ours" else "PyTorch, cuDNN"
    what = f"a training step, {precision}, {softmax} softmax: {side}"
    return Part(kind, seconds, what, {"precision": precision, "softmax": softmax, **more})


PARTS = [
    Part("machine", 12, "GEMM peaks, copy rate, versions"),
    Part("agreement", 25, "losses of one step: float32 on the CPU, float32 and mixed on the GPU"),
    _step("ours", "mixed"),
    _step("torch", "mixed", seconds=25),
    _step("ours", "mixed", "sampled", seconds=14),
    _step("torch", "mixed", "sampled"),
    _step("ours", "float32", seconds=30),
    _step("torch", "float32", seconds=35),
    _step("ours", "float32", "sampled"),
    _step("torch", "float32", "sampled"),
    _step("ours", "mixed", graphs=False),
    _step("ours", "mixed", "sampled", seconds=14, graphs=False),
    _step("ours", "mixed", "sampled", seconds=12, wavefront="never"),
    Part("where", 15, "where a step's time goes, mixed, full softmax", {"precision": "mixed"}),
    Part("kernels", 15, "each Function and optimizer against its NumPy twin"),
    Part("tests", 30, "the tests marked gpu, where pytest is installed"),
    Part("ranks", 35, "four ranks on the one GPU against one rank"),
    Part("perplexity", 60, "validation perplexity after the same tokens, float32 and mixed"),
    _step("torch", "mixed", seconds=55, compiled=True),
]


def memory_mb(part: Part, tiny: bool) -> float:
    """GPU memory that a part will take, reckoned from shapes."""
    options = {**part.options, "tiny": tiny}
    size = size_of(options)
    config = model_config(options, size)
    mixed = part.options.get("precision") == "mixed"
    rows, processes = size.batch_size, 1
    if part.kind == "machine":
        return (CUDA_CONTEXT + rates_bytes(tiny)) / 1e6
    if part.kind in ("kernels", "tests"):
        return 2 * CUDA_CONTEXT / 1e6  # their arrays are small, and their kernels many
    if part.kind == "agreement":
        rows, processes = agreement_rows(tiny), 2  # both precisions' models are there at once
    if part.kind in ("ranks", "perplexity"):
        preset = load_preset("wt2-small")
        config = ModelConfig(vocab_size=MOST_WORDS, **preset["model"])
        rows = preset["train"]["batch_size"] // (RANKS if part.kind == "ranks" else 1)
        size = dataclasses.replace(size, window=preset["train"]["window"])
        processes = RANKS if part.kind == "ranks" else 1
    train = TrainConfig(batch_size=rows, window=size.window, precision="mixed" if mixed else "float32")
    parts = gpu_memory_parts(config, train, rows)
    if part.kind == "torch":  # autograd holds the logits, their float32 copy, and the gradients of both
        words = config.num_samples if config.softmax == "sampled" else size.vocab_size
        parts["softmax"] = size.tokens * words * (2 + 2 + 4 + 4 + 4 if mixed else 4 + 4 + 4)
    return processes * sum(parts.values()) / 1e6


def plan(minutes: float, tiny: bool) -> str:
    """The parts as a table: what each does, and what it will take."""
    lines = ["| part | what | seconds | GPU memory, MB |", "| --- | --- | ---: | ---: |"]
    for part in PARTS:
        memory = memory_mb(part, tiny)
        lines.append(f"| {part.name} | {part.what} | {part.seconds:.0f} | {memory:,.0f} |")
    total = sum(part.seconds for part in PARTS)
    fits = "all of it fits" if total <= 60 * minutes else "parts for which the time is too short are left out"
    lines.append("")
    lines.append(f"{total / 60:.1f} minutes in all, {minutes:g} given: {fits}.")
    lines.append("Times are reckoned for an H200, memory from the shapes; nothing here was measured.")
    return "\n".join(lines)


class Run:
    """One run of all parts, as far as the time goes.

    Args:
        out: the folder of gpu.json and gpu.md.
        options: what every part is told: device, tiny, data.
        deadline: of time.monotonic.
    """

    def __init__(self, out: Path, options: Options, deadline: float) -> None:
        self.out, self.options, self.deadline = out, options, deadline
        self.record: dict[str, Any] = {"environment": environment(), "options": options, "parts": {}}

    def all_parts(self, only: list[str]) -> None:
        for part in PARTS:
            if not only or part.kind in only:
                self.record["parts"][part.name] = self._run(part)
                self._save()

    def _run(self, part: Part) -> dict[str, Any]:
        left = self.deadline - time.monotonic()
        if left < min(part.seconds / 2, SHORTEST_LIMIT):
            return {
                "status": "left out",
                "error": f"{left:.0f} s were left; it takes about {part.seconds:.0f}",
            }
        print(f"{part.name}: {part.what}", flush=True)
        start = time.monotonic()
        limit = min(left, max(LONGEST * (part.seconds + START_SECONDS), SHORTEST_LIMIT))
        outcome = _in_a_process(part.kind, {**self.options, **part.options}, limit)
        seconds = time.monotonic() - start
        print(f"  {outcome['status']} after {seconds:.1f} s {outcome.get('error', '')}", flush=True)
        return {"what": part.what, "seconds": seconds, **outcome}

    def _save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for name, text in (("gpu.json", json.dumps(self.record, indent=1)), ("gpu.md", table(self.record))):
            with atomic_write(self.out / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")


def _in_a_process(kind: str, options: Options, limit: float) -> dict[str, Any]:
    """{status: done, result} or {status: failed, error}; the process and all that it started end in time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", kind, json.dumps(options), str(file)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=limit)
        except BaseException as error:  # Ctrl-C and SIGTERM too: its session of its own hears of neither
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"status": "failed", "error": f"ended after {limit:.0f} s"}
        if process.returncode or not file.exists():
            return {"status": "failed", "error": " / ".join(printed.strip().splitlines()[-3:])[-600:]}
        return {"status": "done", "result": json.loads(file.read_text())}


def table(record: dict[str, Any]) -> str:
    """The record in Markdown: the machine, the steps side by side, then the other parts."""
    results = {name: part.get("result") for name, part in record["parts"].items()}
    machine = results.get("machine") or {}
    lines = [f"# {machine.get('name', 'unknown device')}", ""]
    lines += [f"- {key}: {_shown(value)}" for key, value in machine.items() if key != "name"]
    lines += [f"- commit: {record['environment']['commit']}", ""]
    lines += ["| step | ms | tokens/s | of the GEMM peak | peak memory, MB | speed against PyTorch |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for part in PARTS:
        result = results.get(part.name)
        if part.kind in ("ours", "torch") and result:
            lines.append(_step_row(part, result, machine, results))
    lines += ["", "| part | outcome |", "| --- | --- |"]
    for part in PARTS:
        found = record["parts"].get(part.name)
        if found is None or (part.kind in ("ours", "torch", "machine") and found["status"] == "done"):
            continue
        shown = (
            _shown(found["result"]) if found["status"] == "done" else f"{found['status']}: {found['error']}"
        )
        lines.append(f"| {part.name} | {shown.replace('|', '/')} |")
    return "\n".join(lines)


def _step_row(part: Part, result: dict[str, Any], machine: dict[str, Any], results: dict[str, Any]) -> str:
    dtype = "float16" if part.options["precision"] == "mixed" else "float32"
    peak = machine.get(f"gemm_{dtype}_tflops")
    share = f"{result['tflops'] / peak:.0%}" if peak else ""
    peer = results.get(f"torch {part.options['precision']} {part.options['softmax']}")
    against = f"{result['tokens_per_second'] / peer['tokens_per_second']:.2f}×" if peer else ""
    return (
        f"| {part.name} | {1000 * result['seconds']:.2f} | {result['tokens_per_second']:,.0f} | {share} | "
        f"{result['peak_memory_mb']:,.0f} | {against} |"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items() if not isinstance(each, list))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    """The command; its status is 1 if a part failed."""
    args = _parser().parse_args(argv)
    if not args.minutes > 0:
        raise InputError(f"--minutes: must be above 0; got {args.minutes:g}")
    if args.plan:
        print(plan(args.minutes, args.tiny))
        return 0
    if args.out is None:
        raise InputError(
            "--out DIR: is needed, the folder to write gpu.json and gpu.md to; or ask for --plan"
        )
    if args.tiny != (args.device == "cpu"):
        raise InputError("--device cpu and --tiny: go together, to try the command out; give both or neither")
    options = {"device": args.device, "tiny": args.tiny, "data": args.data}
    run = Run(args.out, options, time.monotonic() + 60 * args.minutes)
    run.all_parts(args.only or [])
    print(f"written: {args.out / 'gpu.json'}, {args.out / 'gpu.md'}")
    return int(any(part["status"] == "failed" for part in run.record["parts"].values()))


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.gpu", __doc__)
    parser.add_argument(
        "--minutes", type=float, default=8.0, metavar="N", help="time for all of it; default 8"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where gpu.json and gpu.md go")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and stop")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="with --device cpu: a size that measures nothing")
    parser.add_argument("--data", default="python-docs", help="of perplexity and ranks; default: python-docs")
    kinds = sorted({part.kind for part in PARTS})
    parser.add_argument("--only", nargs="+", choices=kinds, metavar="KIND", help=f"of {', '.join(kinds)}")
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
