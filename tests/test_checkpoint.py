"""Checkpoints come back bit for bit or are refused in one line; a killed writer leaves a whole one."""

import os
import random
import time

import numpy as np
import pytest
from mpi import kill, run_ranks, start_ranks

from autograd.errors import InputError
from train import checkpoint
from train.checkpoint import load_checkpoint, load_newest, save_checkpoint

h5py = pytest.importorskip("h5py")

META = {"step": 12, "best": 0.1, "config": {"hidden_size": 8, "word": "é"}, "seed": None}


def example_arrays():
    generator = np.random.default_rng(0)
    return {
        "parameters": generator.standard_normal(5000).astype(np.float32),
        "optimizer/m": generator.standard_normal(5000),
        "state/0/h": generator.standard_normal((4, 3)).astype(np.float16),
        "random": generator.integers(0, 2**63, 4, dtype=np.uint64),
        "flags": np.array([True, False]),
        "empty": np.empty((0, 7), np.int32),
        "scalar": np.array(2.5),
        "transposed": np.arange(6).reshape(2, 3).T,
        "meta": np.arange(3),  # not to be taken for the description
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "latest.h5"
    save_checkpoint(path, example_arrays(), META)
    return path


def refusal(path):
    """The message with which loading is refused: one line that names the file."""
    with pytest.raises(InputError) as refused:
        load_checkpoint(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_everything_comes_back_bit_for_bit(saved):
    arrays, meta = load_checkpoint(saved)
    assert meta == META
    assert arrays.keys() == example_arrays().keys()
    for name, expected in example_arrays().items():
        assert arrays[name].dtype == expected.dtype
        assert arrays[name].shape == expected.shape
        assert arrays[name].tobytes() == expected.tobytes(), name


def test_no_arrays_and_a_long_description_are_fine(tmp_path):
    meta = {"words": ["word"] * 100_000}  # longer than an HDF5 attribute may be
    save_checkpoint(tmp_path / "c.h5", {}, meta)
    assert load_checkpoint(tmp_path / "c.h5") == ({}, meta)


def test_a_save_replaces_the_file_and_leaves_nothing_else(saved):
    save_checkpoint(saved, {"parameters": np.ones(3)}, {"step": 13})
    arrays, meta = load_checkpoint(saved)
    assert arrays["parameters"].tolist() == [1, 1, 1]
    assert meta == {"step": 13}
    assert os.listdir(saved.parent) == [saved.name]


def test_what_is_not_numbers_is_refused_and_the_old_file_stays(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="arrays of numbers"):
        save_checkpoint(saved, {"parameters": np.ones(3), "words": np.array(["a", None])}, {})
    with pytest.raises(TypeError):
        save_checkpoint(saved, {}, {"not JSON": object()})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_missing_files_and_folders_are_named(tmp_path):
    assert "found none" in refusal(tmp_path / "none.h5")
    assert "found a folder" in refusal(tmp_path)
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "no folder" / "c.h5", {}, {})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"plain text\n" * 1000])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "c.h5").write_bytes(content)
    assert "not a whole checkpoint" in refusal(tmp_path / "c.h5")


def test_another_hdf5_file_is_refused_with_its_format(tmp_path):
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        file.attrs["format"] = "minilstm-tokens"
    assert "minilstm-tokens" in refusal(tmp_path / "tokens.h5")


def test_a_newer_version_is_refused(saved):
    with h5py.File(saved, "r+") as file:
        file.attrs["version"] = checkpoint.VERSION + 1
    assert f"version {checkpoint.VERSION + 1}" in refusal(saved)


@pytest.mark.parametrize("keep", [1, 7, 47, 500, 4096, 30_000, -100, -1])
def test_a_file_cut_off_anywhere_is_refused(saved, keep):
    whole = saved.read_bytes()
    saved.write_bytes(whole[:keep])
    refusal(saved)


