"""Importance sampling with a proposal fitted to the posterior of each datum, mixed with the guide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.evaluation.edges import at_edge
from ppl_vae.evaluation.path import Ends, Path
from ppl_vae.evaluation.probing import Unseen, looked, unseen_shares, widening
from ppl_vae.evaluation.tally import Frailty, Tally
from ppl_vae.pair import Pair
from ppl_vae.rng import key, seeded
from ppl_vae.tape import Batch, Layout
from ppl_vae.weights import Summary

__all__ = ["Refined", "refine", "rounded_up"]

_CHUNK = 256  # samples of each datum at once
_ROUNDS, _FIT_CHUNKS = 5, 4
_FIT_SHARE, _HALVINGS, _NEVER = 0.1, 20, 1e4  # effective draws of a fit, steps to find them, a log-weight of zero
_FREEDOM = 5.0  # of Student's t: tails heavier than those of most posteriors
_GUIDE_CHUNK = round(0.2 * _CHUNK)  # samples of the guide among them
_FIRST = 1  # key of the first noise after that of the fit


class Fitted(NamedTuple):
    """A multivariate t of each datum in unconstrained coordinates."""

    loc: Tensor
    """Centres (N, D)."""
    scale_tril: Tensor
    """Factors of the scale matrices (N, D, D)."""

    def distribution(self) -> dist.Distribution:
        """Student's t, batch shape (N,)."""
        return dist.MultivariateStudentT(_FREEDOM, self.loc, self.scale_tril)


class Refined(NamedTuple):
    """What samples of a fitted proposal say of a block of data."""

    summary: Summary
    """Of their weights."""
    unseen: Unseen
    """Share of p(x) where none of them can have been, by 256 draws of the proposal, spread out; see `Prober`."""
    edges: dict[str, np.ndarray]
    """Samples that round to the edge of a latent's support, as `Tally.at_edge` counts them."""


def refine(
    pair: Pair,
    batch: Batch,
    layout: Layout,
    frailty: Frailty,
    first: int,
    num_samples: int,
    seed: int,
    device: torch.device,
) -> Refined:
    r"""Weighs K samples of each datum from a mixture of the guide and a t fitted to its posterior.

    Draws of the guide, spread out, give weighted moments of the posterior; a multivariate t with the mean as location
    and the covariance as scale, which is wider, gives better ones, and so on. Weights of which few would count are
    flattened to w^b, 0 < b < 1: each round comes as near to the posterior as its draws allow. Fresh samples then come
    in fixed shares from the guide and from the last t:

    .. math:: \log w = \log p(x, u) - \log [0.2 \, q(u \mid x) + 0.8 \, t(u)]

    Args:
        pair: The pair, in evaluation mode.
        batch: A block of data.
        layout: Layout of the pair.
        frailty: What its weights may suffer from.
        first: Row of its first datum.
        num_samples: K, rounded up to a multiple of 256.
        seed: Of the samples.
        device: Where it runs.

    Raises:
        PairError: As `Path`: what is drawn has no density on R^n that is known.
        EstimateError: A density is NaN or plus infinity at a sample; row and site are named.

    Reference:
        Owen and Zhou (2000), Safe and Effective Importance Sampling; Cappé, Douc, Guillin, Marin and Robert (2008),
        Adaptive Importance Sampling in General Mixture Classes.
    """
    with seeded(key(seed, first), device):
        path = Path(pair, batch, layout, _CHUNK, "guide", first)
        fitted = _fit(path)
    chunks = rounded_up(num_samples) // _CHUNK
    tally = Tally(pair, batch, layout, frailty, chunks * _CHUNK, first)
    for j in range(chunks):
        with seeded(key(seed, first, _FIRST + j), device):
            _weigh(path, fitted, frailty, layout, tally)
    summary = tally.summary(key(seed, first))
    with seeded(key(seed, first, _FIRST + chunks), device):
        unseen = looked(lambda: _unseen(path, fitted, summary.value, chunks * _CHUNK), Unseen.unknown(len(batch[0])))
    return Refined(summary, unseen, tally.at_edge(summary.value))


def rounded_up(num_samples: int) -> int:
    """K as it is drawn: a multiple of 256.

    Example:
        >>> rounded_up(1025)
        1280
    """
    return math.ceil(num_samples / _CHUNK) * _CHUNK


def _fit(path: Path) -> Fitted:
    """The t of the weighted moments of ever better draws; the first are those of the guide, spread out."""
    drawn = [path.draw() for _ in range(_FIT_CHUNKS)]
    pattern = drawn[0]
    flat = torch.cat([path.space.flat(u) for u in drawn])
    centre, factor = flat.mean(0), widening(flat.shape[-1])
    log_guide = torch.cat([path.ends(u).start for u in drawn])
    points = centre + factor * (flat - centre)
    fallback = _covariance(flat, torch.full_like(flat[..., 0], 1 / len(flat)), centre)
    fitted = _moments(points, _log_joint(path, points, pattern) - log_guide, fallback)
    for _ in range(_ROUNDS - 1):
        t = fitted.distribution()
        points = t.sample((len(flat),))
        fitted = _moments(points, _log_joint(path, points, pattern) - t.log_prob(points), fallback)
    return fitted


