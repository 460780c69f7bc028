"""Files and folders of a run: written durably, read within bounds, removed at once.

What a function here has written is on the disk when it returns: the bytes of a file by `fsync` of the file, its name by
`fsync` of the folder. Nothing follows a symbolic link in the last part of a path, and nothing but regular files is read
or written, so that a pipe cannot block and a device cannot be touched.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from ppl_vae.errors import StorageError
from ppl_vae.storage import calls
from ppl_vae.storage.calls import Written

__all__ = [
    "Sums",
    "Written",
    "append",
    "create",
    "is_debris",
    "is_file",
    "is_folder",
    "listed",
    "make_folder",
    "meanwhile",
    "move",
    "read",
    "refuse_link",
    "remove",
    "remove_debris",
    "remove_empty",
    "remove_if_there",
    "replace",
    "sync_folder",
    "temporary",
    "where_links_lead",
    "write_folder",
]

T = TypeVar("T")

_TEMPORARY = ".tmp-"
_DEBRIS = re.compile(re.escape(_TEMPORARY) + "[0-9a-f]{16}-(.+)", re.DOTALL)


Sums = Mapping[str, Written]


def create(path: Path, chunks: Iterable[Any]) -> None:
    """Writes a new file; its name is durable only after `sync_folder`.

    Args:
        path: The file, which must not exist.
        chunks: Its content, as one-dimensional buffers of bytes.

    Raises:
        StorageError: It exists, or the disk refuses.
    """
    with calls.failing("cannot be written", path), calls.opened(path, calls.NEW) as file:
        calls.write(file, chunks)
        calls.do(os.fsync, file)


def replace(path: Path, chunks: Iterable[Any]) -> None:
    """Writes a file that is whole, or as it was before, whenever the process or the machine stops.

    Raises:
        StorageError: The disk refuses; the file is as it was before, or, where only its new name could not be made
            durable, the new one, which a loss of power may undo.
    """
    part = temporary(path)
    with _discarded_unless_done(part):
        create(part, chunks)
        move(part, path)


def write_folder(path: Path, contents: Mapping[str, Iterable[Any]], last: str, of: Callable[[Sums], bytes]) -> None:
    """Makes a new folder of files that is whole or absent, whenever the process or the machine stops.

    Before it gets its name, everything in it is durable and has been read back. Files are hashed and synced meanwhile;
    nothing is synced before the first is written, for then the disk would be busy.

    Args:
        path: The folder, which must not exist.
        contents: The chunks of its files, by name, the largest first. They are gone through three times: to hash, to
            write, and to compare.
        last: Name of the last file.
        of: What it holds, made of the sizes and hashes of the others.

    Raises:
        StorageError: The disk refuses, or gives back other bytes; what was begun is removed again where that is
            possible.
    """
    part = temporary(path)
    with _discarded_unless_done(part):
        with calls.failing("cannot be written", path), ExitStack() as opened, ThreadPoolExecutor() as pool:
            sums = {name: meanwhile(pool, calls.summed, chunks) for name, chunks in contents.items()}
            syncing: list[Callable[[], None]] = []

            def write(name: str, chunks: Iterable[Any]) -> None:
                file = opened.enter_context(calls.opened(part / name, calls.NEW))
                calls.write(file, chunks)
                syncing.append(meanwhile(pool, calls.do, os.fsync, file))
                _read_back(part / name, chunks)

            calls.do(os.mkdir, part)
            for name, chunks in contents.items():
                write(name, chunks)
            write(last, [of({name: found() for name, found in sums.items()})])
            syncing.append(meanwhile(pool, sync_folder, part))
            for done in syncing:
                done()
        move(part, path)


def append(path: Path, text: str) -> None:
    """Adds text to the end of a file, made if there is none.

    Raises:
        StorageError: The disk refuses; a part of the text may stand in the file.
    """
    is_new = not os.path.lexists(path)
    with calls.failing("cannot be added to", path), calls.opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        calls.write(file, [text.encode()])
        calls.do(os.fsync, file)
    if is_new:
        sync_folder(path.parent)


def read(path: Path, max_bytes: int) -> bytes:
    """Reads a regular file, whose size is known before anything is allocated.

    Raises:
        StorageError: There is none, it is something else, it has more bytes, or the disk refuses.
    """
    with calls.failing("cannot be read", path):
        return b"".join(calls.pieces(path, max_bytes))


def is_file(path: Path) -> bool:
    """Whether a name is that of a regular file, or of a link to one.

    Raises:
        StorageError: The system does not tell.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a name is that of a folder, or of a link to one.

    Raises:
        StorageError: The system does not tell.
    """
    return stat.S_ISDIR(_mode(path))


def where_links_lead(path: Path) -> Path:
    """A path with no link in it: the path itself, or the one it leads to now, which stays when a link is led elsewhere.

    Raises:
        StorageError: No file can have that name.
    """
    with calls.failing("cannot be found", path):
        real = Path(os.path.realpath(path))
    return path if real == path.absolute() else real


def refuse_link(path: Path) -> None:
    """Refuses a link in the place of a folder of a run: what is written and removed there would be someone else's.

    Raises:
        StorageError: There is one, or the system does not tell.
    """
    with calls.failing("cannot be read", path), suppress(FileNotFoundError):
        if stat.S_ISLNK(calls.do(os.lstat, path).st_mode):
            raise StorageError(
                f"{path}: expected a folder of the run, found a link: to keep a run elsewhere, let the run directory "
                "itself be the link"
            )


def make_folder(path: Path) -> list[Path]:
    """Makes a folder and those it stands in, as far as they are missing, durably; returns them, the innermost first.

    Raises:
        StorageError: The disk refuses, or a file has the name.
    """
    missing = [*takewhile(lambda folder: not _mode(folder), (path, *path.parents))]
    with calls.failing("cannot be made", path):
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process was quicker
                calls.do(os.mkdir, folder)
            sync_folder(folder.parent)
    if not is_folder(path):
        raise StorageError(f"{path}: expected a folder, found a file in its place")
    return missing


def move(source: Path, target: Path) -> None:
    """Gives a file or a folder another name in the same folder, durably; a file there before is replaced.

    Raises:
        StorageError: The disk refuses.
    """
    with calls.failing(f"cannot become {target.name}", source):
        calls.do(os.rename, source, target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable.

    Raises:
        StorageError: The disk refuses.
    """
    with calls.failing("its names cannot be made durable", path), calls.opened_folder(path) as folder:
        calls.do(os.fsync, folder)


