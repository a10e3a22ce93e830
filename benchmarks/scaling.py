"""Many ranks: python -m benchmarks.scaling --size small; on paper: python -m benchmarks.scaling --model

Measures training steps on 1, 2 and 4 ranks of this machine, its cores dealt out among them. Strong scaling:
the ranks divide the batch. Weak: each has as many rows as one of four had then. One process on all cores is
measured beside them. Each measurement is a process group of its own; they take turns, round after round, and
the fastest round of each counts: other work on the machine can only make it slower.

  tokens_per_second  of all ranks together
  speedup            of that, against one process on one core (strong: of the same batch; weak: of its rows)
  allreduce_share    of a step's time: the sum itself, and the wait for the slowest rank
  megabytes          that each rank sends in a step, by a ring: 2 (P - 1)/P of the gradient
  predicted          speedup by the α-β model, α and β read off allreduces of two lengths on two ranks

--model prints what the model says of 1 to 1,024 GPUs: the card's size on NVLink, PCIe and networks, with the
full and with the sampled softmax. Its step times are assumptions, printed with it, and not measurements.
--no-overlap: all gradients set out when the backward pass is over, as they do here in mixed precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.scaling_model import (
    FLOAT_BYTES,
    GBIT_100,
    GBIT_400,
    NVLINK,
    PCIE,
    Cluster,
    Job,
    Link,
    allreduce_seconds,
)
from benchmarks.scaling_worker import LONG, SHORT
from benchmarks.sizes import SIZES, add_size_flag
from minilstm.config import ModelConfig
from train.environment import environment
from train.files import atomic_write
from train.log import progress
from train.plot import COLOURS, styled_figure
from train.threads import BLAS_VARIABLES

RANKS = (1, 2, 4)
CARD = ModelConfig(267_735, embedding_size=400, hidden_size=1024, num_layers=3)
CARD_TOKENS = 224 * 96
ASSUMED_MS = {"full": (36.0, 12.0), "sampled": (8.0, 5.0), "sampled, rows only": (8.0, 5.0)}
"""By softmax: milliseconds of a step at the card's size on one GPU, and of that the backward pass behind the
softmax. Rows only: of the tied matrix only the rows that have a gradient travel."""
CLUSTERS = (
    Cluster(NVLINK, GBIT_400),
    Cluster(NVLINK, GBIT_100),
    Cluster(PCIE, GBIT_400),
    Cluster(PCIE, GBIT_100),
)
MODEL_RANKS = tuple(2**power for power in range(11))


def run_worker(ranks: int, threads: int, size: str, rows: int, steps: int) -> dict[str, Any]:
    """The figures of one process group.

    Raises:
        InputError: it failed; what it said of it stands on stderr.
    """
    command = [sys.executable, "-m", "benchmarks.scaling_worker", size, str(rows), str(steps)]
    if ranks > 1:
        command = [find_mpirun(), "-np", str(ranks), *command]
    blas = {**dict.fromkeys(BLAS_VARIABLES, str(threads)), "OPENBLAS_THREAD_TIMEOUT": "20"}
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **blas}, cwd=root, check=False
    )
    if found.returncode:
        raise InputError(f"{ranks} ranks of benchmarks.scaling_worker ended with status {found.returncode}")
    return json.loads(found.stdout)


def find_mpirun() -> str:
    """The mpirun beside this Python, else that of the path.

    Raises:
        InputError: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise InputError("more than one rank needs mpirun, which is not installed; pip install mpi4py mpich")
    return found


