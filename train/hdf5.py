"""What HDF5 leaves to its caller: to end on a broken file and on a full disk, and to keep texts safely.

From format 1.10 on, `LIBVER`, HDF5 guards its structures by checksums, but for the heaps of texts of variable
length: through a damaged one it goes in circles for ever, and Python hears no signal. So files hold texts
of fixed length, and `attribute` reads no other. Of files of before, which do hold others, `try_texts` has
another process read them first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.errors import InputError

if TYPE_CHECKING:
    import h5py

LIBVER = ("v110", "v110")
"""The format of files that are written."""

# Ten seconds of a core are a thousand times what the attributes take, and a hundred times what a long
# vocabulary does; the memory is far more than both.
_READ_TEXTS = """
import resource, sys
import h5py
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
with h5py.File(sys.argv[1], "r", locking=False) as file:
    [file[name][:] for name in sys.argv[2:]] or [file.attrs[name] for name in file.attrs]
"""


def try_texts(file: h5py.File, *datasets: str) -> None:
    """Have another process read all attributes of the root, or these data sets, before this one does.

    Raises:
        InputError: it came to no end, or to a bad one.
    """
    command = [sys.executable, "-c", _READ_TEXTS, file.filename, *datasets]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        raise InputError("its texts cannot be read: HDF5 comes to no end with them, or to a bad one")


def fixed(text: str) -> np.bytes_:
    """A text as an attribute that lies within the file's checked structures, 64 KB at most."""
    return np.bytes_(text.encode())


def attribute(file: h5py.File, name: str, *, variable: bool = False) -> Any:
    """A number, or a text as str, of the file's root; None if there is none of this name.

    Args:
        file: open for reading.
        name: of the attribute.
        variable: read texts of variable length too, which `try_texts` has seen to.

    Raises:
        InputError: it is of variable length, or no UTF-8.
    """
    if name not in file.attrs:
        return None
    if not variable and file.attrs.get_id(name).dtype.hasobject:  # told by its type alone
        raise InputError(f"its {name} is of variable length")
    value = file.attrs[name]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise InputError(f"its {name} is no text") from None


class NewFile:
    """A new file for HDF5 to write to. After the first error it takes all that comes and keeps nothing.

    HDF5 cannot close a file whose last pieces it cannot write, on a full disk say, and crashes the process
    when that ends. So it is let finish, and the error is raised when this context is left, or by `check`.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb+", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._position = self._end = 0
        self._error: OSError | None = None

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self.check()

    def check(self) -> None:
        """Raise the error that there has been, if any."""
        if self._error:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}
        self._position = origins[whence] + offset
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As of any file: bytes read, 0 where nothing was kept."""
        self._file.seek(self._position)
        read = self._file.readinto(buffer) or 0
        self._position += read
        return read

    def read(self, size: int = -1) -> bytes:
        """HDF5 reads by `readinto`; that the method is there makes this a file."""
        raise NotImplementedError("HDF5 reads by readinto")

    def write(self, content: Any) -> int:
        """All of the content counts as written, whatever becomes of it."""
        left = memoryview(content)
        try:
            while left and not self._error:
                written = os.pwrite(self._file.fileno(), left, self._position + len(content) - len(left))
                left = left[written:]
        except OSError as error:
            self._error = error
        self._position += len(content)
        self._end = max(self._end, self._position)
        return len(content)

    def truncate(self, size: int) -> int:
        """As of any file."""
        self._end = size
        try:
            if not self._error:
                self._file.truncate(size)
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is held back here; `atomic_write` brings it to the disk."""
