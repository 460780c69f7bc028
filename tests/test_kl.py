"""Closed-form divergences against the divergence of two full-covariance normals, which torch knows itself."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppl_vae.kl import analytic_kl
from tests.statistical import assert_close

pytestmark = pytest.mark.usefixtures("float64")

N, D, RANK = 5, 4, 2


def diagonal():
    return dist.Normal(torch.randn(N, D), torch.rand(N, D) + 0.5).to_event(1)


def full():
    return dist.MultivariateNormal(torch.randn(N, D), scale_tril=torch.randn(N, D, D).tril(-1) + 2 * torch.eye(D))


def low_rank():
    return dist.LowRankMultivariateNormal(torch.randn(N, D), torch.randn(N, D, RANK), torch.rand(N, D) + 0.5)


def dense(p):
    """The same normal distribution with a full covariance."""
    covariance = p.covariance_matrix if hasattr(p, "covariance_matrix") else torch.diag_embed(p.variance)
    return torch.distributions.MultivariateNormal(p.mean, covariance)


@pytest.mark.parametrize("make", [full, low_rank, diagonal])
def test_divergence_to_a_diagonal_normal_is_that_of_dense_normals(make):
    q, p = make(), diagonal()
    assert_close(analytic_kl(q, p), kl_divergence(dense(q), dense(p)))


def test_a_shared_prior_broadcasts():
    q, p = full(), dist.Normal(torch.zeros(D), 1.0).to_event(1)
    assert_close(analytic_kl(q, p), kl_divergence(dense(q), dense(p)))


def test_no_closed_form_is_none():
    point = dist.Delta(torch.zeros(N, D)).to_event(1)
    for q, p in [
        (full(), dist.Laplace(torch.zeros(D), 1.0).to_event(1)),
        (point, diagonal()),
        (diagonal(), dist.Normal(0.0, 1.0)),
    ]:
        assert analytic_kl(q, p) is None
