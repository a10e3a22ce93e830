"""Text to token ids: exact counts, honest vocabularies, nothing half done."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from mpi import rank_environment, run_ranks
from wikitext import TEST, TRAIN, VALID, change, names, run_command, wikitext_folder, words_of, write_wikitext

from autograd.errors import InputError
from train.corpus import SPLITS, open_corpus
from train.files import exclusive_lock
from train.prepare import ensure_prepared, prepare

# What comes out.


def test_a_small_folder_by_hand(tmp_path):
    path = prepare(write_wikitext(tmp_path / "text"), tmp_path / "tokens.h5")
    train = [
        "=",
        "Title",
        "=",
        "<eos>",
        "<eos>",
        "the",
        "cat",
        "saw",
        "the",
        "<unk>",
        "dog",
        "<eos>",
        "a",
        "dog",
        "b",
        "<eos>",
    ]
    assert words_of(path, "train") == train
    assert words_of(path, "valid") == ["the", "<unk>", "<eos>", "cat", "cat", "<eos>"]
    assert words_of(path, "test") == ["a", "<eos>"]
    with open_corpus(path) as corpus:
        # <eos> four times; =, the, dog twice in order of appearance; then the rest in order of appearance
        assert corpus.vocabulary.words == [
            "<eos>",
            "=",
            "the",
            "dog",
            "Title",
            "cat",
            "saw",
            "<unk>",
            "a",
            "b",
        ]
        assert corpus.counts.tolist() == [4, 2, 2, 2, 1, 1, 1, 1, 1, 1]
        assert corpus.outside_vocabulary == {"train": 0, "valid": 1, "test": 0}
        assert [source["bytes"] for source in corpus.sources] == [len(TRAIN), len(VALID), len(TEST)]


def test_rare_words_become_unk(tmp_path):
    path = prepare(write_wikitext(tmp_path / "text"), tmp_path / "tokens.h5", min_count=2)
    assert words_of(path, "train") == (
        [
            "=",
            "<unk>",
            "=",
            "<eos>",
            "<eos>",
            "the",
            "<unk>",
            "<unk>",
            "the",
            "<unk>",
            "dog",
            "<eos>",
            "<unk>",
            "dog",
            "<unk>",
            "<eos>",
        ]
    )
    with open_corpus(path) as corpus:
        assert corpus.vocabulary.words == ["<unk>", "<eos>", "=", "the", "dog"]
        assert corpus.counts.tolist() == [6, 4, 2, 2, 2]
        assert corpus.outside_vocabulary == {"train": 5, "valid": 3, "test": 1}


def test_thousands_of_ties_are_broken_by_first_appearance(tmp_path):
    rng = random.Random(0)
    words = [f"w{rng.randrange(5000)}" for _ in range(10_000)]
    text = " ".join(words).encode() + b"\n"
    path = prepare(write_wikitext(tmp_path / "text", text), tmp_path / "tokens.h5")
    with open_corpus(path) as corpus:
        by_frequency = [word for word, _ in collections.Counter([*words, "<eos>"]).most_common()]
        assert corpus.vocabulary.words == [*by_frequency, "<unk>"]


def test_as_many_words_as_wikitext_103_has_are_read_again(tmp_path):
    """HDF5 2.0.0 writes some 80,000 texts in one call into a file that it cannot read."""
    words = [f"w{number}" for number in range(270_000)]
    text = "\n".join(" ".join(words[start : start + 1000]) for start in range(0, len(words), 1000))
    path = prepare(write_wikitext(tmp_path / "text", train=text.encode()), tmp_path / "tokens.h5")
    with open_corpus(path) as corpus:
        assert len(corpus.vocabulary) == len({*words, "<eos>", "<unk>"})
        assert set(words) < set(corpus.vocabulary.words)


def test_unk_is_there_even_if_no_text_needs_it(tmp_path):
    path = prepare(write_wikitext(tmp_path / "text", b"a b\n", b"a\n", b"b\n"), tmp_path / "tokens.h5")
    with open_corpus(path) as corpus:
        assert corpus.vocabulary.words == ["a", "b", "<eos>", "<unk>"]
        assert corpus.counts.tolist() == [1, 1, 1, 0]


def random_text(rng, num_lines):
    alphabet = ["a", "bb", "ccc", "é", "日本", "<unk>", "d-d", "."]
    lines = (" ".join(rng.choices(alphabet, k=rng.randrange(6))) for _ in range(num_lines))
    return "\n".join(lines) + rng.choice(["", " ", "\n", " \n"])


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_any_size_give_what_a_plain_reading_gives(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    texts = [random_text(rng, 60) for _ in SPLITS]
    folder = write_wikitext(tmp_path / "text", *(text.encode() for text in texts))
    monkeypatch.setattr("train.text.BLOCK", rng.choice([1, 2, 5, 64]))
    monkeypatch.setattr("train.prepare._BLOCK", 7)
    min_count = rng.choice([1, 10])
    path = prepare(folder, tmp_path / "tokens.h5", min_count=min_count)

    plain = [
        [word for line in text.removesuffix("\n").split("\n") for word in [*line.split(), "<eos>"]]
        for text in texts
    ]
    counts = collections.Counter(plain[0])
    known = {word for word, count in counts.items() if count >= min_count} | {"<eos>", "<unk>"}
    for split, words in zip(SPLITS, plain, strict=True):
        assert words_of(path, split) == [word if word in known else "<unk>" for word in words]


def test_published_counts_of_wikitext_2(tmp_path):
    path = prepare(wikitext_folder("wikitext-2"), tmp_path / "tokens.h5")
    with open_corpus(path) as corpus:
        assert [corpus.num_tokens(split) for split in SPLITS] == [2_088_628, 217_646, 245_569]
        assert len(corpus.vocabulary) == 33_278
        assert corpus.outside_vocabulary == dict.fromkeys(SPLITS, 0)
        assert (np.diff(corpus.counts) <= 0).all()
        assert corpus.counts.sum() == 2_088_628
        ids = corpus.tokens("train")[:]
        np.testing.assert_array_equal(np.bincount(ids), corpus.counts)


def test_published_counts_of_wikitext_103_valid_and_test(tmp_path):
    given = wikitext_folder("wikitext-103")
    valid, test = ((given / f"wiki.{split}.tokens").read_bytes() for split in ("valid", "test"))
    folder = write_wikitext(tmp_path / "text", TRAIN, valid, test)
    with open_corpus(prepare(folder, tmp_path / "tokens.h5")) as corpus:
        assert [corpus.num_tokens(split) for split in ("valid", "test")] == [217_646, 245_569]


# What is there already.


def test_a_file_made_from_the_same_text_is_left_as_it_is(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    path = prepare(folder, data_dir=tmp_path)
    before = change(path)
    assert prepare(folder, data_dir=tmp_path) == ensure_prepared(folder, tmp_path) == path
    assert ensure_prepared(path) == path
    assert change(path) == before
    prepare(folder, data_dir=tmp_path, force=True)
    assert change(path) != before


def test_prepare_never_overwrites_another_data_set_unasked(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    path = prepare(folder, data_dir=tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="add --force or --out"):
        prepare(folder, path, min_count=2)
    write_wikitext(folder, train=b"other text now\n")
    with pytest.raises(InputError, match="add --force or --out"):
        prepare(folder, data_dir=tmp_path)
    assert path.read_bytes() == before
    prepare(folder, data_dir=tmp_path, force=True)
    assert words_of(path, "train") == ["other", "text", "now", "<eos>"]


def test_ensure_prepared_refuses_other_text(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    path = prepare(folder, data_dir=tmp_path)
    before = change(path)
    ensure_prepared(folder, tmp_path)
    assert change(path) == before
    write_wikitext(folder, train=b"x x y\n")
    with pytest.raises(InputError, match=r"made from other text.*; give --data .*text.h5 to use it as it is"):
        ensure_prepared(folder, tmp_path)
    assert change(path) == before


def test_vocabularies_of_one_text_lie_side_by_side(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    own, twice = prepare(folder, data_dir=tmp_path), prepare(folder, data_dir=tmp_path, min_count=2)
    assert (own.name, twice.name) == ("text.h5", "text-min2.h5")
    assert prepare(folder, data_dir=tmp_path, min_count=1) == own  # its own minimum count, said aloud
    assert ensure_prepared(folder, tmp_path) == ensure_prepared(folder, tmp_path, min_count=1) == own
    assert ensure_prepared(folder, tmp_path, min_count=2) == twice
    sizes = []
    for path in (own, twice):
        with open_corpus(path) as corpus:
            sizes.append((corpus.recipe["min_count"], len(corpus.vocabulary)))
    assert sizes == [(1, 10), (2, 5)]
    assert ensure_prepared(folder, tmp_path / "new", min_count=2) == tmp_path / "new" / "text-min2.h5"


def test_a_file_of_another_minimum_count_does_not_pass_for_the_one_that_is_asked_for(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    path = prepare(folder, tmp_path / "text.h5", min_count=2)  # under the name of minimum count 1
    before = change(path)
    with pytest.raises(InputError, match=r"in another way; .*python -m train\.prepare .*text --force"):
        ensure_prepared(folder, tmp_path)
    assert ensure_prepared(path) == ensure_prepared(path, min_count=2) == path
    with pytest.raises(InputError, match="prepared with minimum count 2, not 3; give --data the text"):
        ensure_prepared(path, min_count=3)
    assert change(path) == before


def test_what_is_no_data_set_is_never_overwritten(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    (tmp_path / "text.h5").write_text("my notes")
    for refuse in (lambda: ensure_prepared(folder, tmp_path), lambda: prepare(folder, data_dir=tmp_path)):
        with pytest.raises(InputError, match="not HDF5"):
            refuse()
    assert (tmp_path / "text.h5").read_text() == "my notes"


def test_the_data_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILSTM_DATA", str(tmp_path / "there"))
    assert ensure_prepared(write_wikitext(tmp_path / "text")) == tmp_path / "there" / "text.h5"


# Killed, or two at once.


@pytest.mark.parametrize("place", ["train.word_ids.WordIds.rank", "train.prepare._renumber", "os.replace"])
def test_a_killed_preparation_leaves_nothing_that_passes_for_a_finished_file(tmp_path, place):
    folder, data = write_wikitext(tmp_path / "text"), tmp_path / "data"
    code = (
        "import os, signal, sys\n"
        "from unittest import mock\n"
        "import train.prepare\n"
        f"with mock.patch({place!r}, lambda *_: os.kill(os.getpid(), signal.SIGKILL)):\n"
        "    train.prepare.main(sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, folder, "--data-dir", data],
        env=rank_environment(),
        stderr=subprocess.DEVNULL,
    )
    assert killed.returncode == -signal.SIGKILL
    leftovers = names(data)
    assert len(leftovers) == 2
    assert leftovers[0].endswith(".tmp")
    assert leftovers[1] == "text.h5.lock"
    if place != "os.replace":  # there all is written but the name
        os.link(data / leftovers[0], tmp_path / "torn.h5")
        with pytest.raises(InputError):
            open_corpus(tmp_path / "torn.h5")
    prepare(folder, data_dir=data)
    assert names(data) == ["text.h5"]


def test_sigkill_at_any_time_keeps_the_old_file(tmp_path):
    folder, path = write_wikitext(tmp_path / "text"), tmp_path / "tokens.h5"
    prepare(folder, path)
    before = path.read_bytes()
    write_wikitext(
        folder, train=b"".join(b"word%d and another\n" % (line % 5000) for line in range(1_500_000))
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "train.prepare", folder, "--out", path, "--force"],
        env=rank_environment(),
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and sum(entry.stat().st_size for entry in tmp_path.glob(".*.tmp")) < 1 << 20:
        pass
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes() == before


def test_two_at_once_the_second_is_told(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    with exclusive_lock(tmp_path / "text.h5"):
        result = run_command(folder, "--data-dir", tmp_path)
    assert result.returncode == 2
    assert "another process is writing text.h5" in result.stderr
    assert names(tmp_path) == ["text"]


# Ranks.

RANKS = """
import sys
from pathlib import Path
from train.commands import run
from train.communicator import get_communicator
from train.prepare import ensure_prepared
def main():
    comm = get_communicator()
    import train.prepare
    notes = Path(sys.argv[3], f"rank{comm.rank}").open("w")
    write = train.prepare._write
    def noted(*arguments):
        notes.write("wrote ")
        return write(*arguments)
    train.prepare._write = noted
    path = ensure_prepared(sys.argv[1], sys.argv[2], comm)
    assert path.exists()
    notes.write(f"has {path.name}")
    notes.close()