def _moments(points: Tensor, log_weight: Tensor, fallback: Tensor) -> Fitted:
    """Mean and covariance of weighted points (n, N, D), the latter drawn to a fallback where few points count.

    Points without a density have no part in a proposal; samples, which are in the estimate, may not be without.
    """
    weight = _flattened(log_weight.nan_to_num(nan=-torch.inf, posinf=-torch.inf))
    mean = (weight[..., None] * points).sum(0)
    ess = 1 / weight.square().sum(0)
    own = 2 * points.shape[-1]
    share = (ess / (ess + own))[:, None, None]
    covariance = share * _covariance(points, weight, mean) + (1 - share) * fallback
    return Fitted(mean, _root(covariance).to(points.dtype))


def _flattened(log_weight: Tensor) -> Tensor:
    """Weights w^b (n, N), normalised, with the largest b in [0, 1] that leaves a tenth of the draws effective."""
    log_weight = (log_weight - log_weight.amax(0)).clamp_min(-_NEVER)
    low, high = torch.zeros_like(log_weight[0]), 2 * torch.ones_like(log_weight[0])
    for _ in range(_HALVINGS):
        power = (low + high) / 2
        enough = 1 / (power * log_weight).softmax(0).square().sum(0) >= _FIT_SHARE * len(log_weight)
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
    return (low.clamp_max(1.0) * log_weight).softmax(0)


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factors (N, D, D); where rounding has left a covariance without one, its diagonal grows."""
    root, info = torch.linalg.cholesky_ex(covariance)
    size = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(covariance.dtype).tiny)
    for power in range(-14, 1):
        if not bool((info != 0).any()):
            break
        grown = covariance + torch.diag_embed((10.0**power * size) * (info != 0)[:, None])
        again, info_again = torch.linalg.cholesky_ex(grown)
        root, info = torch.where((info != 0)[:, None, None], again, root), info_again
    return root


def _covariance(points: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Weighted covariance (N, D, D), in double precision: numbers of single precision may be all but dependent."""
    centred, weight = (points - mean).double(), weight.double()
    return torch.einsum("kn,knd,kne->nde", weight, centred, centred)


def _weigh(path: Path, fitted: Fitted, frailty: Frailty, layout: Layout, tally: Tally) -> None:
    """Counts a chunk of samples."""
    pattern = path.draw()
    points = _proposed(path, fitted, pattern)
    found = _densities(path, fitted, points, pattern)
    here = path.space.from_flat(points, pattern)
    for log_density in (found.joint, found.mixture):
        path.check(log_density, here)
    proposal, log_weight = path.proposal(here, found.mixture), found.log_weight
    edge = at_edge(proposal, frailty.bounded, layout)
    if edge is not None and bool(edge.any()):
        log_weight = torch.where(edge, _of_their_values(path, fitted, proposal.latents[0], log_weight), log_weight)
    tally.add(log_weight, found.size, proposal)


def _of_their_values(path: Path, fitted: Fitted, values: Mapping[str, Tensor], log_weight: Tensor) -> Tensor:
    """Log-weights (k, N) at the points of latent values, where those are larger.

    Beyond the last number before the edge of a support only |dz / du| still falls, which hides what is there.
    """
    points = path.space.points(values)
    found = _densities(path, fitted, path.space.flat(points), points)
    return torch.where(found.log_weight.isfinite(), torch.maximum(found.log_weight, log_weight), log_weight)


def _proposed(path: Path, fitted: Fitted, pattern: Mapping[str, Tensor]) -> Tensor:
    """A chunk of samples (k, N, D): the guide's share first, then draws of the t."""
    own = path.space.flat(pattern)[:_GUIDE_CHUNK]
    return torch.cat([own, fitted.distribution().sample((_CHUNK - len(own),))])


class _Densities(NamedTuple):
    """Of the points of a chunk, each (k, N), in nats."""

    joint: Tensor
    """log p(x, u)."""
    mixture: Tensor
    """Log-density of the mixture of guide and t."""
    size: Tensor
    """Size of the largest term that they are made of."""

    @property
    def log_weight(self) -> Tensor:
        return self.joint - self.mixture


def _densities(path: Path, fitted: Fitted, points: Tensor, pattern: Mapping[str, Tensor]) -> _Densities:
    share, (ends, size) = _GUIDE_CHUNK / _CHUNK, path.sized_ends(path.space.from_flat(points, pattern))
    log_t = fitted.distribution().log_prob(points)
    mixture = torch.logaddexp(math.log(share) + ends.start, math.log1p(-share) + log_t)
    return _Densities(ends.joint, mixture, torch.maximum(size, mixture.abs()))


def _unseen(path: Path, fitted: Fitted, value: np.ndarray, num_samples: int) -> Unseen:
    """Share of p(x) that samples of the mixture cannot have seen: a chunk of them, spread around the t."""
    pattern = path.draw()
    drawn = _proposed(path, fitted, pattern)
    size = drawn.shape[-1]
    factor = widening(size)
    probes = fitted.loc + factor * (drawn - fitted.loc)
    log_wide = _densities(path, fitted, drawn, pattern).mixture - size * math.log(factor)
    found = _densities(path, fitted, probes, pattern)
    return Unseen.of(unseen_shares(found.joint, log_wide, found.mixture, value, num_samples))


def _ends(path: Path, points: Tensor, pattern: Mapping[str, Tensor]) -> Ends:
    return path.ends(path.space.from_flat(points, pattern))


def _log_joint(path: Path, points: Tensor, pattern: Mapping[str, Tensor]) -> Tensor:
    """log p(x, u) of points (n, N, D)."""
    return torch.cat([_ends(path, part, pattern).joint for part in points.split(_CHUNK)])
