"""Rows of the batch are long contiguous streams; ranks own disjoint ones."""

import numpy as np
import pytest

from autograd.errors import InputError
from train.batches import Batches, RankRows

TOKENS = np.arange(103, dtype=np.int32)


def read(start, stop):
    return TOKENS[start:stop]


def make(batch_size=4, window=7, rank=0, size=1, num_tokens=103):
    return Batches(read, num_tokens, batch_size, window, RankRows.of(rank, size, batch_size))


def test_rows_are_contiguous_pieces_and_targets_are_one_step_ahead():
    windows = list(make().windows())
    inputs = np.concatenate([inputs for inputs, _ in windows])
    targets = np.concatenate([targets for _, targets in windows])
    assert inputs.shape == (25, 4)  # 102 targets in 4 rows: 25 each, 2 left over
    np.testing.assert_array_equal(inputs[:, 1], np.arange(25, 50))
    np.testing.assert_array_equal(targets, inputs + 1)


def test_an_epoch_trains_on_every_target_once_and_the_last_window_is_shorter():
    batches = make(window=7)
    sizes = [len(inputs) for inputs, _ in batches.windows()]
    assert sizes == [7, 7, 7, 4]
    assert len(batches) == 4
    targets = np.concatenate([targets.ravel() for _, targets in batches.windows()])
    np.testing.assert_array_equal(np.sort(targets), np.arange(1, 101))


def test_a_resumed_epoch_goes_on_with_the_windows_that_are_left():
    batches = make()
    left = list(batches.windows(first=2))
    np.testing.assert_array_equal(left[0][0], list(batches.windows())[2][0])
    assert len(left) == 2


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_rows_side_by_side_are_the_whole_batch(size):
    whole = list(make().windows())
    parts = [list(make(rank=rank, size=size).windows()) for rank in range(size)]
    for index, (inputs, targets) in enumerate(whole):
        np.testing.assert_array_equal(np.hstack([part[index][0] for part in parts]), inputs)
        np.testing.assert_array_equal(np.hstack([part[index][1] for part in parts]), targets)


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused():
    with pytest.raises(InputError, match=r"batch_size 10 must be a multiple of the 4 ranks; .*8 or 12"):
        RankRows.of(0, 4, 10)
    with pytest.raises(InputError, match=r"batch_size=4$"):
        RankRows.of(0, 4, 3)


def test_a_batch_larger_than_the_data_is_refused():
    assert make(batch_size=102, window=1).length == 1
    with pytest.raises(
        InputError, match="batch_size 103 is larger than the data: .*103 tokens feeds at most 102"
    ):
        make(batch_size=103)
