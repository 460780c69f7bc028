"""One process at a time in a run directory, and one that writes an evaluation of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ppl_vae.errors import LockedError, StorageError
from ppl_vae.storage import calls

__all__ = ["EVALUATION_LOCK", "LOCK", "lent", "locked"]

LOCK, EVALUATION_LOCK = ".lock", ".lock-evaluation"
_PAUSE = 0.05  # seconds between two tries
_held: set[int] = set()
_lent: ContextVar[frozenset[str]] = ContextVar("_lent", default=frozenset())  # other threads have none of it


@contextmanager
def locked(folder: Path, name: str = LOCK, patience: float = 0.0) -> Iterator[None]:
    """Context in which no other process, and no other thread, is in this context for the same folder.

    The lock is the kernel's (`flock`) and goes with the process that holds it, however that ends: the file that it is
    put on says who the holder is and decides nothing. Children forked meanwhile do not hold it.

    Args:
        folder: An existing folder.
        name: Of the file: of training, or of the writing of an evaluation.
        patience: Seconds to wait for the holder to go.

    Raises:
        LockedError: Another one holds the lock; its process number is in the message.
        StorageError: The folder cannot be locked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, locked(Path(name)):
        ...     os.listdir(name)
        ['.lock']
    """
    path = folder / name
    if (place := os.path.realpath(path)) in _lent.get():
        with _set(_lent.get() - {place}):
            yield
        return
    file = _taken_within(path, patience)
    try:
        yield
    finally:
        if file in _held:  # not so in a child, which has no part in it
            _held.remove(file)
            with suppress(OSError):
                calls.do(os.unlink, path)
            _close(file)


@contextmanager
def lent(folder: Path) -> Iterator[None]:
    """`locked`, for who prepares and ends the work of a function that locks the folder itself: that one is let in.

    Raises:
        LockedError: As `locked`.
        StorageError: As `locked`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, lent(Path(name)), locked(Path(name)):
        ...     os.listdir(name)
        ['.lock']
    """
    with locked(folder), _set(_lent.get() | {os.path.realpath(folder / LOCK)}):
        yield


@contextmanager
def _set(places: frozenset[str]) -> Iterator[None]:
    token = _lent.set(places)
    try:
        yield
    finally:
        _lent.reset(token)


def _taken_within(path: Path, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        try:
            return _taken(path)
        except LockedError:
            if time.monotonic() >= end:
                raise
        time.sleep(_PAUSE)


def _taken(path: Path) -> int:
    while True:
        file = _opened(path)
        try:
            _take(file, path)
            if _is_still(path, file):
                _sign(file)
                _held.add(file)
                _let_children_go()
                return file
        except BaseException:
            _close(file)
            raise
        _close(file)  # its holder has just removed it


def _opened(path: Path) -> int:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = calls.do(os.open, path, flags, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made ({error.strerror}): a run needs a directory to write in") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        _close(file)
        raise StorageError(f"{path}: expected a regular file, found something else: remove it")
    return file


def _take(file: int, path: Path) -> None:
    try:
        calls.do(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise StorageError(
                f"{path}: cannot be locked ({error.strerror}): put the run on a file system with flock"
            ) from error
        raise LockedError(
            f"run directory {path.parent}: expected to be alone, found process {_holder(file)} at work in it: wait for "
            "it, or choose another directory"
        ) from error


def _holder(file: int) -> str:
    """The number of the process that holds the lock, and its machine where that is another one."""
    text = os.pread(file, 200, 0).decode("ascii", "replace")
    number, _, machine = text.partition(" ")
    if not number.isdecimal():
        return "(of unknown number)"  # it has not signed yet
    return number if machine == os.uname().nodename else f"{number} on {machine}"


def _is_still(path: Path, file: int) -> bool:
    """Whether the file that was locked is still the one that others will try."""
    with calls.failing("cannot be locked", path), suppress(FileNotFoundError):
        return os.path.samestat(calls.do(os.lstat, path), os.fstat(file))
    return False


def _sign(file: int) -> None:
    """Says who the holder is, where the disk is not too full for that: the lock needs no signature."""
    with suppress(OSError):
        calls.do(os.ftruncate, file, 0)
        calls.do(os.pwrite, file, f"{os.getpid()} {os.uname().nodename}".encode("ascii", "replace"), 0)


def _close(file: int) -> None:
    with suppress(OSError):  # Linux frees the descriptor whatever close returns
        calls.do(os.close, file)


def _let_children_go() -> None:
    """Makes every process forked from now on close its copies of the locked files, which would keep the locks."""
    global _is_watching
    if not _is_watching:
        os.register_at_fork(after_in_child=_let_go)
        _is_watching = True


_is_watching = False


def _let_go() -> None:
    _lent.set(frozenset())
    while _held:
        os.close(_held.pop())
