"""Escalation where its methods do not serve: what is not mended stays as it is, and the report says why."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.evaluation import escalation
from tests.pairs import (
    DiscreteVAE,
    binary_rows,
    count_and_normal,
    exponential_and_normal,
    of_two_kinds,
    scaled_guide,
    small_ppca,
)
from tests.running import estimate

pytestmark = pytest.mark.usefixtures("float64")


def nothing_lost(found, ll) -> None:
    """The estimates are those that were given, or better ones."""
    kept = found.method == "guide"
    np.testing.assert_array_equal(found.value[kept], ll.value[kept])
    np.testing.assert_array_equal(found.verdict[kept], ll.verdict[kept])
    assert ((found.verdict != "unreliable") | (found.value > ll.value))[~kept].all()


def test_latents_that_are_all_discrete_stay_as_they_are_and_the_report_says_why():
    discrete, rows = DiscreteVAE(), binary_rows(5)
    ll = estimate(discrete, rows, 2)
    found = pv.escalate(ll, discrete, rows, factor=1, progress=False)
    nothing_lost(found, ll)
    assert [failure.method for failure in found.failures] == ["refined proposal", "annealing"]
    last, left = found.failures[-1], np.flatnonzero(found.verdict == "unreliable")
    assert (last.num_data, last.row) == (len(left), left[0])
    start = f"annealing: not for {len(left)} data, which stay as they were; row {left[0]}: site 'z': expected a contin"
    assert start in str(found)


def test_discrete_latents_without_end_stay_as_they_are_and_the_report_says_why():
    x = torch.tensor([0.0, 30.0, 40.0])
    ll = estimate(count_and_normal(), x, 50, num_draws=0)
    assert (ll.verdict == "unreliable").any()
    found = pv.escalate(ll, count_and_normal(), x, progress=False)
    nothing_lost(found, ll)
    assert all("site 'z': expected a continuous latent" in failure.reason for failure in found.failures)
    assert len(found.failures) == 2


def test_where_the_guide_is_no_start_chains_start_from_the_prior():
    """A normal guide of a latent on the half line: no fit, and chains that nothing confirms, but no error."""
    pair, x = exponential_and_normal(0.4, -1.5), torch.tensor([0.5, 1.0, 5.0, 6.0])
    ll = estimate(pair, x, 100, num_draws=0)
    assert (ll.verdict == "unreliable").any()
    found = pv.escalate(ll, pair, x, seed=2, factor=1, annealing=pv.Annealing(16, 60, 5), progress=False)
    assert [failure.method for failure in found.failures] == ["refined proposal"]
    assert "expected a guide that stays in the model's support" in found.failures[0].reason
    last = found.method == "annealing"
    assert last.any()
    assert (found.verdict[last] == "unreliable").all()
    exact = stats.exponnorm.logpdf(x.numpy(), 1.0)
    assert (np.abs(found.value - exact) < np.abs(ll.value - exact))[last].all()


def test_a_datum_whose_density_is_none_stays_as_it_is_and_the_others_do_not():
    """Of 20 data, in two blocks, the third and the last have a latent without a density near their posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            rule = dist.Unit(torch.where((x > 1.9) & (z > 1.2), float("nan"), 0.0), validate_args=False)
            pyro.sample("rule", rule, obs=rule.sample())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.05))

    pair, x = pv.Pair(model, guide), torch.full((20,), 1.5)
    x[[2, 19]] = 2.0
    ll = estimate(pair, x, 200, num_draws=0)
    assert (ll.verdict == "unreliable").all()
    found = pv.escalate(ll, pair, x, annealing=pv.Annealing(8, 20, 4), progress=False)
    nothing_lost(found, ll)
    assert np.flatnonzero(found.method == "guide").tolist() == [2, 19]
    fit = found.failures[0]
    assert (fit.method, fit.num_data, fit.row) == ("refined proposal", 2, 2)
    assert "found nan" in fit.reason
    assert "site 'rule' of the model" in fit.reason
    assert "row" not in fit.reason


def test_more_samples_that_fail_name_the_row_among_all_data(monkeypatch):
    def failing(*_, **__):
        raise pv.EstimateError("row 1: expected finite log-weights, found nan")

    ppca = small_ppca()
    pair, x = of_two_kinds(ppca, 0.4), ppca.sample(20, seed=1)
    ll = estimate(pair, x, 200, num_draws=0)
    ll.unseen[:] = 0.0  # so that more samples are worth a try
    tried = np.flatnonzero(ll.khat >= 0.7)
    assert len(tried) > 1
    monkeypatch.setattr(escalation, "log_likelihood", failing)
    found = pv.escalate(ll, pair, x, progress=False)
    assert found.failures[0].method == "more samples"
    assert found.failures[0].row == np.flatnonzero(ll.verdict == "unreliable")[1]
    assert found.failures[0].reason == "expected finite log-weights, found nan"


def test_more_samples_keep_to_the_memory_and_the_compiler_that_are_given(monkeypatch):
    seen = {}

    def noting(*arguments, **options):
        seen.update(options)
        return pv.log_likelihood(*arguments, **options)

    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 1.6), ppca.sample(5, seed=1)
    ll = estimate(pair, x, 20, num_draws=0)
    monkeypatch.setattr(escalation, "log_likelihood", noting)
    pv.escalate(ll, pair, x, until="reliable", memory=1 << 20, compile=False, progress=False)
    assert (seen["memory"], seen["compile"]) == (1 << 20, False)
