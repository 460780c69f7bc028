"""What the system refuses, such as threads, memory or descriptors: typed errors that call nothing damaged."""

from __future__ import annotations

import errno
import gzip
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae import storage
from ppl_vae.arrays import as_rows
from ppl_vae.data import load_array, origins, readers
from ppl_vae.errors import DataError, StorageError
from ppl_vae.storage import arrays, calls, checkpoint, files, tensors
from ppl_vae.svi.facts import fingerprint

LACKS = [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory"), OSError(errno.EMFILE, "Too many files")]
lacks = pytest.mark.parametrize("lack", LACKS, ids=lambda lack: type(lack).__name__)


def refusing(error: Exception):
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


@pytest.fixture(params=range(3))
def threads_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Some are given before the system has no more."""
    begun, start = [], threading.Thread.start

    def begin(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) > request.param:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    return begun


def test_a_checkpoint_needs_no_thread(threads_asked_for: list[threading.Thread], tmp_path: Path):
    storage.write(tmp_path, 3, {"x": torch.arange(5.0)}, {"beta": 0.5})
    assert threads_asked_for
    found = storage.newest(tmp_path)
    assert found.tensors["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.plain == {"beta": 0.5}


def test_what_tells_data_from_others_needs_no_thread(threads_asked_for: list[threading.Thread]):
    x = torch.arange(20_000.0)
    assert fingerprint(as_rows(x)) == fingerprint(as_rows(x.clone()))
    x[11_111] += 1
    assert fingerprint(as_rows(x)) != fingerprint(as_rows(torch.arange(20_000.0)))
    assert threads_asked_for


@pytest.mark.parametrize(
    "place", [(calls, "pieces"), (checkpoint.plain, "decode"), (tensors, "load")], ids=lambda p: p[1]
)
@lacks
def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(lack, place, tmp_path: Path, monkeypatch):
    """The one before it stands there, and would be gone on from without a word."""
    for step in (1, 2):
        storage.write(tmp_path, step, {"x": torch.ones(1)}, {})
    with monkeypatch.context() as patch:
        patch.setattr(*place, refusing(lack))
        with pytest.raises(
            storage.UnreadableError, match=r"cannot be read \((memory|Too many).*may be good: try again"
        ):
            storage.newest(tmp_path)
    assert storage.newest(tmp_path).step == 2


def test_an_error_of_a_program_is_none_of_the_system(tmp_path: Path):
    with pytest.raises(RuntimeError, match="out of range"), calls.failing("cannot be written", tmp_path):
        raise RuntimeError("out of range")


@lacks
def test_arrays_that_cannot_be_read_are_not_called_damaged(lack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    content = (tmp_path / "x.npz").read_bytes()
    monkeypatch.setattr(np.lib.format, "read_array", refusing(lack))
    with pytest.raises(DataError, match=r"x.npz: refused by the system \((memory|Too many).*may be good"):
        load_array(tmp_path / "x.npz")
    with pytest.raises(StorageError, match=r"x.npz: cannot be read \((memory|Too many)"):
        arrays.from_bytes(content, ["x"], (3,), tmp_path / "x.npz")


def test_a_file_that_is_no_gzip_is_damaged(tmp_path: Path):
    """Python raises an `OSError` for it, as if the system had."""
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"found damage .*get the file anew"):
        readers.bounded_bytes(tmp_path / "x.gz", 100)
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"y"))
    assert readers.bounded_bytes(tmp_path / "y.gz", 100) == b"y"


@pytest.mark.parametrize("size", [10_001, 60_000])
def test_a_long_header_is_refused_without_the_advice_to_trust_it(size: int, tmp_path: Path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (1,)})
    magic, header = content.getvalue()[:8], content.getvalue()[10:].rstrip()
    (tmp_path / "x.npy").write_bytes(magic + size.to_bytes(2, "little") + header.ljust(size) + b"\0\0\0\0")
    with pytest.raises(DataError, match=rf"header of at most 4096 bytes, found {size}: the file is damaged"):
        load_array(tmp_path / "x.npy")


def test_zips_of_omniglot_that_are_there_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins, "_download", refusing(AssertionError("downloaded")))
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"images_background.zip: expected a readable file, found damage"):
        origins.omniglot(tmp_path)


def test_a_disk_too_full_for_omniglot_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).touch()
    monkeypatch.setattr(origins, "_read_zip", lambda path: {})
    monkeypatch.setattr(origins, "_drawings", lambda *zips: origins.Drawings(*([np.zeros(1)] * 4)))
    monkeypatch.setattr(origins, "_checked", lambda drawings, path: drawings)
    monkeypatch.setattr(np, "savez_compressed", refusing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DataError, match=r"omniglot_28x28_area_u8.npz: refused by the system \(No space left"):
        origins.omniglot(tmp_path)
    assert not [name for name in files.listed(tmp_path) if "npz" in name]
