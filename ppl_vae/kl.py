"""Closed-form divergences that neither torch nor Pyro knows, added to torch's registry of KL divergences."""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, Delta, OneHotCategorical
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

__all__ = ["analytic_kl"]


def analytic_kl(guide: Distribution, model: Distribution) -> Tensor | None:
    """KL(guide, model) per batch element in nats, or None where no closed form is known.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, MultivariateNormal, Normal
        >>> q = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> float(analytic_kl(q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1)))
        0.0
    """
    # KL(Delta, p) = -log p(v) is no divergence of densities: a point guide is a MAP estimate, never a bound.
    if _is_point(guide) or guide.event_shape != model.event_shape:
        return None
    try:
        return kl_divergence(guide, model)
    except NotImplementedError:
        return None


def _is_point(distribution: Distribution) -> bool:
    return isinstance(getattr(distribution, "base_dist", distribution), Delta)


@register_kl(MultivariateNormal, Independent)
def _full_to_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    r"""1/2 sum_i [((L L^T)_ii + (m_i - mu_i)^2) / s_i^2 - 1 + 2 log s_i] - log det L, with q = N(m, L L^T)."""
    loc, scale = _diagonal(p)
    log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _gaussian_kl(q.loc, q.scale_tril.square().sum(-1), log_det, loc, scale)


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_to_diagonal(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """The same with covariance W W^T + diag d: its log-determinant comes from the capacitance I + W^T D^-1 W."""
    loc, scale = _diagonal(p)
    capacitance = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det = capacitance + 0.5 * q._unbroadcasted_cov_diag.log().sum(-1)
    return _gaussian_kl(q.loc, q.variance, log_det, loc, scale)


@register_kl(Categorical, Categorical)
def _categorical(q: Categorical, p: Categorical) -> Tensor:
    """sum_v q_v log(q_v / p_v) over the values that q can take: where it cannot, torch's own form has NaN gradients."""
    possible = q.probs > 0
    return (q.probs * torch.where(possible, q.logits - p.logits, 0.0)).sum(-1)


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot(q: OneHotCategorical, p: OneHotCategorical) -> Tensor:
    return _categorical(q._categorical, p._categorical)


def _gaussian_kl(mean: Tensor, variance: Tensor, half_log_det: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    quadratic = (variance + (mean - loc).square()) / scale.square()
    return 0.5 * (quadratic - 1).sum(-1) + scale.log().expand(quadratic.shape).sum(-1) - half_log_det


def _diagonal(p: Independent) -> tuple[Tensor, Tensor]:
    if p.reinterpreted_batch_ndims != 1 or not isinstance(p.base_dist, Normal):
        raise NotImplementedError
    return torch.broadcast_tensors(p.base_dist.loc, p.base_dist.scale)
