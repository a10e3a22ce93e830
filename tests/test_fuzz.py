"""Broken and hostile files: refused in one line, whatever the bytes. Short here, for hours in `make fuzz`.

Each mend has its file below: what the fuzzing found is never found again.
"""

import importlib.util
import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from fuzz_targets import MEMBERS, TARGETS, TENSORS, tokens_bytes, try_bytes, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_corpus import write_tokens

from autograd.errors import InputError
from train import hdf5
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import TrainConfig, load_run_config
from train.corpus import open_corpus
from train.download import unpack
from train.prepare import ensure_prepared
from train.weight_files import read_tensors

NEEDS = {"torch": "torch", "safetensors": "safetensors"}
SLOW = {"text"}  # prepares a whole data set each time: for `make fuzz`
SHORT = [name for name in TARGETS if name not in SLOW]

damages = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("set"), st.floats(0, 1), st.sampled_from([0, 1, 127, 128, 255])),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("double"), st.floats(0, 1), st.integers(1, 64)),
    ),
    max_size=4,
)


def damaged(content, changes):
    """Bytes with bits flipped, bytes set, the end cut off or parts written twice."""
    content = bytearray(content)
    for kind, where, how in changes:
        place = int(where * (len(content) - 1)) if content else 0
        if kind == "cut":
            del content[place:]
        elif kind == "double":
            content[place:place] = content[place : place + how]
        elif content:
            content[place] = content[place] ^ 1 << how if kind == "flip" else how
    return bytes(content)


@pytest.mark.parametrize("name", SHORT)
def test_damaged_files_are_refused_in_one_line(name, tmp_path):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    target = TARGETS[name]
    seeds = target.seeds(tmp_path)
    accepted = [try_bytes(target, seed, tmp_path / "run") for seed in seeds]
    assert any(accepted), "sound files are accepted"

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(seeds), damages, st.binary(max_size=60))
    def try_damaged(seed, changes, noise):
        try_bytes(target, damaged(seed, changes), tmp_path / "run")
        try_bytes(target, noise, tmp_path / "run")

    try_damaged()


def replaced(path, name, make):
    """A sound token file of which one data set was made anew; texts are in those of the first version."""
    write_tokens(path, first_version=name == "vocabulary")
    with h5py.File(path, "r+") as file:
        del file[name]
        make(file)
    return path


def virtual(file):
    layout = h5py.VirtualLayout((3,), "i4")
    layout[:] = h5py.VirtualSource("other.h5", "train", shape=(3,))
    file.create_virtual_dataset("train", layout)


def many_names_of_one_text(file):
    """References to one long text: 2,000 words of 100 kB each in a file of 200 kB."""
    words = np.array(["<unk>", "<eos>", "x" * 100_000, *"abc"], dtype=h5py.string_dtype())
    file["vocabulary"] = words
    del file["counts"]
    file["counts"] = np.ones(6, np.int64)
    offset = file["vocabulary"].id.get_offset()
    file.flush()
    with open(file.filename, "r+b") as raw:
        raw.seek(offset + 2 * 16)
        long_one = raw.read(16)
        raw.seek(offset + 3 * 16)
        raw.write(long_one * 3)


def numbers(shape=(9,), **how):
    """Makes the data set `train`."""
    return lambda file: file.create_dataset("train", shape, "i4", **how)


def linked(name, link):
    return lambda file: file.__setitem__(name, link)


def texts(shape=None, **how):
    return lambda file: file.create_dataset("vocabulary", shape, **how)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("train", numbers((1 << 45,)), "which are not there"),
        ("train", numbers((1 << 40,), chunks=(1 << 10,)), "which are not there"),
        ("train", numbers((1 << 27,), chunks=(1 << 27,)), "in chunks of"),
        ("train", numbers(data=np.zeros(9), compression="gzip"), "not stored plainly"),
        ("train", virtual, "not stored plainly"),
        ("train", numbers((3,), external=[("/etc/passwd", 0, 12)]), "not stored plainly"),
        ("train", linked("train", h5py.ExternalLink("other.h5", "train")), "lies in another place"),
        ("valid", linked("valid", h5py.SoftLink("/train")), "lies in another place"),
        ("test", lambda file: file.create_group("test"), "its test is no data set"),
        ("vocabulary", many_names_of_one_text, "it declares"),
        ("vocabulary", texts((1 << 40,), dtype=h5py.string_dtype()), "which are not there"),
        ("vocabulary", texts(data=np.array([b"a"])), "not a list of strings"),
    ],
)
def test_a_token_file_may_not_ask_for_more_than_it_holds(tmp_path, name, make, message):
    write_tokens(tmp_path / "other.h5")
    path = replaced(tmp_path / "tokens.h5", name, make)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        open_corpus(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"format": np.zeros(3)},
        {"version": "1"},
        {"complete": np.ones(2)},
        {"recipe": "[1]"},
        {"recipe": "[" * 50_000},
        {"sources": "[1]"},
        {"outside_vocabulary": 7},
    ],
)
def test_a_token_file_whose_attributes_are_something_else_is_refused(tmp_path, changes):
    path = write_tokens(tmp_path / "tokens.h5", **changes)
    with pytest.raises(InputError, match="expected a prepared data set, but"):
        open_corpus(path)


