"""Checkpoints: named arrays and a JSON description in one HDF5 file, whole or absent.

The file holds the description as the dataset `meta` (UTF-8 JSON) and each array as a dataset below `arrays`,
and on its root the attributes `format`, `version` and `checksum`: BLAKE2b-256 over the description and every
array, each with its name, type and shape, verified at loading. Every dataset is stored plainly (contiguous,
inside the file), so that a file cannot ask for more memory than its own size.

Versions: 1; 2, since which a run's position says whether the validation of its step is still to be made (a
run may now end on a signal in the middle of one); 3, since which the attributes are of fixed length. Older
files are read, as `_UPGRADES` says.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autograd.errors import InputError
from train.files import atomic_write, versions
from train.hdf5 import LIBVER, NewFile, attribute, fixed, try_texts

if TYPE_CHECKING:
    import h5py

FORMAT = "minilstm-checkpoint"
VERSION = 3
_FIXED = 3  # the first version without texts of variable length
_PIECE = 16 << 20  # bytes hashed at once
_NUMBERS = "biufc"  # kinds of array that are kept: plain numbers, nothing that needs code to be read


class DamagedCheckpointError(InputError):
    """A file that was a checkpoint, or should be one, and is torn, cut off or changed."""


def save_checkpoint(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], meta: dict[str, Any], keep: int | None = None
) -> None:
    """Write a checkpoint that replaces `path` only once it is whole and on the disk.

    Args:
        path: the file, in a folder that exists.
        arrays: arrays of numbers by name; a slash in a name makes a group, as in "optimizer/m".
        meta: what JSON can hold.
        keep: with this one, how many files stay, as in `atomic_write`; None: older ones are not looked at.

    Raises:
        InputError: the file cannot be written (no such folder, no right, disk full); an earlier file is
        untouched.
    """
    import h5py

    description = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    try:
        with (
            atomic_write(path, keep) as temporary,
            NewFile(temporary) as kept_open,
            h5py.File(kept_open, "w", libver=LIBVER) as file,
        ):
            _write(file, description, arrays)
    except OSError as error:
        reason = (error.strerror or _one_line(error)).lower()
        raise InputError(f"cannot write the checkpoint {path} ({reason}); {_left(path)}") from None


def _write(file: "h5py.File", description: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    checksum = _Checksum()
    for name, array in [("meta", description), *_in_order(arrays)]:
        plain = np.asarray(array, order="C")
        if plain.dtype.kind not in _NUMBERS:
            raise TypeError(f"a checkpoint holds arrays of numbers; {name} is of type {plain.dtype}")
        file.create_dataset(name, data=plain)
        checksum.add(name, plain)
    file.attrs["format"] = fixed(FORMAT)
    file.attrs["version"] = VERSION
    file.attrs["checksum"] = fixed(checksum.hexdigest())


class Newest(NamedTuple):
    """What `load_newest` found: where, what it holds, and why the newer files were passed over, by path."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    damaged: dict[Path, DamagedCheckpointError]


def load_newest(path: str | os.PathLike) -> Newest:
    """The newest whole checkpoint among `path` and its earlier versions.

    Raises:
        InputError: as `load_checkpoint` does of `path`, if no version is whole; at once of one that is not
            damaged but cannot be read otherwise, as one of a newer version of this program.
    """
    damaged: dict[Path, DamagedCheckpointError] = {}
    for candidate in versions(path) or [Path(path)]:
        try:
            return Newest(candidate, *load_checkpoint(candidate), damaged)
        except DamagedCheckpointError as error:
            damaged[candidate] = error
    raise next(iter(damaged.values()))


