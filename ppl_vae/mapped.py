"""Rows of a memory-mapped array, read from its file: nothing of the mapping becomes resident."""

from __future__ import annotations

import mmap
import os
from weakref import WeakKeyDictionary

import numpy as np

from ppl_vae.errors import DataError

__all__ = ["read_rows"]

_files: WeakKeyDictionary[mmap.mmap, tuple[int, int]] = WeakKeyDictionary()  # which file each mapping was first read as


def read_rows(array: np.memmap, index: slice | np.ndarray) -> np.ndarray:
    """Copies some rows of a memory-mapped array.

    Through the mapping, a single row can bring megabytes of its neighbours into the memory of the process, and after an
    epoch all of the file is there. Reads of the file itself leave nothing behind.

    Args:
        array: The array, rows first.
        index: A slice with step 1, or row numbers.

    Raises:
        DataError: The file cannot be read, is no longer as long as it was, or another one has taken its name since the
            first read.
    """
    first = _offset_in_file(array)
    if first is None:
        return np.array(array[index])
    if isinstance(index, slice):
        start, stop, _ = index.indices(len(array))
        picked = np.empty((max(0, stop - start), *array.shape[1:]), array.dtype)
        pieces = [(picked, start)] if picked.size else []
    else:
        picked = np.empty((len(index), *array.shape[1:]), array.dtype)
        pieces = list(zip(picked.reshape(len(index), -1), index.tolist(), strict=True)) if picked.size else []
    assert array.filename is not None
    try:
        with open(array.filename, "rb", buffering=0) as file:  # noqa: PTH123 (numpy gives str or Path)
            _refuse_another(array._mmap, file.fileno())  # type: ignore[attr-defined]
            for piece, row in pieces:
                _read(file.fileno(), piece, first + row * array.strides[0])
    except OSError as error:
        raise DataError(
            f"{array.filename}: expected data that can be read while they are in use, found {error.strerror or error}: "
            "put the file back as it was"
        ) from error
    return picked


def _refuse_another(pages: mmap.mmap, file: int) -> None:
    found = os.fstat(file)
    if _files.setdefault(pages, (found.st_dev, found.st_ino)) != (found.st_dev, found.st_ino):
        raise OSError("another file of that name")


def _read(file: int, target: np.ndarray, position: int) -> None:
    left = target.data.cast("B")
    while left:
        count = os.preadv(file, [left], position)
        if count == 0:
            raise OSError(f"that they end before byte {position + len(left)}")
        left, position = left[count:], position + count


def _offset_in_file(array: np.memmap) -> int | None:
    """Where the first row lies in the file; None where the rows cannot be read from it one by one."""
    pages: mmap.mmap | None = getattr(array, "_mmap", None)
    if pages is None or array.filename is None or array.mode == "c":
        return None
    if not array.flags.c_contiguous or not hasattr(os, "preadv"):
        return None
    of_pages = np.frombuffer(pages, np.uint8).ctypes.data
    return array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.ctypes.data - of_pages