def test_one_flipped_bit_in_any_array_or_the_description_is_found(saved):
    whole = saved.read_bytes()
    with h5py.File(saved, "r") as file:
        datasets = [file["meta"], *(file[f"arrays/{name}"] for name in example_arrays())]
        extents = [(dataset.id.get_offset(), dataset.nbytes) for dataset in datasets if dataset.size]
    assert len(extents) == len(example_arrays())
    for begin, length in extents:
        for place in {begin, begin + length // 2, begin + length - 1}:
            flipped = bytearray(whole)
            flipped[place] ^= 0x10
            saved.write_bytes(flipped)
            assert "not a whole checkpoint" in refusal(saved)


def test_flipped_bits_anywhere_are_found_or_harmless(saved):
    """HDF5's own structures have checksums too; what they do not cover is padding, which carries nothing."""
    whole = saved.read_bytes()
    generator = random.Random(0)
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        try:
            arrays, meta = load_checkpoint(saved)
        except InputError:
            continue
        assert meta == META
        assert all(arrays[name].tobytes() == array.tobytes() for name, array in example_arrays().items())


def test_a_missing_array_is_found(saved):
    with h5py.File(saved, "r+") as file:
        del file["arrays/optimizer/m"]
    assert "checksum" in refusal(saved)


def test_arrays_larger_than_the_file_are_refused_before_they_are_read(saved):
    with h5py.File(saved, "r+") as file:
        file["arrays"].create_dataset("bomb", shape=(1 << 40,), dtype=np.float32)  # takes no room in the file
    assert "declares" in refusal(saved)
    with h5py.File(saved, "r+") as file:
        del file["arrays/bomb"]
        file["arrays"].create_dataset("bomb", data=np.zeros(1 << 20), compression="gzip")
    assert "plain numbers" in refusal(saved)


def test_links_into_other_files_are_not_followed(saved, tmp_path):
    os.rename(saved, tmp_path / "other.h5")
    with h5py.File(saved, "w") as file, h5py.File(tmp_path / "other.h5", "r") as other:
        for name, value in other.attrs.items():
            file.attrs[name] = value
        for name in ("arrays", "meta"):
            file[name] = h5py.ExternalLink("other.h5", name)
    assert "another place" in refusal(saved)


def save_steps(path, steps, keep):
    for step in range(steps):
        save_checkpoint(path, {"parameters": np.full(3, step)}, {"step": step}, keep=keep)


@pytest.mark.parametrize("links", [True, False])
def test_earlier_versions_stay_in_their_order(tmp_path, monkeypatch, links):
    if not links:  # some file systems have none

        def refuse(*names):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "latest.h5"
    (tmp_path / "latest-old.h5").write_text("somebody's own")
    save_steps(path, 5, keep=3)
    names = {"latest.h5": 4, "latest-1.h5": 3, "latest-2.h5": 2}
    assert {name: load_checkpoint(tmp_path / name)[1]["step"] for name in names} == names
    save_checkpoint(path, {}, {"step": 5}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["latest-1.h5", "latest-old.h5", "latest.h5"]
    save_checkpoint(path, {}, {"step": 6}, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["latest-old.h5", "latest.h5"]


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    path = tmp_path / "latest.h5"
    save_steps(path, 3, keep=3)
    assert load_newest(path).path == path
    for damaged, found in (("latest.h5", "latest-1.h5"), ("latest-1.h5", "latest-2.h5")):
        (tmp_path / damaged).write_bytes(path.read_bytes()[:-100])
        newest = load_newest(path)
        assert newest.path.name == found
        assert newest.meta["step"] == newest.arrays["parameters"][0] == 2 - int(found[7])
    assert [bad.name for bad in newest.damaged] == ["latest.h5", "latest-1.h5"]
    (tmp_path / "latest-2.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"/latest.h5 is not a whole checkpoint"):
        load_newest(path)


def test_a_newer_version_is_not_passed_over(tmp_path):
    path = tmp_path / "latest.h5"
    save_steps(path, 2, keep=2)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = checkpoint.VERSION + 1
    with pytest.raises(InputError, match="update it"):
        load_newest(path)


@pytest.mark.parametrize("limit", [0, 100, 2000, 4096, 30_000, 42_000])
def test_a_disk_that_fills_at_any_byte_ends_in_one_error(tmp_path, monkeypatch, limit):
    """HDF5 is let finish: left with a file that it cannot close, it crashes the process at its end."""
    whole = tmp_path / "whole.h5"
    save_checkpoint(whole, example_arrays(), META)
    assert limit < whole.stat().st_size
    write = os.pwrite

    def write_until_full(descriptor, content, place):
        if place + len(content) > limit:
            raise OSError(28, "No space left on device")
        return write(descriptor, content, place)

    monkeypatch.setattr(os, "pwrite", write_until_full)
    with pytest.raises(InputError, match=r"\(no space left on device\); there is none yet"):
        save_checkpoint(tmp_path / "c.h5", example_arrays(), META)
    assert os.listdir(tmp_path) == ["whole.h5"]


def test_a_full_disk_leaves_the_old_file_whole(saved):
    pytest.importorskip("resource")
    before = saved.read_bytes()
    code = f"""
import resource, numpy as np
from train.checkpoint import save_checkpoint
from train.commands import run
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
run(lambda: save_checkpoint({str(saved)!r}, {{"parameters": np.zeros(1 << 20)}}, {{}}))
"""
    result = run_ranks(1, code)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot write the checkpoint")
    assert result.stderr.count("\n") == 1
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "latest.h5"
    code = f"""
import itertools, numpy as np
from train.checkpoint import save_checkpoint
for step in itertools.count():
    save_checkpoint({str(path)!r}, {{"parameters": np.full(300_000, step, np.float32)}}, {{"step": step}})
    print(step, flush=True)
"""
    generator = random.Random(1)
    for _ in range(5):
        process = start_ranks(1, code)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 * generator.random())
        kill(process)
        told = process.communicate()[0].split()
        arrays, meta = load_checkpoint(path)
        assert (arrays["parameters"] == meta["step"]).all()
        assert meta["step"] >= int(told[-1] if told else 0)
    save_checkpoint(path, {}, {})
    assert os.listdir(tmp_path) == [path.name]  # what the killed ones left is gone
