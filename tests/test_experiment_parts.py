"""What experiments share and measure with, each part against an independent answer."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal
from statistical import assert_within

import ppl_vae as pv
from experiments.common.free_guide import optimise


def test_the_free_guide_finds_the_best_diagonal_normal(generator: torch.Generator):
    """PPCA: the optimum has the posterior's mean, and its precisions on the diagonal; the gap is their KL."""
    ppca = pv.PPCA(torch.randn(5, 2, generator=generator), torch.zeros(5), 0.7)
    x = ppca.sample(20)
    posterior = ppca.posterior(x)
    found = optimise(ppca, x, torch.zeros(20, 2).double(), torch.ones(20, 2).double(), 400, 8)
    scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    reason = "Adam stops within the noise of 8 draws"
    assert_within(found.pair.loc, posterior.mean, absolute=0.02, reason=reason)
    assert_within(found.pair.log_scale.exp(), scale.expand(20, 2), absolute=0.02, reason=reason)
    assert abs(found.late_gain) < 0.1  # six standard errors of the draws of those steps
    ll = pv.log_likelihood(found.pair, found.pair.data(x), 4000, num_draws=0, progress=False)
    best = MultivariateNormal(posterior.mean, torch.diag_embed(scale.square()).expand(20, 2, 2))
    gap = ppca.log_prob(x) - torch.distributions.kl_divergence(best, posterior)
    assert_within(torch.tensor(ll.elbo).mean(), gap.mean(), absolute=0.01, reason="draws of the ELBO, 4,000 a datum")


def test_the_free_guide_leaves_the_model_as_it_was(generator: torch.Generator):
    vae = pv.VAE(
        pv.priors.StandardNormal(2), pv.decoders.Bernoulli.mlp(2, [4], 6), pv.encoders.DiagonalNormal.mlp(6, [4], 2)
    )
    before = [parameter.clone() for parameter in vae.parameters()]
    x = torch.bernoulli(torch.full((30, 6), 0.5), generator=generator)
    optimise(vae, x, torch.zeros(30, 2), torch.ones(30, 2), 5, 1)
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, vae.parameters(), strict=True))
