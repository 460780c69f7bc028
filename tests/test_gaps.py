"""The gap split in two: against closed forms, and whatever the pair is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.errors import PairError
from ppl_vae.evaluation.families import AffineFamily, GuideFamily
from ppl_vae.evaluation.parts import known_evidence, sampled_parts, trusted_parts
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.rng import seeded
from ppl_vae.weights import Stream
from tests.linear import chain
from tests.mixtures import random_gmm
from tests.pairs import binary_rows, diagonal, scaled_guide, small_ppca, two_modes
from tests.splitting import split
from tests.statistical import assert_close, assert_estimates, assert_within
from tests.training import fresh, state
from tests.zoo import ZOO

NO_MORE = "what Adam leaves after a few rounds of sixty steps"

ROUNDED = "Adam makes steps of gradients that are nothing but rounding"


def correlated_ppca() -> pv.PPCA:
    """Its posterior is far from diagonal."""
    return pv.PPCA(torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.0, 1.0]], dtype=torch.float64), torch.zeros(3), 0.7)


def test_both_parts_of_ppca_with_a_diagonal_guide():
    ppca = correlated_ppca()
    x = ppca.sample(8)
    pair, kl = diagonal(ppca, 0.2, 1.15)
    found = split(pair, x, 4000, exact=True)
    approximation, amortisation = kl(x, best=True), kl(x, best=False) - kl(x, best=True)
    assert approximation.min() > 0.05
    assert_within(found.mean("approximation").value, approximation.mean(), absolute=0.01, reason=NO_MORE)
    amortised = found.mean("amortisation")
    assert_within(amortised.value, amortisation.mean(), absolute=0.01 + 5.91 * amortised.stderr, reason=NO_MORE)
    assert_within(found.richer_gain.mean(), approximation.mean(), absolute=0.01, reason=NO_MORE)
    assert_close(found.log_evidence, ppca.log_prob(x), scale=1e5)
    assert_close(found.approximation + found.amortisation, found.log_evidence - found.elbo)
    assert found.converged.all()
    assert found.richer_converged.all()
    assert found.trusted.all()
    assert found.is_supremum
    assert found.family == {"z": "Normal"}


def test_the_evidence_is_that_of_the_richest_q():
    """The full covariance is the posterior: hardly any noise is left, and no search has seen the draws."""
    ppca = correlated_ppca()
    x = ppca.sample(8)
    pair, _ = diagonal(ppca, 0.2, 1.15)
    found = split(pair, x, 1000)
    assert found.trusted.all()
    assert "approximation gap  at" not in str(found)
    assert_estimates(found.log_evidence, found.log_evidence_stderr, ppca.log_prob(x), effect=0.2, degrees=50)
    plain = split(pair, x, 1000, richer=False)
    assert np.isnan(plain.richer_elbo).all()
    assert plain.no_richer == "not asked for"
    assert found.log_evidence_stderr.mean() < 0.3 * plain.log_evidence_stderr.mean()
    assert_close(found.best_elbo, plain.best_elbo)


@pytest.mark.parametrize("richer", [False, True])
def test_a_mode_beside_the_best_q_leaves_the_approximation_gap_open(richer: bool):
    """Two modes at -4 and 4, the guide one of them: all weights are alike, log 2 too low; probes find the other."""
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)
    found = split(two_modes(4.0), x, 300, pv.LocalSearch(5, 1, 64), richer=richer)
    assert not found.trusted.any()
    assert np.abs(found.approximation).max() < 0.1  # of the log 2 that it is
    lines = str(found).splitlines()
    assert lines[0].startswith("log p(x) - ELBO ≥ ")
    assert lines[1].startswith("  approximation gap  at least ")
    assert "±" not in lines[1]


def test_a_q_that_misses_nothing_is_trusted():
    ppca = correlated_ppca()
    found = split(scaled_guide(ppca, 1.3), ppca.sample(8), 500, richer=False)
    assert found.trusted.all()
    assert "approximation gap  at" not in str(found)


def test_draws_of_an_affine_map_spread_out_have_the_density_of_such_draws():
    """Three times as far from the mean: a normal of three times the covariance's root, with its log-density."""
    ppca = correlated_ppca()
    x = ppca.sample(3)
    with evaluating(scaled_guide(ppca, 1.0), x, "cpu") as subject, seeded(1):
        pair, batch, layout = subject.pair, (x,), subject.layout
        family = GuideFamily(pair, batch, layout)
        affine = AffineFamily(family, pair, batch, layout)
        start = family.start(3, x.device)
        context = affine.context(start, batch, 4000)
        free = torch.zeros(3, affine.size, dtype=torch.float64)
        wide = affine.propose(free, context, batch, 500, widen=3.0)
    centre, posterior = context[1], ppca.posterior(x)
    loc = centre + 3 * (posterior.loc - centre)
    exact = dist.MultivariateNormal(loc, scale_tril=3 * posterior.scale_tril).log_prob(wide.latents[0]["z"])
    assert_close(wide.log_guide, exact)


