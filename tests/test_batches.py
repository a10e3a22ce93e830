"""Rows of the batch are long contiguous streams; ranks own disjoint ones."""

import numpy as np
import pytest

from autograd.errors import InputError
from train.batches import Batches, RankRows, Windows

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


# How each epoch is cut.

ANY = Windows(10, seed=3, random_start=True, variable=True)


def sizes(windows, epoch, length):
    starts, stops = windows.cut(epoch, length).T
    return stops - starts


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("length", [1, 4, 10, 11, 503])
def test_an_epoch_has_every_step_from_its_start_on_once(random_start, variable, shuffled, length):
    windows = Windows(10, 3, random_start, variable, shuffled)
    for epoch in range(5):
        cuts = windows.cut(epoch, length)
        steps = np.concatenate([np.arange(start, stop) for start, stop in cuts])
        first = steps.min()
        assert first < 10 if random_start else first == 0
        np.testing.assert_array_equal(np.sort(steps), np.arange(first, length))
        assert (cuts[:, 0] < cuts[:, 1]).all()


def test_the_start_is_drawn_anew_each_epoch_from_all_of_a_window():
    starts = [int(Windows(10, 3, random_start=True).cut(epoch, 500)[0, 0]) for epoch in range(2000)]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # χ² of 9 degrees, p = 0.001
    assert max(int(Windows(10, 3, random_start=True).cut(epoch, 4)[0, 0]) for epoch in range(100)) == 3


def test_lengths_are_drawn_about_T_or_half_of_it():
    drawn = np.concatenate([sizes(Windows(70, 1, variable=True), epoch, 10_000)[:-1] for epoch in range(200)])
    assert drawn.min() >= 5
    long = drawn > 52
    assert abs(long.mean() - 0.95) < 0.005
    # Cutting the fraction off takes half a step.
    assert abs(drawn[long].mean() - 69.5) < 0.15
    assert abs(drawn[~long].mean() - 34.5) < 0.6
    assert abs(drawn[long].std() - 5) < 0.1
    short = sizes(Windows(6, 1, variable=True), 0, 10_000)[:-1]
    assert short.min() == 5
    assert (short == 5).sum() > len(short) / 3


def test_shuffled_windows_are_the_same_windows_in_another_order():
    plain, shuffled = Windows(7, 3), Windows(7, 3, shuffled=True)
    orders = [shuffled.cut(epoch, 100).tolist() for epoch in range(4)]
    assert all(sorted(order) == plain.cut(0, 100).tolist() for order in orders)
    assert len({str(order) for order in [plain.cut(0, 100).tolist(), *orders]}) == 5


def test_draws_depend_on_seed_and_epoch_alone():
    cuts = [ANY.cut(epoch, 997).tolist() for epoch in range(6)]
    for epoch in (5, 2, 0):
        assert Windows(10, 3, True, True).cut(epoch, 997).tolist() == cuts[epoch]
    assert Windows(10, 4, True, True).cut(0, 997).tolist() != cuts[0]
    assert len({str(cut) for cut in cuts}) == 6


@pytest.mark.parametrize("windows", [Windows(10), Windows(10, 3, shuffled=True), ANY])
def test_windows_of_many_epochs_are_counted(windows):
    assert windows.count(0, 503) == 0
    assert windows.count(7, 503) == sum(len(windows.cut(epoch, 503)) for epoch in range(7))


def test_the_learning_rate_goes_with_the_length_where_lengths_vary():
    assert Windows(70, variable=True).rate_factor(35) == 0.5
    assert Windows(70, variable=True).rate_factor(77) == pytest.approx(1.1)
    assert Windows(70).rate_factor(35) == 1.0


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("windows", [ANY, Windows(10, 3, random_start=True, shuffled=True)])
def test_all_ranks_cut_alike(windows, size):
    whole = Batches(read, 103, 4, windows, RankRows.of(0, 1, 4))
    parts = [Batches(read, 103, 4, windows, RankRows.of(rank, size, 4)) for rank in range(size)]
    for epoch in range(3):
        pieces = [list(part.windows(epoch=epoch)) for part in parts]
        assert len(pieces[0]) == whole.num_windows(epoch)
        for index, (inputs, targets) in enumerate(whole.windows(epoch=epoch)):
            np.testing.assert_array_equal(np.hstack([piece[index][0] for piece in pieces]), inputs)
            np.testing.assert_array_equal(np.hstack([piece[index][1] for piece in pieces]), targets)
            np.testing.assert_array_equal(targets, inputs + 1)


def test_a_resumed_epoch_of_drawn_windows_goes_on_with_those_that_are_left():
    batches = Batches(read, 103, 1, ANY, RankRows.of(0, 1, 1))
    whole, left = list(batches.windows(epoch=2)), list(batches.windows(first=3, epoch=2))
    assert len(left) == len(whole) - 3
    np.testing.assert_array_equal(left[0][0], whole[3][0])


def test_groups_that_do_not_divide_a_ranks_rows_are_refused():
    assert RankRows.of(1, 2, 12, accumulate=3) == RankRows(6, 6)
    with pytest.raises(InputError, match=r"accumulate 4 must divide the 6 rows .*one of 1, 2, 3, 6$"):
        RankRows.of(0, 2, 12, accumulate=4)


@pytest.mark.parametrize("windows", [ANY, Windows(10)])
def test_windows_are_counted_up_to_a_limit(windows):
    whole = windows.count(4, 503)
    assert windows.count(4, 503, limit=whole + 1) == windows.count(4, 503, limit=whole) == whole
    assert windows.count(4, 503, limit=whole - 1) == whole - 1
    assert windows.count(10**12, 503, limit=whole) == whole
