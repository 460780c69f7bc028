"""Readers that believe no header: what a file claims is compared with its size before anything is allocated."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from ppl_vae.arrays import as_rows
from ppl_vae.errors import DataError, StorageError, refusal
from ppl_vae.storage.arrays import check_archive, check_header
from ppl_vae.storage.files import is_file

__all__ = ["array_names", "bounded_bytes", "load_array", "parse_idx"]

MAX_BYTES = 2**32
_CHUNK = 2**20


def load_array(path: str | Path, key: str | None = None, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read one array (N, *event) of real, finite numbers from a `.npy` or `.npz` file.

    Args:
        path: The file. A `.npy` is memory-mapped read-only, so it may be larger than memory.
        key: Name of the array in a `.npz` with several.
        max_bytes: Refuse a `.npz` whose arrays decompress to more.

    Raises:
        DataError: No such file or key, a key for a `.npy`, pickled objects, a header that disagrees with the file, too
            many bytes, not numbers, empty, NaN or infinite (the row is named).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.zeros((100, 784), np.float32))
        ...     load_array(f"{folder}/x.npy").shape
        (100, 784)
    """
    path = existing(Path(path))
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{path}: expected a .npy or .npz file, found suffix {path.suffix!r}: save it with numpy.save")
    with as_data_error(path):
        if key is not None and path.suffix == ".npy":
            raise DataError(f"expected FILE.npz to take an array {key!r} from, found one without a name: leave out key")
        array = _load_npy(path) if path.suffix == ".npy" else _load_npz(path, key, max_bytes)
        if array.size == 0:
            raise DataError(f"expected at least one number, found shape {array.shape}")
        as_rows(array)
    return array


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays in a `.npz` file, in their order.

    Raises:
        DataError: No such file, or not a zip.
    """
    path = existing(Path(path))
    with as_data_error(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _load_npy(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        check_header(stream, path.stat().st_size)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _load_npz(path: Path, key: str | None, max_bytes: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, max_bytes)
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if not names:
            raise DataError("expected an archive of arrays, found one that holds none: save it with numpy.savez")
        if len(set(names)) != len(names):
            raise DataError(f"expected arrays of different names, found {', '.join(names)}")
        if key is None and len(names) == 1:
            key = names[0]
        if key is None or key not in names:
            raise DataError(f"expected the name of one of its arrays, {', '.join(names)}, found {key!r}: pass key")
        info = archive.infolist()[names.index(key)]
        with archive.open(info) as stream:
            check_header(stream, info.file_size)
        with archive.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def bounded_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a file, decompressed if it ends in `.gz`, and refuse more than `max_bytes`."""
    path = existing(path)
    content = bytearray()
    with as_data_error(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise DataError(f"expected at most {max_bytes} bytes after decompression, found more")
    return bytes(content)


def parse_idx(content: bytes, path: Path) -> np.ndarray:
    """Parse an IDX file of unsigned bytes: two zeros, type 8, number of dimensions, their sizes, the entries."""
    with as_data_error(path):
        zeros, kind, dims = struct.unpack_from(">HBB", content)
        if zeros or kind != 8 or not dims:
            raise DataError(f"expected an IDX file of unsigned bytes (00 00 08 ..), found {content[:4].hex(' ')}")
        shape = struct.unpack_from(f">{dims}I", content, 4)
        expected = 4 + 4 * dims + prod(shape)
        if expected != len(content):
            raise DataError(f"the header claims shape {shape}, {expected} bytes, found {len(content)}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def existing(path: Path) -> Path:
    """Return the path of a regular file."""
    try:
        if is_file(path):
            return path
    except StorageError as error:
        raise DataError(f"expected an existing regular file, found {error}") from error
    raise DataError(f"{str(path)!r}: expected an existing regular file, found none")


@contextmanager
def as_data_error(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes its reader raise, or the system refuses, into one `DataError` that names it."""
    try:
        yield
    except (DataError, StorageError) as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # zlib.error, struct.error, BadZipFile, TokenError, ...: the list has no end
        if refused := refusal(error):
            raise DataError(f"{path}: refused by the system ({refused}): the file may be good") from error
        raise DataError(f"{path}: expected a readable file, found damage ({error}): get the file anew") from error