def test_differences_are_on_the_same_noise():
    """Errors of parts are those of paired draws: repetitions scatter by them, far less than ELBOs do."""
    ppca = correlated_ppca()
    x = ppca.sample(4)
    pair, kl = diagonal(ppca, 0.2, 1.15)
    found = [split(pair, x, 300, seed=seed, exact=True, richer=False) for seed in range(2)]
    amortisation = kl(x, best=False) - kl(x, best=True)
    for f in found:
        assert f.amortisation_stderr.mean() < 0.7 * math.hypot(f.elbo_stderr.mean(), f.elbo_stderr.mean())
        slack = (f.amortisation - amortisation.numpy()) / f.amortisation_stderr
        assert np.abs(slack).max() < 5.91 + 0.02 / f.amortisation_stderr.min()


def test_the_same_noise_comes_in_the_same_portions_to_every_family():
    """Of many data in many dimensions an affine map allows fewer draws at once than the guide does."""
    ppca = small_ppca(22, 20)
    found = split(diagonal(ppca, 0.0, 1.3)[0], ppca.sample(256), 200, search=pv.LocalSearch(1, 1, 4))
    assert np.median(found.richer_gain_stderr) < 0.6 * np.median(found.elbo_stderr)


def test_a_posterior_as_guide_leaves_nothing():
    ppca = small_ppca(5, 3)
    found = split(ppca, ppca.sample(5), 50, search=pv.LocalSearch(5, 1, 64))
    assert_within(found.gap, np.zeros(5), absolute=1e-3, reason=ROUNDED)
    assert found.converged.all()


def test_a_full_covariance_guide_can_be_the_posterior():
    ppca = small_ppca(6, 2)
    x = ppca.sample(6)
    found = split(scaled_guide(ppca, 1.5), x, 1000, richer=False)
    expected = 2 * (0.5 * (1.5**2 - 1) - math.log(1.5))  # KL of the posterior widened by 1.5
    assert_within(found.approximation.mean(), 0.0, absolute=0.01, reason=NO_MORE)
    assert_estimates(found.amortisation, found.amortisation_stderr, np.full(6, expected), effect=1.0)


def test_a_mixture_is_split_exactly():
    """A categorical q can be any posterior: all of the gap is amortisation, KL(q, posterior)."""
    gmm = random_gmm()
    x = gmm.sample(20)
    shift = torch.tensor([0.5, -0.4, 0.1], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=gmm.posterior(x).logits + shift))

    found = split(
        pv.Pair(gmm.model, guide), x, 10, search=pv.LocalSearch(num_steps=100, max_rounds=3, num_particles=64)
    )
    q = dist.Categorical(logits=gmm.posterior(x).logits + shift)
    assert_within(found.approximation, np.zeros(20), absolute=1e-3, reason=NO_MORE)
    assert_within(found.amortisation, kl_divergence(q, gmm.posterior(x)), absolute=1e-3, reason=NO_MORE)
    assert_close(found.log_evidence, gmm.log_prob(x))
    assert not found.gap_stderr.any()
    assert "discrete" in found.no_richer


