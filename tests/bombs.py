"""Bytes made to run code, to lie or to exhaust."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.storage import plain

SIGN = "CODE-RAN"
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class Bomb:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (SIGN,)


class Gadget:
    """Calls `exec` where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.exec, (f"import os; os.mkdir({SIGN!r})",)


class Case(NamedTuple):
    """A hostile file."""

    read: Callable[[Path], object]
    """How it is read; the argument is a folder of its own."""
    make: Callable[[Path], None]
    """How it is made there."""


def sign(path: Path, **changes: Any) -> None:
    """Writes the manifest anew, for the files that are there."""
    contents = {name: (path / name).read_bytes() for name in (TENSORS, STATE) if (path / name).is_file()}
    sizes = {n: {"num_bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    fields = {"format": 1, "library": "1", "step": 1, "files": sizes} | changes
    fields["sha256"] = hashlib.sha256(plain.encode(fields)).hexdigest()
    (path / MANIFEST).write_bytes(plain.encode(fields))


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return stream.getvalue()


def twice(name: str, *contents: bytes) -> bytes:
    """A zip with several members of one name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in contents:
            file.writestr(name, content)
    return stream.getvalue()


def zipped(content: bytes, **changes: Any) -> bytes:
    """A .npz whose directory claims whatever `changes` says."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", changes.pop("compression", zipfile.ZIP_DEFLATED)) as file:
        file.writestr("x.npy", content)
        for name, value in changes.items():
            setattr(file.infolist()[0], name, value)
    return stream.getvalue()


def of_numpy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def of_torch(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


PICKLE, OBJECTS = pickle.dumps(Gadget()), of_numpy(np.array([[Bomb()]], dtype=object))
DEEP = b"[" * 200_000 + b"]" * 200_000
LYING = b"\x93NUMPY\x01\x00" + struct.pack("<H", 80)
LYING += b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}".ljust(79) + b"\n"
