"""Single precision: the rounding of large log-densities is in errors, and makes no perfect guide a bad one."""

import math
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
from ppl_vae.weights import Stream
from tests.running import estimate, refined_block
from tests.splitting import split


def linear(size, noise, wide=1.0, seed=0):
    """x = W z + noise with two latent numbers, in single precision, and its posterior; log p(x) in double."""
    weights = torch.randn(size, 2, generator=torch.Generator().manual_seed(seed)).double()
    scale = torch.tensor(noise).double()
    covariance = torch.linalg.inv(torch.eye(2).double() + weights.T @ weights / scale**2)
    encode = (weights @ covariance / scale**2).float()
    root = wide * torch.linalg.cholesky(covariance).float()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.float().T, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ encode, scale_tril=root))

    marginal = dist.LowRankMultivariateNormal(torch.zeros(size).double(), weights, scale**2 * torch.ones(size).double())
    return pv.Pair(model, guide), lambda x: marginal.log_prob(x.double()).numpy()


@pytest.mark.parametrize(("size", "spread"), [(300, 10.0), (300, 30.0), (30, 30.0), (2000, 10.0)])
def test_errors_know_of_the_rounding_of_large_log_densities(size, spread):
    pair, log_prob = linear(size, 0.1, wide=1.1)
    x = spread * torch.randn(8, size, generator=torch.Generator().manual_seed(1))
    found = estimate(pair, x, 200)
    error = found.value - log_prob(x)
    assert (np.abs(error) > 0.01).any()
    assert (np.abs(error) < 3 * found.stderr).all()


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


@pytest.mark.parametrize(("size", "dtype"), [(1e6, torch.float32), (1e8, torch.float32), (1e18, torch.float64)])
def test_weights_that_rounding_hides_are_unreliable(size, dtype):
    """They were equal by rounding, as those of a perfect guide are; log p(x) was 40 % higher."""
    x = size * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).to(dtype)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def untrained(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.5).to_event(1))

    found = estimate(pv.Pair(model, untrained), x, 500, num_draws=0)
    assert (found.verdict == "unreliable").all()
    assert found.interval().high == math.inf
    assert re.search(
        r"of \d+ data log-weights or latents are so large that rounding hides how weights differ", str(found)
    )
    assert not re.search(r"the error of \d+ is rounding", str(found))


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


def test_rounding_that_nobody_reads_is_no_error():
    stream = Stream(1, 20)
    stream.add(torch.full((20, 1), -500.0))
    assert stream.summary().stderr == 0
    stream = Stream(1, 20)
    stream.add(torch.full((20, 1), -500.0), size=torch.full((20, 1), 5000.0))
    np.testing.assert_allclose(stream.summary().stderr, 5000 * torch.finfo(torch.float32).eps)


def test_draws_without_weight_have_no_part_in_the_rounding():
    stream = Stream(1, 40)
    stream.add(torch.tensor([-2.0, -1e9]).repeat(10)[:, None])
    stream.add(torch.tensor([-1e9, -3.0]).repeat(10)[:, None])
    assert stream.summary().stderr < 1


def test_a_perfect_guide_of_many_dimensions_has_equal_weights():
    """log p(x) is near zero, and the terms that cancel in each weight are thousands."""
    size, prior, noise = 3000, 0.22, 0.1
    marginal = math.hypot(prior, noise)
    x = marginal * torch.randn(4, size, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), prior).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((prior / marginal) ** 2 * x, prior * noise / marginal).to_event(1))

    found = estimate(pv.Pair(model, guide), x, 200)
    assert (found.khat == -np.inf).all()
    assert (found.verdict == "reliable").all()
    truth = dist.Normal(torch.zeros(1).double(), marginal).log_prob(x.double()).sum(1).numpy()
    assert np.abs(truth).max() < 200
    assert (np.abs(found.value - truth) < 3 * found.stderr).all()


def test_gaps_know_of_the_rounding_of_large_log_densities():
    pair, log_prob = linear(300, 0.1, wide=1.1)
    x = 10 * torch.randn(8, 300, generator=torch.Generator().manual_seed(1))
    found = split(pair, x, 200, LocalSearch(num_steps=2, max_rounds=1), richer=False)
    error = found.log_evidence - log_prob(x)
    assert (np.abs(error) > 0.01).any()
    assert (np.abs(error) < 3 * found.log_evidence_stderr).all()
    assert (found.rounding > 0.01).all()


def test_gaps_of_a_perfect_guide_in_single_precision_are_trusted():
    pair, log_prob = linear(3, 0.7)
    x = 1.5 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    search = LocalSearch(num_steps=2)
    found = pv.gap_decomposition(pair, x, 300, search=search, richer=False, compile=False, progress=False)
    assert found.trusted.all()
    np.testing.assert_allclose(found.log_evidence, log_prob(x), rtol=1e-5)


@pytest.mark.parametrize("num_rates", [1, 2])
def test_a_sum_of_coarse_terms_is_not_exact(num_rates: int):
    """Counts near 500, twenty a datum, in single precision: log p(x) is off by some thousandths for all data."""
    rates = torch.tensor([500.0, 520.0])[:num_rates, None].expand(-1, 20)

    def latent(x: torch.Tensor) -> torch.Tensor:
        return pyro.sample("z", dist.Categorical(torch.ones(2).expand(len(x), 2))) if num_rates > 1 else None

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = latent(x)
            pyro.sample("x", dist.Poisson(rates[0 if z is None else z]).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            latent(x)

    x = torch.from_numpy(stats.poisson.rvs(510, size=(50, 20), random_state=0)).float()
    each = stats.poisson.logpmf(x.numpy()[:, None], rates.double().numpy()).sum(-1)
    truth = special.logsumexp(each, axis=1) - np.log(num_rates)
    found = pv.log_likelihood(pv.Pair(model, guide), x, 100, progress=False)
    coarse = found.rounding > 0
    assert coarse.any()
    np.testing.assert_array_equal(found.exact, ~coarse)
    np.testing.assert_array_equal(found.verdict, np.where(coarse, "noisy", "reliable"))
    assert (np.abs(found.value - truth) < 6 * found.stderr + 6e-3).all()
    low, high = found.interval()
    assert low < found.mean < high
    assert "rounding: use double precision" in str(found)


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