def load_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description that `save_checkpoint` wrote, bit for bit.

    Raises:
        InputError: no file, not a checkpoint, of a newer version.
        DamagedCheckpointError: torn, cut off, changed.
    """
    import h5py

    if not Path(path).is_file():
        raise InputError(
            f"expected a checkpoint file at {path}, found {'a folder' if Path(path).is_dir() else 'none'}"
        )
    try:
        # A file under its final name is never written again: nothing to lock, and some file systems cannot.
        with h5py.File(path, "r", locking=False) as file:
            return _read(path, file, _check_format(path, file))
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"no right to read the checkpoint {path}") from None
    except Exception as error:  # whatever HDF5, or what it hands over, makes of broken bytes
        raise _damaged(path, _one_line(error)) from None


class _Checksum:
    """BLAKE2b over arrays in a given order, each with its name, type and shape; reads them in place."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=32)

    def add(self, name: str, array: np.ndarray) -> None:
        self._hash.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        content = array.reshape(-1).view(np.uint8)
        for begin in range(0, content.size, _PIECE):
            self._hash.update(content[begin : begin + _PIECE].data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _in_order(arrays: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names within the file, in the order in which the checksum takes them."""
    return [(f"arrays/{name}", arrays[name]) for name in sorted(arrays)]


def _check_format(path: str | os.PathLike, file: "h5py.File") -> int:
    """The file's version; refuses what is not a checkpoint, or is one that this version does not know."""
    stored = attribute(file, "version")
    version = int(stored) if isinstance(stored, np.integer) else 0
    if version < _FIXED:
        try:
            try_texts(file)
        except InputError as error:
            raise _damaged(path, str(error)) from None
    form = attribute(file, "format", variable=version < _FIXED)
    if not (isinstance(form, str) and form == FORMAT):
        raise InputError(
            f"{path} is an HDF5 file but not a checkpoint: expected format {FORMAT!r}, found {form!r:.60}"
        )
    if version > VERSION:
        raise InputError(
            f"{path} is a checkpoint of version {version}, this program reads up to {VERSION}: update it"
        )
    if version < 1:
        raise _damaged(path, f"there is no version {version}")
    return version


def _read(
    path: str | os.PathLike, file: "h5py.File", version: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    datasets = _datasets(path, file)
    checksum = _Checksum()
    meta = _load(file["meta"])
    checksum.add("meta", meta)
    arrays: dict[str, np.ndarray] = {}
    for name, dataset in _in_order(datasets):
        arrays[name.removeprefix("arrays/")] = _load(dataset)
        checksum.add(name, arrays[name.removeprefix("arrays/")])
    if checksum.hexdigest() != attribute(file, "checksum", variable=version < _FIXED):
        raise _damaged(path, "its contents do not match its checksum")
    description = json.loads(meta.tobytes())
    for upgrade in _UPGRADES[version - 1 :]:
        upgrade(description)
    return arrays, description


def _to_version_2(meta: dict[str, Any]) -> None:
    """A run ended only after its step's validation, or before its next checkpoint; no step was skipped."""
    if "streams" in meta:  # else of a classifier, or weights alone
        meta["position"] |= {"pending": False, "skipped_steps": 0, "bad_steps": 0}


_UPGRADES = (_to_version_2,)  # each from the version before, in place; to version 3 only the file changed


def _load(dataset: "h5py.Dataset") -> np.ndarray:
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:  # HDF5 refuses to read nothing
        dataset.read_direct(array)
    return array


def _datasets(path: str | os.PathLike, file: "h5py.File") -> dict[str, "h5py.Dataset"]:
    """All datasets below `arrays` by name, once it is sure that together they are no larger than the file."""
    import h5py

    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise _damaged(path, f"{name} lies in another place")
    datasets: dict[str, h5py.Dataset] = {}

    def keep(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    if "arrays" in file:  # HDF5 makes the group with the first array in it
        file["arrays"].visititems(keep)  # follows no links
    total = 0
    for dataset in (file["meta"], *datasets.values()):
        plain = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and not dataset.external
        if not plain or dataset.dtype.kind not in _NUMBERS:
            raise _damaged(path, f"{dataset.name} is not stored as plain numbers")
        total += dataset.nbytes
    if total > os.path.getsize(path):
        raise _damaged(path, f"it declares {total} bytes of arrays and has {os.path.getsize(path)}")
    return datasets


def _left(path: str | os.PathLike) -> str:
    """What is there after a checkpoint could not be written."""
    if not Path(path).parent.is_dir():
        return f"the folder {Path(path).parent} is not there any more"
    return "an earlier one is as it was" if Path(path).exists() else "there is none yet"


def _damaged(path: str | os.PathLike, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} is not a whole checkpoint ({reason}): use another one")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
