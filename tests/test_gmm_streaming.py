"""Mixtures fitted to data on disk: the numbers of data in memory, and memory that does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.arrays import Rows
from ppl_vae.errors import DataError
from ppl_vae.exact import GMM, arrays, em, sample
from ppl_vae.exact.mixture import Mixture
from tests.mixtures import KINDS, C, D, random_gmm
from tests.statistical import assert_close


def on_disk(path: Path, x: np.ndarray) -> np.memmap:
    np.save(path, x)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", ">f8"])
def test_data_on_disk_give_the_fit_of_data_in_memory(kind, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    x = (10 * random_gmm("full", seed=5).sample(400).numpy()).astype(dtype)
    mapped = on_disk(tmp_path / "x.npy", x)
    assert isinstance(mapped, np.memmap)
    found, expected = (GMM.fit(rows, C, covariance_type=kind, max_iter=10) for rows in (mapped, x))
    assert_close(found.history, expected.history)
    assert_close(found.covariances, expected.covariances, scale=float(expected.covariances.abs().max()))


def test_data_on_disk_stay_there(tmp_path):
    mapped = on_disk(tmp_path / "x.npy", np.ones((10, 2), np.float32))
    assert arrays.as_sample_rows(mapped).arrays[0] is mapped


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 2, 2)), "one datum a row"),
        (np.zeros((5, 1), dtype=complex), "dtype complex128"),
        (np.where(np.arange(9000) == 8999, np.nan, 0.0)[:, None], "row 8999"),
    ],
)
def test_bad_data_on_disk_are_typed_errors(x, message, tmp_path):
    with pytest.raises(DataError, match=message):
        GMM.fit(on_disk(tmp_path / "x.npy", x), 2)


def test_an_empty_component_finds_the_worst_datum_of_every_block(monkeypatch):
    monkeypatch.setattr(sample, "BLOCK_ELEMENTS", 1)
    gmm = random_gmm()
    x = gmm.sample(3 * sample.FEWEST_ROWS)
    x[[5, 100]] += 50.0
    parameters = em.Parameters(gmm.weights, gmm.means, gmm.covariances)
    total, worst = em._explained_worst(em.sample_of(Rows([x]), "full", C), parameters, 2)
    assert_close(total, gmm.log_prob(x).sum())
    assert {tuple(row) for row in worst.tolist()} == {tuple(row) for row in x[[5, 100]].tolist()}


def test_centres_are_drawn_from_some_rows_of_many(monkeypatch):
    x = torch.arange(40_000, dtype=torch.float64).reshape(-1, D)
    monkeypatch.setattr(em, "SEEDING_ELEMENTS", 100 * D)
    rows = em._seeding_rows(em.sample_of(Rows([x]), "full", 1), 1, np.random.RandomState(0))
    assert rows.shape == (100, D)
    assert rows[:, 0].remainder(D).max() == 0
    assert rows[-1, 0] > 0.8 * x.max()
    assert rows[0, 0] < 0.2 * x.max()


PEAK = """
import resource, sys, numpy as np, torch
torch.set_num_threads(1)
from ppl_vae.exact import GMM
import sklearn.cluster
x = np.load(sys.argv[1], mmap_mode="r")
GMM.fit(x[:20_000], 4, max_iter=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gmm = GMM.fit(x, 4, max_iter=2, tol=0.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of ru_maxrss is Linux's")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Beyond a small fit, 400 MB on disk take what 100 MB take: the rows that k-means++ sees, and a block."""
    grown = []
    for megabytes in (100, 400):
        path = tmp_path / "x.npy"
        x = np.lib.format.open_memmap(path, "w+", np.float32, (megabytes * 1_000_000 // 64, 16))
        draws = np.random.default_rng(0)
        for first in range(0, len(x), 100_000):
            x[first : first + 100_000] = draws.normal(size=x[first : first + 100_000].shape)
        x.flush()
        del x
        result = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
        grown.append(int(result.stdout) / 1000)
        path.unlink()
    assert grown[1] < grown[0] + 20
    assert max(grown) < 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", ">f8"])
def test_densities_of_data_on_disk_are_those_of_data_in_memory(kind, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 7)
    gmm = random_gmm(kind)
    x = (10 * gmm.sample(50).numpy()).astype(dtype)
    mapped = on_disk(tmp_path / "x.npy", x)
    assert_close(gmm.log_prob(mapped), gmm.log_prob(x))
    assert_close(gmm.posterior(mapped).logits, gmm.posterior(x).logits, scale=1e3)


def test_densities_read_data_on_disk_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 7)
    gmm, seen = random_gmm(), []
    table = Mixture.log_joint
    monkeypatch.setattr(Mixture, "log_joint", lambda self, x: seen.append(len(x)) or table(self, x))
    mapped = on_disk(tmp_path / "x.npy", gmm.sample(20).numpy())
    gmm.log_prob(mapped)
    gmm.posterior(mapped)
    assert seen == [7, 7, 6] * 2


@pytest.mark.parametrize(
    ("x", "message"), [(np.zeros((9, 3)), r"expected \(N, 4\)"), (np.full((9, 4), np.nan), "row 0")]
)
def test_bad_data_on_disk_have_no_density(x, message, tmp_path):
    with pytest.raises(DataError, match=message):
        random_gmm().log_prob(on_disk(tmp_path / "x.npy", x))