def test_sites_that_depend_on_others_bound_the_parts():
    pair, _ = chain()  # its guide is the posterior
    x = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)[:, None]
    found = split(pair, x, 50, search=pv.LocalSearch(5, 1, 64))
    assert_within(found.gap, np.zeros(5), absolute=1e-3, reason=ROUNDED)
    assert not found.is_supremum
    assert "at most" in str(found)
    assert "at least" in str(found)


@pytest.mark.parametrize("name", ["Bernoulli", "full covariance", "hierarchy", "layers"])
def test_gradients_are_of_the_density_that_is_drawn_from(name: str):
    """The density at given values, from which gradients come, is that of the draws."""
    case = ZOO[name]
    with evaluating(case.make(), case.data[:5], "cpu") as (pair, rows, layout, device, _), seeded(1):
        batch = rows.take(slice(None), device)
        family = GuideFamily(pair, batch, layout)
        free = 0.3 * torch.randn(5, family.size)
        drawn = family.propose(free, (), batch, 4)
        assert_close(family.log_density(free, batch, drawn.latents, 4), drawn.log_guide, scale=10.0)
        affine = AffineFamily(family, pair, batch, layout)
        context, moved = affine.context(free, batch, 64), 0.3 * torch.randn(5, affine.size)
        drawn = affine.propose(moved, context, batch, 4)
        again = affine.log_density(moved, context, batch, drawn.latents[0], 4)
        assert_within(again, drawn.log_guide, absolute=1e-3, reason="a triangular system in single precision")


def test_the_gradient_vanishes_at_the_posterior():
    """Nothing of it is left to chance there, draw by draw."""
    ppca = small_ppca(5, 3)
    with evaluating(ppca, ppca.sample(4), "cpu") as (pair, rows, layout, device, _), seeded(1):
        batch = rows.take(slice(None), device)
        family = GuideFamily(pair, batch, layout)
        affine = AffineFamily(family, pair, batch, layout)
        start = family.start(4, device)
        for of, context in ((family, ()), (affine, affine.context(start, batch, 64))):
            with torch.enable_grad():
                free = torch.zeros(4, of.size, dtype=torch.float64, requires_grad=True)
                (gradient,) = torch.autograd.grad(of.elbo(free, context, batch, 3).sum(), free)
            assert_within(gradient, torch.zeros_like(gradient), absolute=1e-8, reason="it is a sum that cancels")


def test_only_what_has_not_converged_goes_on():
    """One datum starts far away: it takes more rounds than the other, and more than it is given here."""
    x = torch.tensor([[0.0], [1.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 30 * x, math.sqrt(0.5)).to_event(1))

    found = split(pv.Pair(model, guide), x, 50, search=pv.LocalSearch(20, 2, 64))
    assert found.converged.tolist() == [True, False]
    assert found.late_gain[1] > 1
    assert "1 of 2 searches have not converged" in str(found)


def test_nothing_of_the_pair_is_changed():
    pair, x = fresh(), binary_rows(6)
    pair.encoder.requires_grad_(False)
    pair.train()
    before, noise = state(pair), torch.get_rng_state()
    split(pair, x, 20, search=pv.LocalSearch(3, 1, 64))
    after = state(pair)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in pair.parameters())
    assert [p.requires_grad for p in pair.parameters()] == [True] * 4 + [False] * 4
    assert pair.training
    assert torch.equal(noise, torch.get_rng_state())


def test_nothing_is_changed_when_it_fails(monkeypatch):
    pair, x = fresh(), binary_rows(6)
    pair.train()
    before, noise = state(pair), torch.get_rng_state()
    monkeypatch.setattr("ppl_vae.evaluation.gaps.sampled_parts", lambda *_: 1 / 0)
    with pytest.raises(PairError, match=r"rows 0 to 5.*ZeroDivisionError"):
        split(pair, x, 20, search=pv.LocalSearch(3, 1, 64))
    assert all(torch.equal(before[name], value) for name, value in state(pair).items())
    assert pair.training
    assert torch.equal(noise, torch.get_rng_state())


