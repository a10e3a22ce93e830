"""Files that are either whole or absent: atomic writes and exclusive locks; and text read whole.

A reader never sees half a file. What is being written lies beside its target under a temporary name that
holds the writer's host and process id, so that the next writer can tell a dead process's leftovers from a
living one's work.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from autograd.errors import InputError

_SUFFIX = ".tmp"
_TOUCH, _WATCH = 2.0, 5.0  # seconds between a lock holder's signs of life, and spent on looking for one


def read_text(path: str | os.PathLike) -> str:
    """All of a file, which must be UTF-8; its name `-` is standard input.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if os.fspath(path) == "-" else Path(path).read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error}") from None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, keep: int | None = None) -> Iterator[Path]:
    """Write `path` whole or not at all: yields a temporary path in the same folder to write to.

    When the block ends well, the temporary file is synced to the disk and renamed to `path`, and the folder
    is synced so that the new name outlives a power cut. When it raises, the temporary file is removed and
    `path` is as it was. The folder must exist. Leftovers of killed processes for the same `path` are removed
    first. With `keep` the keep - 1 files before this one stay, under the names of `earlier_version`, and
    older ones go.
    """
    path = Path(path)
    remove_stale_temporaries(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        if keep and path.exists():
            _make_earlier(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say of which file
        raise
    _sync(path.parent)


def earlier_version(path: str | os.PathLike, age: int) -> Path:
    """Where `atomic_write` with `keep` leaves the file that `path` was `age` writes ago: latest-1.h5, …"""
    path = Path(path)
    return path.with_name(f"{path.stem}-{age}{path.suffix}") if age else path


def versions(path: str | os.PathLike) -> list[Path]:
    """The file and its earlier versions, as far as they are there, the newest first."""
    path = Path(path)
    entries = (entry.stem.rpartition("-") for entry in path.parent.glob(f"*-*{path.suffix}"))
    ages = sorted(int(age) for stem, _, age in entries if stem == path.stem and age.isdecimal())
    return [found for found in (earlier_version(path, age) for age in [0, *ages]) if found.is_file()]


def remove_stale_temporaries(path: str | os.PathLike) -> None:
    """Remove temporary files of `path` whose writer ran on this host and lives no more."""
    path = Path(path)
    prefix = f".{path.name}.{_host()}."
    for entry in list(path.parent.iterdir()):
        if entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX):
            pid = entry.name[len(prefix) : -len(_SUFFIX)]
            if pid.isdecimal() and not _is_alive(int(pid)):
                entry.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold `path`.lock against other processes; the kernel lets go of it when this process dies, however it
    dies.

    Not every file system carries a kernel's lock to other machines. So the file names its holder, who touches
    it every other second: where another machine's name is found, it is watched for a few seconds.

    Raises:
        InputError: another process holds the lock.
    """
    lock_path = Path(f"{os.fspath(path)}.lock")
    descriptor, is_kernels = _acquire(lock_path)
    released = threading.Event()
    try:
        _refuse_if_touched(lock_path, descriptor, is_kernels)
        with contextlib.suppress(OSError):  # a full disk keeps no one from being alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{_host()} {os.getpid()}\n".encode(), 0)
        life = threading.Thread(target=_touch_until, args=(released, descriptor), daemon=True)
        life.start()
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield
    finally:
        released.set()
        life.join()  # the descriptor's number may soon be another file's
        lock_path.unlink(missing_ok=True)  # still held: nobody can have locked this name in between
        os.close(descriptor)


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Make the folder and those above it; when the block raises, remove those made, as far as empty."""
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: part of a download lies in it
            for folder in made:
                folder.rmdir()
        raise


def set_aside(path: str | os.PathLike) -> Path:
    """Rename a damaged file, so that no later one is taken for its successor; returns where it lies now."""
    path = Path(path)
    aside = path.with_name(f"{path.stem}-damaged{path.suffix}")
    os.replace(path, aside)
    return aside


def require_room(folder: str | os.PathLike, num_bytes: int) -> None:
    """Raise an InputError unless the disk of `folder` has room for `num_bytes` more.

    To be asked before HDF5 writes: on a full disk it can end the process when the file is closed.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: expected {num_bytes / 1e6:,.0f} MB of free disk, got {free / 1e6:,.0f} MB; "
            f"make room or choose a folder on another disk"
        )


def _make_earlier(path: Path, keep: int) -> None:
    """Move every version back by one, but leave `path` its name too; a kill between two moves loses none."""
    for age in range(keep - 1, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(earlier_version(path, age - 1), earlier_version(path, age))
    if keep > 1:
        _name_too(path, earlier_version(path, 1))
    for old in versions(path):
        if old not in [earlier_version(path, age) for age in range(keep)]:
            old.unlink(missing_ok=True)


def _name_too(path: Path, other: Path) -> None:
    """Let `other` be a second name of the file at `path`; its only one where there are no hard links."""
    remove_stale_temporaries(other)
    link = _temporary(other)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, other)
        return
    os.replace(link, other)
    link.unlink(missing_ok=True)  # a rename between two names of one file leaves both


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}{_SUFFIX}")


def _acquire(lock_path: Path) -> tuple[int, bool]:
    """A descriptor of the locked file, and whether the kernel has locked it: not every file system can."""
    while True:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise _held(lock_path, holder) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return descriptor, False
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        # The holder before may have unlinked the name between our open and our lock: then we hold a lock on
        # nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock_path)):
                return descriptor, True
        os.close(descriptor)


def _refuse_if_touched(lock_path: Path, descriptor: int, is_kernels: bool) -> None:
    """Raise an InputError if a holder whom the kernel's lock does not keep away shows that it lives."""
    holder = _holder(descriptor)
    if not holder or (is_kernels and holder[0] == _host()):
        return  # no one, or one that died on this machine
    touched, until = os.stat(lock_path).st_mtime_ns, time.monotonic() + _WATCH
    while time.monotonic() < until:
        time.sleep(_TOUCH / 10)
        with contextlib.suppress(FileNotFoundError), open(lock_path) as fresh:  # NFS looks anew at an open
            if os.fstat(fresh.fileno()).st_mtime_ns != touched:
                raise _held(lock_path, holder)


def _touch_until(released: threading.Event, descriptor: int) -> None:
    while not released.wait(_TOUCH):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _holder(descriptor: int) -> tuple[str, str] | None:
    """Host and process id that the lock file names."""
    words = os.pread(descriptor, 1024, 0).decode("utf-8", "replace").split()
    return (words[0], words[1]) if len(words) == 2 else None


def _held(lock_path: Path, holder: tuple[str, str] | None) -> InputError:
    which = f" (process {holder[1]} on {holder[0]})" if holder else ""
    return InputError(
        f"{lock_path}: another process is writing {lock_path.stem}{which}; wait until it has ended"
    )


def _sync(path: Path) -> None:
    """Force a file's contents, or a folder's names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return socket.gethostname().replace("/", "_") or "localhost"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
