"""The α-β model against sums by hand; the measurement on real ranks at a size at which it means nothing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from autograd.errors import InputError
from benchmarks import scaling
from benchmarks.scaling_model import (
    Cluster,
    Job,
    Link,
    allgather_seconds,
    allreduce_seconds,
    cluster_allreduce_seconds,
    distinct_words,
    ring_seconds,
    tree_seconds,
)
from benchmarks.sizes import zipf_ids
from minilstm import ModelConfig

FAST, SLOW = Link("fast", 1.0, 100.0), Link("slow", 2.0, 10.0)
CLUSTER = Cluster(FAST, SLOW, per_node=4)
MODEL = ModelConfig(1000, embedding_size=10, hidden_size=20, num_layers=2, softmax="sampled", num_samples=50)


def test_ring_and_tree_by_hand():
    # 4 ranks, 400 bytes: 6 messages of a quarter each; or 2 · 2 messages of the whole.
    assert ring_seconds(400, 4, FAST) == pytest.approx(6 * (1 + 100 / 100))
    assert tree_seconds(400, 4, FAST) == pytest.approx(4 * (1 + 400 / 100))
    assert allgather_seconds(100, 4, FAST) == pytest.approx(3 * (1 + 1))


def test_the_tree_serves_short_messages_and_the_ring_long_ones():
    assert allreduce_seconds(1, 64, FAST) == tree_seconds(1, 64, FAST) < ring_seconds(1, 64, FAST)
    assert allreduce_seconds(1e6, 64, FAST) == ring_seconds(1e6, 64, FAST) < tree_seconds(1e6, 64, FAST)
    assert allreduce_seconds(1e6, 1, FAST) == 0


def test_a_cluster_sums_within_nodes_then_a_share_between_them():
    assert cluster_allreduce_seconds(400, 4, CLUSTER) == allreduce_seconds(400, 4, FAST)
    expected = ring_seconds(400, 4, FAST) + allreduce_seconds(100, 2, SLOW)
    assert cluster_allreduce_seconds(400, 8, CLUSTER) == pytest.approx(expected)


def test_only_what_does_not_hide_behind_the_backward_pass_counts():
    job = Job(MODEL, compute_seconds=100.0, tokens=30)
    communication = job.communication_seconds(8, CLUSTER)
    assert job.step_seconds(8, CLUSTER) == 100 + communication
    half = dataclasses.replace(job, overlap_seconds=communication / 2)
    assert half.step_seconds(8, CLUSTER) == pytest.approx(100 + communication / 2)
    assert dataclasses.replace(job, overlap_seconds=1e9).efficiency(8, CLUSTER) == 1
    assert job.efficiency(1, CLUSTER) == 1


def test_rows_travel_alone_while_they_are_fewer_than_the_matrix():
    whole = Job(MODEL, 1.0, tokens=30)
    rows = dataclasses.replace(whole, rows_only=True)
    assert rows.communication_seconds(2, CLUSTER) < whole.communication_seconds(2, CLUSTER)
    assert rows.communication_seconds(512, CLUSTER) == whole.communication_seconds(512, CLUSTER)


def test_distinct_words_against_a_draw():
    drawn = [len(np.unique(zipf_ids(np.random.default_rng(seed), (500,), 1000))) for seed in range(40)]
    # zipf_ids rounds the power law down, which is the log-uniform distribution itself.
    assert distinct_words(1000, 500) == pytest.approx(np.mean(drawn), rel=0.03)


def group(kind, ranks, seconds, rows, allreduce=0.0):
    figures = {"seconds": seconds, "allreduce_seconds": allreduce, "gradient_bytes": 4_000_000}
    messages = {"short": 0.002, "long": 0.002 + 4 * ((4 << 20) - 16) / 1e9}
    return {"kind": kind, "ranks": ranks, "threads": 1, "rows": rows, **figures, **messages}


def test_figures_by_hand():
    found = [
        group("one process", 1, 0.6, 8),
        group("strong", 1, 1.0, 8),
        group("strong", 2, 0.5, 4, allreduce=0.1),
    ]
    one_process, one, two = scaling.summarize(found, window=10, cores=2)
    assert (one["tokens_per_second"], two["tokens_per_second"]) == (80, 160)
    assert (one_process["speedup"], one["speedup"], two["speedup"]) == (pytest.approx(1 / 0.6), 1, 2)
    assert (two["allreduce_share"], two["megabytes"]) == (pytest.approx(0.2), 4.0)
    # α = 1 ms, β = 1 GB/s; half of the compute, and 2 α + n/β = 6 ms.
    assert two["predicted"] == pytest.approx(1 / (0.5 + 0.006))
    assert one["predicted"] == 1
    assert one_process["predicted"] is None


def test_measured_on_one_two_and_four_ranks(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    try:
        scaling.find_mpirun()
    except InputError as error:
        pytest.skip(str(error))
    assert scaling.main(["--size", "tiny", "--steps", "1", "--rounds", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["groups"]
    assert [(row["kind"], row["ranks"], row["rows"]) for row in rows] == [
        ("one process", 1, 4),
        *(("strong", ranks, 4 // ranks) for ranks in (1, 2, 4)),
        *(("weak", ranks, 1) for ranks in (1, 2, 4)),
    ]
    assert all(0 < row["allreduce_share"] < 1 for row in rows if row["ranks"] > 1)
    assert "strong" in capsys.readouterr().out


def test_the_model_prints_its_assumptions_and_draws(tmp_path, capsys):
    plot = tmp_path / "scaling.png"
    assert scaling.main(["--model", "--plot", str(plot)]) == 0
    assert "assumed, for a step of 21,504 tokens on one GPU: full 36 ms" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--plot", "/no/such/folder/x.png", "--model"],
        ["--plot", "x.png"],
        ["--no-overlap"],
    ],
)
def test_bad_flags_are_named(arguments):
    with pytest.raises(InputError, match=f"{arguments[0]}: "):
        scaling.main(arguments)


def test_the_document_shows_what_the_model_says():
    document = Path(scaling.__file__).parent.parent / "docs/scaling.md"
    text = document.read_text(encoding="utf-8")
    assert scaling.model_table(scaling.predictions()) in text
    assert scaling.model_table(scaling.predictions(overlap=False)) in text


def test_without_overlap_many_ranks_cost_what_they_send(capsys):
    assert scaling.main(["--model", "--no-overlap", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["overlap"] is False
    step_ms = {softmax: figures["step_ms"] for softmax, figures in said["assumed"].items()}
    for row in said["predictions"]:
        assert row["step_ms"] == pytest.approx(step_ms[row["softmax"]] + row["communication_ms"])
