"""Terms that cancel within log-densities, as log-gammas of large counts: their rounding is in errors, or warned of."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import ppl_vae as pv
from ppl_vae.evaluation import LocalSearch
from tests.running import estimate, refined_block


def heads(total):
    """Heads of `total` coins of one chance, Beta(2, 3); the guide is the posterior of 0.95 times as many."""

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(torch.tensor(2.0).to(x), 3.0))
            pyro.sample("x", dist.Binomial(total, p), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(0.95 * (2 + x), 0.95 * (3 + total - x)))

    x = torch.from_numpy(stats.betabinom.rvs(total, 2, 3, size=100, random_state=0)).float()
    return pv.Pair(model, guide), x, stats.betabinom.logpmf(x.numpy(), total, 2, 3)


def rate():
    """Five waits for each datum, exponential of a rate that is Gamma(10^4, 10^4); a guide as before."""
    a, s = 1e4, 0.95

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(a).to(x), a))
            pyro.sample("x", dist.Exponential(rate[..., None]).expand((*rate.shape, 5)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(s * (a + 5) + 0 * x[:, 0], s * (a + x.sum(1))))

    x = torch.from_numpy(stats.expon.rvs(size=(100, 5), random_state=0)).float()
    total = x.double().sum(1).numpy()
    truth = a * np.log(a) - special.gammaln(a) + special.gammaln(a + 5) - (a + 5) * np.log(a + total)
    return pv.Pair(model, guide), x, truth


@pytest.mark.parametrize("made", [lambda: heads(10_000), rate], ids=["large counts", "large parameters"])
def test_errors_know_of_terms_that_cancel_within_log_densities(made):
    """log p is -9, or -5, of log-gammas of 80,000; without their rounding one datum in four is covered, or fewer."""
    pair, x, truth = made()
    found = estimate(pair, x, 2000, num_draws=0)
    low, high = found.intervals()
    assert ((low <= truth) & (truth <= high)).mean() > 0.9
    assert (np.abs(found.value - truth) > 3 * np.sqrt(found.stderr**2 - found.rounding**2)).mean() > 0.4
    assert (found.verdict == "reliable").mean() < 0.05
    assert re.search(r"the error of (9\d|100) is rounding: use double precision", str(found))
    fine = estimate(pair, x.double(), 2000, num_draws=0)
    assert (fine.rounding == 0).all()
    assert (fine.verdict == "reliable").mean() > 0.95
    low, high = fine.intervals()
    assert ((low <= truth) & (truth <= high)).mean() > 0.88


def test_draws_of_the_predictive_are_noisy_for_rounding_as_the_estimate_is():
    pair, x, _ = heads(10_000)
    for data, word in ((x[:40], "noisy"), (x[:40].double(), "reliable")):
        found = pv.posterior_predictive(pair, data, 1, num_samples=1000, progress=False)
        assert (found.verdict == word).mean() > 0.9


def test_gaps_know_of_terms_that_cancel():
    """Errors were up to 20 standard errors, since best q's of these have weights that hardly differ."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.poisson(np.exp(9 + 0.01 * rng.normal(size=12)))).float()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).to(x), 1.0))
            pyro.sample("x", dist.Poisson((9 + 0.01 * z).exp()), obs=x)

    def guide(x):
        share = 1 + 1e-4 * x
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x.log() - 9) * 0.01 * x / share, 1.2 / share.sqrt()))

    pair, search = pv.Pair(model, guide), LocalSearch(num_steps=50, max_rounds=1)
    truth = pv.log_evidence(pair, x.double(), progress=False)
    for data, is_coarse in ((x, True), (x.double(), False)):
        found = pv.gap_decomposition(pair, data, 1000, search=search, compile=False, progress=False)
        error = np.abs(found.log_evidence - truth)
        assert (error < 3 * found.log_evidence_stderr + 1e-6).all()
        assert (error > 5 * np.sqrt(found.log_evidence_stderr**2 - found.rounding**2) + 1e-6).any() == is_coarse
        assert (found.rounding > 1e-4).all() == is_coarse
        for part in ("log_evidence", "elbo", "gap", "approximation"):
            assert (getattr(found, f"{part}_stderr") >= found.rounding).all()
        low, high = found.interval("log_evidence")
        assert low - 1e-6 < truth.mean() < high + 1e-6


def test_what_is_noisy_for_rounding_is_not_escalated():
    pair, x, _ = heads(10_000)
    found = estimate(pair, x[:20], 1000, num_draws=0)
    after = pv.escalate(found, pair, x[:20], until="reliable", compile=False, progress=False)
    coarse = found.too_coarse & (found.verdict == "noisy")
    assert coarse.mean() > 0.9
    assert (after.method[coarse] == "guide").all()
    assert not (after.verdict == "reliable").any()
    assert "much of the error is rounding: use double precision" in str(after)


def test_a_fitted_proposal_is_noisy_for_rounding_as_well():
    """Of a narrow guide the error is of its weights; of a fitted proposal, which has little, it is rounding."""
    pair, x, _ = heads(10_000)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(1.8 * (2 + x), 1.8 * (10_003 - x)))

    pair = pv.Pair(pair.model, narrow)
    found = estimate(pair, x[:20], 300, num_draws=0)
    after = pv.escalate(found, pair, x[:20], until="reliable", compile=False, progress=False)
    refined = (after.method == "refined proposal") & ~found.too_coarse
    assert refined.sum() >= 3
    assert (after.verdict[refined] == "noisy").all()


