"""Single precision: the rounding of large log-densities is in errors, and makes no perfect guide a bad one."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import ppl_vae as pv
from ppl_vae.evaluation import LocalSearch
from ppl_vae.weights import Stream
from tests.running import estimate
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
    assert np.isposinf(found.khat).all()
    assert found.interval().high == math.inf
    assert re.search(
        r"of \d+ data log-weights or latents are so large that rounding hides how weights differ", str(found)
    )
    assert not re.search(r"the error of \d+ is rounding", str(found))


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
