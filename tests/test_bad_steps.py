"""Steps whose loss or gradient is no number: skipped on all ranks alike, counted, and in the end fatal."""

import json

import numpy as np
import pytest
from mpi import run_ranks
from tiny import flags, rows_of, write_text

# Some windows give a loss that is no number, on rank 1 alone where there are two.
PLANTED = """
import sys
import numpy as np
from train import training_run, wt103
from train.commands import run
from train.step import TrainingStep

bad = {int(number) for number in sys.argv.pop(1).split(",")}

class Planted(TrainingStep):
    calls = 0
    def _backward(self, inputs, targets, state, masks, mean):
        mean.completed = lambda part: None  # nothing sets out before it is planted
        loss, state = super()._backward(inputs, targets, state, masks, mean)
        Planted.calls += 1
        if Planted.calls in bad and self.communicator.rank == self.communicator.size - 1:
            self.model.flat_gradients[3] = np.nan
            state[0][0][-1, 2] = np.inf
        return loss, state

training_run.TrainingStep = Planted
run(wt103.main)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("bad") / "text.txt")


def run_with_bad(text, name, ranks, bad, *more, **knobs):
    run, env = (
        text.parent / name,
        {"MINILSTM_DATA": str(text.parent / "prepared"), "OPENBLAS_NUM_THREADS": "1"},
    )
    code = PLANTED.replace("sys.argv.pop(1)", repr(bad))
    return run, run_ranks(ranks, code, *flags(text, run, **knobs), *more, env=env)


def test_bad_steps_are_skipped_and_counted_alike_on_any_number_of_ranks(text):
    losses = []
    for ranks in (1, 2):
        run, result = run_with_bad(text, f"ranks{ranks}", ranks, "3,4,9", "--max-steps", "20", save_every=7)
        assert result.returncode == 0, result.stderr
        rows = [row for row in rows_of(run) if row["kind"] == "train"]
        assert [row["step"] for row in rows] == list(range(1, 21)), "each number once: updates alone count"
        assert [row["skipped_steps"] for row in rows] == [0, 0, *[2] * 4, *[3] * 14]
        assert np.isfinite([row["loss"] for row in rows]).all()
        assert json.loads((run / "result.json").read_text())["steps"] == 20
        assert result.stderr.count("no update after step") == 3
        losses.append([row["loss"] for row in rows])
    np.testing.assert_allclose(*losses, rtol=2e-5)


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(text):
    bad = ",".join(map(str, range(6, 99)))
    run, result = run_with_bad(text, "ended", 2, bad, "--max-steps", "40", save_every=5, max_bad_steps=3)
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1
    latest = run / "checkpoints" / "latest.h5"
    assert "training diverged at step 6: 3 windows in a row gave no update" in result.stderr
    assert f"the checkpoint {latest} is as it was" in result.stderr
    assert latest.exists()


def test_detect_anomaly_ends_the_run_at_once_and_names_the_place(text):
    run, env = (
        text.parent / "anomaly",
        {"MINILSTM_DATA": str(text.parent / "prepared"), "OPENBLAS_NUM_THREADS": "1"},
    )
    knobs = {"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 0}
    result = run_ranks(1, "train.wt103", *flags(text, run, **knobs), "--detect-anomaly", env=env)
    assert result.returncode == 2
    assert result.stderr.count("error:") == 1
    assert "error: anomaly: " in result.stderr
    assert "the first value that is not finite" in result.stderr
