"""What the fuzzing throws broken and hostile bytes at: every loader of a file that came from elsewhere.

A target gives sound files to start from and a way to load one. Whatever the bytes, loading ends in one of two
ways: well, or with an InputError, which the commands print as one line. `try_bytes` also sees to it that the
input is as it was and that no file was made outside the folder where files may be made.
"""

import contextlib
import io
import itertools
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from autograd.errors import InputError
from train.checkpoint import load_checkpoint, save_checkpoint
from train.config import load_run_config, sections_of, to_toml
from train.corpus import open_corpus
from train.download import unpack
from train.flags import parse_setting
from train.metrics import read_metrics
from train.rank_watch import read_sign
from train.run_folder import RunFolder
from train.weight_files import read_tensors

MEMBERS = {"wikitext-2/wiki.train.tokens": "wiki.train.tokens"}


@dataclass(frozen=True)
class Target:
    """A kind of file: its name, the file's name, a maker of sound files in a scratch folder, the loader."""

    name: str
    file: str
    seeds: Callable[[Path], list[bytes]]
    load: Callable[[Path], object]


def try_bytes(target: Target, content: bytes, folder: Path) -> bool:
    """Load `content` as the target's file in a fresh `folder`; True if it was accepted.

    Raises:
        Exception: whatever the loader raised that is no InputError.
        AssertionError: the message has several lines, the input has changed, or files were made beside it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in" / "deep").mkdir(parents=True)
    (folder / "in" / "out").mkdir()
    path = folder / "in" / "deep" / target.file
    path.write_bytes(content)
    try:
        target.load(path)
        accepted = True
    except InputError as error:
        accepted = False
        message = " ".join(str(error).splitlines())
        assert len(message) < 10_000, "a message that nobody can read"
        message.encode(errors="replace")
    assert path.read_bytes() == content, "the input was changed"
    made = {str(entry.relative_to(folder)) for entry in folder.rglob("*")}
    strange = {name for name in made if not name.startswith("in/out/")} - {
        "in", "in/deep", "in/out", f"in/deep/{target.file}"
    }  # fmt: skip
    assert not strange, f"files were made outside their folder: {strange}"
    return accepted


# --- prepared data and checkpoints, in HDF5 ---


def tokens_bytes(folder: Path, **changes: object) -> bytes:
    from test_corpus import write_tokens

    return write_tokens(folder / "seed.h5", **changes).read_bytes()


def _tokens_seeds(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [tokens_bytes(folder), tokens_bytes(folder, train=rng.integers(0, 4, 3000, np.int32))]


def _load_tokens(path: Path) -> None:
    with open_corpus(path) as corpus:
        corpus.read("train", 0, min(10, corpus.num_tokens("train")))


def _checkpoint_seeds(folder: Path) -> list[bytes]:
    arrays = {
        "parameters": np.arange(7, dtype=np.float32),
        "optimizer/m": np.zeros((2, 3)),
        "s/0/h": np.eye(2),
    }
    save_checkpoint(folder / "seed.h5", arrays, {"position": {"step": 3}})
    return [(folder / "seed.h5").read_bytes()]


class Choices:
    """Numbers from a string of bytes, one after the other; zeros once it is used up."""

    def __init__(self, content: bytes) -> None:
        self._bytes = itertools.chain(content, itertools.repeat(0))

    def pick(self, options):
        return options[next(self._bytes) % len(options)]

    def size(self) -> int:
        """A length: small, or so large that nothing may be made of it."""
        return self.pick([0, 1, 2, 3, 7, 64, 1000, 1 << 20, 1 << 33, 1 << 45, (1 << 62) + 1])


DTYPES = ["i4", "i8", "f4", "f8", "u1", "S3", "?", "c8", ">i4", "f2", "V8", h5py.string_dtype()]


def hostile_hdf5(choices: Choices, sound: bytes, names: list[str], folder: Path) -> bytes:
    """A sound HDF5 file of which some parts were replaced by what an attacker would put there."""
    path = folder / "hostile.h5"
    path.write_bytes(sound)
    (folder / "other.h5").write_bytes(sound)
    with h5py.File(path, "r+") as file:
        for _ in range(choices.pick([0, 1, 2, 3])):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RuntimeError):
                _replace_part(choices, file, choices.pick(names))  # HDF5 itself refuses some of it
    content = path.read_bytes()
    path.unlink()
    (folder / "other.h5").unlink()
    return content


def _replace_part(choices: Choices, file: h5py.File, name: str) -> None:
    parent = file
    kind = choices.pick(
        ["shape", "chunks", "zipped", "link", "virtual", "external", "group", "attribute", "gone"]
    )
    if kind == "attribute":
        attribute = choices.pick(sorted(file.attrs) or ["format"])
        values = [
            b"\xff",
            2**63,
            -1,
            1.5,
            "{",
            "[" * 50_000,
            "\x00",
            np.zeros((3, 3)),
            h5py.Empty("f4"),
            True,
            "1",
            "",
        ]
        file.attrs[attribute] = choices.pick(values)
        return
    if name in parent:
        del parent[name]
    dtype, size = choices.pick(DTYPES), choices.size()
    if kind == "shape":
        shape = choices.pick([(size,), (size, size), (), (1, size)])
        parent.create_dataset(name, shape, dtype) if math.prod(shape) < 1 << 60 else None
    elif kind in ("chunks", "zipped"):
        chunk = (min(max(size, 1), 1 << choices.pick([3, 10, 28])),)
        zipped = {"compression": "gzip"} if kind == "zipped" else {}
        with_room = max(size, chunk[0]) < 1 << 46
        data = (
            parent.create_dataset(name, (max(size, chunk[0]),), dtype, chunks=chunk, **zipped)
            if with_room
            else None
        )
        if data is not None and data.dtype.kind in "if" and chunk[0] <= 1 << 20:
            data[-1:] = 1
    elif kind == "link":
        other = choices.pick([name, "train", "arrays/parameters", "/"])
        links = [h5py.ExternalLink("other.h5", other), h5py.SoftLink("/" + other), h5py.SoftLink("/nowhere")]
        parent[name] = choices.pick([*links, h5py.ExternalLink("/dev/zero", "x"), h5py.SoftLink("/" + name)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((min(size, 1 << 40) + 1,), "i4")
        layout[:1] = h5py.VirtualSource(choices.pick(["other.h5", "/etc/hostname", "."]), "train", shape=(1,))
        parent.create_virtual_dataset(name, layout)
    elif kind == "external":
        where = choices.pick(["/etc/passwd", "other.h5", "../../made"])
        parent.create_dataset(name, (min(size, 1 << 20),), "i4", external=[(where, 0, h5py.h5f.UNLIMITED)])
    elif kind == "group":
        parent.create_group(name)


def _structure(
    sound: Callable[[Path], list[bytes]], names: list[str], load: Callable
) -> Callable[[Path], None]:
    def load_hostile(path: Path) -> None:
        choices = path.read_bytes()
        scratch = path.parents[1] / "out"
        hostile = scratch / "file.h5"
        hostile.write_bytes(hostile_hdf5(Choices(choices), sound(scratch)[0], names, scratch))
        before = hostile.read_bytes()
        try:
            load(hostile)
        finally:
            assert hostile.read_bytes() == before, "the input was changed"

    return load_hostile


# --- text ---


def _config_seeds(folder: Path) -> list[bytes]:
    from train.config import RunConfig, TrainConfig

    every_knob = to_toml(RunConfig({"vocab_size": 30}, TrainConfig())).encode()
    return [
        every_knob,
        b"[train]\nbatch_size = 0x7f\ndecay_epochs = [1, 2]\n[model]\nhidden_size = 7\n",
        b"a.b.c = [[{x=1}]]",
    ]


def _load_setting(path: Path) -> None:
    sections_of([parse_setting(path.read_bytes().decode(errors="surrogateescape"))], "--set")


def _metrics_seeds(folder: Path) -> list[bytes]:
    row = {"kind": "train", "step": 3, "loss": 1.5, "perplexity": None, "split": "valid"}
    return [(json.dumps(row) + "\n").encode() * 3]


def _load_run_words(path: Path) -> None:
    run = RunFolder(path.parent)
    assert run.vocabulary == path
    run.read_vocabulary()


def _load_words(path: Path) -> None:
    from train.import_weights import _checked_words, _read_words

    _checked_words(_read_words(path), path)


def _load_text(path: Path) -> None:
    from train.prepare import prepare

    prepare(path, path.parents[1] / "out" / "tokens.h5")


# --- archives and weights ---


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _zip_seeds(folder: Path) -> list[bytes]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    sound = [zip_of(dict.fromkeys(MEMBERS, b"the cat sat\n" * 9), method) for method in methods]
    return [*sound, zip_of({**dict.fromkeys(MEMBERS, b"a"), "../../escaped": b"b"})]


def _load_zip(path: Path) -> None:
    unpack(path, MEMBERS, path.parents[1] / "out" / "wikitext-2", max_bytes=1 << 20)


TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float16)}


def _npz_seeds(folder: Path) -> list[bytes]:
    plain, small = io.BytesIO(), io.BytesIO()
    np.savez(plain, **TENSORS)
    np.savez_compressed(small, **TENSORS)
    return [plain.getvalue(), small.getvalue()]


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    return [save(TENSORS)]


def _torch_seeds(folder: Path) -> list[bytes]:
    import torch

    seeds = []
    for form in (True, False):
        stream = io.BytesIO()
        torch.save(
            {k: torch.from_numpy(v) for k, v in TENSORS.items()}, stream, _use_new_zipfile_serialization=form
        )
        seeds.append(stream.getvalue())
    return seeds


TOKEN_PARTS = ["train", "valid", "test", "vocabulary", "counts"]
CHECKPOINT_PARTS = ["meta", "arrays", "arrays/parameters", "arrays/new"]
_NO_BYTES = [b"", bytes(range(40)), bytes(range(3, 255, 7))]
TARGETS = {
    target.name: target
    for target in (
        Target("tokens", "tokens.h5", _tokens_seeds, _load_tokens),
        Target("checkpoint", "latest.h5", _checkpoint_seeds, load_checkpoint),
        Target(
            "tokens-parts",
            "choices",
            lambda folder: _NO_BYTES,
            _structure(_tokens_seeds, TOKEN_PARTS, _load_tokens),
        ),
        Target(
            "checkpoint-parts",
            "choices",
            lambda folder: _NO_BYTES,
            _structure(_checkpoint_seeds, CHECKPOINT_PARTS, load_checkpoint),
        ),
        Target("config", "config.toml", _config_seeds, load_run_config),
        Target("setting", "setting", lambda folder: [b"seed=1", b"decay_epochs=[1]"], _load_setting),
        Target("metrics", "metrics.jsonl", _metrics_seeds, read_metrics),
        Target("sign", "rank-0-of-2.json", lambda folder: [b'{"rank": 0, "size": 2}'], read_sign),
        Target(
            "vocabulary", "vocabulary.txt", lambda folder: ["a\n<unk>\n<eos>\né\n".encode()], _load_run_words
        ),
        Target("words", "words.json", lambda folder: [b'["a", "<unk>", "<eos>"]'], _load_words),
        Target("text", "text.txt", lambda folder: ["a b\nc d é\na\n".encode() * 3], _load_text),
        Target("zip", "file.zip", _zip_seeds, _load_zip),
        Target("npz", "weights.npz", _npz_seeds, read_tensors),
        Target("safetensors", "weights.safetensors", _safetensors_seeds, read_tensors),
        Target("torch", "weights.pt", _torch_seeds, read_tensors),
    )
}