def groups(batch_size: int, cores: int) -> list[dict[str, Any]]:
    """What is measured: kind, ranks, threads of each, rows of each."""
    weak_rows = max(batch_size // max(RANKS), 1)
    strong = [("strong", ranks, 1, batch_size // ranks) for ranks in RANKS]
    weak = [("weak", ranks, 1, weak_rows) for ranks in RANKS]
    kinds = [("one process", 1, cores, batch_size), *strong, *weak]
    return [dict(zip(("kind", "ranks", "threads", "rows"), kind, strict=True)) for kind in kinds]


def measure(size: str, steps: int, rounds: int, cores: int) -> list[dict[str, Any]]:
    """Every group, with the figures of its fastest round."""
    found = groups(SIZES[size].batch_size, cores)
    with progress(rounds * len(found), "scaling", "groups") as bar:
        for _ in range(rounds):
            for group in found:
                names = ("ranks", "threads", "rows")
                ranks, threads, rows = (group[name] for name in names)
                figures = run_worker(ranks, threads, size, rows, steps)
                if figures["seconds"] < group.get("seconds", float("inf")):
                    group.update({**figures, "threads": threads})
                bar.update(1)
    return found


def summarize(found: list[dict[str, Any]], window: int, cores: int) -> list[dict[str, Any]]:
    """The figures that the module describes, a row for each group."""
    link = fitted_link(next(group for group in found if group["kind"] == "strong" and group["ranks"] == 2))
    alone = {group["kind"]: group for group in found if group["ranks"] == 1}
    rows = []
    for group in found:
        one, ranks = alone["strong" if group["kind"] == "one process" else group["kind"]], group["ranks"]
        rows.append(
            {
                **{name: group[name] for name in ("kind", "ranks", "threads", "rows", "seconds")},
                "tokens_per_second": _speed(group, window),
                "speedup": _speed(group, window) / _speed(one, window),
                "allreduce_share": group["allreduce_seconds"] / group["seconds"],
                "megabytes": 2 * (ranks - 1) / ranks * group["gradient_bytes"] / 1e6,
                "predicted": None
                if group["kind"] == "one process"
                else predicted_speedup(one, group, link, cores),
            }
        )
    return rows


def _speed(group: dict[str, Any], window: int) -> float:
    return group["ranks"] * group["rows"] * window / group["seconds"]


def fitted_link(group: dict[str, Any]) -> Link:
    """α and β from the two allreduces that a group of two ranks made: a ring of two sends 2α + n/β."""
    alpha = group["short"] / 2
    num_bytes = (LONG - SHORT) * FLOAT_BYTES
    return Link("this machine", alpha, num_bytes / max(group["long"] - group["short"], 1e-9))


def predicted_speedup(one: dict[str, Any], group: dict[str, Any], link: Link, cores: int) -> float:
    """The model's: one core's compute, in proportion to the rows, shared out among the cores there are."""
    ranks = group["ranks"]
    shared = max(ranks / cores, 1.0)
    compute = (one["seconds"] - one["allreduce_seconds"]) * group["rows"] / one["rows"] * shared
    seconds = compute + shared * allreduce_seconds(group["gradient_bytes"], ranks, link)
    return ranks * group["rows"] / seconds * one["seconds"] / one["rows"]


def table(size: str, rows: list[dict[str, Any]]) -> str:
    """The measurements for people."""
    lines = [
        f"{size}: {SIZES[size]}",
        f"{'':12}{'ranks':>6}{'threads':>8}{'rows':>6}{'s/step':>9}{'tokens/s':>10}{'speedup':>9}"
        f"{'predicted':>10}{'allreduce':>10}{'MB sent':>9}",
    ]
    for row in rows:
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.2f}"
        lines.append(
            f"{row['kind']:12}{row['ranks']:6}{row['threads']:8}{row['rows']:6}{row['seconds']:9.3f}"
            f"{row['tokens_per_second']:10,.0f}{row['speedup']:9.2f}{predicted:>10}"
            f"{row['allreduce_share']:10.1%}{row['megabytes']:9.1f}"
        )
    return "\n".join(lines)


def predictions(overlap: bool = True) -> list[dict[str, Any]]:
    """The α-β model at the card's size: a row for each softmax, cluster and number of ranks.

    Args:
        overlap: whether gradients travel beside the backward pass behind the softmax, or all after it.
    """
    rows = []
    for softmax, (step, after_softmax) in ASSUMED_MS.items():
        kind, rows_only = softmax.partition(",")[0], softmax.endswith("rows only")
        config = dataclasses.replace(CARD, softmax="sampled" if kind == "sampled" else "full")
        beside = after_softmax / 1e3 if overlap else 0.0
        job = Job(config, step / 1e3, CARD_TOKENS, rows_only, overlap_seconds=beside)
        for cluster in CLUSTERS:
            for ranks in MODEL_RANKS:
                seconds = job.step_seconds(ranks, cluster)
                row = {"softmax": softmax, "cluster": cluster.name, "ranks": ranks}
                row |= {"step_ms": 1e3 * seconds, "efficiency": job.efficiency(ranks, cluster)}
                row["communication_ms"] = (
                    1e3 * job.communication_seconds(ranks, cluster) if ranks > 1 else 0.0
                )
                row["tokens_per_second"] = ranks * CARD_TOKENS / seconds
                rows.append(row)
    return rows


def model_table(rows: list[dict[str, Any]]) -> str:
    """The predictions as Markdown: efficiency by ranks."""
    shown = [ranks for ranks in MODEL_RANKS if ranks in (1, 2, 4, 8, 16, 64, 256, 1024)]
    lines = [
        "| softmax | links within, between nodes of 8 | "
        + " | ".join(f"{ranks:,}" for ranks in shown)
        + " |",
        "| --- | --- |" + " ---: |" * len(shown),
    ]
    for softmax in ASSUMED_MS:
        for cluster in CLUSTERS:
            cells = [
                f"{row['efficiency']:.0%}"
                for row in rows
                if (row["softmax"], row["cluster"]) == (softmax, cluster.name) and row["ranks"] in shown
            ]
            lines.append(f"| {softmax} | {cluster.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Efficiency over ranks, one panel per softmax."""
    with styled_figure(12, 3.8) as figure:
        panels = figure.subplots(1, len(ASSUMED_MS), sharey=True)
        for axes, softmax in zip(panels, ASSUMED_MS, strict=True):
            for cluster, colour in zip(CLUSTERS, COLOURS, strict=False):
                own = [row for row in rows if (row["softmax"], row["cluster"]) == (softmax, cluster.name)]
                efficiency = [100 * row["efficiency"] for row in own]
                axes.semilogx(MODEL_RANKS, efficiency, "o-", ms=3, color=colour, label=cluster.name)
            axes.set(xlabel="GPUs", title=softmax, ylim=(0, 104))
            axes.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])
            axes.minorticks_off()
        panels[0].set(ylabel="% of linear, by the model")
        panels[0].legend(fontsize=8, loc="lower left")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    check_report_flags(options)
    for name in ("steps", "rounds"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.model:
        return _report_model(options)
    for name in ("plot", "no_overlap"):
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')}: is of what --model says; give both")
    find_mpirun()
    cores = len(os.sched_getaffinity(0))
    found = measure(options.size, options.steps, options.rounds, cores)
    rows = summarize(found, SIZES[options.size].window, cores)
    result = {"size": options.size, "cores": cores, "groups": rows, "environment": environment()}
    report(options, result, table(options.size, rows))
    return 0


def _report_model(options: argparse.Namespace) -> int:
    rows = predictions(overlap=not options.no_overlap)
    names = ("step_ms", "overlap_ms")
    assumed = {softmax: dict(zip(names, ms, strict=True)) for softmax, ms in ASSUMED_MS.items()}
    if options.plot:
        draw(rows, options.plot)
    steps = "; ".join(f"{softmax} {step:g} ms" for softmax, (step, _) in ASSUMED_MS.items())
    text = f"assumed, for a step of {CARD_TOKENS:,} tokens on one GPU: {steps}\n\n{model_table(rows)}"
    report(options, {"assumed": assumed, "overlap": not options.no_overlap, "predictions": rows}, text)
    return 0


def _parser() -> Parser:
    parser = Parser.documented("python -m benchmarks.scaling", __doc__)
    add_size_flag(parser)
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="of each group; default: 9")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all groups; default: 3")
    parser.add_argument("--model", action="store_true", help="what the α-β model says; nothing is measured")
    parser.add_argument(
        "--no-overlap", action="store_true", help="with --model: gradients travel after the backward pass"
    )
    add_report_flags(parser, plot=True)
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
