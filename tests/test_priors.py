"""Priors: densities against sums and change of variables by hand, draws against densities, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import nn

import ppl_vae as pv
from ppl_vae.encoders import DiagonalNormal, FullCovarianceNormal, LowRankNormal
from ppl_vae.errors import DataError, PairError
from ppl_vae.priors import FlowPrior, MixtureOfNormals, StandardNormal, VampPrior
from tests.statistical import assert_close, assert_estimates, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def shaken(module: nn.Module, size: float = 0.5) -> nn.Module:
    """The module with every parameter moved from where it starts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn_like(parameter)
    return module


def square(end: float) -> tuple[torch.Tensor, float]:
    """Points of a square around 0, and the area of each."""
    side = torch.linspace(-end, end, 201)
    return torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2


ENCODERS = {
    "diagonal": lambda: DiagonalNormal.mlp(6, [4], 2),
    "full": lambda: FullCovarianceNormal.mlp(6, [4], 2),
    "low rank": lambda: LowRankNormal.mlp(6, [4], 2, rank=1),
}
PRIORS = {
    "standard": lambda: StandardNormal(2),
    "mixture": lambda: shaken(MixtureOfNormals(2, 3)),
    "VampPrior": lambda: shaken(VampPrior(DiagonalNormal.mlp(6, [4], 2), torch.randn(3, 6))),
}
FLOW_PRIORS = {f: lambda f=f: shaken(FlowPrior(2, f, hidden=(8,), num_flows=2), 0.1) for f in ("spline", "affine")}


def test_mixture_of_normals_is_the_sum(generator):
    prior, z = shaken(MixtureOfNormals(2, 3)), torch.randn(4, 5, 2, generator=generator)
    log_weight = (prior.logits - prior.logits.logsumexp(0)).detach().numpy()
    means, scales = prior.means.detach().numpy(), np.log1p(np.exp(prior.raw_scales.detach().numpy()))
    parts = [w + stats.norm(m, s).logpdf(z.numpy()).sum(-1) for w, m, s in zip(log_weight, means, scales, strict=True)]
    assert_close(prior().log_prob(z), logsumexp(parts, axis=0))


def test_mixture_starts_with_equal_weights_and_scales_one():
    p = MixtureOfNormals(2, 3)()
    assert_close(p.mixture_distribution.probs, [1 / 3] * 3)
    assert_close(p.component_distribution.base_dist.scale, np.ones((3, 2)))


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("family", ["spline", "affine"])
def test_flow_starts_at_the_standard_normal(family, dim, generator):
    z = 3 * torch.randn(50, dim, generator=generator)
    assert_close(FlowPrior(dim, family)().log_prob(z), stats.norm.logpdf(z.numpy()).sum(-1))


@pytest.mark.parametrize("name", ENCODERS)
def test_vampprior_is_the_mean_over_pseudo_inputs(name, generator):
    x, z = torch.randn(3, 6, generator=generator), torch.randn(4, 5, 2, generator=generator)
    encoder = ENCODERS[name]()
    parts = [encoder(row[None]).log_prob(z) for row in x]
    assert_close(VampPrior(encoder, x)().log_prob(z), torch.stack(parts).logsumexp(0) - np.log(3))


@pytest.mark.parametrize("name", PRIORS)
def test_draws_have_the_moments_of_the_mixture(name):
    """Mean and second moments of 20,000 draws; a component that is left out, or has another weight, moves them."""
    p = PRIORS[name]()()
    z = p.sample((20_000,)).detach()
    for i in range(2):
        mean, variance = float(p.mean.detach()[i]), float(p.variance.detach()[i])
        assert_mean(z[:, i].numpy(), mean, sigma=variance**0.5, effect=0.3)
        assert_mean((z[:, i].numpy() - mean) ** 2, variance, effect=0.15 * variance + 0.3)


@pytest.mark.parametrize("name", FLOW_PRIORS)
def test_flow_priors_integrate_to_one_where_their_draws_are(name):
    """By quadrature over [-8, 8]^2: the mass, and the mean of the draws and of their squares."""
    p = FLOW_PRIORS[name]()()
    grid, area = square(8.0)
    with torch.no_grad():
        mass = p.log_prob(grid).exp() * area
        z = p.sample((20_000,))
    total = float(mass.sum())
    assert abs(total - 1) < 2e-3, f"the density sums to {total} over a square"
    for values, squares in ((z, grid), (z**2, grid**2)):
        for i in range(2):
            assert_mean(values[:, i].numpy(), float((mass * squares[:, i]).sum() / total), effect=0.5)


