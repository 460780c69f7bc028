r"""The E-step: sufficient statistics of a mixture in one pass over the data, in two forms.

**Features.** The log-density of a normal is linear in the features phi(x) = [y y^T, y, 1] of
y = L^-1 (x - centre), with L the units of the data, in which columns are neither large, small nor correlated:

    log pi_c N(x; mu_c, Sigma_c) = theta_c . phi(x),
    theta_c = [-1/2 P_c, P_c m_c, log pi_c - 1/2 (D log 2 pi + log det Sigma_c + m_c^T P_c m_c)],

with P_c and m_c the precision and the mean in the units of y. With r the responsibilities, all that the M-step needs
are the moments r^T phi: two matrix products a block of rows, beside which everything else is little.

**Cholesky form.** log N from L_c^-1 (x - mu_c), and the sums of deviations from mu_c. It costs two to four times more
where there are many components, and less where there are few. It loses no digits where a component is small beside its
distance from the centre, so that the terms of theta . phi cancel.

Which form serves a component on a block is decided before anything is computed: features where `rounding` allows them
for enough components (`fewest`) to pay for building them, the Cholesky form elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.exact.mixture import LOG_2PI, Mixture
from ppl_vae.exact.sample import Sample
from ppl_vae.exact.shares import in_shares

__all__ = ["Statistics", "cholesky_statistics", "fewest", "num_features", "rounding", "served", "statistics"]

# Rounding of a log-density, in nats, above which a component is served in the Cholesky form.
TOLERANCE = 1e-10
# Measured for D from 4 to 256: the times of both forms are equal near C = 1 + D / 20.
DIMENSIONS_A_COMPONENT = 20


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


def statistics(sample: Sample, mixture: Mixture) -> Statistics:
    """Return the sufficient statistics of a sample: the E-step. This is where the time of a fit goes."""
    return _collect(sample, mixture, served(sample, mixture))


def cholesky_statistics(sample: Sample, mixture: Mixture) -> Statistics:
    """Return the same with every component in the Cholesky form."""
    return _collect(sample, mixture, torch.zeros_like(rounding(sample, mixture), dtype=torch.bool))


def served(sample: Sample, mixture: Mixture) -> Tensor:
    """Return which components are served in features on which block: (number of blocks, C)."""
    precise = rounding(sample, mixture) <= TOLERANCE
    return precise & (precise.sum(1, keepdim=True) >= fewest(sample.dim, mixture.root.ndim == 3))


def rounding(sample: Sample, mixture: Mixture) -> Tensor:
    r"""Return how much a log-density loses to rounding in features: (number of blocks, C), in nats.

    The terms of theta_c . phi(x) are no larger than \|P_c\| (\|y\| + \|m_c\|)^2, whatever is left of them; each is
    rounded to a relative eps. So are y and, in the end, the covariance, in the units of x: with Q_c the precision in
    `scale`, that adds (\|P_c\| \|Q_c\|)^(1/2) (\|y\| + \|m_c\|)^2 and \|Q_c\|. The same number bounds the error of the
    covariance, relative to the current one.
    """
    mean, precision = _mean(sample, mixture), _largest(_precision(sample, mixture))
    plain = precision
    if mixture.root.ndim == 3:
        plain = _largest(torch.cholesky_inverse(mixture.root / sample.scale.unsqueeze(-1)))
    extent = sample.reach.unsqueeze(-1) + torch.linalg.vector_norm(mean, dim=-1)
    terms = torch.maximum(precision, (precision * plain).sqrt()) * extent.square()
    return torch.finfo(mean.dtype).eps * torch.maximum(terms, plain)


def _largest(precision: Tensor) -> Tensor:
    """Return a bound on the norm of |P|, entry by entry, of precisions P: shape (C or 1,)."""
    if precision.ndim == 2:
        return precision.amax(-1)
    return torch.minimum(precision.abs().sum(-1).amax(-1), torch.linalg.matrix_norm(precision))


def num_features(dim: int, matrices: bool) -> int:
    """Return the length of phi: every pair of dimensions once, or the squares alone; the dimensions; and 1."""
    return (dim * (dim + 1) // 2 if matrices else dim) + dim + 1


def fewest(dim: int, matrices: bool) -> int:
    """Return the number of components below which features cost more to build than they save."""
    return 1 + round(dim / DIMENSIONS_A_COMPONENT) if matrices else 1


class _Sums(NamedTuple):
    counts: Tensor
    shift: Tensor
    scatter: Tensor


class _Features:
    """phi of blocks of rows, transposed: (F, n). The buffer is the same for every block.

    Pairs (i, i + s mod D) of all i and of s = 0, 1, ... come as one product of y with a window that slides over
    [y, y]: the first D (D + 1) / 2 of them are every pair once.
    """

    def __init__(self, sample: Sample, matrices: bool) -> None:
        self.sample, self.matrices = sample, matrices
        self.rows = min(len(sample), sample.block_rows)

    @cached_property
    def buffer(self) -> Tensor:
        dim = self.sample.dim
        return self.sample.centre.new_empty((num_features(dim, self.matrices) + dim) * self.rows)

    @cached_property
    def twice(self) -> Tensor:
        return self.sample.centre.new_empty(2 * self.sample.dim * self.rows)

    def __call__(self, block: Tensor) -> Tensor:
        n, D = block.shape
        size = num_features(D, self.matrices)
        y = self.twice[: 2 * D * n].view(2 * D, n)
        y[:D] = self.sample.standardised(block)
        y[D:] = y[:D]
        shifts = D // 2 + 1 if self.matrices else 1
        products = self.buffer[: shifts * D * n].view(shifts, D, n)
        torch.mul(y.as_strided(products.shape, (n, n, 1)), y[:D], out=products)
        phi = self.buffer[: size * n].view(size, n)
        phi[size - D - 1 : size - 1] = y[:D]
        phi[size - 1] = 1.0
        return phi


def _collect(sample: Sample, mixture: Mixture, in_features: Tensor) -> Statistics:
    """Return the statistics with some components in features, (number of blocks, C), and the others not."""
    work = partial(_of_blocks, sample, mixture, _coefficients(sample, mixture), in_features)
    return reduce(_added, in_shares(work, sample.num_blocks, sample.threads))


def _of_blocks(sample: Sample, mixture: Mixture, theta: Tensor, in_features: Tensor, blocks: range) -> Statistics:
    features = _Features(sample, mixture.root.ndim == 3)
    moments, direct, log_evidence = torch.zeros_like(theta), _nothing(mixture), theta.new_zeros(())
    for index, block in zip(blocks, map(sample.block, blocks), strict=True):
        some, every = bool(in_features[index].any()), bool(in_features[index].all())
        others = ~in_features[index] if some else slice(None)
        phi = features(block) if some else None
        log_joint = mixture.log_joint(block).T.contiguous() if phi is None else theta @ phi
        if some and not every:
            log_joint[others] = _part(mixture, others).log_joint(block).T
        log_evidence += _normalise_(log_joint)
        if not every:
            _add_deviations(direct, block, log_joint, mixture, others)
            log_joint[others] = 0.0
        if phi is not None:
            moments.addmm_(log_joint, phi.T)
    central = _central(moments, sample, mixture)
    return Statistics(log_evidence, *(a + b for a, b in zip(central, direct, strict=True)))


def _added(first: Statistics, second: Statistics) -> Statistics:
    return Statistics(*(a + b for a, b in zip(first, second, strict=True)))


def _pairs(dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two dimensions of every pair, in the order of the features: two tensors (D (D + 1) / 2,)."""
    index = torch.arange(dim * (dim + 1) // 2, device=device)
    return index % dim, (index % dim + index // dim) % dim


def _coefficients(sample: Sample, mixture: Mixture) -> Tensor:
    """Return theta, shape (C, F)."""
    precision, mean = _precision(sample, mixture), _mean(sample, mixture)
    if precision.ndim == 3:
        i, j = _pairs(sample.dim, mean.device)
        # A pair of two dimensions stands for both of its orders.
        quadratic = -0.5 * (1.0 + (i != j)) * precision[:, i, j]
        linear = (precision @ mean.unsqueeze(-1)).squeeze(-1)
    else:
        quadratic, linear = -0.5 * precision, precision * mean
    constant = mixture.log_weights - 0.5 * (sample.dim * LOG_2PI + (mean * linear).sum(-1)) - mixture.log_det
    return torch.cat([quadratic.expand(len(mean), -1), linear, constant.unsqueeze(-1)], dim=1)


def _central(moments: Tensor, sample: Sample, mixture: Mixture) -> _Sums:
    """Return sums of deviations d = L (y - m) from moments sum_n r_n phi_n, shape (C, F)."""
    mean, scale, units = _mean(sample, mixture), sample.scale, sample.units
    second, first, counts = moments.split([moments.shape[1] - sample.dim - 1, sample.dim, 1], dim=1)
    shift = first - counts * mean
    if mixture.root.ndim == 2:
        return _Sums(counts[:, 0], scale * shift, scale.square() * (second - mean * (first + shift)))
    i, j = _pairs(sample.dim, mean.device)
    scatter = second.new_empty(len(mean), sample.dim, sample.dim)
    # sum r (y - m)(y - m)^T = sum r y y^T - m (sum r y)^T - (sum r (y - m)) m^T
    scatter[:, i, j] = scatter[:, j, i] = second - mean[:, i] * first[:, j] - shift[:, i] * mean[:, j]
    return _Sums(counts[:, 0], shift @ units.T, units @ scatter @ units.T)


def _add_deviations(sums: _Sums, x: Tensor, responsibilities: Tensor, mixture: Mixture, which: Tensor | slice) -> None:
    """Add the sums of deviations from the current means of some components, responsibilities (C, n)."""
    part, given = _part(mixture, which), responsibilities[which]
    counts, shift, scatter = own = _Sums(*(total[which] for total in sums))
    for rows, r in zip(part.blocks(x), part.blocks(given.T), strict=True):
        deviation = rows - part.means.unsqueeze(1)
        weighted = r.T.unsqueeze(-1) * deviation
        counts += r.sum(0)
        shift += weighted.sum(1)
        if scatter.ndim == 3:
            scatter.baddbmm_(weighted.mT, deviation)
        else:
            scatter += (weighted * deviation).sum(1)
    if isinstance(which, Tensor):  # else they are views
        for total, added in zip(sums, own, strict=True):
            total[which] = added


def _normalise_(log_joint: Tensor) -> Tensor:
    """Turn log p(x_n, c), shape (C, n), into responsibilities in place, and return sum_n log p(x_n)."""
    largest = log_joint.amax(0)
    log_joint -= largest
    total = log_joint.exp_().sum(0)
    log_joint /= total
    return (largest + total.log()).sum()


def _precision(sample: Sample, mixture: Mixture) -> Tensor:
    """Return P in the units of y: matrices (C or 1, D, D) or diagonals (C, D)."""
    if mixture.root.ndim == 2:
        return (sample.scale / mixture.root).square().expand_as(mixture.means)
    return torch.cholesky_inverse(torch.linalg.solve_triangular(sample.units, mixture.root, upper=False))


def _mean(sample: Sample, mixture: Mixture) -> Tensor:
    return sample.standardised(mixture.means).T


def _part(mixture: Mixture, which: Tensor | slice) -> Mixture:
    """Return some of the components; their weights are left as they are."""
    root = mixture.root if len(mixture.root) == 1 else mixture.root[which]
    return Mixture(mixture.log_weights[which], mixture.means[which], root)


def _nothing(mixture: Mixture) -> _Sums:
    C, D = mixture.means.shape
    zeros: Callable[..., Tensor] = mixture.means.new_zeros
    return _Sums(zeros(C), zeros(C, D), zeros(C, D, D) if mixture.root.ndim == 3 else zeros(C, D))
