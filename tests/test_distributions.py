"""Distributions of our own: against scipy, torch, formulas in double precision, sums, integrals and their draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.distributions import (
    CategoricalLevels,
    ContinuousBernoulli,
    DiscretizedLogistic,
    NegativeBinomial,
    Poisson,
)
from tests.statistical import assert_close, assert_mean, assert_within

FLOAT = torch.float64
LOGITS = [-1000.0, -40.0, -5.0, -0.21, -0.19, -1e-5, 0.0, 1e-9, 0.1, 0.2, 3.0, 16.0, 20.0, 300.0]
LEVELS = torch.arange(8, dtype=FLOAT)


def gauss_legendre(function, low, high, n=200):
    """Integral of a smooth function."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (high - low) / 2 * float(weights @ function((high - low) / 2 * (nodes + 1) + low))


def logistic_bin(k, loc, scale, num_levels):
    """Probability of a level, as a difference of distribution functions."""
    upper = np.where(k == num_levels - 1, 1.0, special.expit((k + 0.5 - loc) / scale))
    return upper - np.where(k == 0, 0.0, special.expit((k - 0.5 - loc) / scale))


# The continuous Bernoulli


@pytest.mark.parametrize("a", LOGITS)
def test_continuous_bernoulli_integrates_to_one_and_has_its_mean(a):
    p = ContinuousBernoulli(torch.tensor(a, dtype=FLOAT))
    width = min(1.0, 50 / max(abs(a), 1e-9))  # the rest weighs e^-50
    ends = (1 - width, 1.0) if a > 0 else (0.0, width)

    def density(x):
        return p.log_prob(torch.from_numpy(x)).exp().numpy()

    assert_close(gauss_legendre(density, *ends), 1.0)
    assert_close(p.mean, gauss_legendre(lambda x: x * density(x), *ends))


@pytest.mark.parametrize("a", [*LOGITS, 1e8])
def test_continuous_bernoulli_in_single_precision(a):
    """Also beyond a logit of 16, where torch's is clipped; the gradient is x - E[x], at 0 too."""
    x = torch.tensor([0.0, 0.3, 1.0])
    logit = torch.tensor(a, requires_grad=True)
    exact = ContinuousBernoulli(logit.detach().double())
    p = ContinuousBernoulli(logit)
    assert_close(p.log_prob(x), exact.log_prob(x.double()), scale=1.0)
    assert_close(p.mean, exact.mean)
    (gradient,) = torch.autograd.grad(p.log_prob(x).sum(), logit)
    assert_close(gradient, (x.double() - exact.mean).sum(), scale=1.0)


@pytest.mark.parametrize("a", [-10.0, -0.3, 0.0, 0.01, 4.0, 15.0])
def test_continuous_bernoulli_is_torchs_where_that_is_sound(a):
    logit, x = torch.tensor(a, dtype=FLOAT), torch.linspace(0, 1, 7, dtype=FLOAT)
    theirs = torch.distributions.ContinuousBernoulli(logits=logit).log_prob(x)
    assert_within(
        ContinuousBernoulli(logit).log_prob(x), theirs, absolute=1e-8, reason="torch's Taylor series of two terms"
    )


@pytest.mark.parametrize("a", [-200.0, -3.0, 0.0, 30.0])
def test_continuous_bernoulli_draws_have_its_mean(a):
    p = ContinuousBernoulli(torch.tensor(a))
    x = p.sample((20_000,))
    assert ((x >= 0) & (x <= 1)).all()
    sd = float(x.std())
    assert_mean(x.double().numpy(), float(p.mean), effect=0.1 * sd)


# Levels


@pytest.mark.parametrize("loc", [-3.0, 0.0, 3.3, 7.0, 12.0])
@pytest.mark.parametrize("scale", [0.05, 0.7, 30.0])
def test_discretised_logistic_is_a_difference_of_distribution_functions(loc, scale):
    p = DiscretizedLogistic(torch.tensor(loc, dtype=FLOAT), torch.tensor(scale, dtype=FLOAT), 8)
    expected = logistic_bin(LEVELS.numpy(), loc, scale, 8)
    probability = p.log_prob(LEVELS).exp()
    assert_close(probability, expected, scale=1.0)
    assert_close(probability.sum(), 1.0)
    assert_close(p.mean, (LEVELS * probability).sum(), scale=1.0)


