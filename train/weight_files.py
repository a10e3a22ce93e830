"""Named tensors in the files of other programs: PyTorch's, safetensors, NumPy's npz. Nothing in them is run.

PyTorch's own files are pickles: they are read by `torch.load(weights_only=True)` alone, which makes tensors
and plain containers and refuses everything else. torch and safetensors are extras, loaded when a file asks
for them.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autograd.errors import InputError
from train.files import atomic_write, require_room

SUFFIXES = {"torch": ".pt", "safetensors": ".safetensors", "npz": ".npz"}
"""The forms, and how their files' names end. What a file is, is told from its content."""
_MAX_EXPANSION = 16  # times: float32 weights shrink by a tenth, halves and zeros by more
_INSTALL = "install it: pip install torch safetensors"


def write_tensors(path: Path, form: str, tensors: dict[str, np.ndarray], facts: dict[str, str]) -> None:
    """Write the file whole or not at all; its folder must exist.

    Args:
        path: the file.
        form: a key of `SUFFIXES`.
        tensors: arrays of numbers by name. One that stands under two names is stored once in a torch file,
            where the two then share their memory, and twice in the others.
        facts: kept in the header of a safetensors file; the other forms have no place for them.

    Raises:
        InputError: the form's package is not installed, or the file cannot be written.
    """
    require_room(path.parent, sum(array.nbytes for array in tensors.values()) + (1 << 20))
    write: Callable[[Path, dict[str, np.ndarray]], None]
    if form == "torch":
        write = _torch_writer()
    elif form == "safetensors":
        write = _safetensors_writer(facts)
    else:
        write = _write_npz
    try:
        with atomic_write(path) as temporary:
            write(temporary, {name: np.ascontiguousarray(array) for name, array in tensors.items()})
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by name.

    In a torch file the tensors may also lie one level down, under `state_dict` or `model`, and those of
    bfloat16, which NumPy lacks, become float32.

    Raises:
        InputError: no such file, a file of no known form, cut off or damaged, with objects in it that are no
            tensors, or of a form whose package is not installed.
    """
    read = {"torch": _read_torch, "safetensors": _read_safetensors, "npz": _read_npz}[_form(path)]
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # whatever the form's package makes of broken bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: is damaged, or holds what is no array of numbers: {reason}") from None


def _form(path: Path) -> str:
    """The form of a file, from its first bytes and, where it is an archive, its table of contents."""
    if not path.is_file():
        raise InputError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing'}"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked_size(path, archive)
                return "npz" if all(name.endswith(".npy") for name in archive.namelist()) else "torch"
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {error}") from None
    if head.startswith(b"PK"):
        raise InputError(f"{path}: is cut off: an archive whose end is missing; copy it anew")
    if head.startswith(b"\x80"):  # as every pickle begins: torch.save before PyTorch 1.6
        return "torch"
    if head[8:] == b"{":  # the length of a JSON header, and the header
        return "safetensors"
    raise InputError(f"{path}: expected a file of torch, safetensors or npz; it is none of them")


def _check_unpacked_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that says it unpacks to far more than weights do, before memory is taken for it."""
    unpacked, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    most = _MAX_EXPANSION * size + (1 << 20)
    if unpacked > most:
        raise InputError(
            f"{path}: would unpack to {unpacked:,} bytes, more than {_MAX_EXPANSION} times the {size:,} that "
            "it has; save the weights uncompressed"
        )


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(f"this needs PyTorch, which is not installed; {_INSTALL}") from None
    return torch


def _import_safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise InputError(f"this needs the package safetensors, which is not installed; {_INSTALL}") from None
    return safetensors.numpy


def _torch_writer() -> Callable[[Path, dict[str, np.ndarray]], None]:
    torch = _import_torch()

    def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
        one_each = {id(array): torch.from_numpy(array) for array in arrays.values()}
        with open(path, "wb") as file:  # not by name: torch would put that into the file
            torch.save({name: one_each[id(array)] for name, array in arrays.items()}, file)

    return write


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _import_torch()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise InputError(  # not in torch's own words, which advise to run the file
            f"{path}: is damaged, or holds Python objects, which only running its code would bring back; "
            "save model.state_dict() instead"
        ) from None
    for name in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(
            f"{path}: must hold tensors by name; got {type(found).__name__}; save model.state_dict()"
        )
    others = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"{path}: must hold tensors by name; {others[0]} is none; save model.state_dict()")
    return {name: _to_numpy(path, name, tensor, torch) for name, tensor in found.items()}


def _to_numpy(path: Path, name: str, tensor: Any, torch: Any) -> np.ndarray:
    tensor = tensor.detach()
    # A tensor may name one number a million times over: such a file would ask for more than it holds.
    plain = tensor.layout == torch.strided and tensor.nbytes <= tensor.untyped_storage().nbytes()
    if not plain:
        raise InputError(f"{path}: {name} is not stored as plain numbers; save it dense and contiguous")
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _safetensors_writer(facts: dict[str, str]) -> Callable[[Path, dict[str, np.ndarray]], None]:
    save_file = _import_safetensors().save_file

    def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
        path.touch()
        mode = path.stat().st_mode  # the package would leave the file to its owner alone
        save_file(arrays, path, metadata={"format": "pt", **facts})
        path.chmod(mode)

    return write


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return _import_safetensors().load_file(path)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # not by name: NumPy would add a suffix
        np.savez(file, allow_pickle=False, **arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        for member in file.zip.infolist():
            _check_header(file.zip, member)
        return {name: file[name] for name in file.files}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """A header of npy must not declare more numbers than follow it: room would be made for all of them."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise InputError(
            f"{member.filename} declares {dtype} of shape {shape}, and has {member.file_size} bytes"
        )