@pytest.mark.parametrize("name", [*PRIORS, *FLOW_PRIORS])
def test_vae_samples_and_evaluates_under_every_prior(name, generator):
    prior = {**PRIORS, **FLOW_PRIORS}[name]()
    encoder = prior.encoder if isinstance(prior, VampPrior) else DiagonalNormal.mlp(6, [4], 2)
    with torch.no_grad():  # answers near each other and wide: weights have a small variance
        encoder.network.layers[-1].weight.mul_(0.1)
        encoder.network.layers[-1].bias[2:] = 1.5
    vae = pv.VAE(prior, pv.decoders.Gaussian.mlp(2, [4], 6), encoder)
    x = torch.randn(7, 6, generator=generator)
    assert vae.sample(5).shape == (5, 6)
    layout = pv.check(vae, x).layout
    assert layout.vectorized
    assert bool(layout.analytic) == (name == "standard")
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    pv.fit(vae, x, epochs=2, compile=False, progress=False)
    assert all(bool((p != before[n]).any()) for n, p in vae.named_parameters())
    ll = pv.log_likelihood(vae, x, 4000, progress=False, compile=False)
    grid, area = square(8.0)
    with torch.no_grad():
        log_joint = vae.prior().log_prob(grid)[:, None] + vae.decoder(grid[:, None]).log_prob(x)
    assert_estimates(ll.value, ll.stderr, log_joint.logsumexp(0) + np.log(area), effect=0.5)


def test_vampprior_shares_the_encoder():
    vae = pv.VAE(prior := VampPrior(DiagonalNormal.mlp(6, [4], 2), torch.randn(3, 6)), nn.Identity(), prior.encoder)
    assert len(list(vae.parameters())) == 4 + 1
    other = pv.VAE(again := VampPrior(DiagonalNormal.mlp(6, [4], 2), torch.randn(3, 6)), nn.Identity(), again.encoder)
    pv.as_pair(other).load_state_dict(pv.as_pair(vae).state_dict())
    z = torch.randn(4, 2)
    assert_close(other.prior().log_prob(z), vae.prior().log_prob(z))


@pytest.mark.parametrize("rows", [torch.zeros(0, 6), torch.full((2, 6), float("nan"))])
def test_other_pseudo_inputs_are_refused(rows):
    with pytest.raises(DataError, match="pseudo_inputs: expected one or more finite rows"):
        VampPrior(DiagonalNormal.mlp(6, [4], 2), rows)


def test_pseudo_inputs_are_rows_of_a_tensor_or_an_array():
    encoder, rows = DiagonalNormal.mlp(6, [4], 2), torch.rand(3, 6)
    assert torch.equal(VampPrior(encoder, rows.numpy()).pseudo_inputs, VampPrior(encoder, rows).pseudo_inputs)
    with pytest.raises(DataError, match=r"\(K, \*event\), found shape \(6,\): take x\[None\]"):
        VampPrior(encoder, rows[0])


@pytest.mark.parametrize("latent_dim", [0, -1, 2.0, "2", None])
@pytest.mark.parametrize(
    "make",
    [
        pv.priors.StandardNormal,
        lambda d: MixtureOfNormals(d, 2),
        FlowPrior,
        lambda d: DiagonalNormal.mlp(6, [4], d),
        lambda d: pv.encoders.FullCovarianceNormal.mlp(6, [4], d),
        lambda d: pv.encoders.LowRankNormal.mlp(6, [4], d, 1),
        lambda d: pv.encoders.InverseAutoregressive.mlp(6, [4], d),
        lambda d: pv.encoders.FullCovarianceNormal(torch.nn.Identity(), d),
    ],
    ids=["normal", "mixture", "flow", "diagonal", "full", "low rank", "autoregressive", "network"],
)
def test_a_dimension_is_a_whole_number(make, latent_dim):
    with pytest.raises(ValueError, match="latent_dim: expected"):
        make(latent_dim)


def test_other_families_and_numbers_are_refused():
    with pytest.raises(PairError, match=r'family: expected "spline" or "affine", found "?\'?radial'):
        FlowPrior(2, "radial")
    with pytest.raises(ValueError, match="num_components: expected at least 1"):
        MixtureOfNormals(2, 0)
    with pytest.raises(ValueError, match="num_flows: expected at least 1"):
        FlowPrior(2, num_flows=0)