def test_discretised_logistic_in_far_tails():
    """A thousand scales away the difference of distribution functions is 0: log P = -distance + log(1 - e^-1)."""
    loc = torch.tensor([-1000.0, 1007.0], requires_grad=True)
    log_prob = DiscretizedLogistic(loc, torch.ones(()), 8).log_prob(torch.tensor([3.0, 4.0]))
    assert_close(log_prob, [-1002.5 + np.log1p(-np.exp(-1)), -1002.5 + np.log1p(-np.exp(-1))], torch.float32)
    (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
    assert_close(gradient, [1.0, -1.0], torch.float32)  # towards the data


class Largest(TorchDispatchMode):
    """The largest number of entries of what any operation makes."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.found = max(self.found, made.numel())
        return made


def test_the_mean_of_many_logistics_makes_no_level_of_all_at_once():
    p = DiscretizedLogistic(torch.linspace(-10.0, 270.0, 20_000, dtype=FLOAT), torch.tensor(3.0, dtype=FLOAT), 256)
    with Largest() as largest:
        mean = p.mean
    assert largest.found <= 2**20
    some = slice(0, 20_000, 1999)
    levels = torch.arange(256, dtype=FLOAT)
    probability = DiscretizedLogistic(p.loc[some, None], p.scale[some, None], 256).log_prob(levels).exp()
    assert_close(mean[some], probability @ levels)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_discretised_logistic_of_extreme_scales_has_finite_gradients(scale):
    parameters = [torch.full((8,), 3.2, requires_grad=True), torch.full((8,), scale, requires_grad=True)]
    log_prob = DiscretizedLogistic(*parameters, 8).log_prob(LEVELS.float())
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(log_prob.sum(), parameters))


@pytest.mark.parametrize(
    "p",
    [
        DiscretizedLogistic(torch.tensor(1.0), torch.tensor(2.0), 8),
        CategoricalLevels(torch.tensor([0.2, 0.0, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1])),
    ],
    ids=["logistic", "categorical"],
)
def test_draws_of_levels_have_their_probabilities(p):
    x = p.sample((20_000,))
    assert x.dtype == torch.float32
    probability = p.log_prob(LEVELS.float()).exp().double().numpy()
    for level in range(8):
        share = float(probability[level])
        hit = (x == level).double().numpy()
        if share < 1e-6:
            assert not hit.any()
        else:
            assert_mean(hit, share, sigma=np.sqrt(share * (1 - share)), effect=0.05)
    assert_close(p.mean, (LEVELS.numpy() * probability).sum(), torch.float32)


def test_categorical_levels_have_a_mean_for_each_entry():
    logits = torch.randn(4, 3, 8, dtype=FLOAT)
    p = CategoricalLevels(logits=logits)
    assert_close(p.mean, special.softmax(logits.numpy(), -1) @ np.arange(8))
    assert p.expand((2, 4, 3)).mean.shape == (2, 4, 3)


# Counts


@pytest.mark.parametrize("mean", [1e-3, 2.5, 300.0])
@pytest.mark.parametrize("dispersion", [1e-6, 1e-3, 1 / 16, 0.9, 20.0])
def test_negative_binomial_has_the_density_of_scipy_and_of_its_product(mean, dispersion):
    x = np.array([0.0, 1.0, 2.0, 7.0, 40.0, 1000.0])
    p = NegativeBinomial(torch.tensor(mean, dtype=FLOAT), torch.tensor(dispersion, dtype=FLOAT))
    log_prob = p.log_prob(torch.from_numpy(x))
    rising = np.array([np.log1p(dispersion * np.arange(n)).sum() for n in x.astype(int)])
    shrunk = (x + 1 / dispersion) * np.log1p(dispersion * mean)
    product = x * np.log(mean) - shrunk - special.gammaln(x + 1) + rising
    assert_close(log_prob, product, scale=1000.0)
    if dispersion > 0.01:  # log-gamma functions of 1 / d cancel in scipy
        assert_close(log_prob, stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)).logpmf(x), scale=1000.0)


def count_log_prob(x, mean, dispersion):
    """log P(x) by scipy's log-gamma functions; those of a dispersion of 0 are Poisson's."""
    if not dispersion:
        return x * np.log(mean) - mean - special.gammaln(x + 1)
    r = 1 / dispersion
    binomial = special.gammaln(r + x) - special.gammaln(r) - special.gammaln(x + 1)
    return binomial + x * np.log(mean / (r + mean)) - r * np.log1p(mean / r)


def counting(mean, dispersion, dtype):
    """The distribution of counts, and its mean, which takes gradients."""
    m = torch.tensor(mean, dtype=dtype, requires_grad=True)
    d = torch.tensor(dispersion, dtype=dtype)
    return NegativeBinomial(m, d) if dispersion else Poisson(m), m


@pytest.mark.parametrize("mean", [4.0, 60.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("dispersion", [0.0, 1e-6, 1e-3, 0.0625, 0.07, 5.0])
def test_counts_in_single_precision(mean, dispersion):
    """Up to four standard deviations off; the gradient for the mean is (x - m) / (m + d m^2)."""
    dispersion = float(np.float32(dispersion))
    sd = (mean + dispersion * mean**2) ** 0.5
    x = np.round(np.maximum(mean + sd * np.array([-4, -1.5, -0.3, 0, 0.6, 1.1, 2, 4]), 0)).astype(np.float32)
    p, m = counting(mean, dispersion, torch.float32)
    log_prob = p.log_prob(torch.from_numpy(x))
    expected = count_log_prob(x.astype(float), mean, dispersion)
    rounding = 2e-5 + 2e-7 * 4 * sd / (1 + dispersion * mean)
    assert_within(log_prob, expected, absolute=rounding, reason="rounding of (x - m) / (1 + d m)")
    slopes = [torch.autograd.grad(log_prob[i], m, retain_graph=True)[0] for i in range(len(x))]
    assert_within(
        torch.stack(slopes), (x.astype(float) - mean) / sd**2, relative=1e-4, absolute=2e-6, reason="rounding"
    )


@pytest.mark.parametrize(("x", "mean"), [(1e6, 1e-6), (1e6, 1.0), (16.0, 1e9), (0.0, 1e9), (3.0, 1e-6)])
@pytest.mark.parametrize("dispersion", [0.0, 1e-6, 1.0])
def test_counts_far_from_their_mean_are_improbable_and_no_more(x, mean, dispersion):
    p, m = counting(mean, dispersion, torch.float32)
    log_prob = p.log_prob(torch.tensor(x))
    expected = counting(mean, dispersion, FLOAT)[0].log_prob(torch.tensor(x, dtype=FLOAT))
    assert_close(log_prob, expected, torch.float32)
    assert torch.isfinite(torch.autograd.grad(log_prob, m)[0])


@pytest.mark.parametrize("mean", [1e-3, 2.5, 17.0, 300.0])
def test_poissons_density_is_scipys(mean):
    x = np.array([0.0, 1.0, 7.0, 15.0, 16.0, 40.0, 1000.0])
    p = Poisson(torch.tensor(mean, dtype=FLOAT))
    assert_close(p.log_prob(torch.from_numpy(x)), stats.poisson(mean).logpmf(x), scale=1000.0)
    assert_close(p.expand((2, 7)).log_prob(torch.from_numpy(x))[1], p.log_prob(torch.from_numpy(x)))


def test_negative_binomial_of_no_dispersion_is_poissons():
    x, mean = np.arange(20.0), torch.tensor(6.0, dtype=FLOAT)
    p = NegativeBinomial(mean, torch.tensor(1e-9, dtype=FLOAT))
    expected = stats.poisson(6.0).logpmf(x)
    assert_within(p.log_prob(torch.from_numpy(x)), expected, absolute=1e-6, reason="d (x - m)^2 / 2")


@pytest.mark.parametrize(("mean", "dispersion"), [(3.0, 0.5), (0.5, 2.0), (20.0, 1e-4)])
def test_negative_binomial_sums_to_one_and_draws_have_its_moments(mean, dispersion):
    p = NegativeBinomial(torch.tensor(mean, dtype=FLOAT), torch.tensor(dispersion, dtype=FLOAT))
    probability = p.log_prob(torch.arange(3000, dtype=FLOAT)).exp()
    assert_close(probability.sum(), 1.0)
    assert_close((torch.arange(3000) * probability).sum(), p.mean)
    assert_close(((torch.arange(3000) - p.mean).square() * probability).sum(), p.variance)
    x = p.sample((50_000,)).numpy()
    assert_mean(x, mean, sigma=float(p.variance.sqrt()), effect=0.1 * float(p.variance.sqrt()))
    assert_mean((x - mean) ** 2, float(p.variance), effect=0.25 * float(p.variance))


# All


@pytest.mark.parametrize(
    ("p", "inside", "outside"),
    [
        (ContinuousBernoulli(torch.zeros(3)), 0.5, 1.5),
        (DiscretizedLogistic(torch.zeros(3), torch.ones(3), 8), 7.0, 8.0),
        (DiscretizedLogistic(torch.zeros(3), torch.ones(3), 8), 0.0, 0.5),
        (CategoricalLevels(torch.ones(3, 8)), 7.0, 8.0),
        (NegativeBinomial(torch.ones(3), torch.ones(3)), 100.0, 0.5),
        (Poisson(torch.ones(3)), 100.0, 0.5),
    ],
)
def test_supports_and_expansions(p, inside, outside):
    x = torch.full((2, 3), inside)
    assert p.expand((2, 3)).batch_shape == (2, 3)
    assert_close(p.expand((2, 3)).log_prob(x), p.log_prob(x))
    assert p.expand((2, 3)).sample((5,)).shape == (5, 2, 3)
    assert p.mean.shape == (3,)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((3,), outside))


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogistic(torch.zeros(3), torch.zeros(3), 8)
    with pytest.raises(ValueError, match="dispersion"):
        NegativeBinomial(torch.ones(3), -torch.ones(3))
    with pytest.raises(ValueError, match="num_levels: expected at least 2"):
        DiscretizedLogistic(torch.zeros(3), torch.ones(3), 1)
