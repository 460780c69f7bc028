"""Arrays by name as a `.npz`; what a header claims is compared with the size before anything is allocated."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ppl_vae.errors import StorageError, refusal
from ppl_vae.storage.calls import inflated

__all__ = ["check_archive", "check_header", "from_bytes", "to_bytes"]

_MAX_BYTES = 2**32
_SLACK = 2**20
_NUM_KEYS = 3
_MAX_ITEM, _MAX_HEADER = 16, 2**12
_DEFLATE_LIMIT = 1032  # no deflate stream expands more (zlib technical details)


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns arrays as a `.npz`."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def from_bytes(
    content: bytes, names: Sequence[str], shape: tuple[int, ...], path: Path, absent: Mapping[str, Any] | None = None
) -> list[np.ndarray]:
    """Returns the arrays of these names, all of one shape, in a `.npz`.

    Args:
        content: The file.
        names: Of the arrays.
        shape: Of each of them.
        path: Of the file, for messages.
        absent: Name -> value of all entries, for arrays that earlier versions did not write.

    Raises:
        StorageError: It is damaged, claims more than it holds, has not exactly one array of each name, or one of
            another shape or not of real numbers.

    Example:
        >>> from_bytes(to_bytes({"x": np.arange(2)}), ["x"], (2,), Path("x.npz"))
        [array([0, 1])]
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_archive(archive, _MAX_BYTES)
            members, given = archive.namelist(), absent or {}
            return [
                np.full(shape, given[name])
                if name in given and f"{name}.npy" not in members
                else _member(archive, name, shape)
                for name in names
            ]
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from None
    except Exception as error:  # zlib.error, struct.error, BadZipFile, TokenError, ...: the list has no end
        if refused := refusal(error):
            raise StorageError(f"{path}: cannot be read ({refused})") from error
        raise StorageError(f"{path}: expected readable arrays, found damage ({error})") from error


def check_archive(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Refuses a zip that claims more than it can hold, or more than `max_bytes` together.

    Raises:
        StorageError: It does; the member is named.
    """
    members = archive.infolist()
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise StorageError(
                f"{info.filename}: expected a stored or deflated member, found type {info.compress_type}"
            )
        if info.file_size > _DEFLATE_LIMIT * info.compress_size + _SLACK:
            raise StorageError(
                f"{info.filename}: {info.compress_size} bytes cannot decompress to the {info.file_size} claimed"
            )
    stored = sum(info.compress_size for info in members)
    if archive.fp is not None and stored > (size := archive.fp.seek(0, io.SEEK_END)):
        raise StorageError(f"expected members that a file of {size} bytes can hold, found {stored} bytes claimed")
    total = sum(info.file_size for info in members)
    if total > max_bytes:
        raise StorageError(f"expected at most {max_bytes} bytes after decompression, found {total}: pass max_bytes")


def check_header(stream: IO[bytes], size: int) -> tuple[int, ...]:
    """Returns the shape that a `.npy` header claims, if it describes exactly what a file of `size` bytes holds.

    Raises:
        StorageError: It does not, or says something twice, or the numbers are not real.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise StorageError(f"expected .npy format 1.0 or 2.0, found {version}")
    _refuse_long_header(stream, version)
    shape, _, dtype = readers[version](stream)
    if dtype.kind not in "fiub":
        raise StorageError(f"expected real numbers, found dtype {dtype} (objects are never unpickled)")
    expected = _end_of_header(stream, version) + prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != size:
        raise StorageError(f"the header claims {dtype} {shape}, {expected} bytes, found {size}: the file is damaged")
    return shape


def _refuse_long_header(stream: IO[bytes], version: tuple[int, int]) -> None:
    """Before NumPy reads it, which refuses it too, with advice to trust the file."""
    start, size = stream.tell(), int.from_bytes(stream.read(2 * version[0]), "little")
    stream.seek(start)
    if size > _MAX_HEADER:
        raise StorageError(f"expected a header of at most {_MAX_HEADER} bytes, found {size}: the file is damaged")


def _end_of_header(stream: IO[bytes], version: tuple[int, int]) -> int:
    """Where the numbers begin, after a header that has been read; Python takes the last of keys that stand twice."""
    end, start = stream.tell(), len(np.lib.format.magic(*version)) + 2 * version[0]
    stream.seek(start)
    if stream.read(end - start).count(b":") != _NUM_KEYS:
        raise StorageError("expected a header that says descr, fortran_order and shape once each: the file is damaged")
    return end


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if len(found) != 1:
        raise StorageError(f"expected one array {name!r}, found {len(found)}")
    if (size := found[0].file_size) > prod(shape) * _MAX_ITEM + _MAX_HEADER:
        raise StorageError(f"{name!r}: expected numbers of shape {shape}, found {size} bytes claimed")
    stream = io.BytesIO(inflated(archive, found[0]))
    if (claimed := check_header(stream, size)) != shape:
        raise StorageError(f"{name!r}: expected shape {shape}, found {claimed}")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)
