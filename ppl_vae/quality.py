"""How good samples are: sharpness of images, and distances between sets of feature vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import squarable_array
from ppl_vae.distances import distance_blocks, neighbour_reach
from ppl_vae.errors import DataError
from ppl_vae.options import whole_number

__all__ = ["DensityCoverage", "density_coverage", "frechet_distance", "sharpness"]

_BLOCK = 1024
_ROUNDING = 1e-28  # power, of amplitudes that are 1e-14 of the image: tens of roundings


def sharpness(images: ArrayLike, reference: ArrayLike) -> float:
    r"""Power of fine detail in images, relative to that of a reference.

    $$\frac{\sum_r P_\mathrm{images}(r)}{\sum_r P_\mathrm{reference}(r)}, \qquad
    P(r) = \operatorname{mean}_{|f| \text{ in ring } r}\ \operatorname{mean}_n\ |\hat x_n(f)|^2$$

    over the rings of radius 1/4 < r <= 1/2 cycles per pixel, from half the Nyquist frequency to it; the rings are
    1 / min(H, W) wide, and x-hat is the two-dimensional Fourier transform. Below 1 images are blurrier than the
    reference, above it noisier: take means of p(x given z) rather than draws, whose pixel noise counts as detail.

    Args:
        images: (N, H, W), on any scale that is the reference's too.
        reference: The data, (M, H, W).

    Returns:
        The ratio: no unit, 1 for images as sharp as the reference, 0 for smooth ones.

    Raises:
        DataError: Images are of other shapes, smaller than 4 x 4, not finite or above 1e100, or the reference has no
            fine detail.

    Reference:
        van der Schaaf and van Hateren (1996), Modelling the Power Spectra of Natural Images.

    Example:
        >>> image = np.random.default_rng(0).normal(size=(1, 16, 16))
        >>> blurred = (image + np.roll(image, 1, axis=1) + np.roll(image, 1, axis=2)) / 3
        >>> sharpness(image, image), sharpness(blurred, image) < 0.3
        (1.0, True)
    """
    images, reference = squarable_array("images", images, 3), squarable_array("reference", reference, 3)
    if images.shape[1:] != reference.shape[1:] or min(images.shape[1:]) < 4:
        raise DataError(
            f"expected images and reference (N, H, W) of one size, at least 4 x 4, found {images.shape} and "
            f"{reference.shape}: reshape flat data"
        )
    detail, power = _fine_power(reference)
    if detail <= _ROUNDING * power:
        raise DataError(
            "reference: expected images with fine detail, found no power above half the Nyquist frequency but that of "
            "rounding: take the data themselves"
        )
    return _fine_power(images)[0] / detail


def _fine_power(images: NDArray[np.float64]) -> tuple[float, float]:
    """Radially averaged power, summed over the rings above half the Nyquist frequency, and over all."""
    height, width = images.shape[1:]
    power = np.zeros((height, width))
    for start in range(0, len(images), _BLOCK):
        power += np.square(np.abs(np.fft.fft2(images[start : start + _BLOCK]))).sum(0)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = np.rint(radius * min(height, width)).astype(int).ravel()
    profile = np.bincount(ring, power.ravel() / len(images)) / np.bincount(ring).clip(1)
    radii = np.arange(len(profile)) / min(height, width)
    return float(profile[(radii > 0.25) & (radii <= 0.5)].sum()), float(profile.sum())


def frechet_distance(real: ArrayLike, fake: ArrayLike) -> float:
    r"""Fréchet distance between the Gaussians that have the moments of two sets of features, squared.

    $$|\mu_r - \mu_f|^2 + \operatorname{tr}\bigl(\Sigma_r + \Sigma_f - 2 (\Sigma_r \Sigma_f)^{1/2}\bigr)$$

    With $\Sigma = R^T R$ from the QR factors of the centred data, the last trace is the sum of the singular values of
    $R_r R_f^T$: exact for singular covariances too, where the root of a product is not.

    Args:
        real: Features of data, (N, d).
        fake: Features of samples, (M, d). For few rows the distance is too large: compare at equal numbers.

    Returns:
        The squared distance, in squared units of the features; 0 for equal moments.

    Raises:
        DataError: Features have other shapes, fewer than two rows, or are not finite or above 1e100.

    Reference:
        Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule; Dowson and Landau (1982), The Fréchet
        Distance between Multivariate Normal Distributions.

    Example:
        >>> real = np.random.default_rng(0).normal(size=(100, 3))
        >>> round(frechet_distance(real, real + [3.0, 0.0, 4.0]), 10)
        25.0
    """
    real, fake = _features(real, fake, least=2)
    mean_real, mean_fake = real.mean(0), fake.mean(0)
    root_real, root_fake = _root(real - mean_real), _root(fake - mean_fake)
    overlap = np.linalg.svd(root_real @ root_fake.T, compute_uv=False).sum()
    traces = np.square(root_real).sum() + np.square(root_fake).sum()
    return max(float(np.square(mean_real - mean_fake).sum() + traces - 2.0 * overlap), 0.0)


def _root(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with R^T R the covariance, unbiased."""
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(centred) - 1)


