"""The gap split in two where the posterior is in the family of the guide."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.evaluation.families import AffineFamily, GuideFamily
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.rng import seeded
from tests.splitting import split
from tests.statistical import assert_close, assert_estimates, assert_within

NO_MORE = "what Adam leaves after a few rounds of sixty steps"


def gamma_poisson():
    """z ~ Gamma(2, 1), x ~ Poisson(z): the posterior is Gamma(2 + x, 2)."""
    x = torch.tensor([0.0, 1.0, 5.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full_like(x, 2.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    q, posterior = dist.Gamma(3.0 + x, 3.0), dist.Gamma(2.0 + x, 2.0)
    return model, x, lambda x: dist.Gamma(3.0 + x, 3.0), kl_divergence(q, posterior)


def beta_bernoulli():
    """z ~ Beta(2, 2), x ~ Binomial(5, z): the posterior is Beta(2 + x, 7 - x)."""
    x = torch.tensor([0.0, 2.0, 5.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(torch.full_like(x, 2.0), 2.0))
            pyro.sample("x", dist.Binomial(5, z), obs=x)

    q, posterior = dist.Beta(3.0 + x, 5.0), dist.Beta(2.0 + x, 7.0 - x)
    return model, x, lambda x: dist.Beta(3.0 + x, 5.0), kl_divergence(q, posterior)


def dirichlet_multinomial():
    """z ~ Dirichlet(1), x ~ Multinomial(6, z): the posterior is Dirichlet(1 + x)."""
    x = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones_like(x)))
            pyro.sample("x", dist.Multinomial(6, probs=z), obs=x)

    q, posterior = dist.Dirichlet(2.0 + 0.5 * x), dist.Dirichlet(1.0 + x)
    return model, x, lambda x: dist.Dirichlet(2.0 + 0.5 * x), kl_divergence(q, posterior)


def log_normals():
    """log z ~ N(0, 1), log x ~ N(log z, 1): the posterior of log z is N(log x / 2, 1/2)."""
    x = torch.tensor([0.2, 1.0, 4.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.LogNormal(z.log(), 1.0), obs=x)

    q, posterior = dist.Normal(torch.zeros(3), 1.0), dist.Normal(x.log() / 2, math.sqrt(0.5))
    return model, x, lambda x: dist.LogNormal(torch.zeros_like(x), 1.0), kl_divergence(q, posterior)


def low_rank():
    """A posterior of rank one and a diagonal, which is what the guide is."""
    loading = torch.tensor([[1.0], [0.5], [-0.7]])
    x = torch.tensor([[0.3, -1.0, 0.4], [1.0, 2.0, 0.0]])
    posterior = dist.MultivariateNormal(0.5 * x, torch.eye(3) / 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def q(x):
        return dist.LowRankMultivariateNormal(torch.zeros_like(x), loading.expand(len(x), 3, 1), torch.ones_like(x))

    return model, x, q, kl_divergence(dist.MultivariateNormal(torch.zeros(2, 3), q(x).covariance_matrix), posterior)


@pytest.mark.parametrize("make", [gamma_poisson, beta_bernoulli, dirichlet_multinomial, log_normals, low_rank])
@pytest.mark.usefixtures("float64")
def test_a_conjugate_posterior_is_in_the_family(make):
    model, x, q, gap = make()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    found = split(pv.Pair(model, guide), x, 2000)
    assert found.is_supremum
    assert_within(found.approximation, np.zeros(len(x)), absolute=0.01, reason=NO_MORE)
    assert_estimates(found.gap, found.gap_stderr + 0.002, gap, effect=1.0)
    assert_within(found.richer_gain, np.zeros(len(x)), absolute=0.01, reason=NO_MORE)


@pytest.mark.usefixtures("float64")
def test_an_affine_map_of_a_log_normal_is_a_log_normal():
    """In R a normal of mean m and scale s becomes one of mean c + A (m - c) + S b and scale A s."""
    model, x, q, _ = log_normals()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    with evaluating(pv.Pair(model, guide), x, "cpu") as (pair, rows, layout, device, _), seeded(1):
        batch = rows.take(slice(None), device)
        family = GuideFamily(pair, batch, layout)
        affine = AffineFamily(family, pair, batch, layout)
        context, free = affine.context(family.start(len(x), device), batch, 64), torch.randn(len(x), affine.size)
        drawn = affine.propose(free, context, batch, 6)
        _, centre, scale = (part.squeeze(-1) for part in context)
        shift, root = (part.flatten() for part in affine._map(free))
        expected = dist.LogNormal(centre - root * centre + scale * shift, root)
        assert_close(drawn.log_guide, expected.log_prob(drawn.latents[0]["z"].reshape(6, len(x))), scale=10.0)
