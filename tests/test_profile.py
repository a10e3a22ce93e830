"""Profiles: what the engine records, how a step's time is shared out, and the command's table and trace."""

import json

import numpy as np
import pytest
from mpi import run_ranks
from tiny import flags, rows_of, write_text

import autograd.functions as F
from autograd import Variable
from autograd.errors import InputError
from autograd.parallel import run_parts
from autograd.profile import Span, profile, span, spans_of
from train.flags import config_from_args
from train.profile import parts_of, table, trace_events


def layers(x):
    with span("layer 1"):
        h = F.tanh(x * 2.0)
    with span("layer 2"):
        return F.exp(h).sum()


def test_functions_and_spans_are_recorded_nested():
    with profile() as recorded:
        layers(Variable(np.ones(3), requires_grad=True)).backward()
    seen = [(s.name, s.kind, s.within) for s in recorded.spans]
    assert seen == [
        ("multiply", "forward", "layer 1"),
        ("tanh", "forward", "layer 1"),
        ("layer 1", "span", ""),
        ("exp", "forward", "layer 2"),
        ("sum", "forward", "layer 2"),
        ("layer 2", "span", ""),
        ("sum", "backward", "layer 2"),
        ("exp", "backward", "layer 2"),
        ("tanh", "backward", "layer 1"),
        ("multiply", "backward", "layer 1"),
    ]
    layer, multiply, tanh = recorded.spans[2], *recorded.spans[:2]
    assert layer.start <= multiply.start <= tanh.start
    assert layer.seconds >= multiply.seconds + tanh.seconds > 0


def test_nothing_is_recorded_outside_of_a_profile():
    with profile() as recorded:
        pass
    x = Variable(np.ones(3), requires_grad=True)
    layers(x).backward()
    assert recorded.spans == []


def test_of_work_on_several_threads_the_first_one_s_is_recorded():
    """Spans of two threads at once would not nest."""

    def part(number):
        with span(f"part {number}"):
            layers(Variable(np.ones(3), requires_grad=True)).backward()

    with profile() as recorded:
        run_parts(part, range(3))
    assert [s.name for s in recorded.spans if s.name.startswith("part")] == ["part 0"]
    assert len(recorded.spans) == 1 + 10


def test_a_span_ends_when_its_work_fails():
    with profile() as recorded:
        with pytest.raises(ValueError, match="no luck"), span("outer"), span("inner"):
            raise ValueError("no luck")
        with span("after"):
            pass
    assert [(s.name, s.within) for s in recorded.spans] == [("inner", "outer"), ("outer", ""), ("after", "")]


def test_the_making_of_items_is_recorded_and_not_their_use():
    with profile() as recorded:
        for item in spans_of("data", [10, 20]):
            with span(f"use {item}"):
                pass
    assert [s.name for s in recorded.spans] == ["data", "use 10", "data", "use 20", "data"]
    assert all(s.within == "" for s in recorded.spans)


STEP_SPANS = [
    Span("data", "span", "", 0.0, 1.0),
    Span("lstm", "forward", "layer 1", 1.0, 1.5),
    Span("layer 1", "span", "step", 1.0, 2.0),
    Span("softmax", "span", "step", 3.0, 3.0),
    Span("add", "forward", "step", 6.0, 0.1),
    Span("tied_softmax_loss", "backward", "softmax", 6.0, 6.0),
    Span("add", "backward", "step", 12.0, 0.5),
    Span("lstm", "backward", "layer 1", 12.5, 4.0),
    Span("dropout", "backward", "layer 1", 16.5, 0.5),
    Span("allreduce", "span", "step", 17.0, 0.7),
    Span("update", "span", "step", 17.7, 0.8),
    Span("step", "span", "", 1.0, 19.0),
    Span("layer 1", "span", "", 21.0, 9.0),  # of a validation between two steps
]


def test_parts_add_up_to_the_steps_and_their_data():
    parts = parts_of(STEP_SPANS)
    assert list(parts.items()) == [
        ("data", 1.0),
        ("forward: layer 1", 2.0),
        ("forward: softmax", 3.0),
        ("backward: softmax", 6.0),
        ("backward: other functions", 0.5),
        ("backward: layer 1", 4.5),
        ("allreduce", 0.7),
        ("update", 0.8),
        ("the rest", pytest.approx(1.5)),
    ]
    assert sum(parts.values()) == pytest.approx(20.0)


def test_the_table_gives_milliseconds_and_shares_of_one_step():
    lines = table(STEP_SPANS).splitlines()
    assert lines[0] == "where the time of a step goes (rank 0's mean of 1 steps)"
    assert lines[4].split() == ["backward:", "softmax", "6000.00", "ms", "30.0%"]
    assert lines[-1].split() == ["a", "step", "20000.00", "ms", "100.0%"]


def test_trace_events_are_in_microseconds_with_the_rank_as_the_process():
    name, _, lstm, *_ = trace_events(STEP_SPANS, rank=3)
    assert name["ph"] == "M"
    assert name["args"]["name"].startswith("rank 3 (")
    assert lstm == {
        "name": "lstm forward",
        "cat": "forward",
        "ph": "X",
        "pid": 3,
        "tid": 0,
        "ts": 1e6,
        "dur": 1.5e6,
        "args": {"within": "layer 1"},
    }


def train(ranks, text, run, *more):
    """All that a tiny run prints."""
    env = {"MINILSTM_DATA": str(text.parent / "prepared")}
    result = run_ranks(ranks, "train.wt103", *flags(text, run), *more, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_prints_the_table_and_writes_the_trace_of_all_ranks(tmp_path, ranks):
    text, runs = write_text(tmp_path / "text.txt"), [tmp_path / name for name in ("plain", "profiled")]
    plain = train(ranks, text, runs[0], "--max-steps", "8")
    asked = train(ranks, text, runs[1], "--max-steps", "8", "--profile", "3")
    assert "rank 0's mean of 3 steps" in asked
    assert "where the time" not in plain
    events = json.loads((runs[1] / "trace.json").read_text())["traceEvents"]
    assert not (runs[0] / "trace.json").exists()
    for rank in range(ranks):
        own = [event["name"] for event in events if event["pid"] == rank]
        assert own.count("step") == 3
        assert own.count("tied_softmax_loss backward") == 3
        assert {"embedding", "layer 1", "softmax", "allreduce", "update", "data"} <= set(own)
    losses = [[row["loss"] for row in rows_of(run)] for run in runs]
    assert losses[0] == losses[1]


def test_a_run_that_ends_before_the_profile_says_what_there_was(tmp_path):
    text = write_text(tmp_path / "text.txt")
    assert "mean of 2 steps" in train(1, text, tmp_path / "few", "--max-steps", "4", "--profile")
    assert "nothing was recorded" in train(1, text, tmp_path / "none", "--max-steps", "1", "--profile")
    assert not (tmp_path / "none/trace.json").exists()


def test_a_profile_of_no_steps_is_refused():
    with pytest.raises(InputError, match="--profile: expected at least 1 step; got 0"):
        config_from_args(["--profile", "0"])