FEW_CHAINS = pv.Annealing(num_chains=4, num_temperatures=5)


def waits():
    """Twenty waits of Gamma(10^6, 10^6), whose log-density is a difference of numbers of 10^7; z or k says nothing."""

    class Waits(torch.nn.Module):
        def __init__(self, discrete):
            super().__init__()
            self.discrete = discrete

        def latent(self, x):
            if self.discrete:
                pyro.sample("k", dist.Categorical(logits=torch.zeros(3).to(x)))
            else:
                pyro.sample("z", dist.Normal(torch.zeros(len(x)).to(x), 1.0))

        def model(self, x):
            with pyro.plate("data", len(x)):
                self.latent(x)
                pyro.sample("x", dist.Gamma(torch.full_like(x, 1e6), 1e6).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                self.latent(x)

    x = torch.from_numpy(stats.gamma.rvs(1e6, scale=1e-6, size=(12, 20), random_state=0)).float()
    return Waits, x, stats.gamma.logpdf(x.double().numpy(), 1e6, scale=1e-6).sum(1)


def test_annealed_estimates_know_of_terms_that_cancel():
    """Both starts share their rounding, and agree."""
    make, x, truth = waits()
    found = pv.annealed_importance_sampling(make(False), x, FEW_CHAINS, progress=False)
    error = np.abs(found.value - truth)
    assert error.max() > 0.5
    assert (error < 4 * found.rounding).all()
    assert (found.stderr >= found.rounding).all()
    assert not found.trusted.any()
    assert found.interval().low < truth.mean()
    assert re.search(r"the error of 12 is rounding: use double precision", str(found))
    fine = pv.annealed_importance_sampling(make(False), x.double(), FEW_CHAINS, progress=False)
    assert fine.trusted.all()
    assert not fine.rounding.any()


@pytest.mark.parametrize(
    ("result", "discrete", "what"),
    [
        (pv.log_evidence, False, "exact log p"),
        (pv.log_evidence, True, "exact log p"),
        (pv.ledger, False, "ledger"),
        (partial(pv.gap_decomposition, search=LocalSearch(num_steps=2, max_rounds=1)), True, "gap decomposition"),
        (partial(pv.bidirectional_monte_carlo, annealing=FEW_CHAINS), False, "bounds from both sides"),
    ],
)
def test_results_without_an_error_warn_of_terms_that_cancel(result, discrete, what):
    make, x, _ = waits()
    with pytest.warns(UserWarning, match=rf"{what}.*: off by about [\d.]+ nats for a datum, .*pair\.double"):
        result(make(discrete), x, progress=False)
    result(make(discrete), x.double(), progress=False)  # warns of nothing


def test_an_escalation_says_what_is_rounding():
    pair, x, _ = heads(10_000)
    found = estimate(pair, x[:20], 1000, num_draws=0)
    after = pv.escalate(found, pair, x[:20], compile=False, progress=False)
    assert (after.method == "guide").all()
    assert re.search(r"the error of (19|20) is rounding: use double precision", str(after))


def test_a_fitted_proposal_knows_of_large_terms_that_cancel():
    """log p(x) is near zero, a prior and a likelihood of a million nats: single precision is off by a tenth."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 0.001))
            pyro.sample("x", dist.Normal(z, 0.0005), obs=x)
            pyro.factor("constant", torch.full((len(x),), 1.6e6))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.0003))

    x = 2.0 + 1e-4 * torch.arange(8.0)
    summary = refined_block(pv.Pair(model, guide), x, 1024).summary
    error = np.abs(summary.value - stats.norm.logpdf(x.double().numpy(), 0, np.hypot(0.001, 0.0005)) - 1.6e6)
    assert (error > 0.03).any()
    assert (error < 3 * summary.stderr).all()


def test_a_sum_that_rounds_by_nats_is_no_guess():
    """No weights are behind log p(x): its error is rounding, and says so."""
    make, x, _ = waits()
    found = pv.log_likelihood(make(True), 1 + 20 * (x - 1), 100, progress=False)
    assert found.rounding.max() > 1
    assert (found.verdict == "noisy").all()
    assert re.search(r"the error of 12 is rounding", str(found))


def test_small_counts_round_no_error():
    pair, x, _ = heads(20)
    found = estimate(pair, x, 500)
    assert (found.rounding == 0).all()
    assert (found.verdict == "reliable").all()


def test_no_order_is_told_by_what_rounding_adds_to_all_data():
    """The same model in both precisions, at terms of 200,000: the differences are of one sign for many data."""
    make, x, _ = waits()
    single, double = (pv.log_likelihood(make(False), data, 50, progress=False) for data in (x, x.double()))
    found = pv.Comparison({"single": single, "double": double}, rounding=2.0**-23)
    lean = found.differences[0]
    assert lean.p_value == 1.0
    without = pv.Comparison(
        {"single": replace(single, rounding=0 * single.rounding), "double": double}, rounding=2.0**-23
    )
    assert without.differences[0].p_value < 1.0
