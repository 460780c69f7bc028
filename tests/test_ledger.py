"""The ledger of a pair against closed forms, enumeration, quadrature and brute force."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special
from torch import Tensor

import ppl_vae as pv
from ppl_vae.arrays import as_rows
from ppl_vae.checking import check
from ppl_vae.errors import DataError
from ppl_vae.evaluation.entries import LatentUse
from ppl_vae.evaluation.proposal import propose
from ppl_vae.evaluation.surgery import aggregate_draws, log_guide_of_others
from ppl_vae.latents import active_units
from ppl_vae.pair import as_pair
from ppl_vae.progress import Progress
from ppl_vae.rng import key, seeded
from tests.mixtures import random_gmm
from tests.pairs import DiscreteVAE, HierarchicalVAE, binary_rows, small_ppca
from tests.statistical import Z_MAX, assert_close, assert_estimates, assert_mean
from tests.zoo import ZOO

pytestmark = pytest.mark.usefixtures("float64")


def normal_pair(loc, scale, weight=1.0, dim=2) -> pv.Pair:
    """z ~ N(0, I), x given z ~ N(weight z, 1), and a diagonal normal guide of functions of x."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), scale(x)).to_event(1))

    return pv.Pair(model, guide)


def rows(n: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, dim)))


def normal_kl(loc: Tensor, scale: Tensor) -> Tensor:
    return (loc**2 + scale**2 - 1) / 2 - scale.log()


# The bound in two terms


def test_ppca_is_its_closed_form(seed):
    ppca = small_ppca()
    x, unit = ppca.sample(300), torch.eye(2)
    found, q = pv.ledger(ppca, x, 32, seed, num_aggregate=0, progress=False), ppca.posterior(x)
    assert_close(found.rate.value, torch.distributions.kl_divergence(q, dist.MultivariateNormal(torch.zeros(2), unit)))
    assert not found.rate.stderr.any()
    assert_estimates(found.elbo.value, found.elbo.stderr, ppca.log_prob(x), effect=20.0, degrees=31)
    assert_close(found.elbo.value, -(found.distortion.value + found.rate.value))
    assert_close(found.latents[0].kl, normal_kl(q.loc, q.variance.sqrt()))
    assert found.latents[0].form == "marginal"
    assert_close(found.latents[0].means, q.loc)
    assert_close(found.bits_per_dimension(), -found.elbo.mean / (4 * math.log(2)))


def test_errors_are_those_of_means(seed):
    """The squared error of a datum is in mean the square of its standard error; terms that are skew are no t."""
    ppca = small_ppca()
    x = ppca.sample(2000)
    found = pv.ledger(ppca, x, 32, seed, num_aggregate=0, progress=False).elbo
    error = found.value - ppca.log_prob(x).numpy()
    assert_mean((error / found.stderr.mean()) ** 2, (found.stderr**2).mean() / found.stderr.mean() ** 2, effect=0.6)
    assert_estimates(error.mean(), found.mean_stderr, 0.0, effect=0.1)
    assert_close(found.mean_stderr, np.sqrt((found.stderr**2).sum()) / 2000)
    assert_close(found.population_stderr, found.value.std(ddof=1) / math.sqrt(2000))


def test_scalars_that_factorise_sum_to_the_rate():
    pair = normal_pair(lambda x: 0.7 * x, lambda x: torch.tensor([0.5, 0.9]))
    x = rows(30)
    found = pv.ledger(pair, x, 4, progress=False)
    assert_close(found.latents[0].kl, normal_kl(0.7 * x, torch.tensor([0.5, 0.9]).expand(30, 2)))
    assert found.latents[0].form == "each"
    assert_close(found.latents[0].kl.sum(1), found.rate.value)


