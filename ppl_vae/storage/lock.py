"""One process at a time in a run directory, and one that writes an evaluation of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ppl_vae.errors import LockedError, StorageError
from ppl_vae.storage import calls, files

__all__ = ["EVALUATION_LOCK", "LOCK", "Hold", "lent", "locked"]

LOCK, EVALUATION_LOCK = ".lock", ".lock-evaluation"
_PAUSE = 0.05  # seconds between two tries
_NO_FILE = "expected a regular file of one name, found something else: remove it"
_held: set[int] = set()


class Hold(NamedTuple):
    """A lock that is held."""

    path: Path
    """The file that it is put on, with no link on the way."""
    file: int
    """Its descriptor."""
    begin: Callable[[], None] = lambda: None
    """What its lender does when the work begins: called by who does it, once nothing refuses it any more."""

    @property
    def lasts(self) -> bool:
        """Whether others still find the lock: not if the folder was moved, or the file removed.

        Raises:
            StorageError: The system does not tell.
        """
        return _is_still(self.path, self.file)

    def check(self) -> None:
        """Refuses to go on where others no longer find the lock, and may have taken the place.

        Raises:
            LockedError: So it is.
            StorageError: As `lasts`.
        """
        if not self.lasts:
            raise LockedError(
                f"run directory {self.path.parent}: expected the {self.path.name} that this process holds, found "
                "another or none: the directory was moved or replaced, or the file removed, and another process may "
                "be at work here; nothing more is written: resume the run where it is now"
            )


_Lent = Mapping[str, Hold]
_lent: ContextVar[_Lent] = ContextVar("_lent", default=MappingProxyType({}))  # other threads have none of it


@contextmanager
def locked(folder: Path, name: str = LOCK, patience: float = 0.0) -> Iterator[Hold]:
    """Context in which no other process, and no other thread, is in this context for the same folder.

    The lock is the kernel's (`flock`) and goes with the process that holds it, however that ends: the file that it is
    put on says who the holder is and decides nothing. Children forked meanwhile do not hold it. Who moves the folder
    or removes the file takes it away: whoever is about to write asks the `Hold` that the context gives.

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
    path = files.where_links_lead(folder).absolute() / name
    others = dict(_lent.get())
    if (hold := others.pop(str(path), None)) is not None:
        with _set(others):
            yield hold
        return
    hold = Hold(path, _taken_within(path, patience))
    try:
        yield hold
    finally:
        if hold.file in _held:  # not so in a child, which has no part in it
            _held.remove(hold.file)
            with suppress(OSError, StorageError):
                if hold.lasts:  # it may be another one's by now
                    calls.do(os.unlink, path)
            _close(hold.file)


@contextmanager
def lent(folder: Path, begin: Callable[[], None] = lambda: None) -> Iterator[Hold]:
    """`locked`, for who prepares and ends the work of a function that locks the folder itself: that one is let in.

    Args:
        folder: An existing folder.
        begin: See `Hold`: not called where the work is refused before it begins.

    Raises:
        LockedError: As `locked`.
        StorageError: As `locked`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, lent(Path(name)), locked(Path(name)):
        ...     os.listdir(name)
        ['.lock']
    """
    with locked(folder) as taken:
        hold = taken._replace(begin=begin)
        with _set({**_lent.get(), str(hold.path): hold}):
            yield hold


@contextmanager
def _set(holds: _Lent) -> Iterator[None]:
    token = _lent.set(holds)
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
        if error.errno in (errno.EISDIR, errno.ELOOP):  # a folder, a link
            raise StorageError(f"{path}: {_NO_FILE}") from error
        raise StorageError(
            f"{path}: cannot be made or opened ({error.strerror}): a run needs a directory to write in"
        ) from error
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # what is written there would be written elsewhere, too
        _close(file)
        raise StorageError(f"{path}: {_NO_FILE}")
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
    _lent.set({})
    while _held:
        os.close(_held.pop())
