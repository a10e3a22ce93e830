"""Masks: how they are drawn, how often, and that any number of ranks draws the same ones."""

import numpy as np
import pytest

from autograd import InputError
from minilstm import LanguageModel, MaskStream, ModelConfig
from minilstm.dropout import ELEMENTS_PER_COUNT, LEVELS, _scaled


@pytest.mark.parametrize("keep_prob", [0.05, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kept_fraction_and_what_it_is_scaled_by(keep_prob, dtype):
    mask = MaskStream(0).weight_mask("somewhere", (400, 1000), keep_prob, dtype)
    assert mask.dtype == dtype
    dropped, scale = np.unique(mask)
    assert (dropped, scale) == (0, pytest.approx(1 / keep_prob, rel=1e-4))
    deviation = np.sqrt(keep_prob * (1 - keep_prob) / mask.size)
    assert abs((mask > 0).mean() - keep_prob) < 4 * deviation
    for axis in (0, 1):  # no row and no column is favoured
        deviation = np.sqrt(keep_prob * (1 - keep_prob) / mask.shape[axis])
        assert np.abs((mask > 0).mean(axis=axis) - keep_prob).max() < 5.5 * deviation


@pytest.mark.parametrize("keep_prob", [1e-7, 1e-5, 4.4e-5, 0.001, 0.3, 0.65, 1 - 1e-5, 1 - 1e-7])
def test_the_mean_over_all_draws_is_one(keep_prob):
    """Never is everything dropped; half a level in 256 is the most that rounding moves it."""
    masks = _scaled(np.arange(LEVELS, dtype=np.uint16), keep_prob, np.float64)
    assert masks.mean() == pytest.approx(1, rel=1e-12 if keep_prob < 0.002 else 2e-5)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match=r"^masks: seed must be a whole number from 0; got -1$"):
        MaskStream(-1)


def test_masks_for_a_part_of_the_rows_are_those_of_the_whole():
    stream = MaskStream(5, 7, first_row=3)
    whole = stream.row_mask("a", (6, 4), 0.5)
    np.testing.assert_array_equal(stream.for_rows_from(2).row_mask("a", (4, 4), 0.5), whole[2:])


def test_a_mask_depends_on_seed_window_and_place_alone():
    def kept(seed, window, place):
        return MaskStream(seed, window).weight_mask(place, (100, 100), 0.5) > 0

    first = kept(1, 2, "input.0")
    np.testing.assert_array_equal(kept(1, 2, "input.0"), first)
    others = [
        kept(*other) for other in ((2, 2, "input.0"), (1, 3, "input.0"), (1, 2, "input.1"), (2, 1, "input.0"))
    ]
    for other in others:
        assert 0.47 < (other == first).mean() < 0.53, "unrelated masks agree on half of their elements"


def test_windows_follow_each_other():
    stream = MaskStream(5, 7, first_row=3).next_window()
    assert (stream.seed, stream.window, stream.first_row) == (5, 8, 3)
    stream.row_mask("a", (2, 2), 0.5)
    again = MaskStream(5, 8, 3)
    np.testing.assert_array_equal(stream.row_mask("a", (4, 5), 0.5), again.row_mask("a", (4, 5), 0.5))


def test_neighbouring_elements_are_unrelated():
    kept = MaskStream(0).row_mask("a", (300, 300), 0.5) > 0
    for shift in (1, 4, ELEMENTS_PER_COUNT, 64, 300):
        agreeing = (kept.ravel()[shift:] == kept.ravel()[:-shift]).mean()
        assert abs(agreeing - 0.5) < 0.01


@pytest.mark.parametrize("units", [1, 3, 4, 15, 16, 17, 400])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rows_are_those_of_the_whole_batch_on_any_number_of_ranks(units, ranks):
    together, whole = ranks_and_whole(
        lambda stream, rows: stream.row_mask("input.0", (rows, units), 0.7), ranks
    )
    np.testing.assert_array_equal(together, whole)


@pytest.mark.parametrize("units", [1, 3, 16, 17])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_so_are_those_of_every_step(units, ranks):
    together, whole = ranks_and_whole(
        lambda stream, rows: stream.step_mask("input.0", (5, rows, units), 0.7), ranks, axis=1
    )
    np.testing.assert_array_equal(together, whole)


def test_weights_have_the_same_mask_on_all_ranks():
    masks = [MaskStream(3, 9, first_row).weight_mask("a", (8, 5), 0.7) for first_row in (0, 1, 8)]
    assert len({mask.tobytes() for mask in masks}) == 1


def ranks_and_whole(draw, ranks, rows=12, axis=0):
    """What `draw(stream, rows)` gives on each of some ranks, put together, and on one rank."""
    size = rows // ranks
    parts = [draw(MaskStream(3, 9, rank * size), size) for rank in range(ranks)]
    return np.concatenate(parts, axis), draw(MaskStream(3, 9), rows)


def test_masks_of_both_precisions_keep_the_same_elements():
    low, high = (MaskStream(0).row_mask("a", (50, 50), 0.3, dtype) for dtype in (np.float32, np.float64))
    np.testing.assert_array_equal(low > 0, high > 0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_an_empty_mask(shape):
    assert MaskStream(0, first_row=3).row_mask("a", shape, 0.5).shape == shape


# --- a mask for each step ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_steps_masks_keep_their_fraction_each_on_its_own(dtype):
    mask = MaskStream(0).step_mask("a", (50, 30, 100), 0.65, dtype)
    assert mask.dtype == dtype
    assert np.unique(mask) == pytest.approx([0, 1 / 0.65], rel=1e-4)
    kept = (mask > 0).reshape(50, -1)
    assert np.abs(kept.mean(axis=1) - 0.65).max() < 4.5 * np.sqrt(0.65 * 0.35 / 3000)
    agreeing = [(kept[t] == kept[s]).mean() for t in range(10) for s in range(t)]
    unrelated = 0.65**2 + 0.35**2
    assert np.abs(np.array(agreeing) - unrelated).max() < 0.05


def test_a_steps_mask_does_not_depend_on_how_many_there_are():
    long, short = (MaskStream(2, 3, 4).step_mask("a", (steps, 3, 7), 0.5) for steps in (9, 4))
    np.testing.assert_array_equal(long[:4], short)


def test_steps_do_not_run_into_the_next_window():
    stream = MaskStream(2, 3)
    this, following = (m.step_mask("a", (6, 10, 50), 0.5) > 0 for m in (stream, stream.next_window()))
    for t in range(5):
        assert 0.4 < (this[t + 1] == following[t]).mean() < 0.6


# --- rows of a table ---


def test_the_mask_of_a_word_does_not_depend_on_the_others():
    """The whole table's mask, drawn word by word, in any order, and in one go."""
    V, E = 60, 21
    stream = MaskStream(1, 2)
    table = stream.lookup_mask("embedding", np.arange(V), E, 0.5)
    assert table.shape == (V, E)
    for word in (0, 1, 17, 59):
        np.testing.assert_array_equal(stream.lookup_mask("embedding", word, E, 0.5), table[word])
    ids = np.random.default_rng(0).integers(0, V, (7, 4))
    np.testing.assert_array_equal(stream.lookup_mask("embedding", ids, E, 0.5), table[ids])


@pytest.mark.parametrize("width", [1, 15, 16, 17, 40])
def test_the_mask_of_a_table_keeps_its_fraction_and_its_words_are_unrelated(width):
    words = np.arange(0, 200_000, 97)
    table = MaskStream(5).lookup_mask("embedding", words, width, 0.8)
    assert np.unique(table) == pytest.approx([0, 1 / 0.8], rel=1e-4)
    kept = table > 0
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.16 / kept.size)
    assert np.abs(kept.mean(axis=0) - 0.8).max() < 4.5 * np.sqrt(0.16 / len(words))
    assert abs((kept[1:] == kept[:-1]).mean() - 0.68) < 0.02


def test_the_mask_of_a_table_is_the_same_on_all_ranks_and_another_in_every_window():
    ids = np.arange(50)
    first = MaskStream(1, 2).lookup_mask("embedding", ids, 20, 0.5)
    np.testing.assert_array_equal(MaskStream(1, 2, first_row=9).lookup_mask("embedding", ids, 20, 0.5), first)
    for other in (MaskStream(1, 3), MaskStream(2, 2)):
        assert 0.4 < (other.lookup_mask("embedding", ids, 20, 0.5) == first).mean() < 0.6


def test_no_words_have_no_masks():
    assert MaskStream(0).lookup_mask("embedding", np.zeros((3, 0), int), 5, 0.5).shape == (3, 0, 5)


# --- other random numbers ---


def test_the_generator_of_a_place_is_the_windows_and_equal_on_all_ranks():
    def drawn(*args, place="samples"):
        return MaskStream(*args).generator(place).integers(0, 1 << 40, 20).tolist()

    assert drawn(1, 2) == drawn(1, 2) == drawn(1, 2, 7)
    different = [drawn(1, 2), drawn(1, 3), drawn(2, 2), drawn(1, 2, place="other")]
    assert len({tuple(numbers) for numbers in different}) == 4


def test_every_place_of_the_model_has_a_key_of_its_own():
    """Keys are 32 bits of a checksum; two places with one key would drop the same units."""
    keep = {name: 0.5 for name in ModelConfig.__dataclass_fields__ if name.endswith("_keep_prob")}
    keys = {}

    class Recorded(MaskStream):
        def _philox(self, place, *args):
            source = super()._philox(place, *args)
            keys[place] = source.state["state"]["key"][1]
            return source

    config = ModelConfig(9, 4, 4, 10, softmax="sampled", num_samples=3, **keep)
    LanguageModel(config)(np.ones((2, 2), int), np.ones((2, 2), int), masks=Recorded(0))
    assert len(keys) == len(set(keys.values())) == 2 + 5 * 10 + 1


def test_ids_are_checked_before_their_masks_are_drawn():
    config = ModelConfig(9, 4, 4, 1, encoder_emb_keep_prob=0.5, encoder_emb_dropout="elements")
    for ids in (np.full((2, 2), 9), np.full((2, 2), -1)):
        with pytest.raises(InputError, match=r"ids must lie in \[0, 9\)"):
            LanguageModel(config)(ids, np.ones((2, 2), int))