def test_a_prepared_file_with_a_broken_recipe_is_refused_when_it_is_looked_up(tmp_path):
    (tmp_path / "text.txt").write_text("a b a\nb a b\na a b\n")
    path = ensure_prepared(tmp_path / "text.txt", tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["recipe"] = "{"
    with pytest.raises(InputError, match="its recipe is no JSON"):
        ensure_prepared(tmp_path / "text.txt", tmp_path)


def test_a_number_of_a_million_digits_is_refused_in_a_short_line(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[train]\nseed = 0x" + "F" * 100_000)
    with pytest.raises(InputError, match="too long to show"):
        load_run_config(path)
    with pytest.raises(InputError) as error:
        TrainConfig(data=["x" * 10_000])
    assert len(str(error.value)) < 400


def bytes_at(content, place, new):
    return content[:place] + new + content[place + len(new) :]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_break_the_unpacker_are_refused(tmp_path, method):
    """bzip2's and lzma's errors are no BadZipFile, nor is a directory that points before the file's begin."""
    content = zip_of(dict.fromkeys(MEMBERS, bytes(range(256)) * 40), method)
    begin = content.index(b".tokens") + len(b".tokens")
    end = content.index(b"PK\x05\x06")
    broken = [bytes_at(content, begin + 9, b"\xff" * 20), content[:40] + content[140:], content[:end]]
    for number, archive in enumerate(broken):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(archive)
        with pytest.raises(InputError, match="delete "):
            unpack(path, MEMBERS, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_weights_that_unpack_to_far_more_than_they_are_are_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="would unpack to"):
        read_tensors(path)


def test_weights_that_declare_more_numbers_than_they_have_are_refused(tmp_path):
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)}
    np.lib.format.write_array_header_1_0(header, facts)
    path = tmp_path / "liar.npz"
    path.write_bytes(zip_of({"a.npy": header.getvalue() + bytes(40)}))
    with pytest.raises(InputError, match="declares float32"):
        read_tensors(path)
    np.savez(path, **TENSORS)
    assert read_tensors(path).keys() == TENSORS.keys()


def test_the_seeds_of_the_tokens_are_what_prepare_makes(tmp_path):
    """Else the fuzzing would damage files of another kind than those that are read."""
    (tmp_path / "text.txt").write_text("a b a\nb a b\na a b\n")
    with open_corpus(ensure_prepared(tmp_path / "text.txt", tmp_path)) as corpus:
        assert corpus.num_tokens("train") == 4
    assert tokens_bytes(tmp_path).startswith(b"\x89HDF")


def damage_a_heap(path, number):
    """Give the first text of a heap of texts a length with which HDF5 comes no further."""
    content = path.read_bytes()
    places = [place for place in range(len(content)) if content.startswith(b"GCOL", place)]
    path.write_bytes(bytes_at(content, places[number] + 24, b"\xf8" + b"\xff" * 7))


def checkpoint_of_version_2(path):
    save_checkpoint(path, {"parameters": np.ones(3)}, {})
    with h5py.File(path, "r+") as file:
        for name in ("format", "checksum"):
            file.attrs[name] = file.attrs[name].decode()
        file.attrs["version"] = 2


def first_version_with_its_words_apart(path):
    write_tokens(path, first_version=True, recipe=json.dumps({"min_count": 1, "more": "x" * 5000}))


@pytest.mark.parametrize(
    ("make", "load", "heap"),
    [
        (checkpoint_of_version_2, load_checkpoint, 0),
        (first_version_with_its_words_apart, open_corpus, 0),
        (first_version_with_its_words_apart, open_corpus, -1),
    ],
    ids=["checkpoint", "tokens", "words"],
)
def test_a_file_of_before_that_hdf5_comes_to_no_end_with_is_refused(tmp_path, monkeypatch, make, load, heap):
    monkeypatch.setattr(hdf5, "_READ_TEXTS", hdf5._READ_TEXTS.replace("(10, 10)", "(1, 1)"))
    path = tmp_path / "file.h5"
    make(path)
    load(path)
    damage_a_heap(path, heap)
    with pytest.raises(InputError, match="its texts cannot be read"):
        load(path)


def test_files_have_no_heap_that_could_be_damaged_so(tmp_path):
    (tmp_path / "text.txt").write_text("a b a\nb a b\na a b\n")
    prepared = ensure_prepared(tmp_path / "text.txt", tmp_path)
    save_checkpoint(tmp_path / "latest.h5", {"parameters": np.ones(3)}, {})
    write_tokens(tmp_path / "before.h5", first_version=True)
    heaps = [b"GCOL" in path.read_bytes() for path in (prepared, tmp_path / "latest.h5")]
    assert heaps == [False, False]
    assert b"GCOL" in (tmp_path / "before.h5").read_bytes()
