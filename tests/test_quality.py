"""Sharpness, Fréchet distance, density and coverage against closed forms and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, ndimage

from ppl_vae.data import load
from ppl_vae.errors import DataError
from ppl_vae.quality import density_coverage, frechet_distance, sharpness
from tests.statistical import assert_close, assert_mean, assert_within


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Sharpness


def waves(height: int, width: int, cycles: int) -> np.ndarray:
    """One image with a given number of cycles from left to right."""
    return np.cos(2 * np.pi * cycles * np.arange(width) / width)[None, None].repeat(height, 1)


def test_sharpness_counts_the_waves_above_half_the_nyquist_frequency():
    low, high = waves(16, 16, 4), waves(16, 16, 5)  # 1/4 and 5/16 of a cycle per pixel
    assert_close(sharpness(3 * low + 2 * high, high), 4.0)
    assert sharpness(low, high) < 1e-20


@pytest.mark.parametrize("shape", [(16, 16), (28, 28), (7, 10)])
@pytest.mark.parametrize("level", [0.0, 0.1, 1.0, 1e6 / 3])
def test_what_rounding_leaves_of_plain_images_is_no_detail(shape: tuple[int, int], level: float):
    noise = np.random.default_rng(0).normal(size=(3, *shape))
    with pytest.raises(DataError, match="reference: expected images with fine detail, found no power"):
        sharpness(noise, np.full((2, *shape), level))
    assert_within(sharpness(noise, 1e6 / 3 + noise), 1.0, relative=1e-6, reason="six digits of the noise are kept")


def test_sharpness_is_the_ratio_of_ring_averages(rng: np.random.Generator):
    """The definition, frequency by frequency, on images that are not square."""

    def rings(x: np.ndarray) -> float:
        found: dict[int, list[float]] = {}
        for u in range(12):
            for v in range(20):
                phase = np.exp(-2j * np.pi * (u * np.arange(12)[:, None] / 12 + v * np.arange(20) / 20))
                fu, fv = min(u, 12 - u) / 12, min(v, 20 - v) / 20
                ring = round(12 * np.sqrt(fu**2 + fv**2))
                found.setdefault(ring, []).append(float(np.mean([abs((image * phase).sum()) ** 2 for image in x])))
        return sum(float(np.mean(powers)) for ring, powers in found.items() if 3 < ring <= 6)

    a, b = rng.normal(size=(3, 12, 20)), rng.uniform(size=(5, 12, 20))
    assert_close(sharpness(a, b), rings(a) / rings(b))


def test_noise_has_the_power_of_its_variance(rng: np.random.Generator):
    """Its power is H W sigma^2 at every frequency; that of a single point is 1."""
    point = np.zeros((1, 8, 8))
    point[0, 3, 5] = 1.0
    assert_mean([sharpness(2 * rng.normal(size=(20, 8, 8)), point) for _ in range(200)], 4.0 * 64, effect=20.0)


def test_blur_lowers_sharpness_monotonically():
    digits = load("digits").train[:200].reshape(-1, 8, 8).numpy()
    blurred = [sharpness(ndimage.gaussian_filter(digits, (0, s, s)), digits) for s in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert sharpness(digits, digits) == 1.0
    assert all(b < a for a, b in zip([1.0, *blurred], blurred, strict=False))


# Fréchet distance


def with_moments(rng: np.random.Generator, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    x = rng.normal(size=(50, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    values, vectors = np.linalg.eigh(covariance)
    return white @ (vectors * np.sqrt(values.clip(0))).T + mean


def covariance(rng: np.random.Generator, d: int, rank: int) -> np.ndarray:
    root = rng.normal(size=(d, rank))
    return root @ root.T


def test_frechet_distance_is_the_formula_with_the_root_of_a_matrix(rng: np.random.Generator):
    mean, other = rng.normal(size=(2, 4))
    a, b = covariance(rng, 4, 6), covariance(rng, 4, 6)
    expected = np.square(mean - other).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert_close(frechet_distance(with_moments(rng, mean, a), with_moments(rng, other, b)), expected)


def test_frechet_distance_of_singular_covariances(rng: np.random.Generator):
    """Commuting covariances: the sum of (sqrt(lambda) - sqrt(mu))^2, with zeros among them and few rows."""
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    left, right = np.array([4.0, 1.0, 0.0, 0.0, 9.0]), np.array([1.0, 0.0, 0.0, 2.0, 9.0])
    a, b = ((basis * v) @ basis.T for v in (left, right))
    expected = np.square(np.sqrt(left) - np.sqrt(right)).sum()
    got = frechet_distance(with_moments(rng, np.zeros(5), a), with_moments(rng, np.ones(5), b))
    assert_within(got, 5 + expected, relative=1e-7, reason="roots of eigenvalues that are zero to rounding")
    few = rng.normal(size=(3, 200))
    assert_within(frechet_distance(few, few[::-1]), 0.0, absolute=1e-10, reason="rounding of terms of size 200")


# Density and coverage


def by_loops(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """The four definitions, distance by distance."""

    def radius(x: np.ndarray, i: int) -> float:
        return sorted(float(np.sqrt(np.square(x[i] - other).sum())) for j, other in enumerate(x) if j != i)[k - 1]

    real_radius, fake_radius = [radius(real, i) for i in range(len(real))], [radius(fake, j) for j in range(len(fake))]
    d = [[float(np.sqrt(np.square(x - y).sum())) for y in fake] for x in real]
    n, m = len(real), len(fake)
    precision = sum(any(d[i][j] < real_radius[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(d[i][j] < fake_radius[j] for j in range(m)) for i in range(n)) / n
    density = sum(d[i][j] < real_radius[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(any(d[i][j] < real_radius[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 4])
def test_density_and_coverage_are_their_definitions(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, k: int):
    monkeypatch.setattr("ppl_vae.distances._ELEMENTS", 70)
    real, fake = rng.normal(size=(30, 3)), 0.5 + 1.5 * rng.normal(size=(20, 3))
    assert_close(np.array(density_coverage(real, fake, k)), np.array(by_loops(real, fake, k)))


def test_the_same_set_is_precise_and_covered(rng: np.random.Generator):
    x = rng.normal(size=(200, 4))
    assert density_coverage(x, x) == (
        1.0,
        1.0,
        1.0,
        1.0,
    )  # k in each ball: the datum, and all that are nearer than the k-th


@pytest.mark.parametrize("levels", [1, 16])
def test_pixels_are_compared_exactly(levels: int, monkeypatch: pytest.MonkeyPatch):
    """Whole numbers, of which many are as far from a datum as its fifth neighbour: they are not nearer."""
    monkeypatch.setattr("ppl_vae.distances._ELEMENTS", 10_000)
    x = np.rint(load("digits").train[:400].reshape(400, -1).numpy() * levels).astype(int)
    real, fake = x[:200], x[200:]

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None] - b).sum(-1)

    reach_real, reach_fake = (np.sort(squared(a, a), 1)[:, 5] for a in (real, fake))
    inside, recalled = squared(real, fake) < reach_real[:, None], squared(real, fake) < reach_fake
    expected = inside.any(0).mean(), recalled.any(1).mean(), inside.sum() / (5 * 200), inside.any(1).mean()
    assert_close(np.array(density_coverage(real, fake)), np.array(expected))


def test_density_and_coverage_see_what_is_close_in_heaps_far_apart(rng: np.random.Generator):
    real, fake = (np.concatenate([s + 0.01 * rng.normal(size=(30, 3)) for s in (-1e6, 1e6)]) for _ in range(2))
    assert_close(np.array(density_coverage(real, fake)), np.array(by_loops(real, fake, 5)))
    assert density_coverage(real, real).density == 1.0


def test_the_same_distribution_has_the_expected_density_and_coverage(rng: np.random.Generator):
    n, k = 60, 3
    found = [density_coverage(*rng.normal(size=(2, n, 2)), num_neighbours=k) for _ in range(200)]
    missed = np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])  # its k nearest of 2n - 1 others are all real
    assert_mean([f.density for f in found], 1.0, effect=0.15)
    assert_mean([f.coverage for f in found], 1 - missed, effect=0.1)


@pytest.mark.parametrize("dim", [5, 40])  # neighbours in a tree, and one with another
def test_density_and_coverage_do_not_depend_on_the_origin(rng: np.random.Generator, dim: int):
    real, fake = np.round(rng.normal(size=(2, 60, dim)), 6)
    far = 2.0**30  # of which the sum keeps six digits behind the point
    found = density_coverage(far + real, far + fake)
    assert_within(np.array(found), np.array(by_loops(far + real, far + fake, 5)), absolute=0.05, reason="near ties")


def test_data_whose_balls_are_empty_are_refused(rng: np.random.Generator):
    x = np.repeat(rng.normal(size=(40, 10)), 10, axis=0)
    with pytest.raises(DataError, match=r"real, row \d+: .*at most num_neighbours = 5 equal rows, .* found 10: take"):
        density_coverage(x, x.copy())
    found = density_coverage(x, x.copy(), 10)
    assert found.precision == found.recall == found.coverage == 1.0


def test_one_repeated_sample_is_precise_but_covers_little():
    """Data on a line: the fifth neighbour is three steps away, so that five balls reach the one in the middle."""
    found = density_coverage(np.arange(300.0)[:, None], np.full((300, 1), 150.0))
    assert found == (1.0, 0.0, 1.0, 5 / 300)


@pytest.mark.parametrize(
    ("real", "fake", "match"),
    [
        (np.ones((9, 2)), np.ones((9, 3)), "features"),
        (np.ones((9, 2)), np.ones((5, 2)), "at least 6 rows"),
        (np.ones((9, 2)), np.array([[0.0, 1.0], [np.nan, 0.0]]), "fake, row 1"),
        (np.ones(9), np.ones((9, 2)), "real"),
        (np.ones((9, 2)), np.diag([1.0, 1e101]), "fake, row 1: expected numbers of size 1e.100 at most, .* rescale"),
    ],
)
def test_features_that_cannot_be_used_are_errors(real: np.ndarray, fake: np.ndarray, match: str):
    with pytest.raises(DataError, match=match):
        density_coverage(real, fake)


def test_images_of_other_sizes_are_errors():
    with pytest.raises(DataError, match="one size"):
        sharpness(np.ones((2, 8, 8)), np.ones((2, 9, 8)))
    with pytest.raises(ValueError, match="num_neighbours"):
        density_coverage(np.ones((9, 2)), np.ones((9, 2)), 0)
