"""The system calls by which a run is written or read: the one door, in which tests put something that fails."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppl_vae.errors import StorageError, is_lack_of_memory, refusal

__all__ = [
    "NEW",
    "Written",
    "do",
    "failing",
    "holds",
    "inflated",
    "opened",
    "opened_folder",
    "pieces",
    "summed",
    "write",
]

T = TypeVar("T")

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_CHUNK = 2**20
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Written(NamedTuple):
    """What a file must be."""

    num_bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal digits."""


def do(operation: Callable[..., T], *arguments: Any) -> T:
    """Every system call goes through here: tests put something in its place that kills, fails, records or reorders."""
    return operation(*arguments)


@contextmanager
def failing(what: str, path: Path) -> Iterator[None]:
    """Context in which what the system refuses, or a bad name, becomes an error of storage: it says what failed."""
    if "\0" in str(path):
        raise StorageError(f"{str(path)!r}: {what}: expected a name without NUL")
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_lack_of_memory(error):
            raise
        raise StorageError(f"{path}: {what} ({refusal(error) or error})") from error
    except UnicodeEncodeError as error:
        raise StorageError(
            f"{str(path)!r}: {what}: expected a name that the system can have ({error.reason})"
        ) from error


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Opens a regular file, whatever else may have its name."""
    file = do(os.open, path, flags | _PLAIN, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise StorageError(f"{path}: expected a regular file, found something else: remove it")
        yield file
    finally:
        do(os.close, file)


def write(file: int, chunks: Iterable[Any]) -> None:
    """Writes buffers of bytes."""
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[do(os.write, file, rest[:_CHUNK]) :]


def summed(chunks: Iterable[Any]) -> Written:
    """Size and hash of buffers of bytes."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return Written(size, digest.hexdigest())


def holds(file: int, chunks: Iterable[Any]) -> bool:
    """Whether buffers of bytes, and no more, are what is read from a file."""
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            piece = do(os.read, file, min(len(rest), _CHUNK))
            if not piece or piece != bytes(rest[: len(piece)]):
                return False
            rest = rest[len(piece) :]
    return not do(os.read, file, 1)


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Opens a folder, which can be synced."""
    folder = do(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        do(os.close, folder)


def inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Reads a member of an archive, of which no more is decompressed than it claims to have."""
    with archive.open(member) as stream:
        return stream.read(member.file_size)


def pieces(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Reads a regular file piece by piece; its size is known before anything is read."""
    with failing("cannot be read", path), opened(path, os.O_RDONLY) as file:
        size = os.fstat(file).st_size
        if size > max_bytes:
            raise StorageError(f"{path}: expected at most {max_bytes} bytes, found {size}")
        while size > 0 and (piece := do(os.read, file, min(size, _CHUNK))):
            yield piece
            size -= len(piece)
