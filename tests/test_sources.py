"""Where text comes from: what a source is taken for, how it is split, and which are refused."""

import pytest
from wikitext import names, run_command, words_of, write_wikitext

from autograd.errors import InputError
from train.corpus import SPLITS, open_corpus
from train.prepare import ensure_prepared, prepare
from train.sources import find_source
from train.text import memory_text, whole_words


@pytest.mark.parametrize("block", [4, 1 << 20])
@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("num_lines", [3, 19, 20, 100, 119])
def test_a_text_file_is_split_by_lines(tmp_path, monkeypatch, num_lines, ending, block):
    monkeypatch.setattr("train.text.BLOCK", block)
    monkeypatch.setattr("train.sources.BLOCK", block)
    source = tmp_path / "book.txt"
    source.write_text("\n".join(f"w{line}" for line in range(num_lines)) + ending)
    path = prepare(source, data_dir=tmp_path / "data", min_count=1)
    assert path == tmp_path / "data" / "book-min1.h5"
    tail = max(1, num_lines * 5 // 100)
    assert words_of(path, "train")[::2] == [f"w{line}" for line in range(num_lines - 2 * tail)]
    assert words_of(path, "train")[1::2] == ["<eos>"] * (num_lines - 2 * tail)
    for split in ("valid", "test"):
        assert words_of(path, split) == ["<unk>", "<eos>"] * tail
    with open_corpus(path) as corpus:
        assert [source["name"] for source in corpus.sources] == ["book.txt"]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    path = prepare(write_wikitext(tmp_path / "text", b"\xef\xbb\xbfone two\n"), tmp_path / "tokens.h5")
    assert words_of(path, "train") == ["one", "two", "<eos>"]


def test_a_word_without_end_is_refused_before_it_fills_the_memory():
    text = memory_text("text", b"x" * (4 << 20))
    with pytest.raises(InputError, match="without a space or newline"):
        list(whole_words("text", text.blocks()))


def test_a_name_whose_data_set_lies_ready_needs_no_download(tmp_path):
    prepare(write_wikitext(tmp_path / "text"), tmp_path / "wikitext-103.h5")
    assert ensure_prepared("wikitext-103", tmp_path) == tmp_path / "wikitext-103.h5"


def test_a_name_whose_text_was_unzipped_by_hand_needs_no_download(tmp_path):
    write_wikitext(tmp_path / "wikitext-2")
    assert words_of(ensure_prepared("wikitext-2", tmp_path), "test") == ["a", "<eos>"]


def test_the_source_is_a_name_before_it_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wikitext(tmp_path / "wikitext-2")
    assert find_source("wikitext-2", tmp_path / "data").files() == []
    assert len(find_source("./wikitext-2", tmp_path / "data").files()) == 3


BAD_SOURCES = {
    "missing": (None, "nothing is there"),
    "empty": (b"", "got an empty file"),
    "zeros": (b"some\0text\n" * 9, "got a NUL byte at byte 4"),
    "latin1": ("café\n".encode("latin-1") * 9, "got byte 0xe9 at byte 3; convert it to UTF-8"),
    "utf16": ("text\n".encode("utf-16") * 9, "expected UTF-8 text"),
    "blank": (b"\n \n\n\n", "expected words seen at least 2 times, got none"),
    "short": (b"one line\nand another\n", "expected 3 lines at least to split 90/5/5, got 2"),
    "rare": (b"a\nb\nc\nd\n", "expected words seen at least 2 times, got none"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_text_file_is_one_line_and_nothing_written(tmp_path, name):
    content, message = BAD_SOURCES[name]
    source = tmp_path / "text.txt"
    if content is not None:
        source.write_bytes(content)
    before = names(tmp_path)
    result = run_command(source, "--data-dir", tmp_path / "data")
    assert result.returncode == 2
    error = [line for line in result.stderr.splitlines() if not line.startswith("preparing")]
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert message in error[0]
    assert result.stdout == ""
    assert names(tmp_path) == before


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "lacks wiki.{}.tokens"), (b"", "wiki.{}.tokens: expected text, got an empty file")],
)
def test_a_folder_with_a_bad_split_is_refused(tmp_path, split, content, message):
    folder = write_wikitext(tmp_path / "text", **{split: content})
    with pytest.raises(InputError, match=message.format(split)):
        prepare(folder, data_dir=tmp_path / "data")
    assert names(tmp_path) == ["text"]


def test_a_folder_of_the_penn_treebank_is_known_by_its_names(tmp_path):
    folder = tmp_path / "penn"
    folder.mkdir()
    for split, text in zip(SPLITS, (" a b N \n <unk> a \n", " b \n", " N c \n"), strict=True):
        (folder / f"ptb.{split}.txt").write_text(text)
    path = prepare(folder, data_dir=tmp_path)
    assert words_of(path, "train") == ["a", "b", "N", "<eos>", "<unk>", "a", "<eos>"]
    assert words_of(path, "test") == ["N", "<unk>", "<eos>"]
    with open_corpus(path) as corpus:
        assert corpus.recipe == {"form": "ptb", "split": "as given", "min_count": 1} | {
            "tokens": corpus.recipe["tokens"]
        }
    (folder / "ptb.test.txt").unlink()
    with pytest.raises(InputError, match=r"ptb\.\{train,valid,test\}\.txt, lacks ptb.test.txt"):
        find_source(folder, tmp_path)


def test_bytes_that_are_no_text_late_in_a_split_leave_nothing(tmp_path):
    folder = write_wikitext(tmp_path / "text", test=b"fine words\n" * 300_000 + b"\xff\n")
    with pytest.raises(
        InputError, match=r"wiki\.test\.tokens: expected UTF-8 text, got byte 0xff at byte 3300000"
    ):
        prepare(folder, tmp_path / "made" / "here" / "tokens.h5")
    assert names(tmp_path) == ["text"]


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    folder = write_wikitext(tmp_path / "text")
    text = tmp_path / "book.txt"
    text.write_text("a\na\na\n")
    for arguments, message in (
        ({"source": folder, "min_count": 0}, "min_count: expected at least 1, got 0"),
        ({"source": folder, "out": tmp_path}, "got a folder"),
        ({"source": text, "out": text, "force": True}, "is the source itself"),
        ({"source": "wikitext2"}, "the nearest known name is 'wikitext-2'"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(**arguments, data_dir=tmp_path / "data")
    assert text.read_text() == "a\na\na\n"
    assert names(tmp_path) == ["book.txt", "text"]