run(main)
"""


def test_only_rank_0_prepares_and_all_get_the_path(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    result = run_ranks(3, RANKS, str(folder), str(tmp_path / "data"), str(tmp_path))
    assert result.returncode == 0, result.stderr
    notes = [(tmp_path / f"rank{rank}").read_text() for rank in range(3)]
    assert notes == ["wrote has text.h5", "has text.h5", "has text.h5"]


def test_no_rank_waits_for_a_root_that_failed(tmp_path):
    result = run_ranks(3, RANKS, str(tmp_path / "missing"), str(tmp_path / "data"), str(tmp_path), timeout=30)
    assert result.returncode == 2
    assert result.stderr.count("nothing is there") == 1


def test_an_operating_system_error_is_one_line(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Not a directory|File exists"):
        prepare(folder, tmp_path / "file" / "tokens.h5")


def test_a_full_disk_is_one_line_and_nothing_written(tmp_path, monkeypatch):
    folder = write_wikitext(tmp_path / "text", train=b"a few words\n" * 300_000)
    free = iter([1 << 30, 1 << 30, 1 << 20])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))
    with pytest.raises(InputError, match="MB of free disk, got 1 MB"):
        prepare(folder, tmp_path / "made" / "tokens.h5")
    assert next(free, None) is None
    assert names(tmp_path) == ["text"]


# The command.


def test_the_command_says_what_came_out(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    result = run_command(folder, "--data-dir", tmp_path, "--min-count", "2")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == [str(tmp_path / "text-min2.h5")]
    assert [line[:3] for line in lines[1:]] == [
        ["train", "16", "tokens,"],
        ["valid", "6", "tokens,"],
        ["test", "2", "tokens,"],
        ["vocabulary", "5", "words,"],
    ]
    with h5py.File(tmp_path / "text-min2.h5") as file:
        assert json.loads(file.attrs["recipe"])["min_count"] == 2


def test_a_disk_that_fills_meanwhile_is_one_line_and_nothing_written(tmp_path):
    """Left with a file that it cannot close, HDF5 would crash the process at its end."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 20_000)
    code = f"""
import resource
from train import prepare
from train.commands import run
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
run(lambda: prepare.main([{str(tmp_path / "text.txt")!r}, "--out", {str(tmp_path / "out" / "t.h5")!r}]))
"""
    result = run_ranks(1, code)
    assert (result.returncode, result.stderr.count("error:")) == (2, 1)
    assert result.stderr.endswith("t.h5: File too large\n")
    assert os.listdir(tmp_path) == ["text.txt"]