def listed(path: Path) -> list[str]:
    """Returns the names in a folder, sorted; none where there is no folder.

    Raises:
        StorageError: The disk refuses.
    """
    with calls.failing("cannot be listed", path), suppress(FileNotFoundError):
        return sorted(calls.do(os.listdir, path))
    return []


def remove(paths: Iterable[Path]) -> None:
    """Removes files, and folders with what is in them, each at once: none is ever seen in part under its own name.

    Raises:
        StorageError: The disk refuses; what is left of them is debris.
    """
    gone = []
    for path in paths:
        gone.append(temporary(path))
        with calls.failing("cannot be removed", path):
            calls.do(os.rename, path, gone[-1])
    for folder in sorted({path.parent for path in gone}):
        sync_folder(folder)
    for path in gone:
        _unlink(path)


def remove_if_there(path: Path) -> None:
    """Removes a file, or a folder with what is in it, at once; nothing where there is none.

    Raises:
        StorageError: The disk refuses.
    """
    if os.path.lexists(path):
        remove([path])


def remove_empty(path: Path) -> None:
    """Removes a folder that has nothing in it.

    Raises:
        StorageError: There is something in it, or the disk refuses.
    """
    with calls.failing("cannot be removed", path):
        calls.do(os.rmdir, path)


def remove_debris(folder: Path, of: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Removes what processes that were killed have left under temporary names, and returns these names.

    Args:
        folder: The folder.
        of: What only this process writes there, by name, which a lock makes sure of.

    Raises:
        StorageError: The disk refuses.
    """
    debris = [name for name in listed(folder) if (found := _DEBRIS.fullmatch(name)) and of(found[1])]
    for name in debris:
        _unlink(folder / name)
    return debris


def is_debris(name: str) -> bool:
    """Whether a name is one that `temporary` gives.

    Example:
        >>> is_debris(temporary(Path("x")).name), is_debris(".tmp-mine")
        (True, False)
    """
    return _DEBRIS.fullmatch(name) is not None


def temporary(path: Path) -> Path:
    """A name beside a path, on the same file system, that nobody else has; it ends in the name that it stands for."""
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}-{path.name}")


def meanwhile(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Begins work in a thread, and returns what waits for it; where the system gives no thread, what does it then."""
    try:
        return pool.submit(work, *arguments).result
    except RuntimeError:  # no thread to be had, or the interpreter ends
        return partial(work, *arguments)


def _mode(path: Path) -> int:
    """Of what a name, or a link of that name, stands for; 0 where there is nothing."""
    with calls.failing("cannot be read", path), suppress(FileNotFoundError, NotADirectoryError):
        return calls.do(os.stat, path).st_mode
    return 0


def _read_back(path: Path, chunks: Iterable[Any]) -> None:
    with calls.failing("cannot be read back", path), calls.opened(path, os.O_RDONLY) as file:
        if not calls.holds(file, chunks):
            raise StorageError(f"{path}: expected what was written into it, found other bytes: the disk is failing")


def _unlink(path: Path) -> None:
    """Unlinks a file, or a folder and all that is in it; a link to a folder is unlinked, not followed."""
    with calls.failing("cannot be removed", path):
        found, folders = [path], []
        for place in found:  # which grows meanwhile
            if stat.S_ISDIR(calls.do(os.lstat, place).st_mode):
                folders.append(place)
                found += [place / name for name in listed(place)]
            else:
                calls.do(os.unlink, place)
        for folder in reversed(folders):
            calls.do(os.rmdir, folder)


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
