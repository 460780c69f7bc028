"""Rows of a fit: every one once an epoch, in any order; rows on disk are read ahead and leave no trace in memory."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.arrays import as_rows
from ppl_vae.errors import DataError
from ppl_vae.mapped import read_rows
from ppl_vae.svi.feed import Feed
from ppl_vae.svi.order import Order
from tests.pairs import ModuleVAE

CPU = torch.device("cpu")


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 20_001])
def test_every_row_once_an_epoch(num_rows, on_disk):
    order = Order(num_rows, 6, seed=3, on_disk=on_disk)
    epochs = [torch.cat(list(order.epoch(e))) for e in range(2)]
    for rows in epochs:
        assert torch.equal(rows.sort().values, torch.arange(num_rows))
    if num_rows > 1:
        assert not torch.equal(*epochs)
    assert len(list(order.epoch(0))) == order.per_epoch
    for step in (0, order.per_epoch - 1, order.per_epoch, 2 * order.per_epoch - 1):
        assert torch.equal(order.at(step), list(order.epoch(step // order.per_epoch))[step % order.per_epoch])


def test_rows_on_disk_stay_near_each_other_and_are_shuffled():
    """256 blocks of 64 rows are shuffled among each other: a step of 128 rows touches few blocks twice."""
    rows = torch.cat(list(Order(200_000, 128, seed=0, on_disk=True).epoch(0)))
    window = rows[: 64 * 256]
    assert len((window // 64).unique()) == 256
    assert len((rows[:128] // 64).unique()) > 90
    assert float((window[1:] == window[:-1] + 1).float().mean()) < 0.01


@pytest.fixture
def mapped(tmp_path):
    values = np.arange(5 * 50, dtype=np.float32).reshape(50, 5)
    np.save(tmp_path / "x.npy", values)
    return values, np.load(tmp_path / "x.npy", mmap_mode="r")


def test_rows_on_disk_are_served_in_order(mapped):
    values, on_disk = mapped
    feed = Feed(as_rows(on_disk), Order(50, 8, seed=1), CPU)
    expected = [values[index.numpy()] for index in feed.order.epoch(2)]
    for limit in (3, 100):
        served = [s.arrays[0].index_select(0, s.index) for s in feed.epoch(2, limit)]
        assert [len(s) for s in served] == [len(e) for e in expected[:limit]]
        for found, rows in zip(served, expected, strict=False):
            np.testing.assert_array_equal(found.numpy(), rows)


def test_reading_ends_with_the_epoch_or_before(mapped):
    feed = Feed(as_rows(mapped[1]), Order(50, 2, seed=1), CPU)
    next(iterator := feed.epoch(0, 25))
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ppl_vae-feed")]


def test_an_error_of_reading_reaches_the_fit(mapped, monkeypatch):
    feed = Feed(as_rows(mapped[1]), Order(50, 2, seed=1), CPU)
    monkeypatch.setattr(feed.rows, "take", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        list(feed.epoch(0, 25))


RESIDENT = """
import sys
import numpy as np, torch
import ppl_vae as pv
torch.set_num_threads(1)
def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["VmHWM"].split()[0]) / 1024
vae = pv.VAE(
    pv.priors.StandardNormal(2), pv.decoders.Gaussian.mlp(2, [8], 256), pv.encoders.DiagonalNormal.mlp(256, [8], 2)
)
for path in sys.argv[1:]:
    x = np.load(path, mmap_mode="r")
    pv.fit(vae, x, epochs=1, batch_size=512, progress=False, compile=False)
    pv.log_likelihood(vae, x[:2000], 10, progress=False, compile=False)
    print(resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 30, three times, and then one of 120 MB: that may cost 10 MB more than another fit does."""
    small, large = (tmp_path / f"{rows}.npy" for rows in (30_000, 120_000))
    for path in (small, large):
        np.save(path, np.random.default_rng(0).normal(size=(int(path.stem), 256)).astype(np.float32))
    command = [sys.executable, "-c", RESIDENT, small, small, small, large]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, before, after = map(float, done.stdout.split())
    assert after < before + 10


def test_mapped_data_train_as_those_in_memory(mapped):
    values, on_disk = mapped
    torch.manual_seed(0)
    scaled = (values % 7 > 3).astype(np.float32)
    one, other = ModuleVAE(), ModuleVAE()
    other.load_state_dict(one.state_dict())
    assert isinstance(on_disk, np.memmap)
    pv.fit(one, scaled, epochs=2, batch_size=8, progress=False)
    target = np.memmap(f"{on_disk.filename}.bin", dtype=np.float32, mode="w+", shape=scaled.shape)
    target[:] = scaled
    target.flush()
    pv.fit(
        other, np.memmap(target.filename, np.float32, "r", shape=scaled.shape), epochs=2, batch_size=8, progress=False
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("part", [slice(None), slice(7, 30), np.s_[5:40:1]])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_rows_are_read_from_the_file(tmp_path, part, dtype):
    """Behind headers and offsets that are no whole pages, and in parts of an array."""
    values = np.arange(50 * 6).reshape(50, 2, 3).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    with (tmp_path / "raw.bin").open("wb") as file:
        file.write(b"x" * 5001 + values.tobytes())
    raw = np.memmap(tmp_path / "raw.bin", dtype, "r", 5001, values.shape)
    for array in (np.load(tmp_path / "x.npy", mmap_mode="r")[part], raw[part]):
        index = np.array([3, 0, 0, 17])
        np.testing.assert_array_equal(read_rows(array, index), values[part][index])
        np.testing.assert_array_equal(read_rows(array, slice(4, 9)), values[part][4:9])
        np.testing.assert_array_equal(read_rows(array, slice(20, 900)), values[part][20:900])
        assert read_rows(array, slice(900, 901)).shape == (0, 2, 3)


def test_arrays_that_are_no_plain_part_of_a_file_are_read_through_the_mapping(tmp_path):
    values = np.arange(60.0).reshape(10, 6)
    np.save(tmp_path / "x.npy", values)
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[2] = -1.0
    assert (read_rows(changed, np.array([2])) == -1.0).all()
    columns = np.load(tmp_path / "x.npy", mmap_mode="r")[:, 1:3]
    np.testing.assert_array_equal(read_rows(columns, np.array([4, 1])), values[[4, 1], 1:3])
    turned = np.load(tmp_path / "x.npy", mmap_mode="r")[::-1]
    np.testing.assert_array_equal(read_rows(turned, slice(0, 3)), values[::-1][:3])


def test_a_file_that_was_cut_is_an_error(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(10, 6))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match=r"x.npy: expected data .* end before byte 608: put the file back"):
        read_rows(mapped, np.array([9]))


def test_a_file_that_another_one_has_replaced_is_an_error(tmp_path):
    """Its first rows were those of the file before; a file that is read for the first time is its own."""
    np.save(tmp_path / "x.npy", np.zeros((10, 6)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not read_rows(mapped, slice(0, 3)).any()
    np.save(tmp_path / "y.npy", np.ones((10, 6)))
    (tmp_path / "y.npy").replace(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x.npy: expected data .* found another file of that name: put the file back"):
        read_rows(mapped, slice(3, 6))
    assert read_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), slice(3, 6)).all()
