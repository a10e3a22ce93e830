"""Files from the network: resumed where they broke off, checked by md5, unpacked by expected names only."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from autograd.errors import InputError
from train.files import atomic_write, require_room

_BLOCK = 1 << 16  # bytes: small enough that the bar moves on a slow line
_ATTEMPTS = 3  # tries in a row without one new byte before a mirror is given up
_PAUSE = 0.5  # seconds before the second try; doubles from try to try


class _MirrorError(Exception):
    """This mirror cannot give the file; the next one may."""


def download(
    mirrors: Sequence[str], target: Path, *, md5: str, max_bytes: int = 1 << 30, timeout: float = 30.0
) -> Path:
    """Fetch `target` from the first of `mirrors` that gives a file of the right `md5`.

    Bytes gather in `target`.part, which a later call takes up where it ends (HTTP Range, RFC 9110 §14). A
    server that is silent for `timeout` seconds counts as a cut connection.

    Raises:
        InputError: no mirror could be reached or none had the right file; says why for each.
    """
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for url in mirrors:
        try:
            _fetch(url, part, max_bytes, timeout)
            _verify(part, md5)
        except _MirrorError as error:
            reasons.append(f"{url}: {error}")
        else:
            os.replace(part, target)
            return target
    raise InputError(
        f"{target.name}: no mirror could give it ({'; '.join(reasons)}); "
        f"download it by hand (md5 {md5}), unzip it, and give the unzipped folder instead of the name"
    )


def _fetch(url: str, part: Path, max_bytes: int, timeout: float) -> None:
    """Bring `part` to its full length, going on after every cut as long as each try brings new bytes."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, max_bytes, timeout)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before and error.headers.get("Content-Range", "") == f"bytes */{before}":
                return  # nothing was left to send
            if error.code == 416:
                part.unlink(missing_ok=True)  # longer than the server's file: cannot be a piece of it
            elif error.code < 500:
                raise _MirrorError(f"HTTP status {error.code}") from None
            reason = f"HTTP status {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a header that is none
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures == _ATTEMPTS:
            raise _MirrorError(reason)
        time.sleep(_PAUSE * 2**failures)


def _fetch_rest(url: str, part: Path, max_bytes: int, timeout: float) -> None:
    """One request for what `part` lacks; an OSError when the connection ends before the announced length."""
    from train.log import progress

    offset = _size(part)
    headers = {"User-Agent": "minilstm", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
        if response.status != 206:
            offset = 0  # the server knows no ranges and starts over
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise _MirrorError("the server sent another range than was asked for")
        announced = response.headers.get("Content-Length")
        total = offset + int(announced) if announced else None
        if total is not None and total > max_bytes:
            raise _MirrorError(f"it announces {total} bytes, more than the {max_bytes} expected at most")
        description = part.name.removesuffix(".part")
        with (
            open(part, "ab" if offset else "wb") as file,
            progress(total, description, "B", unit_scale=True, initial=offset) as bar,
        ):
            while block := response.read(_BLOCK):
                offset += len(block)
                if offset > max_bytes:
                    raise _MirrorError(f"it goes on beyond the {max_bytes} bytes expected at most")
                file.write(block)
                bar.update(len(block))
    if total is not None and offset < total:
        raise ConnectionError(f"cut after {offset} of {total} bytes")


def _verify(part: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(part, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != md5:
        part.unlink()
        raise _MirrorError(f"expected md5 {md5}, got {digest.hexdigest()}")


def unpack(archive: Path, members: Mapping[str, str], folder: Path, max_bytes: int = 1 << 31) -> None:
    """Write the zip file's `members` (name in the archive → file name) into `folder`, each whole or not at
    all.

    Raises:
        InputError: not a zip file, damaged, a member is missing or larger than `max_bytes`, any name in it
            would leave the folder, or the disk has no room.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            _check_members(archive, zipped, members, folder, max_bytes)
            folder.mkdir(exist_ok=True)
            for name, file_name in members.items():
                with (
                    atomic_write(folder / file_name) as temporary,
                    zipped.open(name) as source,
                    open(temporary, "wb") as file,
                ):
                    # The declared length is read at most, and then the checksum must be right.
                    shutil.copyfileobj(source, file, 1 << 20)
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{archive}: cannot be unpacked to {folder}: {(error.strerror or str(error)).lower()}; make room "
            "there, or delete the archive and download it again"
        ) from None
    except Exception as error:  # whatever zipfile, and what it unpacks with, make of broken bytes
        raise InputError(
            f"{archive}: expected a sound zip file: {error}; delete it and download it again"
        ) from None


def _check_members(
    archive: Path, zipped: zipfile.ZipFile, members: Mapping[str, str], folder: Path, max_bytes: int
) -> None:
    for name in zipped.namelist():
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
            raise InputError(
                f"{archive}: refused, because its member {name!r} would leave the folder it is unpacked to"
            )
    missing = [name for name in members if name not in zipped.namelist()]
    if missing:
        raise InputError(
            f"{archive}: expected the member {missing[0]}, got {', '.join(zipped.namelist()) or 'none'}"
        )
    sizes = {name: zipped.getinfo(name).file_size for name in members}
    for name, size in sizes.items():
        if size > max_bytes:
            raise InputError(
                f"{archive}: expected {name} to be {max_bytes} bytes at most, it declares {size}"
            )
    require_room(folder.parent, sum(sizes.values()))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
