"""Data sets: fixed splits, checked bytes, downloads."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_vae import data
from ppl_vae.data import origins, sets
from ppl_vae.errors import DataError
from tests.statistical import assert_close, assert_mean

SPLITS = ("train", "validation", "test")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def digest(dataset):
    """Hash of the split: a change of any row of any part is a change of the data set."""
    parts = [t for split in SPLITS for t in (getattr(dataset, split), getattr(dataset.labels, split))]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in parts)).hexdigest()[:16]


def check_contract(dataset, sizes):
    for split, size in zip(SPLITS, sizes, strict=True):
        x, labels = getattr(dataset, split), getattr(dataset.labels, split)
        assert x.shape == (size, np.prod(dataset.event_shape))
        assert labels.shape == (size,)
        assert x.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert (x.min().item(), x.max().item()) == (0, 1)


# The data sets


def test_digits_are_split_once_and_for_all():
    digits = data.load("digits")
    check_contract(digits, (1257, 180, 360))
    assert digits.event_shape == (1, 8, 8)
    assert digest(digits) == "cbc8f9fac27dd9cd"
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.train = digits.test


def test_the_split_loses_no_digit():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    rows = torch.cat([digits.train, digits.validation, digits.test]).mul(16).int().tolist()
    assert sorted(rows) == sorted(load_digits().data.astype(int).tolist())


def test_every_row_falls_into_one_part_of_a_split():
    rest, second, third = data.split_rows(50, 5, 7)
    assert [len(part) for part in (rest, second, third)] == [38, 5, 7]
    assert sorted(np.concatenate([rest, second, third])) == list(range(50))
    assert all((np.diff(part) > 0).all() for part in (rest, second, third))


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("mnist", (55_000, 5_000, 10_000), "ad9efbda5f9c4530"),
        ("fashion-mnist", (55_000, 5_000, 10_000), "7d955409821ec5f1"),
        ("omniglot", (17_280, 2_000, 13_180), "7fd224700b48586c"),
    ],
)
def test_real_data_sets(name, sizes, expected, data_dir):
    dataset = data.load(name, data_dir=data_dir)
    check_contract(dataset, sizes)
    assert dataset.event_shape == (1, 28, 28)
    assert digest(dataset) == expected


def test_real_bytes_pass_the_check(data_dir):
    for name, origin in origins.IDX.items():
        labels = origins.read_idx(data_dir / name, "t10k-labels-idx1-ubyte", origin)
        assert np.bincount(labels).sum() == 10_000


@pytest.mark.parametrize("name", ["", "../mnist", "/etc/passwd", "mnist\0", "x" * 300, "MNIST"])
def test_other_names_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="digits, mnist, fashion-mnist, omniglot"):
        data.load(name, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# Binarisation


def test_fixed_binarisation_draws_each_split_once():
    grey, binary = data.load("digits"), data.load("digits", binarize="fixed")
    assert digest(binary) == digest(data.load("digits", binarize="fixed")) == "fc93e4eb35ceba9f"
    for split in SPLITS:
        p, x = getattr(grey, split), getattr(binary, split)
        assert x.unique().tolist() == [0, 1]
        assert torch.equal(x[(p == 0) | (p == 1)], p[(p == 0) | (p == 1)])
        spread = (p * (1 - p)).mean().sqrt().item()
        assert_mean((x - p).double().numpy(), 0.0, sigma=spread, effect=0.03)


def test_numpy_arrays_become_tensors_of_levels_and_anything_else_is_a_typed_error():
    x = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(data.binarize(x, seed=0), torch.from_numpy(x))
    assert torch.equal(data.dequantize(x, levels=2, seed=1), data.dequantize(torch.from_numpy(x), levels=2, seed=1))
    for wrong in ("my.npy", [x, x], np.array(["a"]), np.array([[256.0]])):
        for draw in (data.binarize, lambda x: data.dequantize(x, 256), lambda x: data.quantize(x, 256)):
            with pytest.raises(DataError, match="expected"):
                draw(wrong)


def test_binarize_is_a_function_of_its_seed():
    x, state = torch.full((50, 2, 4), 0.5, dtype=torch.float64), torch.get_rng_state()
    assert torch.equal(data.binarize(x, 1), data.binarize(x, 1))
    assert not torch.equal(data.binarize(x, 1), data.binarize(x, 2))
    assert data.binarize(x).dtype == torch.float64
    assert data.binarize(x).shape == x.shape
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_binarize_names_the_row_out_of_support(value):
    x = torch.full((5, 1, 2), 0.5)
    x[3, 0, 1] = value
    with pytest.raises(DataError, match=f"row 3: .*found {value:g}: divide by"):
        data.binarize(x)


def test_dequantised_levels_stay_in_their_share_of_the_interval():
    x = data.load("digits").test
    y = data.dequantize(x, 17, seed=3)
    assert torch.equal((17 * y).floor(), 16 * x)
    assert torch.equal(y, data.dequantize(x, 17, seed=3))
    assert not torch.equal(y, data.dequantize(x, 17, seed=4))
    assert_mean((17 * y - 16 * x).double().numpy(), 0.5, sigma=12**-0.5, effect=0.03)


@pytest.mark.parametrize(
    ("value", "levels", "message"),
    [(2.0, 17, "row 1: expected grey levels in"), (0.5, 16, "row 1: .*is it 16"), (0.5, 1, "at least 2, found 1")],
)
def test_dequantisation_refuses_what_is_no_level(value, levels, message):
    with pytest.raises(ValueError, match=message):
        data.dequantize(torch.tensor([[0.0], [value]]), levels)


def test_levels_are_shares_of_the_interval():
    """Of images of as many levels they are the levels themselves, and dequantising is undone."""
    for levels in (2, 17, 256, 1000):
        j = torch.arange(levels, dtype=torch.float32)[:, None]
        assert torch.equal(data.quantize(j / (levels - 1), levels), j)
        assert torch.equal(data.quantize(data.dequantize(j / (levels - 1), levels), levels), j)
        assert torch.equal(data.quantize(torch.nextafter((j + 1) / levels, 0 * j), levels), j)
        many = j[levels // 2].expand(1_000_000, 1)  # some draws of so many would round into the next level
        assert torch.equal(data.quantize(data.dequantize(many / (levels - 1), levels), levels), many)
    x = torch.rand(100, 3)
    assert torch.equal(data.quantize(x.numpy(), 7), data.quantize(x, 7))
    assert ((x - (data.quantize(x, 7) + 0.5) / 7).abs() <= 0.5 / 7 + 1e-6).all()


@pytest.mark.parametrize(
    ("value", "levels", "message"),
    [(1.5, 16, "row 1: .*found 1.5"), (float("nan"), 16, "row 1"), (0.5, 1, "at least 2")],
)
def test_only_grey_images_become_levels(value, levels, message):
    with pytest.raises(ValueError, match=message):
        data.quantize(torch.tensor([[0.0], [value]]), levels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("levels", [4, 256, 1000])
def test_whole_numbers_become_levels_in_single_precision(dtype, levels):
    """In their own dtype the top level would wrap."""
    x = torch.tensor([[0, 1]], dtype=dtype)
    assert_close(data.quantize(x, levels), torch.tensor([[0.0, levels - 1.0]]))
    assert_close(data.dequantize(x, levels, seed=1), data.dequantize(x.float(), levels, seed=1))


@pytest.mark.parametrize("make", [data.quantize, data.dequantize])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_where_it_would_merge_levels(make, dtype):
    with pytest.raises(DataError, match=f"single or double precision, found {dtype}"):
        make(torch.tensor([[0.0, 1.0]], dtype=dtype), 256)


@pytest.mark.parametrize("make", [data.quantize, data.dequantize])
@pytest.mark.parametrize("levels", [2.5, float("nan"), "4", None])
def test_a_number_of_levels_is_a_whole_one(make, levels):
    with pytest.raises(ValueError, match="levels: expected a whole number"):
        make(torch.tensor([[0.0, 1.0]]), levels)


def test_the_density_of_dequantised_data_bounds_the_probability_of_levels():
    """A beta density, whose integral over a share is known; the mean over the share by the midpoint rule."""
    num_levels, density = 4, stats.beta(1.2, 1.5)
    for j in range(num_levels):
        y = (j + (np.arange(10_000) + 0.5) / 10_000) / num_levels
        bound = data.levels_log_prob(density.logpdf(y), 1, num_levels).mean()
        probability = density.cdf((j + 1) / num_levels) - density.cdf(j / num_levels)
        assert np.log(probability) - 0.5 < bound < np.log(probability)
    uniform = data.levels_log_prob(torch.zeros(3), 5, num_levels)
    assert_close(uniform, np.full(3, -5 * np.log(4)), torch.float32)


def test_dynamic_binarisation_is_left_to_fit():
    with pytest.raises(DataError, match="option of fit"):
        data.load("digits", binarize="dynamic")


# Origins: found, downloaded, wrong


@pytest.fixture
def small(monkeypatch):
    """A data set "mnist" of twelve images: file contents by name, with their hashes pinned."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 28, 28)), rng.integers(0, 10, 12)
    contents = dict(zip(origins.IDX["mnist"].sha256, [idx(images), idx(labels)] * 2, strict=True))
    pinned = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(origins.IDX, "mnist", origins.IdxOrigin("https://origin/", pinned))
    monkeypatch.setitem(sets._NUM_VALIDATION, "mnist", 2)
    return contents


