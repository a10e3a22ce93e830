"""Words to provisional ids: by the table of short words as by a dictionary alone."""

import numpy as np
import pytest

from train.word_ids import ShortWords, WordIds


def plainly(blocks):
    """The twin: every word of every block by a dictionary, in the order of first appearance."""
    ids = {}
    words = [block.replace(b"\n", b" <eos> ").split() for block in blocks]
    return [[ids.setdefault(word, len(ids)) for word in block] for block in words], list(ids)


def encoded(blocks):
    words = WordIds()
    ids = [words.encode(block) for block in blocks]
    assert {array.dtype for array in ids} == {np.dtype(np.int32)}
    return [array.tolist() for array in ids], list(words._ids)


def random_block(rng, words, longest):
    """Words of less than `longest` bytes, few different ones, between all kinds of white space."""
    alphabet = np.frombuffer("abé\u4e2d.<>".encode(), np.uint8)
    parts = []
    for _ in range(words):
        some = alphabet[: rng.integers(1, len(alphabet))]
        parts.append(rng.choice(some, rng.integers(1, longest)).tobytes())
        parts.append(rng.choice([b" ", b"\n", b"\t", b"\r\n", b"  ", b"\v", b"\f \n"]))
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_gives_what_a_dictionary_gives(seed):
    rng = np.random.default_rng(seed)
    blocks = [random_block(rng, rng.integers(0, 3000), rng.choice([4, 9, 10, 30])) for _ in range(6)]
    assert encoded(blocks) == plainly(blocks)


@pytest.mark.parametrize(
    "blocks",
    [
        [b""],
        [b" \n \n", b"\n"],
        [b"12345678 123456789 1234567 12345678 12345678\xff"],  # one begins with the other
        [b"<eos> <eos>\n", b"<eos>"],
        [b"\xff" * 8 + b" " + b"\xff" * 7 + b" \xff"],
    ],
)
def test_the_edges_of_words_and_keys(blocks):
    assert encoded(blocks * 2) == plainly(blocks * 2)


def test_numbers_follow_first_appearance_of_short_words_and_long_ones():
    ids, words = encoded([b"a much-longer b a", b"c another-one b much-longer"])
    assert ids == [[0, 1, 2, 0], [3, 4, 2, 1]]
    assert words == [b"a", b"much-longer", b"b", b"c", b"another-one"]


@pytest.mark.parametrize("bits", [63, 3])
def test_the_table_finds_what_was_added_and_nothing_else(bits, monkeypatch):
    """With 3 bits of a hash all keys begin to look for their slots at one of eight places."""
    slots = ShortWords._slots
    monkeypatch.setattr(ShortWords, "_slots", lambda self, keys: slots(self, keys) & ((1 << bits) - 1))
    rng, table, known = np.random.default_rng(0), ShortWords(), {}
    for size in (1, 7, 40, 400):
        keys = rng.integers(1, 1 << 63, size, dtype=np.uint64)
        keys = np.append(keys, keys[: size // 2])  # some come twice, always with one id
        new = np.array([known.setdefault(key, len(known)) for key in keys.tolist()], np.int32)
        table.add(np.append(keys, np.uint64(0)), np.append(new, np.int32(9)))
        everything = np.array(list(known), np.uint64)
        assert table.find(everything).tolist() == list(known.values())
        assert set(table.find(everything ^ np.uint64(1 << 63)).tolist()) == {-1}
        assert table.find(np.zeros(1, np.uint64)).tolist() == [-1]
        assert 2 * len(known) <= len(table._keys)


def test_the_dictionary_is_not_asked_twice_for_a_short_word():
    words, asked = WordIds(), []

    class Asked(type(words._ids)):
        def __getitem__(self, word):
            asked.append(word)
            return super().__getitem__(word)

    words._ids = Asked(words._ids.default_factory)
    first = words.encode(b"one two extraordinary two one")
    assert asked == [b"one", b"two", b"extraordinary", b"two", b"one"]
    asked.clear()
    assert words.encode(b"one two extraordinary three").tolist() == [*first[:3].tolist(), 3]
    assert asked == [b"extraordinary", b"three"]
