"""Readers of arrays: what is accepted, and headers that lie."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppl_vae.data import array_names, load_array, readers
from ppl_vae.errors import DataError
from tests.bombs import of_numpy, zipped


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_npy_is_mapped_and_npz_is_read(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", x=x)
    np.savez_compressed(tmp_path / "two.npz", x=x, y=-x)
    assert isinstance(load_array(tmp_path / "x.npy"), np.memmap)
    for path, key in [("x.npy", None), ("one.npz", None), ("one.npz", "x"), ("two.npz", "x")]:
        np.testing.assert_array_equal(load_array(tmp_path / path, key), x)
    for key in (None, "z"):
        with pytest.raises(DataError, match="one of its arrays, x, y, found"):
            load_array(tmp_path / "two.npz", key)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "f2", ">f4", "i4", "u1", "?"])
def test_every_real_dtype_is_read(dtype, order, tmp_path):
    x = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x)
    for suffix in ("npy", "npz"):
        np.testing.assert_array_equal(load_array(tmp_path / f"x.{suffix}"), x)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("code-ran",)


@pytest.mark.parametrize("save", [lambda p, x: np.save(f"{p}.npy", x), lambda p, x: np.savez(f"{p}.npz", x)])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[Bomb()]], dtype=object), "never unpickled"),
        (np.array([["a"]]), "real numbers"),
        (np.ones((2, 2), complex), "real numbers"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")]), "real numbers"),
        (np.zeros((0, 4)), "at least one number"),
        (np.zeros((4, 0)), "at least one number"),
        (np.array([[0.0], [np.nan]]), "row 1"),
        (np.array([[0.0], [0.0], [np.inf]]), "row 2"),
        (np.array(1.0), "scalar"),
        (np.ones(2, np.longdouble), r"numbers of a type that torch has, found dtype float\d+: pass x.astype"),
    ],
)
def test_arrays_that_are_no_data_are_refused(save, array, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("x", array)
    with pytest.raises(DataError, match=message):
        load_array(next(tmp_path.glob("x.np?")))
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("name", ["absent.npy", "folder.npy", "fifo.npy", "nul\0.npy", "x.csv", "x.pkl"])
def test_other_files_are_refused(name, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "fifo.npy")
    for suffix in ("csv", "pkl"):
        (tmp_path / f"x.{suffix}").write_bytes(b"x")
    with pytest.raises(DataError, match="expected"):
        load_array(tmp_path / name)


# Headers that lie, and bombs: refused before anything of their size is allocated


def lying_npy(shape, descr="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
    return stream.getvalue() + bytes(64)


LIES = {
    "large.npy": lying_npy((2**40, 784)),
    "small.npy": lying_npy((1, 4)),
    "negative.npy": lying_npy((-4, -4)),
    "overflow.npy": lying_npy((2**62, 2**62)),
    "nothing.npy": lying_npy((2**40,), "|V0"),
    "empty.npy": b"",
    "text.npy": b"hello, world",
    "version.npy": b"\x93NUMPY\x03\x00" + lying_npy((4, 4))[8:],
    "twice.npy": lying_npy((4, 4)).replace(b" " * 20, b"'shape': (2, 8), }".rjust(20), 1).replace(b"}", b" ", 1),
    "zip.npy": zipped(of_numpy(np.ones((2, 2)))),
    "large.npz": zipped(lying_npy((2**40, 784))),
    "directory.npz": zipped(of_numpy(np.ones((2, 2))), file_size=2**31),
    "bomb.npz": zipped(of_numpy(np.zeros(2**22, np.uint8))),
    "bzip2.npz": zipped(of_numpy(np.zeros(2**16, np.uint8)), compression=zipfile.ZIP_BZIP2),
    "crc.npz": zipped(of_numpy(np.ones((2, 2))), CRC=1),
    "truncated.npz": zipped(of_numpy(np.ones((2, 2))))[:-30],
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie_are_refused_before_allocation(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(LIES[name])
    tracemalloc.start()
    with pytest.raises(DataError, match=r"expected|claim|cannot"):
        load_array(path, max_bytes=2**21)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_a_header_that_says_something_twice_is_named_as_damage(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(LIES["twice.npy"])
    assert np.load(path, allow_pickle=False).shape == (2, 8)
    with pytest.raises(DataError, match="once each: the file is damaged"):
        load_array(path)


def test_an_archive_without_arrays_is_said_to_hold_none(tmp_path):
    np.savez(tmp_path / "x.npz")
    for key in (None, "x"):
        with pytest.raises(DataError, match="an archive of arrays, found one that holds none"):
            load_array(tmp_path / "x.npz", key)


def test_members_of_an_archive_claim_no_more_than_it_holds(tmp_path):
    """Else a few bytes would have a gigabyte allocated, whatever their header says."""
    lie = lying_npy((2**18,))
    (tmp_path / "x.npz").write_bytes(zipped(lie, file_size=len(lie) - 64 + 2**20, compress_size=2**13))
    with pytest.raises(DataError, match=r"members that a file of \d+ bytes can hold, found 8192 bytes claimed"):
        load_array(tmp_path / "x.npz")


def test_a_gzip_bomb_stops_at_the_limit(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    tracemalloc.start()
    with pytest.raises(DataError, match="at most 1000 bytes"):
        readers.bounded_bytes(path, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\0",
        b"\0\0\x08\x03\0\0",
        idx(np.zeros((2, 3)))[:-1],
        idx(np.zeros((2, 3))) + b"\0",
        b"\0\0\x0d\x01" + idx(np.zeros(4))[4:],
        struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
    ],
)
def test_idx_headers_that_lie_are_refused(content, tmp_path):
    with pytest.raises(DataError, match=r"x\.idx"):
        readers.parse_idx(content, tmp_path / "x.idx")


def read_gz(path):
    return readers.parse_idx(readers.bounded_bytes(path, 2**20), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["npy", "npz", "idx.gz"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), length=st.floats(0, 1))
def test_damage_gives_a_data_error_or_an_array(suffix, position, bit, length, tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(4, 6)
    content = bytearray(
        {"npy": of_numpy(x), "npz": zipped(of_numpy(x)), "idx.gz": gzip.compress(idx(x), mtime=0)}[suffix]
    )
    content[int(position * len(content))] ^= 1 << bit
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content[: len(content) if length > 0.5 else int(2 * length * len(content))])
    try:
        found = readers.parse_idx(readers.bounded_bytes(path, 2**20), path) if suffix == "idx.gz" else load_array(path)
    except DataError:
        return
    assert suffix == "npy" or np.array_equal(found, x), "damage that a checksum covers"


def test_the_array_whose_header_was_checked_is_the_one_that_is_returned(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name, value in (("x.npy", 1.0), ("x.npy.npy", 2.0)):
            file.writestr(name, of_numpy(np.full((2, 1), value)))
    assert load_array(tmp_path / "x.npz", "x")[0] == 1.0
    assert load_array(tmp_path / "x.npz", "x.npy")[0] == 2.0


def test_names_of_arrays_keep_their_order(tmp_path):
    np.savez(tmp_path / "x.npz", y=np.ones(3), x=np.ones(3))
    assert array_names(tmp_path / "x.npz") == ["y", "x"]
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"x.npz: expected a readable file"):
        array_names(tmp_path / "x.npz")
