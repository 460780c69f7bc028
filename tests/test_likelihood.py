"""The importance-sampled log-likelihood against exact answers, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from tests.pairs import ModuleVAE, binary_rows, chi_square, scaled_guide, small_ppca
from tests.running import estimate
from tests.statistical import assert_mean, assert_within


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("k", [1, 3, 200])
def test_exact_guides_give_log_p_itself(k):
    """S1: every weight equals log p(x), so any K gives the exact answer with error zero and ESS = K."""
    ppca = small_ppca()
    gmm = pv.GMM(torch.tensor([0.3, 0.7]), torch.randn(2, 4), torch.eye(4).repeat(2, 1, 1))
    for exact in (ppca, gmm):
        x = exact.sample(300, seed=1)
        ll = estimate(exact, x, k)
        np.testing.assert_allclose(ll.value, exact.log_prob(x).numpy(), rtol=1e-10)
        if k > 1:
            assert (ll.stderr == 0).all()
            assert (ll.ess == k).all()
            assert (ll.khat == -np.inf).all()
            assert ll.trusted.all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dim", "s"), [(1, 0.75), (1, 0.9), (1, 2.0), (3, 1.2), (3, 1.5), (8, 1.2), (16, 1.1)])
def test_estimates_are_unbiased_in_p_space(dim, s):
    """S4: E[p-hat] = p with the known variance chi2 / K, for proposals narrower and wider than the posterior.

    The tail index of the weights is 1 / (1 - s^2): s = 0.75 has two moments and a bit, so it holds for this seed only.
    """
    ppca = small_ppca(dim + 1, dim, seed=dim)
    x = ppca.sample(1, seed=5).expand(20_000, -1).contiguous()
    ll = estimate(scaled_guide(ppca, s), x, 8, num_draws=0)
    ratio = np.exp(ll.value - float(ppca.log_prob(x[:1])))
    assert_mean(ratio, 1.0, sigma=math.sqrt(chi_square(s, dim) / 8))
    if s >= 1:
        assert ratio.var() == pytest.approx(chi_square(s, dim) / 8, rel=0.15)


@pytest.mark.usefixtures("float64")
def test_a_million_weights_meet_bernsteins_bound():
    """A proposal wider than the posterior has weights in [0, s^d]: the bound holds without a limit theorem."""
    s, dim, n = 1.2, 3, 1_000_000
    ppca = small_ppca(4, dim)
    x = ppca.sample(1, seed=9)
    ll = estimate(scaled_guide(ppca, s), x, n, num_draws=0)
    variance, largest, log_delta = chi_square(s, dim), s**dim, math.log(2 / 3.3e-9)
    width = math.sqrt(2 * variance * log_delta / n) + 2 * largest * log_delta / (3 * n)
    assert width < 0.005
    assert abs(math.exp(ll.value[0] - float(ppca.log_prob(x))) - 1) <= width


@pytest.mark.usefixtures("float64")
def test_bias_follows_half_chi_square_over_k():
    """S5: K (log p - E log p-hat) tends to chi2 / 2."""
    s, dim, k = 1.3, 2, 40
    ppca = small_ppca(3, dim)
    x = ppca.sample(1, seed=5).expand(20_000, -1).contiguous()
    gap = float(ppca.log_prob(x[:1])) - estimate(scaled_guide(ppca, s), x, k, num_draws=0).value
    assert_mean(gap, chi_square(s, dim) / 2 / k, effect=0.006)


@pytest.mark.usefixtures("float64")
def test_intervals_cover():
    """S15: 1,000 repetitions of the 95 % interval; at least 920 hold it (fewer by chance: 2e-5)."""
    ppca = small_ppca(4, 2)
    x = ppca.sample(1000, seed=8)
    ll = estimate(scaled_guide(ppca, 1.3), x, 400, num_draws=0)
    covered = np.abs(ll.value - ppca.log_prob(x).numpy()) <= 1.96 * ll.stderr
    assert 0.92 <= covered.mean() <= 0.985


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        (dist.LogNormal(0.2, 0.5), lambda x: dist.LogNormal(0.1 * x, 0.7)),
        (dist.Beta(2.0, 3.0), lambda x: dist.Beta(1.5 + 0 * x, 2.0)),
        (dist.Gamma(2.0, 1.5), lambda x: dist.Gamma(1.8 + 0 * x, 1.3)),
        (dist.Uniform(-1.0, 2.0), lambda x: dist.Uniform(-1.0 - 0 * x, 2.0)),
    ],
    ids=["LogNormal", "Beta", "Gamma", "Uniform"],
)
def test_constrained_latents(prior, guide):
    """S12: log p(x) = log int p(x given z) p(z) dz by one-dimensional quadrature over the quantiles of the prior."""
    from scipy import integrate, stats

    pair = pv.Pair(*_programs(prior, guide))
    x = torch.tensor([-0.5, 0.4, 1.7])
    ll = estimate(pair, x, 40_000, num_draws=0)
    lower, upper = {dist.Beta: (0.0, 1.0), dist.Uniform: (-1.0, 2.0)}.get(type(prior), (0.0, 60.0))

    def density(z, value):
        return math.exp(float(prior.log_prob(torch.tensor(z)))) * stats.norm.pdf(value, z, 0.5)

    exact = [math.log(integrate.quad(density, lower, upper, args=(float(v),), limit=200, points=[1.0])[0]) for v in x]
    assert np.all(np.abs(ll.value - exact) <= 5.91 * ll.stderr + 1e-8)
    assert ll.stderr.max() < 0.02


def _programs(prior, guide):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def recognise(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", guide(x))

    return model, recognise


@pytest.mark.usefixtures("float64")
def test_discrete_observations_and_a_continuous_latent_of_beta_bernoulli():
    """S4: the evidence of a Beta-Bernoulli datum of 6 tosses is a ratio of Beta functions."""
    tosses = torch.bernoulli(torch.full((5, 6), 0.6))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            p = pyro.sample("p", dist.Beta(2.0, 1.0))
            pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1).expand(*p.shape, 6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("p", dist.Beta(2.0 + 0.9 * x.sum(-1), 1.0 + 0.9 * (6 - x.sum(-1))))

    heads = tosses.sum(-1)
    exact = torch.lgamma(2 + heads) + torch.lgamma(7 - heads) - math.lgamma(9) + math.lgamma(3)
    ll = estimate(pv.Pair(model, guide), tosses, 20_000)
    assert np.all(np.abs(ll.value - exact.numpy()) <= 5.91 * ll.stderr)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("full_covariance", [False, True])
def test_a_real_neural_vae_against_quadrature(full_covariance):
    """S16: a trained MLP VAE with two latents; exact log p on a 200 x 200 grid, and by `log_evidence`."""
    x = binary_rows(200, seed=4)
    vae = ModuleVAE(full_covariance)
    pv.fit(vae, x, epochs=60, learning_rate=1e-2, progress=False)
    line = torch.linspace(-7, 7, 200)
    z = torch.cartesian_prod(line, line)
    log_lik = dist.Bernoulli(logits=vae.decoder(z)).to_event(1).log_prob(x[:50, None])
    log_joint = log_lik + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = (log_joint.logsumexp(1) + 2 * (line[1] - line[0]).log()).detach().numpy()
    assert_within(pv.log_evidence(vae, x[:50], progress=False), exact, absolute=1e-4, reason="its tolerance")
    ll = estimate(vae, x[:50], 20_000, num_draws=0)
    assert np.all(np.abs(ll.value - exact) <= 5.91 * ll.stderr + 1e-6)
    assert ll.stderr.max() < 0.02
    assert np.all(ll.elbo <= exact + 5.91 * 0.02)
