"""Latents that round to the edge of their support: no number of theirs is called good, and the message says why."""

import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.evaluation import Annealing, LocalSearch, escalation
from ppl_vae.evaluation.edges import Edges, move_an_estimate, move_estimates
from ppl_vae.evaluation.proposal import Proposal
from tests.running import estimate, refined_block
from tests.splitting import split
from tests.statistical import assert_close

N = 20


def coins(prior, guide, dtype=torch.float32):
    """Heads of 20 coins whose chance is Beta; the guide has the form of the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(torch.tensor(prior, dtype=dtype), prior))
            pyro.sample("x", dist.Binomial(N, p), obs=x)

    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(guide + x, guide + N - x))

    return pv.Pair(model, program)


def counts(prior, guide, dtype=torch.float32):
    """Poisson counts whose rate is Gamma."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(prior, dtype=dtype), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(guide + x, 2.0))

    return pv.Pair(model, program)


def topics(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.full((4,), prior)))
            pyro.sample("x", dist.Multinomial(10, p, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(prior / 2 + x))

    return pv.Pair(model, guide)


HEADS = torch.tensor([20.0, 0.0, 7.0, 13.0])


def test_draws_that_round_to_one_make_an_estimate_unreliable():
    found, exact = estimate(coins(0.05, 0.025), HEADS, 2000), stats.betabinom.logpmf(HEADS.numpy(), N, 0.05, 0.05)
    assert found.value[0] > exact[0] + 0.1
    assert found.verdict[0] == "unreliable"
    assert found.rounded.tolist() == [True, *found.rounded[1:2].tolist(), False, False]
    assert (found.verdict[2:] == "reliable").all()
    np.testing.assert_allclose(found.value[2:], exact[2:], atol=5e-3)
    assert found.interval() == (-math.inf, math.inf)
    assert "round to the edge" in str(found)
    assert "too low rather" not in str(found)
    assert "≥" not in str(found)


def test_numbers_that_bear_the_latent_are_not_refused():
    """All draws away from the edges, or all weights equal, or little of the weight there."""
    exact = stats.betabinom.logpmf(HEADS.numpy(), N, 0.05, 0.05)
    perfect = estimate(coins(0.05, 0.05), HEADS, 2000)
    assert not perfect.rounded.any()
    np.testing.assert_allclose(perfect.value, exact, atol=1e-4)
    assert not estimate(coins(0.5, 0.4), HEADS, 2000).rounded.any()
    assert estimate(counts(0.05, 0.025), HEADS, 2000).rounded.any()
    assert not estimate(counts(0.05, 0.025, torch.float64), HEADS.double(), 2000).rounded.any()


@pytest.mark.parametrize("sizes", [(60,), (1, 59), (20, 20, 20), (1,) * 60])
def test_ties_are_those_of_all_units(sizes, generator):
    """The lowest and highest values have 1 to 9 draws in the 60 of a datum, wherever these fall."""
    z, log_weight = torch.randint(4, (60, 5), generator=generator).double(), torch.randn(60, 5, generator=generator)
    z += torch.where((z == 0) | (z == 3), 0.0, 1e-3 * torch.rand(60, 5, generator=generator))
    z[:30, 0] += 1  # what is lowest at first is not so at the end
    z[:, 1] = torch.arange(60.0)
    edges, start = Edges(5, ("z",), SimpleNamespace(data_dim=-1)), 0
    for size in sizes:
        unit = slice(start, start := start + size)
        edges.add(log_weight[unit], Proposal([{"z": z[unit]}], {"z": 0}, True, log_weight[unit], [{}]))
    same = (z[:, None] == z).sum(1) > 1
    tied = ((z == z.amin(0)) | (z == z.amax(0))) & same
    np.testing.assert_array_equal(edges.count, tied.sum(0).numpy())
    assert_close(edges.log_weight, log_weight.double().where(tied, -torch.inf).logsumexp(0).numpy())


@pytest.mark.parametrize("target", [None, 1e-6])
def test_few_draws_at_the_edge_of_each_datum_are_those_of_all(target):
    """About five of 5000 draws of Beta(1, 0.4) round to 1: one unit or twenty, and less than two in some data."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(torch.ones(len(x)), 0.22))
            pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(torch.ones(len(x)), 0.4))

    found = estimate(pv.Pair(model, guide), torch.zeros(100), 5000, num_draws=0, target_stderr=target)
    assert (found.num_at_edge < 3).any()
    assert found.rounded.all()


def test_chance_decides_only_of_few_draws():
    count, share, stderr = np.array([0, 2, 5, 7, 400]), np.array([0, 4, 10, 15, 500]) / 1e3, np.full(5, 0.02)
    assert move_estimates(share, count, stderr, np.full(5, 5000)).all()
    many = np.array([0, 40, 60, 80, 400])
    assert move_estimates(share, many, stderr, np.full(5, 5000)).tolist() == [False, False, True, True, True]


def test_a_simplex_rounds_too():
    x = torch.tensor([[10.0, 0, 0, 0], [3, 3, 4, 0]])
    found = estimate(topics(0.02), x, 1000)
    exact = stats.dirichlet_multinomial.logpmf(x.numpy().astype(int), np.full(4, 0.02), 10)
    assert (np.abs(found.value - exact) > 0.1).all()
    assert found.rounded.all()


def test_rounded_estimates_are_not_escalated_and_not_ranked_above_others():
    pair = coins(0.05, 0.025)
    found = estimate(pair, HEADS[:2], 500)
    report = pv.escalate(found, pair, HEADS[:2], compile=False, progress=False)
    assert (report.method[found.rounded] == "guide").all()
    assert "round to the edge" in str(report)
    assert report.interval() == (-math.inf, math.inf)
    assert str(report).startswith("log p(x) near")
    exact = pv.ExactLogLikelihood.of(found.value - 0.2 - 1e-3 * np.arange(2), 1)
    assert pv.Comparison({"rounded": found, "exact": exact}).ranks == {"rounded": (1, 2), "exact": (1, 2)}


def in_the_middle(prior):
    """Coins whose guide never draws near the edges, whatever the heads."""

    def middle(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(torch.full((len(x),), 30.0), 3.0))

    return pv.Pair(coins(prior, prior).model, middle)


@pytest.mark.parametrize(("prior", "rounds"), [(0.05, True), (0.2, True), (1.0, False)])
def test_fitted_proposals_that_reach_the_edge_are_judged_as_the_guide_is(prior, rounds, monkeypatch):
    """The guide is not at the edge; the t that is fitted goes there, and missed 0.05 to 0.7 nats."""
    monkeypatch.setattr(escalation, "_annealed", lambda *_: pytest.fail("chains would round as well"))
    pair, x = in_the_middle(prior), torch.full((6,), 20.0)
    found = estimate(pair, x, 1000, num_draws=0)
    assert (found.verdict == "unreliable").all()
    assert not found.rounded.any()
    report = pv.escalate(found, pair, x, compile=False, progress=False)
    fitted = report.method == "refined proposal"
    assert (~fitted if rounds else fitted).all()
    assert ("refined proposal: not for 6 data" in str(report)) == rounds
    if rounds:
        assert (report.verdict == "unreliable").all()
        assert "round to the edge" in str(report)
    else:
        exact = stats.betabinom.logpmf(20, N, prior, prior)
        assert (np.abs(report.value - exact) < 5.91 * report.stderr).all()


def test_what_a_fitted_proposal_has_at_the_edge_is_not_as_small_as_it_looks():
    """Beyond the last number the density falls as |dz / du|: a share of 0.004 was seen where 0.02 are."""
    x = torch.full((16,), 20.0)
    summary, _, edges = refined_block(in_the_middle(0.3), x, 1024)
    assert move_an_estimate(edges["at_edge"], summary.stderr, np.full(16, 1024)).all()
    _, _, edges = refined_block(in_the_middle(1.0), x, 1024)
    assert (edges["at_edge"] < 1e-4).all()


def test_draws_of_the_predictive_that_round_are_unreliable():
    with pytest.warns(UserWarning, match=r"draws of \d of 4 data are unreliable: of \d data draws round to the edge"):
        found = pv.posterior_predictive(coins(0.05, 0.025), HEADS, num_samples=2000, progress=False)
    assert found.rounded.tolist() == [True, *found.rounded[1:2].tolist(), False, False]
    assert (found.verdict[found.rounded] == "unreliable").all()
    assert (found.verdict[2:] == "reliable").all()
    assert "round to the edge" in str(found)
    assert "nearer to the guide" not in str(found)


@pytest.mark.parametrize("richer", [True, False])
def test_parts_of_a_gap_whose_draws_round_are_not_trusted(richer):
    """What rests on draws at the edge was said to be right to 0.01 nats, or too low, and was too high by 0.1."""
    options = {"richer": richer, "search": LocalSearch(num_steps=10, max_rounds=1)}
    found = split(coins(0.05, 0.025), HEADS, 2000, **options)
    assert found.rounded.tolist() == [True, True, False, False]
    assert found.trusted.tolist() == [False, False, True, True]
    assert found.interval("log_evidence") == (-math.inf, math.inf)
    assert found.interval("gap") == (0, math.inf)
    assert "log p(x) - ELBO near" in str(found)
    assert "of 2 of 4 data draws round to the edge" in str(found)
    assert "too low, by nobody" not in str(found)
    good = split(coins(0.05, 0.025), HEADS[2:], 2000, **options)
    assert math.isfinite(good.interval("log_evidence").high)


@pytest.mark.parametrize(("prior", "dtype"), [(0.05, torch.float32), (0.5, torch.float32), (0.05, torch.float64)])
def test_quadrature_stops_where_latents_round_before_the_density_falls_off(prior, dtype):
    with pytest.raises(pv.EstimateError, match=r"row 0: .* fall off before latents \('p'\) round") as found:
        pv.log_evidence(coins(prior, prior, dtype), HEADS.to(dtype), progress=False)
    assert ("use double precision" in str(found.value)) == (dtype == torch.float32)
    assert "write the latent as a transform of an unconstrained one" in str(found.value)


@pytest.mark.parametrize(("prior", "dtype"), [(1.0, torch.float32), (0.5, torch.float64)])
def test_quadrature_where_it_does_fall_off(prior, dtype):
    found = pv.log_evidence(coins(prior, prior, dtype), HEADS.to(dtype), progress=False)
    np.testing.assert_allclose(found, stats.betabinom.logpmf(HEADS.numpy(), N, prior, prior), atol=1e-4)


def test_a_rate_that_underflows_is_told_as_that():
    with pytest.raises(pv.EstimateError, match=r"round to the edge .* double"):
        pv.log_evidence(counts(0.05, 0.05), torch.tensor([0.0, 3.0]), progress=False)


def test_annealing_stops_where_its_start_rounds():
    chains = Annealing(num_chains=16, num_temperatures=4, num_leapfrog=1, start="prior")
    with pytest.raises(pv.EstimateError, match=r"row \d, site 'p': expected draws of the prior that differ"):
        pv.annealed_importance_sampling(coins(0.05, 0.05), HEADS, chains, progress=False)
