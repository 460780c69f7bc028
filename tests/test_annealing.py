"""Annealed importance sampling: its parts against exact moments, its weights against exact evidence."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import DiscreteVAE, binary_rows, scaled_guide, small_ppca
from scipy import integrate, stats
from statistical import assert_close, assert_estimates, assert_mean

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.evaluation import annealing as steps
from ppl_vae.evaluation.hamiltonian import transition
from ppl_vae.evaluation.path import Path
from ppl_vae.pair import as_pair
from ppl_vae.rng import seeded


def path_of(pair, x, num_chains=4, start="prior"):
    pair = as_pair(pair)
    return Path(pair, (x,), check(pair, (x,)).layout, num_chains, start)


def positive(x_dim: int = 1) -> pv.Pair:
    """A latent on the half line and one in the unit interval, one number observed."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full((len(x),), 2.0, dtype=torch.float64), 1.5))
            share = pyro.sample("share", dist.Beta(torch.full((len(x),), 2.0, dtype=torch.float64), 3.0))
            pyro.sample("x", dist.Normal(rate * share, 0.3).to_event(0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(torch.full((len(x),), 2.5, dtype=torch.float64), 1.0))
            pyro.sample("share", dist.Beta(torch.full((len(x),), 1.5, dtype=torch.float64), 1.5))

    return pv.Pair(model, guide)


# Parts


@pytest.mark.parametrize("chains", [1, 3])
def test_points_and_values_are_each_others_inverse_and_the_jacobian_is_that_of_autograd(chains: int):
    x = torch.tensor([0.5, 1.0], dtype=torch.float64)
    path = path_of(positive(), x, chains)
    with seeded(0):
        points = path.draw()
    values, log_det = path.space.values(points)
    assert all(torch.allclose(path.space.points(values)[n], u, atol=1e-8) for n, u in points.items())
    total = 0.0
    for name, u in points.items():
        leaf = u.clone().requires_grad_()
        transform = path.space._transforms[name]
        (slope,) = torch.autograd.grad(transform(leaf).sum(), leaf)
        total = total + slope.abs().log()
    assert_close(log_det, total.reshape(log_det.shape))


def test_a_transition_leaves_its_density_where_it_is():
    """Exact draws of a posterior, moved by steps so large that a third is rejected, are draws of it still."""
    ppca, n = small_ppca(), 20_000
    x = ppca.sample(1).expand(n, 4)
    path = path_of(ppca, x, 1)
    q = ppca.posterior(x)
    with seeded(1), torch.no_grad():
        points = {"z": q.sample()}
        for _ in range(3):
            points, accepted = transition(path.density(1.0), points, torch.full((n,), 0.6).double(), 3, path.space)
    assert 0.3 < float(accepted.mean()) < 0.9
    white = torch.linalg.solve_triangular(q.scale_tril, (points["z"] - q.loc)[..., None], upper=False)[..., 0]
    for i in range(2):
        assert_mean(white[:, i], 0.0, 1.0, effect=0.1)
        assert_mean(white[:, i] ** 2, 1.0, np.sqrt(2), effect=0.12)


def test_momentum_is_reversed_by_the_same_steps():
    """The leapfrog is its own inverse: with the noise of the first transition turned around it comes back."""
    path = path_of(small_ppca(), small_ppca().sample(2), 1)
    density = path.density(0.7)
    u, p, epsilon = torch.randn(2, 2).double(), torch.randn(2, 2).double(), 0.1

    def leap(u, p):
        for _ in range(5):
            p = p + epsilon / 2 * density({"z": u})[1]["z"]
            u = u + epsilon * p
            p = p + epsilon / 2 * density({"z": u})[1]["z"]
        return u, p

    there, momentum = leap(u, p)
    back, _ = leap(there, -momentum)
    assert_close(back, u)


def test_temperatures_go_from_zero_to_one():
    for schedule in ("linear", "sigmoid", "adaptive"):
        t = pv.Annealing(num_temperatures=7, schedule=schedule).temperatures()
        assert len(t) == 8
        assert (np.diff(t) > 0).all()
        assert (t[0], t[-1]) == (0, 1)
    wide = np.diff(pv.Annealing(num_temperatures=10, schedule="sigmoid").temperatures())
    assert wide[0] < wide[4] > wide[-1]


def test_adaptive_temperatures_make_every_step_change_as_much():
    path = path_of(small_ppca(dim=30), small_ppca(dim=30).sample(20), 16)
    with seeded(0), torch.no_grad():
        frozen = steps.tune(path, pv.Annealing(num_temperatures=20, schedule="adaptive"), 20)
    widths = np.diff(frozen.temperatures)
    assert (widths > 0).all()
    assert widths[0] < widths[-1] / 2  # the likelihood says most when it is let in first


def test_chains_that_count_take_the_frozen_steps(monkeypatch: pytest.MonkeyPatch):
    path, seen = path_of(small_ppca(), small_ppca().sample(3)), []
    with seeded(0), torch.no_grad():
        frozen = steps.tune(path, pv.Annealing(num_temperatures=4), 3)
        monkeypatch.setattr(steps, "transition", lambda *a: seen.append((a[2], a[3])) or transition(*a))
        steps.forward(path, frozen, 7)
        forward, seen = seen, []
        steps.reverse(path, frozen, 7, path.draw())
    assert [n for _, n in forward] == [7, 7, 7]
    assert all(torch.equal(step, frozen.step_sizes[i]) for i, (step, _) in enumerate(forward, 1))
    assert len(frozen.step_sizes.unique(dim=0)) > 1


# Weights


def test_with_the_posterior_as_guide_every_weight_is_the_evidence():
    ppca = small_ppca()
    x = ppca.sample(5)
    found = pv.annealed_importance_sampling(ppca, x, pv.Annealing(4, 5), progress=False)
    assert_close(found.value, ppca.log_prob(x))
    assert found.stderr.max() < 1e-6


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_mean_weight_is_the_evidence(start: str):
    """Thirty temperatures, 2,000 chains of one datum."""
    ppca, n = small_ppca(), 2000
    x = ppca.sample(1, 5).expand(n, 4).contiguous()
    annealing = pv.Annealing(1, 30, 3, start=start)
    path = path_of(scaled_guide(ppca, 1.4), x, 1, start)
    with seeded(3), torch.no_grad():
        frozen = steps.tune(path, annealing, n)
        ratio = (steps.forward(path, frozen, 3)[0][0] - ppca.log_prob(x)).exp()
        back = steps.reverse(path, frozen, 3, {"z": ppca.posterior(x).sample()})
        inverse = (ppca.log_prob(x) - back[0]).exp()
    assert_mean(ratio, 1.0, effect=0.25)
    assert_mean(inverse, 1.0, effect=0.7)


def test_constrained_latents_against_quadrature():
    x = torch.tensor([0.2, 0.9, 2.0], dtype=torch.float64)

    def evidence(value):
        def joint(rate, share):
            prior = stats.gamma.pdf(rate, 2, scale=1 / 1.5) * stats.beta.pdf(share, 2, 3)
            return prior * stats.norm.pdf(value, rate * share, 0.3)

        return integrate.dblquad(joint, 0, 1, 0, 25, epsabs=1e-9)[0]

    exact = np.log([evidence(float(v)) for v in x])
    found = pv.annealed_importance_sampling(positive(), x, pv.Annealing(200, 30, start="guide"), progress=False)
    assert_estimates(found.value, found.stderr, exact, effect=0.5, degrees=199)


@pytest.mark.parametrize("dim", [2, 10])
def test_bounds_from_both_sides_close_on_the_evidence(dim: int):
    ppca = small_ppca(dim + 3, dim)
    pair, template = scaled_guide(ppca, 1.3), torch.zeros(40, dim + 3, dtype=torch.float64)
    found = pv.bidirectional_monte_carlo(pair, template, pv.Annealing(8, 60, 6), seed=1, progress=False)
    exact = ppca.log_prob(torch.as_tensor(found.x[0])).numpy()
    below, above = exact - found.lower, found.upper - exact
    assert below.mean() > -5.91 * below.std() / np.sqrt(40)
    assert above.mean() > -5.91 * above.std() / np.sqrt(40)
    assert found.gap < 0.05
    assert len({row.tobytes() for row in found.x[0]}) == 40
    assert "<= log p(x) <=" in str(found)


def test_noise_belongs_to_the_seed_and_the_pair_is_left_alone():
    ppca = small_ppca()
    pair, x = as_pair(scaled_guide(ppca, 1.3)), ppca.sample(4)
    before = torch.get_rng_state()
    first, again, other = (
        pv.annealed_importance_sampling(pair, x, pv.Annealing(2, 3), seed, progress=False).value for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_estimate_of_few_chains_is_not_trusted():
    how = pv.Annealing(num_chains=8)
    ess = np.array([1.0, 1.99, 2.0, 8.0])
    found = pv.AnnealedLogLikelihood(np.zeros(4), np.ones(4), ess, np.ones(4), how, 0.0)
    assert found.trusted.tolist() == [False, False, True, True]
    assert "of 2 of 4 data fewer than a quarter of the chains count" in str(found)
    assert how.in_words() in str(found)
    alone = pv.AnnealedLogLikelihood(*np.ones((4, 1)), pv.Annealing(num_chains=1), 0.0)
    assert not alone.trusted.any()


# What cannot be annealed


def test_discrete_latents_are_refused_by_name():
    with pytest.raises(pv.PairError, match=r"site 'z': expected a continuous latent.*log_evidence"):
        pv.annealed_importance_sampling(DiscreteVAE(), binary_rows(3), progress=False)


def test_a_support_that_depends_on_latents_is_refused_by_name():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), top))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("z", dist.Uniform(torch.zeros(len(x)), top))

    with pytest.raises(pv.PairError, match="site 'z': expected a support that is the same"):
        pv.annealed_importance_sampling(pv.Pair(model, guide), torch.randn(3), progress=False)


def test_data_that_are_no_argument_cannot_be_simulated():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(pv.PairError, match="site 'x': expected to be observed at one of the arguments"):
        pv.bidirectional_monte_carlo(pv.Pair(model, guide), torch.randn(3), progress=False)


@pytest.mark.parametrize("option", [{"num_chains": 0}, {"num_temperatures": 1.5}, {"schedule": "slow"}, {"start": "z"}])
def test_options_without_meaning_are_refused(option: dict):
    with pytest.raises(ValueError, match=next(iter(option))):
        pv.Annealing(**option)
