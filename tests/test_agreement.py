"""Ranks that hold different weights, words or knobs are stopped, and the one that differs is named."""

import numpy as np
import pytest
from mpi import run_ranks
from tiny import flags, rows_of, write_text

from train.agreement import checksum, dissent


def test_one_flipped_bit_changes_a_checksum():
    array = np.random.default_rng(0).standard_normal(5_000_000).astype(np.float32)  # more than one piece
    before = checksum(array)
    for place, bit in ((0, 0), (4_999_999, 31), (4_200_000, 7)):
        array.view(np.uint32)[place] ^= np.uint32(1 << bit)
        assert checksum(array) != before
        array.view(np.uint32)[place] ^= np.uint32(1 << bit)
    assert checksum(array) == before
    assert checksum({"a": 1, "b": [2]}) == checksum({"b": [2], "a": 1}) != checksum({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("checksums", "expected"),
    [
        ([[1, 2], [1, 2]], ""),
        ([[1, 2], [1, 3]], "rank 1 of 2 holds other words than rank 0"),
        ([[9, 2], [1, 2], [1, 2]], "rank 0 of 3 holds other weights than rank 1"),
        (
            [[1, 2], [7, 2], [1, 2], [8, 3]],
            "ranks 1, 3 hold other weights than rank 0; rank 3 of 4 holds other words",
        ),
    ],
)  # fmt: skip
def test_the_rank_that_differs_from_most_is_named(checksums, expected):
    assert dissent(np.array(checksums), ["weights", "words"]).startswith(expected)
    assert bool(dissent(np.array(checksums), ["weights", "words"])) == bool(expected)


# A run whose rank 1 loses a bit after step 5.
FLIPPED = """
import os, signal, sys
import numpy as np
from train import training_run, wt103
from train.commands import run

class Flipped(training_run.TrainingRun):
    def _count(self, launched):
        ends = super()._count(launched)
        if self.position.step == 5 and self.communicator.rank == 1:
            self.model.flat_parameters.view(np.uint32)[77] ^= np.uint32(1)
            if STOPPED:
                os.kill(os.getpid(), signal.SIGTERM)
        return ends

training_run.TrainingRun = Flipped
run(wt103.main)
"""


@pytest.mark.parametrize(
    ("knobs", "stopped", "step"),
    [({"check_ranks_every": 4}, False, 8), ({"save_every": 6}, False, 6), ({}, True, 6)],
)
def test_a_run_whose_ranks_drift_apart_stops_and_keeps_nothing_of_it(tmp_path, knobs, stopped, step):
    text, run = write_text(tmp_path / "text.txt"), tmp_path / "run"
    env = {"MINILSTM_DATA": str(tmp_path / "prepared")}
    code = FLIPPED.replace("STOPPED", str(stopped))
    result = run_ranks(2, code, *flags(text, run, **knobs), "--max-steps", "40", env=env)
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1
    assert (
        f"the ranks disagree after step {step}: rank 1 of 2 holds other weights than rank 0" in result.stderr
    )
    assert "Traceback" not in result.stderr
    assert rows_of(run)[-1]["step"] <= 8
    assert not (run / "checkpoints" / "latest.h5").exists()