@pytest.fixture
def downloads(monkeypatch):
    """Replaces pooch: serves `downloads.served` by address and records what was asked."""
    served, asked = {}, []

    def download(url, output_file, pooch):
        asked.append(url)
        if url not in served:
            raise OSError("no route to host")
        Path(output_file).write_bytes(served[url])

    monkeypatch.setitem(sys.modules, "pooch", types.SimpleNamespace(HTTPDownloader=lambda: download))
    return types.SimpleNamespace(served=served, asked=asked)


@pytest.mark.parametrize("compressed", [True, False])
def test_files_found_in_the_folder_are_not_downloaded(compressed, small, downloads, tmp_path):
    (tmp_path / "mnist").mkdir()
    for name, content in small.items():
        path = tmp_path / "mnist" / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    dataset = data.load("mnist", data_dir=tmp_path)
    images = np.frombuffer(small["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(12, 784)
    np.testing.assert_array_equal(dataset.test.numpy(), images.astype(np.float32) / 255)
    assert dataset.train.shape == (10, 784)
    assert not downloads.asked


def test_missing_files_are_downloaded_once(small, downloads, tmp_path, monkeypatch):
    downloads.served.update({f"https://origin/{name}.gz": gzip.compress(content) for name, content in small.items()})
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path))
    first, second = data.load("mnist"), data.load("mnist")
    assert torch.equal(first.train, second.train)
    assert len(downloads.asked) == 4
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(f"{name}.gz" for name in small)


