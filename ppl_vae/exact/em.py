"""Expectation-maximisation for Gaussian mixtures, in float64 and in blocks of rows that may stay on disk."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.errors import EstimateError
from ppl_vae.exact.covariance import CovarianceType, average, floored, root
from ppl_vae.exact.mixture import Mixture
from ppl_vae.exact.sample import Sample
from ppl_vae.exact.statistics import Statistics, fewest, num_features, statistics
from ppl_vae.progress import Progress

__all__ = ["Course", "Limits", "Parameters", "ascend", "maximisation", "sample_of", "start"]

# A component that expects less than this of one datum keeps its mean and covariance: its own data say nothing of them.
EMPTY = 1e-8
# Variance of the spheres that k-means++ starts from, relative to that of the data.
SHARP = 1e-6
# 32 MB of float64: the rows that k-means++ draws centres from are at most so many entries, or 64 a component.
SEEDING_ELEMENTS, SEEDING_ROWS = 1 << 22, 64


class Parameters(NamedTuple):
    """The parameters of a mixture of C components in D dimensions."""

    weights: Tensor
    """pi, shape (C,)."""
    means: Tensor
    """mu, shape (C, D)."""
    covariances: Tensor
    """Sigma: matrices (C or 1, D, D) or diagonals (C, D or 1)."""

    def mixture(self) -> Mixture:
        """Return the mixture that these parameters describe."""
        return Mixture(self.weights.log(), self.means, root(self.covariances))


class Limits(NamedTuple):
    """When to stop, and what to stay within."""

    max_iter: int
    """Iterations at most."""
    tol: float
    """The gain of an iteration, in nats per datum, below which the ascent has converged."""
    floor: float
    """Smallest eigenvalue of a covariance, in squared units of the data."""


class Course(NamedTuple):
    """Where an ascent ended, and how it got there."""

    parameters: Parameters
    """The parameters whose log-likelihood is the last of `history`."""
    history: tuple[float, ...]
    """Log-likelihood of the start and after every iteration, in nats per datum; it never decreases."""
    converged: bool
    """Whether the last iteration gained less than the tolerance."""


def sample_of(rows: Rows, kind: CovarianceType, num_components: int) -> Sample:
    """Return the data of a fit, in blocks that suit the form in which so many components are served."""
    dim, matrices = rows.arrays[0].shape[1], kind in ("full", "tied")
    in_features = num_components >= fewest(dim, matrices)
    return Sample(rows, num_features(dim, matrices) if in_features else dim, matrices)


def maximisation(found: Statistics, current: Parameters, kind: CovarianceType, floor: float) -> Parameters:
    """Return the parameters that maximise the expected complete log-likelihood: the M-step.

    pi_c = counts_c / N, mu_c += shift_c / counts_c, Sigma_c = scatter_c / counts_c - step_c step_c^T, with the
    eigenvalues of Sigma_c at least `floor`. An empty component keeps its mean and covariance.
    """
    empty = (found.counts < EMPTY).unsqueeze(-1)
    counts = found.counts.clamp(min=EMPTY)
    step = (found.shift / counts.unsqueeze(-1)).masked_fill(empty, 0.0)
    moved = step.unsqueeze(-1) * step.unsqueeze(-2) if found.scatter.ndim == 3 else step.square()
    scatter = found.scatter - counts.reshape(-1, *[1] * (moved.ndim - 1)) * moved
    covariances = floored(average(scatter, counts, kind), floor)
    if kind != "tied":
        covariances = torch.where(empty.reshape(-1, *[1] * (moved.ndim - 1)), current.covariances, covariances)
    return Parameters(found.counts / found.counts.sum(), current.means + step, covariances)


def ascend(sample: Sample, current: Parameters, kind: CovarianceType, limits: Limits, progress: bool = False) -> Course:
    """Climb the log-likelihood of data over the mixtures whose covariances have eigenvalues >= floor.

    Raises:
        EstimateError: The log-likelihood overflows, or a covariance is singular in spite of the floor.
    """
    current = current._replace(covariances=floored(current.covariances, limits.floor))
    found = statistics(sample, current.mixture())
    history = [_nats_per_datum(found, sample)]
    converged = False
    with Progress("EM", limits.max_iter, progress) as bar:
        while not converged and len(history) <= limits.max_iter:
            current = _refilled(sample, maximisation(found, current, kind, limits.floor), found.counts < EMPTY)
            found = statistics(sample, current.mixture())
            history.append(_nats_per_datum(found, sample))
            converged = history[-1] - history[-2] < limits.tol
            if bar.due:
                bar.update(len(history) - 1, f"{history[-1]:.6f} nats per datum")
    return Course(current, tuple(history), converged)


def start(sample: Sample, num_components: int, kind: CovarianceType, floor: float, seed: int) -> Parameters:
    """Return the mixture of the clusters around centres that k-means++ draws from the data.

    Reference:
        Arthur and Vassilvitskii (2007), k-means++: The Advantages of Careful Seeding.
    """
    draws = np.random.RandomState(seed)
    from sklearn.cluster import kmeans_plusplus  # imported here: it takes seconds

    rows = _seeding_rows(sample, num_components, draws)
    means = torch.from_numpy(kmeans_plusplus(rows.cpu().numpy(), num_components, random_state=draws)[0]).to(rows)
    # Equal spheres, small beside the spread of the data: their responsibilities are the nearest centres.
    variance = (SHARP * sample.variance.mean()).clamp(min=floor)
    sphere = variance * torch.eye(sample.dim).to(means) if kind in ("full", "tied") else variance.expand(1)
    weights = torch.full_like(means[:, 0], 1 / num_components)
    clusters = Parameters(weights, means, sphere.expand(num_components, *sphere.shape))
    found = maximisation(statistics(sample, clusters.mixture()), clusters, kind, floor)
    # A cluster of one datum has no covariance of its own, so that all start from the one within clusters.
    return found._replace(covariances=_pooled(found).expand_as(found.covariances))


def _seeding_rows(sample: Sample, num_components: int, draws: np.random.RandomState) -> Tensor:
    """Return all rows, or as many drawn ones as fit in memory."""
    most = max(SEEDING_ELEMENTS // sample.dim, SEEDING_ROWS * num_components)
    if len(sample) <= most:
        return torch.cat(list(sample.blocks()))
    index = np.sort(draws.randint(len(sample), size=most))
    return sample.take(torch.from_numpy(index))


def _nats_per_datum(found: Statistics, sample: Sample) -> float:
    value = found.log_evidence.item() / len(sample)
    if not math.isfinite(value):
        raise EstimateError(f"the log-likelihood is {value}: x spans too many orders of magnitude, rescale it")
    return value


def _pooled(parameters: Parameters) -> Tensor:
    covariances = parameters.covariances
    weights = parameters.weights if len(covariances) > 1 else covariances.new_ones(1)
    return torch.tensordot(weights, covariances, 1)


def _refilled(sample: Sample, parameters: Parameters, empty: Tensor) -> Parameters:
    """Move empty components to the data explained worst, where that raises the log-likelihood; else leave them."""
    count = int(empty.sum())
    if count == 0:
        return parameters
    evidence, worst = _explained_worst(sample, parameters, count)
    weights = parameters.weights.masked_fill(empty, 1 / len(sample))
    means = parameters.means.index_put((empty,), worst)
    covariances = parameters.covariances
    if len(covariances) == len(empty):
        covariances = covariances.index_put((empty,), _pooled(parameters))
    proposal = Parameters(weights / weights.sum(), means, covariances)
    return proposal if _explained_worst(sample, proposal, 1)[0] > evidence else parameters


def _explained_worst(sample: Sample, parameters: Parameters, count: int) -> tuple[Tensor, Tensor]:
    """Return sum_n log p(x_n), in nats, and the rows of the smallest terms: (), (count, D)."""
    mixture = parameters.mixture()
    total, least, worst = mixture.means.new_zeros(()), mixture.means.new_zeros(0), mixture.means[:0]
    for block in sample.blocks():
        evidence = mixture.log_joint(block).logsumexp(-1)
        total += evidence.sum()
        least, worst = torch.cat([least, evidence]), torch.cat([worst, block])
        least, kept = least.topk(min(count, len(least)), largest=False)
        worst = worst[kept]
    return total, worst