def test_a_scalar_without_closed_form_is_sampled(seed):
    """Student's t against a normal prior: by its entropy and its second moment."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0, 0.3 * x, 0.5).to_event(1))

    x = rows(40)
    found = pv.ledger(pv.Pair(model, guide), x, 500, seed, num_aggregate=0, progress=False)
    q = torch.distributions.StudentT(5.0, 0.3 * x, 0.5)
    truth = -q.entropy() + 0.5 * math.log(2 * math.pi) + (q.variance + q.mean**2) / 2
    latent = found.latents[0]
    assert latent.form == "each"
    assert_close(latent.kl.sum(1), found.rate.value)
    assert_mean((latent.kl - truth.numpy()).ravel(), 0.0, effect=0.1)


def test_layers_are_taken_one_by_one(seed):
    """The KL of the upper layer depends on draws of the lower one; both sum to the rate."""
    pair, x = HierarchicalVAE().double(), binary_rows(30).double()
    found = pv.ledger(pair, x, 400, seed, num_aggregate=0, progress=False)
    assert [latent.name for latent in found.latents] == ["z1", "z2"]
    assert_close(sum(latent.kl.sum(1) for latent in found.latents), found.rate.value)
    ll = pv.log_likelihood(pair, x, 400, key(seed, 1), num_draws=0, compile=False, progress=False)
    noise = math.sqrt(2) * found.elbo.mean_stderr
    assert_estimates(found.elbo.mean - ll.elbo.mean(), noise, 0.0, effect=1.0)


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_pair_has_a_ledger(name: str):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    case = ZOO[name]
    pair = case.make()
    if name == "autoencoder":
        with pytest.raises(pv.PairError, match="reconstruction"):
            pv.ledger(pair, case.data, progress=False)
        return
    in_part = name.startswith("classes given in part")
    if in_part:
        with pytest.raises(pv.PairError, match=r"site 'y'.*mask.*num_aggregate=0"):
            pv.ledger(pair, case.data, progress=False)
    draws = 0 if in_part else 64
    found = pv.ledger(pair, case.data, 4, num_aggregate=draws, progress=False)
    assert_close(found.elbo.value, -(found.distortion.value + found.rate.value), torch.float32, scale=10.0)
    for latent in found.latents:
        assert latent.form == "marginal" or len(found.latents) > 1 or np.allclose(latent.kl.sum(1), found.rate.value)
    if found.surgery is not None:
        assert found.surgery.mutual_information <= math.log(20) + 1e-6
    assert str(found)


def test_scales_of_programs_do_not_count():
    pair = normal_pair(lambda x: 0.7 * x, lambda x: torch.tensor([0.5, 0.9]))
    scaled = pv.Pair(pv.scale_latents(pair.model, 0.1), pv.scale_latents(pair.guide, 0.1))
    assert_close(*(pv.ledger(p, rows(9), progress=False).rate.value for p in (pair, scaled)))


# The aggregate posterior


def draws_of(pair, x, number, seed):
    pair = as_pair(pair)
    with Progress("", 0, False) as bar, torch.no_grad():
        return aggregate_draws(pair, as_rows(x), check(pair, (x,)).layout, number, seed, torch.device("cpu"), bar)


def test_mutual_information_of_a_mixture_is_that_of_enumeration(seed):
    """I = H(mean of q) - mean of H(q), and the same without the datum that made z."""
    gmm = random_gmm(spread=1.0)
    x = gmm.sample(30)
    q = gmm.posterior(x).probs.numpy()
    of_all, of_others = draws_of(gmm, x, 8000, seed)
    assert_close(of_others, -((30 * (-of_all).exp() - 1) / 29).log(), scale=1.0)
    others = (q.sum(0) - q) / 29
    assert_mean(of_all, special.rel_entr(q, q.mean(0)).sum(1).mean(), effect=0.12)
    assert_mean(of_others, special.rel_entr(q, others).sum(1).mean(), effect=0.12)
    found = pv.ledger(gmm, x, 2, seed, num_aggregate=3000, progress=False)
    assert_estimates(
        found.surgery.marginal_kl,
        found.surgery.marginal_kl_stderr,
        special.rel_entr(q.mean(0), gmm.weights.numpy()).sum(),
        effect=0.2,
    )


def test_mutual_information_of_ppca_is_that_of_quadrature(seed):
    """One latent number: the entropy of the mixture of N posteriors on a grid."""
    ppca = small_ppca(3, 1)
    x = ppca.sample(20)
    q = ppca.posterior(x)
    grid = torch.linspace(-8, 8, 20_001)
    density = dist.Normal(q.loc, q.variance.sqrt()).log_prob(grid).exp().mean(0)
    entropy = -float(torch.trapezoid(torch.special.xlogy(density, density), grid))
    truth = entropy - float(q.entropy().mean())
    of_all, _ = draws_of(ppca, x, 5000, seed)
    assert_mean(of_all, truth, effect=0.15)
    prior = torch.trapezoid(density * (density.log() - dist.Normal(0.0, 1.0).log_prob(grid)), grid)
    found = pv.ledger(ppca, x, 2, seed, num_aggregate=4000, progress=False).surgery
    assert_estimates(found.marginal_kl, found.marginal_kl_stderr, float(prior), effect=0.2)
    assert_close(found.mutual_information + found.marginal_kl, found.rate)


def test_the_mutual_information_of_the_population_is_bracketed(seed):
    """log det(I + W^T W / s^2) / 2 lies between both in mean over samples of ten data."""
    ppca = small_ppca()
    truth = 0.5 * float(torch.logdet(torch.eye(2) + ppca.loading.T @ ppca.loading / ppca.scale**2))
    found = [draws_of(ppca, ppca.sample(10, seed=key(seed, i)), 40, key(seed, i)) for i in range(40)]
    lower, upper = (np.array([float(f[j].mean()) for f in found]) for j in (0, 1))
    error = np.sqrt(40)
    assert lower.mean() + 3 * lower.std() / error < truth < upper.mean() - 3 * upper.std() / error
    assert truth - lower.mean() < 0.7


def test_a_guide_is_evaluated_at_the_latents_of_others(seed):
    """log q(z_i given x_m) of two layers by hand, and where particles run one by one."""
    vae, x = HierarchicalVAE().double(), binary_rows(6).double()
    pair = as_pair(vae)
    layout = check(pair, (x,)).layout
    with torch.no_grad(), seeded(seed):
        drawn = propose(pair, (x[:4],), 1, layout)
        z1, z2 = drawn.latents[0]["z1"], drawn.latents[0]["z2"]
        found = log_guide_of_others(pair, (x,), drawn, layout)
        below, above = vae.normal(vae.up1(x)), vae.normal(vae.up2(z1))
        assert_close(found, below.log_prob(z1.unsqueeze(1)) + above.log_prob(z2).unsqueeze(1))
        assert_close(found.diagonal(), drawn.log_guide[0])
        assert_close(log_guide_of_others(pair, (x,), drawn, layout._replace(vectorized=False)), found)


def test_a_plate_within_the_data_goes_along(seed):
    """Three latents a datum in a plate of their own, inside and outside that of the data."""

    def pair(data_dim: int) -> pv.Pair:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=data_dim), pyro.plate("part", 3, dim=-3 - data_dim):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T if data_dim == -1 else x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=data_dim), pyro.plate("part", 3, dim=-3 - data_dim):
                loc = x.T if data_dim == -1 else x
                pyro.sample("z", dist.Normal(0.5 * loc, 0.7))

        return pv.Pair(model, guide)

    x = rows(7, 3)
    truth = normal_kl(0.5 * x, torch.full((7, 3), 0.7))
    for data_dim in (-1, -2):
        found = pv.ledger(pair(data_dim), x, 4, seed, progress=False)
        assert_close(found.latents[0].kl, truth)
        assert_close(found.latents[0].means, 0.5 * x)
        assert 0 < found.surgery.mutual_information <= math.log(7)


def test_data_plates_that_state_a_small_data_set_have_a_ledger():
    """Of fewer data than are drawn of at once."""
    stated = 20

    def model(x: Tensor) -> None:
        with pyro.plate("data", stated, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", stated, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    found = pv.ledger(pv.Pair(model, guide), rows(stated), progress=False).surgery
    plain = pv.ledger(normal_pair(lambda x: x / 2, lambda x: torch.full_like(x, 0.7)), rows(stated), progress=False)
    error = math.hypot(found.mutual_information_stderr, plain.surgery.mutual_information_stderr)
    assert abs(found.mutual_information - plain.surgery.mutual_information) < Z_MAX * error


def test_blocks_of_data_and_draws_change_nothing(seed, monkeypatch: pytest.MonkeyPatch):
    gmm = random_gmm()
    x = gmm.sample(50)
    first, again = (pv.ledger(gmm, x, 4, seed, num_aggregate=9, progress=False) for _ in range(2))
    assert_close(first.elbo.value, again.elbo.value)
    assert first.surgery == again.surgery
    whole = draws_of(gmm, x, 200, seed)
    monkeypatch.setattr("ppl_vae.evaluation.surgery._ROWS", 7)
    for one, other in zip(whole, draws_of(gmm, x, 200, seed), strict=True):
        assert_close(one, other, scale=1.0)


# Latents that say nothing


def test_collapse_is_named(seed):
    """The first, third and fourth of five scalars are the prior, whatever x is."""
    used = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    pair = normal_pair(lambda x: 0.8 * used * x, lambda x: 1 - 0.5 * used, dim=5)
    found = pv.ledger(pair, rows(200, 5), 4, seed, num_aggregate=100, progress=False)
    (latent,) = found.latents
    assert latent.collapsed.tolist() == [True, False, True, True, False]
    assert latent.active.tolist() == [False, True, False, False, True]
    assert "3 of 5 scalars of latent 'z' (scalars 0, 2 to 3)" in found.alarms[0]
    assert "posterior collapse" in str(found)


def test_collapse_is_that_of_99_data_in_100():
    kl = np.full((100, 2), 1.0)
    kl[:98, 0] = kl[:99, 1] = 0.009
    assert LatentUse("z", kl, "each", None, None, kl, 2).collapsed.tolist() == [False, True]


def test_a_guide_that_is_its_prior_has_collapsed(seed):
    pair = normal_pair(lambda x: torch.zeros(2), lambda x: torch.ones(2))
    found = pv.ledger(pair, rows(50), 4, seed, num_aggregate=50, progress=False)
    assert found.alarms[0].startswith("latent 'z': KL from the prior below 0.01 nats for 99% of the data")
    assert abs(found.surgery.mutual_information) < 1e-12


def test_a_guide_that_ignores_the_data_is_named_whatever_its_rate(seed):
    pair = normal_pair(lambda x: torch.ones(2), lambda x: torch.full((2,), 0.2))
    found = pv.ledger(pair, rows(50), 4, seed, num_aggregate=100, progress=False)
    assert found.rate.mean > 2
    assert "does not look at the data" in found.alarms[0]


def test_a_guide_that_is_used_alarms_nobody(seed):
    assert pv.ledger(small_ppca(), small_ppca().sample(50), 4, seed, progress=False).alarms == ()
    assert pv.ledger(small_ppca(), small_ppca().sample(1), 4, seed, progress=False).alarms == ()


def test_means_of_draws_are_no_activity(seed):
    """A flow tells no mean: that of 64 draws varies by 1/64 > 0.01, which is taken off."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.stack([2 * x[:, 0], torch.zeros(len(x))], 1), 1.0).to_event(1)
            flow = dist.transforms.ComposeTransform([dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)])
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    pair = pv.Pair(normal_pair(None, None).model, guide)
    (latent,) = pv.ledger(pair, rows(800), 64, seed, num_aggregate=0, progress=False).latents
    assert latent.form == "whole"
    assert latent.active.tolist() == [True, False]
    assert (active_units(latent.means)).tolist() == [True, True]
    assert_close(active_units([[0.0], [0.3]], noise=[[0.02], [0.01]]), [False])
    with pytest.raises(DataError, match="noise"):
        active_units([[0.0], [0.3]], noise=[0.02])


# What cannot be


def test_bad_input_is_named():
    outside = normal_pair(lambda x: x, lambda x: 0 * x + 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(pv.PairError, match=r"site 'z'.*may leave it.*log_likelihood"):
        pv.ledger(pv.Pair(model, outside.guide), rows(5), progress=False)
    with pytest.raises(ValueError, match="num_samples: expected at least 2"):
        pv.ledger(outside, rows(5), 1)
    with pytest.raises(ValueError, match="num_aggregate"):
        pv.ledger(outside, rows(5), num_aggregate=-1)
    narrow = normal_pair(lambda x: x, lambda x: torch.where(x > 1e9, 0.0, 1.0) * 1e200, weight=1e200)
    with pytest.raises(pv.EstimateError, match=r"row 0: .* log p\(x given z\) of site 'x', .*log_likelihood"):
        pv.ledger(narrow, rows(5), progress=False)


def test_discrete_latents_have_no_mean(seed):
    found = pv.ledger(DiscreteVAE().double(), binary_rows(20).double(), 4, seed, progress=False)
    assert found.latents[0].active is None
    assert "active" not in str(found)
