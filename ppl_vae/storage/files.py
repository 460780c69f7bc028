"""Every file operation by which a run is written or read back: durable, bounded, and each one in reach of tests.

What a function here has written is on the disk when it returns: the bytes of a file by `fsync` of the file, its name by
`fsync` of the folder. Nothing follows a symbolic link in the last part of a path, and nothing but regular files is read
or written, so that a pipe cannot block and a device cannot be touched.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppl_vae.errors import StorageError

__all__ = [
    "Written",
    "append",
    "create",
    "listed",
    "make_folder",
    "move",
    "read",
    "remove",
    "remove_debris",
    "replace",
    "sync_folder",
    "temporary",
    "truncate",
    "write_folder",
]

T = TypeVar("T")

_TEMPORARY = ".tmp-"
_CHUNK = 2**22
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Written(NamedTuple):
    """What was written into a file."""

    num_bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal digits."""


def _do(operation: Callable[..., T], *arguments: Any) -> T:
    """Every system call goes through here: tests put something in its place that kills, fails, records or reorders."""
    return operation(*arguments)


@contextmanager
def _failing(what: str, path: Path) -> Iterator[None]:
    """Context in which an error of the operating system becomes one of storage that says what could not be done."""
    if "\0" in str(path):
        raise StorageError(f"{str(path)!r}: {what}: expected a name without NUL")
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {what} ({error.strerror or error})") from error


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Opens a regular file, whatever else may have its name."""
    file = _do(os.open, path, flags | _PLAIN, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise StorageError(f"{path}: expected a regular file, found something else: remove it")
        yield file
    finally:
        _do(os.close, file)


def _write(file: int, chunks: Iterable[Any]) -> Written:
    """Writes buffers of bytes, hashes them on the way, and returns when they are on the disk."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        rest = memoryview(chunk)
        size += len(rest)
        while rest:
            done = _do(os.write, file, rest[:_CHUNK])
            digest.update(rest[:done])
            rest = rest[done:]
    _do(os.fsync, file)
    return Written(size, digest.hexdigest())


def create(path: Path, chunks: Iterable[Any]) -> Written:
    """Writes a new file; its name is durable only after `sync_folder`.

    Args:
        path: The file, which must not exist.
        chunks: Its content, as one-dimensional buffers of bytes.

    Raises:
        StorageError: It exists, or the disk refuses.
    """
    with _failing("cannot be written", path), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        return _write(file, chunks)


def replace(path: Path, chunks: Iterable[Any]) -> Written:
    """Writes a file that is whole, or as it was before, whenever the process or the machine stops.

    Raises:
        StorageError: The disk refuses; the file is as it was before.
    """
    part = temporary(path)
    with _discarded_unless_done(part):
        written = create(part, chunks)
        move(part, path)
    return written


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes a new folder that is whole or absent, whenever the process or the machine stops.

    Args:
        path: The folder, which must not exist.
        fill: Creates the files in the folder that it is given, under another name beside `path`.

    Raises:
        StorageError: The disk refuses; what was begun is removed again where that is possible.
    """
    part = temporary(path)
    with _discarded_unless_done(part):
        with _failing("cannot be made", path):
            _do(os.mkdir, part)
        fill(part)
        sync_folder(part)
        move(part, path)


def append(path: Path, text: str) -> int:
    """Adds text to the end of a file, made if there is none, and returns its new size in bytes.

    Raises:
        StorageError: The disk refuses; a part of the text may stand in the file.
    """
    is_new = not os.path.lexists(path)
    with _failing("cannot be added to", path), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        _write(file, [text.encode()])
        size = os.fstat(file).st_size
    if is_new:
        sync_folder(path.parent)
    return size


def truncate(path: Path, num_bytes: int) -> None:
    """Cuts a file back to its first bytes.

    Raises:
        StorageError: It has fewer, or the disk refuses.
    """
    with _failing("cannot be cut", path), _opened(path, os.O_WRONLY) as file:
        if (size := os.fstat(file).st_size) < num_bytes:
            raise StorageError(f"{path}: expected at least {num_bytes} bytes, found {size}: the file has lost its end")
        _do(os.ftruncate, file, num_bytes)
        _do(os.fsync, file)


def read(path: Path, max_bytes: int) -> bytes:
    """Reads a regular file, whose size is known before anything is allocated.

    Raises:
        StorageError: There is none, it is something else, it has more bytes, or the disk refuses.
    """
    with _failing("cannot be read", path), _opened(path, os.O_RDONLY) as file:
        size = os.fstat(file).st_size
        if size > max_bytes:
            raise StorageError(f"{path}: expected at most {max_bytes} bytes, found {size}")
        chunks = []
        while size > 0 and (chunk := _do(os.read, file, min(size, _CHUNK))):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


def make_folder(path: Path) -> None:
    """Makes a folder and those it stands in, as far as they are missing, and makes their names durable.

    Raises:
        StorageError: The disk refuses, or a file has the name.
    """
    with _failing("cannot be made", path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process was quicker
                _do(os.mkdir, folder)
            sync_folder(folder.parent)
        if not path.is_dir():
            raise StorageError(f"{path}: expected a folder, found a file in its place")


def move(source: Path, target: Path) -> None:
    """Gives a file or a folder another name in the same folder, durably; a file there before is replaced.

    Raises:
        StorageError: The disk refuses.
    """
    with _failing(f"cannot become {target.name}", source):
        _do(os.rename, source, target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable.

    Raises:
        StorageError: The disk refuses.
    """
    with _failing("its names cannot be made durable", path):
        folder = _do(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _do(os.fsync, folder)
        finally:
            _do(os.close, folder)


def listed(path: Path) -> list[str]:
    """Returns the names in a folder, sorted; none where there is no folder.

    Raises:
        StorageError: The disk refuses.
    """
    with _failing("cannot be listed", path), suppress(FileNotFoundError):
        return sorted(_do(os.listdir, path))
    return []


def remove(paths: Iterable[Path]) -> None:
    """Removes files, and folders of files, each at once: none is ever seen in part under its own name.

    Raises:
        StorageError: The disk refuses; what is left of them is debris.
    """
    gone = []
    for path in paths:
        gone.append(temporary(path))
        with _failing("cannot be removed", path):
            _do(os.rename, path, gone[-1])
    for folder in sorted({path.parent for path in gone}):
        sync_folder(folder)
    for path in gone:
        _unlink(path)


def remove_debris(folder: Path) -> list[str]:
    """Removes what processes that were killed have left under temporary names, and returns these names.

    Only for the one process that writes in the folder, which the lock of the run makes sure of.

    Raises:
        StorageError: The disk refuses.
    """
    debris = [name for name in listed(folder) if name.startswith(_TEMPORARY)]
    for name in debris:
        _unlink(folder / name)
    return debris


def temporary(path: Path) -> Path:
    """A name beside a path, on the same file system, that nobody else has."""
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")


def _unlink(path: Path) -> None:
    """Unlinks a file, or a folder of files; a link to a folder is unlinked, not followed."""
    with _failing("cannot be removed", path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            _do(os.unlink, path)
            return
        for name in listed(path):
            _do(os.unlink, path / name)
        _do(os.rmdir, path)


@contextmanager
def _discarded_unless_done(part: Path) -> Iterator[None]:
    """Context of a write under a temporary name: what was begun goes if it fails, or is debris where that fails too."""
    try:
        yield
    except BaseException:
        with suppress(StorageError):
            if os.path.lexists(part):
                _unlink(part)
        raise
