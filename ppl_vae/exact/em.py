"""Expectation-maximisation for Gaussian mixtures, in float64 and in blocks of rows."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError
from ppl_vae.exact.covariance import CovarianceType, average, floored, root
from ppl_vae.exact.mixture import Mixture

__all__ = ["Course", "Limits", "Parameters", "Statistics", "ascend", "expectation", "maximisation", "start"]

# A component that expects less than this of one datum keeps its mean and covariance: its own data say nothing of them.
EMPTY = 1e-8
# Variance of the spheres that k-means++ starts from, relative to that of the data.
SHARP = 1e-6


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


class Statistics(NamedTuple):
    """All that the data say about the parameters: sums over the data n, weighted by the responsibilities r_nc.

    Deviations d_nc = x_n - mu_c are from the *current* means. They are small where it matters, so that one pass over
    the data loses no digits, however far from the origin the data lie.
    """

    log_evidence: Tensor
    """sum_n log p(x_n), shape (), in nats."""
    counts: Tensor
    """sum_n r_nc, shape (C,)."""
    shift: Tensor
    """sum_n r_nc d_nc, shape (C, D)."""
    scatter: Tensor
    """sum_n r_nc d_nc d_nc^T, shape (C, D, D), or its diagonal, shape (C, D)."""


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


def expectation(x: Tensor, parameters: Parameters) -> Statistics:
    """Return the sufficient statistics of data (N, D): the E-step. This is where the time of a fit goes."""
    mixture = parameters.mixture()
    blocks = (_statistics(block, mixture) for block in mixture.blocks(x))
    total = next(blocks)
    for statistics in blocks:
        for accumulated, term in zip(total, statistics, strict=True):
            accumulated += term
    return total


def maximisation(statistics: Statistics, current: Parameters, kind: CovarianceType, floor: float) -> Parameters:
    """Return the parameters that maximise the expected complete log-likelihood: the M-step.

    pi_c = counts_c / N, mu_c += shift_c / counts_c, Sigma_c = scatter_c / counts_c - step_c step_c^T, with the
    eigenvalues of Sigma_c at least `floor`. An empty component keeps its mean and covariance.
    """
    empty = (statistics.counts < EMPTY).unsqueeze(-1)
    counts = statistics.counts.clamp(min=EMPTY)
    step = (statistics.shift / counts.unsqueeze(-1)).masked_fill(empty, 0.0)
    moved = step.unsqueeze(-1) * step.unsqueeze(-2) if statistics.scatter.ndim == 3 else step.square()
    scatter = statistics.scatter - counts.reshape(-1, *[1] * (moved.ndim - 1)) * moved
    covariances = floored(average(scatter, counts, kind), floor)
    if kind != "tied":
        covariances = torch.where(empty.reshape(-1, *[1] * (moved.ndim - 1)), current.covariances, covariances)
    return Parameters(statistics.counts / statistics.counts.sum(), current.means + step, covariances)


def ascend(x: Tensor, current: Parameters, kind: CovarianceType, limits: Limits, progress: bool = False) -> Course:
    """Climb the log-likelihood of data (N, D) over the mixtures whose covariances have eigenvalues >= floor.

    Raises:
        EstimateError: The log-likelihood overflows, or a covariance is singular in spite of the floor.
    """
    current = current._replace(covariances=floored(current.covariances, limits.floor))
    statistics = expectation(x, current)
    history = [_nats_per_datum(statistics, x)]
    converged = False
    while not converged and len(history) <= limits.max_iter:
        current = _refilled(x, maximisation(statistics, current, kind, limits.floor), statistics.counts < EMPTY)
        statistics = expectation(x, current)
        history.append(_nats_per_datum(statistics, x))
        converged = history[-1] - history[-2] < limits.tol
        if progress:
            sys.stderr.write(f"\rEM {len(history) - 1}/{limits.max_iter}: {history[-1]:.6f} nats per datum")
    if progress:
        sys.stderr.write("\n")
    return Course(current, tuple(history), converged)


def start(x: Tensor, num_components: int, kind: CovarianceType, floor: float, seed: int) -> Parameters:
    """Return the mixture of the clusters around centres that k-means++ draws from data (N, D).

    Reference:
        Arthur and Vassilvitskii (2007), k-means++: The Advantages of Careful Seeding.
    """
    draws = np.random.RandomState(seed)
    from sklearn.cluster import kmeans_plusplus  # imported here: it takes seconds

    means = torch.from_numpy(kmeans_plusplus(x.cpu().numpy(), num_components, random_state=draws)[0]).to(x)
    # Equal spheres, small beside the spread of the data: their responsibilities are the nearest centres.
    variance = (SHARP * x.var(0, correction=0).mean()).clamp(min=floor)
    sphere = variance * torch.eye(x.shape[1]).to(x) if kind in ("full", "tied") else variance.expand(1)
    weights = torch.full_like(means[:, 0], 1 / num_components)
    clusters = Parameters(weights, means, sphere.expand(num_components, *sphere.shape))
    found = maximisation(expectation(x, clusters), clusters, kind, floor)
    # A cluster of one datum has no covariance of its own, so that all start from the one within clusters.
    return found._replace(covariances=_pooled(found).expand_as(found.covariances))


def _log_evidence(x: Tensor, parameters: Parameters) -> Tensor:
    """Return log p(x) of data (N, D): (N,), in nats."""
    mixture = parameters.mixture()
    return torch.cat([mixture.log_joint(block).logsumexp(-1) for block in mixture.blocks(x)])


def _nats_per_datum(statistics: Statistics, x: Tensor) -> float:
    value = statistics.log_evidence.item() / len(x)
    if not math.isfinite(value):
        raise EstimateError(f"the log-likelihood is {value}: x spans too many orders of magnitude, rescale it")
    return value


def _statistics(x: Tensor, mixture: Mixture) -> Statistics:
    log_joint = mixture.log_joint(x)
    log_evidence = log_joint.logsumexp(-1, keepdim=True)
    responsibilities = (log_joint - log_evidence).exp()
    deviation = x - mixture.means.unsqueeze(1)
    weighted = responsibilities.T.unsqueeze(-1) * deviation
    scatter = weighted.mT @ deviation if mixture.root.ndim == 3 else (weighted * deviation).sum(1)
    return Statistics(log_evidence.sum(), responsibilities.sum(0), weighted.sum(1), scatter)


def _pooled(parameters: Parameters) -> Tensor:
    covariances = parameters.covariances
    weights = parameters.weights if len(covariances) > 1 else covariances.new_ones(1)
    return torch.tensordot(weights, covariances, 1)


def _refilled(x: Tensor, parameters: Parameters, empty: Tensor) -> Parameters:
    """Move empty components to the data explained worst, where that raises the log-likelihood; else leave them."""
    if not empty.any():
        return parameters
    evidence = _log_evidence(x, parameters)
    worst = evidence.argsort()[: int(empty.sum())]
    weights = parameters.weights.masked_fill(empty, 1 / len(x))
    means = parameters.means.index_put((empty,), x[worst])
    covariances = parameters.covariances
    if len(covariances) == len(empty):
        covariances = covariances.index_put((empty,), _pooled(parameters))
    proposal = Parameters(weights / weights.sum(), means, covariances)
    return proposal if _log_evidence(x, proposal).sum() > evidence.sum() else parameters