def test_the_same_seed_gives_the_same_numbers():
    pair, x, search = fresh(), binary_rows(6), pv.LocalSearch(3, 1, 64)
    one, same, other = (split(pair, x, 20, search, seed=seed).gap for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_errors_of_parts_are_those_of_a_jackknife():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 3))
    guide, best, richer = -0.5 * noise, -0.3 * noise + 0.1 * rng.normal(size=noise.shape), 0.1 * noise
    value = np.log(np.exp(richer).mean(0))
    found = sampled_parts(guide, best, richer, known_evidence(value), is_known=False, at_edge={})

    def parts(kept):
        log_p = np.log(np.exp(richer[kept]).mean(0))
        return {
            "log_evidence": log_p,
            "elbo": guide[kept].mean(0),
            "gap": log_p - guide[kept].mean(0),
            "approximation": log_p - best[kept].mean(0),
            "amortisation": best[kept].mean(0) - guide[kept].mean(0),
            "richer_gain": richer[kept].mean(0) - best[kept].mean(0),
        }

    every = np.arange(400)
    without = [parts(every != k) for k in every]
    for name in without[0]:
        values = np.stack([w[name] for w in without])
        jackknife = np.sqrt(399 / 400 * np.square(values - values.mean(0)).sum(0))
        assert_within(found[f"{name}_stderr"], jackknife, relative=0.01, reason="the delta method is first order")
    assert_close(found["log_evidence"], parts(every)["log_evidence"])


def test_data_are_judged_together_however_they_were_divided():
    """By blocks of 16 a quarter were trusted, alone seven in ten: those whose largest weights were not drawn."""
    log_weight = np.random.default_rng(0).exponential(0.62, size=(1000, 128))

    def of_block(columns):
        stream = Stream(len(columns), 1000)
        stream.add(torch.from_numpy(log_weight[:, columns]))
        said, nothing = stream.summary()._asdict(), np.zeros(len(columns))
        evidence = said | dict.fromkeys(("unseen", "unseen_stderr", "at_edge", "num_at_edge"), nothing)
        own = log_weight[:, columns]
        return sampled_parts(own, own, None, evidence, is_known=False, at_edge={})

    def trusted(size):
        blocks = [of_block(columns) for columns in np.split(np.arange(128), 128 // size)]
        return trusted_parts({name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}, 1000)["trusted"]

    assert not trusted(128).any()
    assert (trusted(16) == trusted(128)).all()
    assert (trusted(1) == trusted(128)).all()


def test_an_elbo_that_is_minus_infinity_is_an_error_where_it_is_summed_too():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Uniform(z.to(x), z.to(x) + 1.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=torch.zeros(len(x), 3)))

    with pytest.raises(pv.EstimateError, match=r"row 0: expected a finite ELBO, .* site 'x' of the model"):
        split(pv.Pair(model, guide), torch.tensor([0.2, 1.2, 2.4]), 20)


def test_the_figure_says_which_part_is_larger():
    from ppl_vae.figures import gap_bars

    ppca = correlated_ppca()
    pair, _ = diagonal(ppca, 2.0, 1.0)
    found = split(pair, ppca.sample(4), 100, pv.LocalSearch(20, 1, 64, learning_rate=0.2), exact=True)
    axes = gap_bars({"diagonal": found}).axes[0]
    assert axes.get_title().startswith("Amortisation makes")
    assert axes.texts[0].get_text() == f"{found.mean('gap').value:.2f}"
    doubtful = dataclasses.replace(found, trusted=np.zeros(4, dtype=bool))
    assert gap_bars({"diagonal": doubtful}).axes[0].texts[0].get_text().startswith("≥ ")
    heights = sum(bar.get_height() for bar in axes.patches)
    assert_within(heights, found.mean("gap").value, absolute=1e-9, reason="bars are clipped at zero")
    with pytest.raises(pv.DataError, match="at least one"):
        gap_bars({})