def test_a_download_of_other_bytes_leaves_nothing(small, downloads, tmp_path):
    downloads.served.update(
        {f"https://origin/{name}.gz": gzip.compress(content + b"!") for name, content in small.items()}
    )
    with pytest.raises(DataError, match="SHA-256"):
        data.load("mnist", data_dir=tmp_path)
    assert not list((tmp_path / "mnist").iterdir())


def test_a_download_that_fails_says_where_the_file_belongs(downloads, tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: not found.*no route to host.*put the file there"):
        data.load("mnist", data_dir=tmp_path)


def test_one_flipped_bit_is_seen(small, tmp_path):
    (tmp_path / "mnist").mkdir()
    for name, content in small.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    damaged = bytearray(small["train-labels-idx1-ubyte"])
    damaged[-1] ^= 1
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(damaged)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: expected SHA-256"):
        data.load("mnist", data_dir=tmp_path)


def drawings(folder, alphabets, rng):
    """A zip as published, and its 105 x 105 images: 0 is ink in the file."""
    from PIL import Image

    stream, inks = io.BytesIO(), []
    with zipfile.ZipFile(stream, "w") as archive:
        for alphabet in alphabets:
            for character in (1, 2):
                ink = rng.random((105, 105)) < 0.2
                png = io.BytesIO()
                Image.fromarray(~ink).save(png, "PNG")
                archive.writestr(f"{folder}/{alphabet}/character{character:02d}/0001_01.png", png.getvalue())
                inks.append(ink)
    return stream.getvalue(), inks


def test_omniglot_is_built_from_the_published_images(downloads, tmp_path, monkeypatch, generator):
    rng = np.random.default_rng(0)
    zips = {
        name: drawings(name, names, rng) for name, names in [("images_background", "BD"), ("images_evaluation", "AC")]
    }
    downloads.served.update({f"{origins._OMNIGLOT_URL}{name}.zip": content for name, (content, _) in zips.items()})
    monkeypatch.setattr(origins, "_check_hash", lambda found, expected, path: None)
    built = origins.omniglot(tmp_path)
    # Averages by repetition: 4 x 4 copies of each pixel, then boxes of 15 x 15.
    inks = np.stack(zips["images_background"][1] + zips["images_evaluation"][1])
    boxes = inks.repeat(4, 1).repeat(4, 2).reshape(8, 28, 15, 28, 15).mean((2, 4))
    np.testing.assert_array_equal(built.images, np.round(255 * boxes))
    assert built.alphabet.tolist() == [1, 1, 3, 3, 0, 0, 2, 2]
    assert built.character.tolist() == [1, 2] * 4
    assert built.evaluation.tolist() == [False] * 4 + [True] * 4
    downloads.served.clear()
    for field, again in zip(built, origins.omniglot(tmp_path), strict=True):
        np.testing.assert_array_equal(field, again)
