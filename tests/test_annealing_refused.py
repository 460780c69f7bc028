"""What annealing refuses, by the name of the site: densities that are none, and pairs that it does not serve."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.evaluation import annealing as steps
from ppl_vae.evaluation.hamiltonian import transition
from ppl_vae.rng import seeded
from tests.chains import path_of
from tests.pairs import (
    DiscreteVAE,
    binary_rows,
    count_and_normal,
    cut_off,
    exponential_and_normal,
)
from tests.statistical import assert_close, assert_estimates, assert_mean

# Densities that are none


NONE_THERE = r"row [012]: expected a log-density at all latents.*found nan at .*site 'rule' of the model is none there"


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_a_density_that_is_no_number_on_the_way_is_an_error_with_its_site(start: str):
    """As from `log_likelihood`; moves to such latents were rejected, as if the model excluded them."""
    x, how = torch.full((3,), 2.0).double(), pv.Annealing(16, 20, 5, start=start)
    with pytest.raises(pv.EstimateError, match=NONE_THERE):
        pv.annealed_importance_sampling(cut_off(1.5, float("nan")), x, how, compare_starts=False, progress=False)
    with pytest.raises(pv.EstimateError, match=r"row [012]: expected a log-density.*found inf at.*site 'rule'"):
        pv.annealed_importance_sampling(cut_off(1.5, float("inf")), x, how, compare_starts=False, progress=False)


def test_a_density_that_is_no_number_is_named_where_there_is_one_temperature():
    x, how = torch.full((3,), 2.0).double(), pv.Annealing(1, 1, 1, start="prior")
    pair = cut_off(-9.0, float("nan"))
    path = path_of(pair, x, 1)
    frozen = steps.Frozen(np.array([0.0, 1.0]), torch.ones(2, 3).double())
    with torch.no_grad(), pytest.raises(pv.EstimateError, match=NONE_THERE):
        steps.forward(path, frozen, how.num_leapfrog)


def test_latents_that_the_model_excludes_are_no_error_and_weigh_nothing():
    """Half of the posterior is above the limit."""
    x = torch.full((20,), 2.0).double()
    how = pv.Annealing(50, 20, 5, start="prior")
    found = pv.annealed_importance_sampling(cut_off(1.5, -torch.inf), x, how, compare_starts=False, progress=False)
    loc, scale = 2.0 * 0.8, 0.2**0.5
    exact = stats.norm.logpdf(2.0, 0, 1.25**0.5) + stats.norm.logcdf((1.5 - loc) / scale)
    assert_estimates(found.value, found.stderr, exact, effect=2.5, degrees=49)
    assert_mean(np.exp(found.value - exact), 1.0, effect=0.5)


def test_steps_that_have_diverged_are_rejected_wherever_they_lead():
    """Steps of 50 standard deviations throw the chains to where the model has no number."""
    path = path_of(cut_off(1e3, float("nan")), torch.zeros(3).double())
    with seeded(0), torch.no_grad():
        points = path.draw()
        moved, accepted = transition(path.density(1.0), points, torch.full((3,), 20.0).double(), 10, path.space)
    assert (accepted < 1e-9).all()
    assert_close(moved["z"], points["z"])


def test_steps_to_where_numbers_of_single_precision_end_are_rejected():
    """The rate of a count, which may be 0: log-normal guides have no density there, and no chain has to go there."""
    x = torch.arange(12.0) % 3

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.HalfCauchy(torch.tensor(1.5)))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 0.4).log(), 1.2 / (x + 0.5).sqrt()))

    exact = pv.log_evidence(pv.Pair(model, guide), x, progress=False)
    for seed in range(3):
        how = pv.Annealing(32, 30, 4)
        found = pv.annealed_importance_sampling(
            pv.Pair(model, guide), x, how, seed, compare_starts=False, progress=False
        )
        assert_mean(np.exp(found.value - exact), 1.0, effect=0.5)


# What cannot be annealed


def test_discrete_latents_are_refused_by_name():
    with pytest.raises(pv.PairError, match=r"site 'z': .*latents all have finitely many values: use log_evidence"):
        pv.annealed_importance_sampling(DiscreteVAE(), binary_rows(3), progress=False)


def test_discrete_latents_of_infinitely_many_values_are_refused_by_name():
    for estimate in (pv.annealed_importance_sampling, pv.bidirectional_monte_carlo):
        with pytest.raises(pv.PairError, match=r"site 'z': expected a continuous latent.*use log_likelihood"):
            estimate(count_and_normal(), torch.ones(3), progress=False)


def test_a_guide_that_leaves_the_support_is_refused_before_any_chain(monkeypatch: pytest.MonkeyPatch):
    x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    pair, exact = exponential_and_normal(1.0, 0.0), stats.exponnorm.logpdf(x, 1.0)
    found = pv.annealed_importance_sampling(pair, x, pv.Annealing(200, 15, 3, start="prior"), progress=False)
    assert_estimates(found.value, found.stderr, exact, effect=0.5, degrees=199)
    assert np.isnan(found.other).all()  # the guide is no start
    assert not found.trusted.any()
    monkeypatch.setattr("ppl_vae.evaluation.annealed.tune", None)
    for estimate in (pv.annealed_importance_sampling, pv.bidirectional_monte_carlo):
        with pytest.raises(
            pv.PairError, match=r"site 'z': expected a guide that stays in.*start='prior' does not need"
        ):
            estimate(pair, x, progress=False)


def test_chains_that_all_start_where_the_datum_is_impossible():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Exponential(x.new_ones(len(x))))
            pyro.sample("x", dist.Uniform(x.new_zeros(len(x)), top), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("top", dist.Exponential(x.new_ones(len(x)) / 50))

    with pytest.raises(
        pv.EstimateError, match=r"row 0: all 2 chains have weight zero: each.*prior where site 'x' of the model"
    ):
        pv.annealed_importance_sampling(
            pv.Pair(model, guide), torch.full((2,), 50.0), pv.Annealing(2, 2, 1, start="prior"), progress=False
        )


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
