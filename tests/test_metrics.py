"""metrics.jsonl: rows outlive a kill, and a resumed run doubles none."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from autograd.errors import InputError
from train.metrics import MetricsLog, read_metrics


def row(step, kind="train", **more):
    return {"kind": kind, "step": step, **more}


def fill(path, steps):
    with MetricsLog(path) as log:
        for step in steps:
            log.write(row(step))


def steps_in(path):
    return [row["step"] for row in read_metrics(path)]


def test_rows_are_read_back_as_written(tmp_path):
    rows = [row(1, loss=2.5), row(1, kind="evaluation", split="valid", perplexity=12.25)]
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for one in rows:
            log.write(one)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_numpys_numbers_are_numbers_and_those_json_lacks_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(
            row(np.int64(3), loss=np.float32(0.5), perplexity=float("inf"), grad_norm=np.float64("nan"))
        )
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == row(
        3, loss=0.5, perplexity=None, grad_norm=None
    )


def test_resuming_drops_the_rows_that_are_made_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [10, 20, 30, 40])
    with MetricsLog(path, resume_step=20) as log:
        assert steps_in(path) == [10, 20]
        log.write(row(30))
    assert steps_in(path) == [10, 20, 30]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_resuming_mends_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [10, 20])
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert steps_in(path) == [10, 20]
    with MetricsLog(path, resume_step=20) as log:
        log.write(row(30))
    assert steps_in(path) == [10, 20, 30]


def test_resuming_without_a_file_begins_one(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", resume_step=20) as log:
        log.write(row(30))
    assert steps_in(tmp_path / "metrics.jsonl") == [30]


def test_a_new_run_leaves_the_rows_of_another_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [10])
    with pytest.raises(InputError, match="holds a run already; give --resume"):
        MetricsLog(path)
    assert steps_in(path) == [10]


def test_ranks_other_than_0_write_nothing(tmp_path):
    with MetricsLog(tmp_path / "absent" / "metrics.jsonl", enabled=False) as log:
        log.write(row(1))
    assert os.listdir(tmp_path) == []


def test_a_written_row_outlives_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    script = (
        "import os, signal, sys\n"
        "from train.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "log.write({'kind': 'train', 'step': 7})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert steps_in(path) == [7]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"kind": "train", "step": 1}\nnonsense\n', "line 2 is not a row of metrics; got 'nonsense'"),
        (b'{"kind": "train"}\n', "line 1 is not a row"),
        (b'{"kind": "train", "step": "1"}\n', "line 1 is not a row"),
        (b"[" * 100_000 + b"\n", "line 1 is not a row"),
        (b"\xff\xfe\n", "cannot be read as metrics"),
    ],
)
def test_what_is_no_metrics_is_refused(tmp_path, content, expected):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_metrics(path)
    with pytest.raises(InputError, match=expected):
        MetricsLog(path, resume_step=5)
    assert path.read_bytes() == content


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; expected the metrics of a run"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_pending_evaluation_is_made_again_and_has_one_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for one in (row(1), row(1, kind="evaluation"), row(2), row(2, kind="evaluation")):
            log.write(one)
    with MetricsLog(path, resume_step=2, pending=True):
        assert read_metrics(path) == [row(1), row(1, kind="evaluation"), row(2)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line_with_the_files_name():
    with (
        MetricsLog("/dev/full") as log,
        pytest.raises(InputError, match="^/dev/full: cannot be written .no space"),
    ):
        log.write(row(1))
