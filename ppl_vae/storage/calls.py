"""The system calls by which a run is written or read: the one door, in which tests put something that fails."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ppl_vae.errors import StorageError

__all__ = ["NEW", "Written", "do", "failing", "hashed", "opened", "opened_folder", "pieces", "sync", "write"]

T = TypeVar("T")

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_CHUNK = 2**20  # what has been written is hashed while it is in the cache
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Written(NamedTuple):
    """What was written into a file."""

    num_bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of its bytes, in lower-case hexadecimal digits."""


def do(operation: Callable[..., T], *arguments: Any) -> T:
    """Every system call goes through here: tests put something in its place that kills, fails, records or reorders."""
    return operation(*arguments)


@contextmanager
def failing(what: str, path: Path) -> Iterator[None]:
    """Context in which an error of the operating system becomes one of storage that says what could not be done."""
    if "\0" in str(path):
        raise StorageError(f"{str(path)!r}: {what}: expected a name without NUL")
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {what} ({error.strerror or error})") from error


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


def write(file: int, chunks: Iterable[Any]) -> Written:
    """Writes buffers of bytes and hashes them on the way."""

    def pieces() -> Iterator[Any]:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                done = do(os.write, file, rest[:_CHUNK])
                yield rest[:done]
                rest = rest[done:]

    return hashed(pieces())


def hashed(pieces: Iterable[Any]) -> Written:
    """Size and hash of pieces of bytes; one is hashed while the next one is written or read, and no more wait."""
    digest, size = hashlib.sha256(), 0
    with ThreadPoolExecutor(1) as hasher:
        hashing = hasher.submit(digest.update, b"")
        for piece in pieces:
            size += len(piece)
            hashing.result()
            hashing = hasher.submit(digest.update, piece)
    return Written(size, digest.hexdigest())


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Opens a folder, which can be synced."""
    folder = do(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        do(os.close, folder)


def sync(files: Sequence[int]) -> None:
    """Makes files and folders durable at the same time: a disk flushes once for all of them."""
    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(partial(do, os.fsync), files))


def pieces(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Reads a regular file piece by piece; its size is known before anything is read."""
    with failing("cannot be read", path), opened(path, os.O_RDONLY) as file:
        size = os.fstat(file).st_size
        if size > max_bytes:
            raise StorageError(f"{path}: expected at most {max_bytes} bytes, found {size}")
        while size > 0 and (piece := do(os.read, file, min(size, _CHUNK))):
            yield piece
            size -= len(piece)