class DensityCoverage(NamedTuple):
    """How well samples lie among the data, and the data among the samples."""

    precision: float
    """Share of the samples within a ball of some datum: are they like data?"""
    recall: float
    """Share of the data within a ball of some sample: are all kinds of data made?"""
    density: float
    """Balls of data that a sample lies in, over those expected: precision that outliers cannot inflate; about 1."""
    coverage: float
    """Share of the data whose ball has a sample in it: recall that outliers cannot inflate."""


def density_coverage(real: ArrayLike, fake: ArrayLike, num_neighbours: int = 5) -> DensityCoverage:
    r"""Precision, recall, density and coverage from balls that reach to the k-th nearest neighbour.

    With $B(x)$ the open ball around x to its k-th nearest neighbour in its own set, x_i real and y_j fake:

    $$\mathrm{precision} = \frac1M \sum_j \Bigl[y_j \in \bigcup_i B(x_i)\Bigr], \quad
    \mathrm{recall} = \frac1N \sum_i \Bigl[x_i \in \bigcup_j B(y_j)\Bigr],$$
    $$\mathrm{density} = \frac1{kM} \sum_{ij} [y_j \in B(x_i)], \quad
    \mathrm{coverage} = \frac1N \sum_i \bigl[\exists j: y_j \in B(x_i)\bigr]$$

    Samples of the distribution of the data have density 1 and, for M = N, coverage about 1 - 2^-k; a copy of the data
    has 1 in all four. What is exactly as far as the k-th neighbour lies outside: whole numbers such as binary pixels,
    of which many are equally far, have a lower density.

    Args:
        real: Features of data, (N, d).
        fake: Features of samples, (M, d).
        num_neighbours: k.

    Raises:
        ValueError: `num_neighbours` is no whole number of at least 1.
        DataError: Features have other shapes, no more than k rows, or are not finite or above 1e100; or more than k
            rows of the data are equal, so that nothing lies in their balls.

    Reference:
        Kynkäänniemi et al. (2019), Improved Precision and Recall Metric for Assessing Generative Models; Naeem et al.
        (2020), Reliable Fidelity and Diversity Metrics for Generative Models.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> density_coverage(rng.normal(size=(100, 2)), 9 + rng.normal(size=(100, 2))).coverage
        0.0
    """
    whole_number("num_neighbours", num_neighbours, least=1)
    real, fake = _features(real, fake, least=num_neighbours + 1)
    _check_few_copies(real, num_neighbours)
    reach_real, reach_fake = neighbour_reach(real, num_neighbours), neighbour_reach(fake, num_neighbours)
    balls = np.zeros(len(fake))  # around data, that each sample lies in
    hit, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for block in distance_blocks(real, fake):
        reach = reach_real[block.rows, None]
        block.settle(block.near(reach) | block.near(reach_fake))
        inside = block.values < reach
        balls += inside.sum(0)
        hit[block.rows] = inside.any(1)
        recalled[block.rows] = (block.values < reach_fake).any(1)
    density = balls.mean() / num_neighbours
    return DensityCoverage(*(float(v) for v in ((balls > 0).mean(), recalled.mean(), density, hit.mean())))


def _check_few_copies(real: NDArray[np.float64], k: int) -> None:
    _, first, copies = np.unique(real, axis=0, return_index=True, return_counts=True)
    if (most := int(copies.max())) > k:
        raise DataError(
            f"real, row {first[copies.argmax()]}: expected at most num_neighbours = {k} equal rows, whose ball reaches "
            f"to another, found {most}: take num_neighbours = {most} or more, or leave copies out"
        )


def _features(real: ArrayLike, fake: ArrayLike, least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = squarable_array("real", real, 2), squarable_array("fake", fake, 2)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise DataError(
            f"expected features (N, d) and (M, d) with at least {least} rows each, found {a.shape} and {b.shape}"
        )
    return a, b
