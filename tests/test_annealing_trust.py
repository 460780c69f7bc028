"""How far annealed estimates can be trusted: starts that agree, intervals that cover."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from tests.pairs import (
    scaled_guide,
    small_ppca,
    two_modes,
)
from tests.statistical import assert_close, assert_mean


def test_starts_that_agree_are_trusted_and_their_intervals_cover(seed: int):
    ppca = small_ppca()
    x = ppca.sample(64)
    found = pv.annealed_importance_sampling(scaled_guide(ppca, 1.3), x, pv.Annealing(16, 30, 4), seed, progress=False)
    low, high = found.intervals()
    exact = ppca.log_prob(x).numpy()
    covered = ((low <= exact) & (exact <= high))[found.trusted]
    assert found.trusted.sum() > 30
    assert covered.mean() > 0.95 - 5.91 * np.sqrt(0.95 * 0.05 / len(covered))
    assert np.isinf(high[~found.trusted]).all()


@pytest.mark.parametrize("num_chains", [8, 16])
@pytest.mark.parametrize("leaning", [-1, 1])
def test_intervals_of_few_chains_cover_to_whichever_side_their_weights_lean(num_chains: int, leaning: int, seed: int):
    """Student's t alone covered 0.91 and 0.92 of weights that have a largest one: it failed downwards."""
    noise = np.random.default_rng(seed).random((num_chains, 40_000))
    weight = 1.1 * noise**0.1 if leaning < 0 else np.exp(0.3 * stats.norm.ppf(noise) - 0.3**2 / 2)
    mean, every = weight.mean(0), np.full(40_000, float(num_chains))
    stderr = weight.std(0, ddof=1) / mean / num_chains**0.5
    lean = stats.skew(weight) / num_chains**0.5
    value, how = np.log(mean), pv.Annealing(num_chains)
    found = pv.AnnealedLogLikelihood(value, stderr, every, lean, every, value, stderr, every, how, 1, 0)
    low, high = found.intervals()
    assert found.trusted.mean() > 0.99
    assert ((low <= 0) & (high >= 0))[found.trusted].mean() == pytest.approx(0.95, abs=0.011)


@pytest.mark.parametrize("leaning", [-1, 1])
@pytest.mark.parametrize("num_data", [1, 4])
def test_the_interval_of_the_mean_covers(num_data: int, leaning: int, seed: int):
    """Of data of 16 chains whose weights have a largest one, or are log-normal: as annealing gives them."""
    noise = np.random.default_rng(seed).random((4000, 16, num_data))
    spread = np.array([0.2, 0.2, 0.3, 0.6])[:num_data]
    weight = 1.1 * noise**0.1 if leaning < 0 else np.exp(spread * stats.norm.ppf(noise) - spread**2 / 2)
    value, stderr = np.log(weight.mean(1)), weight.std(1, ddof=1) / weight.mean(1) / 4
    lean, one = stats.skew(weight, axis=1) / 4, np.ones(num_data)
    found = [
        pv.AnnealedLogLikelihood(v, s, 16 * one, a, one, v, s, 16 * one, pv.Annealing(), 1, 0).interval()
        for v, s, a in zip(value, stderr, lean, strict=True)
    ]
    assert_mean([low <= 0 <= high for low, high in found], 0.95, sigma=np.sqrt(0.95 * 0.05), effect=0.04)


def test_the_interval_of_the_mean_has_no_upper_end_where_chains_are_not_trusted():
    one = np.ones(4)
    untrusted = pv.AnnealedLogLikelihood(0 * one, one, one, one, one, one, one, one, pv.Annealing(), 1, 0).interval()
    assert untrusted.high == np.inf
    exact = pv.AnnealedLogLikelihood(one, 0 * one, 16 * one, 0 * one, one, one, 0 * one, 16 * one, pv.Annealing(), 1, 0)
    assert exact.interval() == (1.0, 1.0)


def test_chains_that_all_miss_a_mode_are_not_trusted():
    """The prior is the posterior and has two modes; the guide is one of them: all weights are alike, log 2 too low."""
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    found = pv.annealed_importance_sampling(two_modes(6.0), x, pv.Annealing(8, 5, 2), progress=False)
    exact = dist.Normal(0.0, 1.0).log_prob(x).numpy()
    assert_close(found.value, exact - np.log(2))
    assert_close(found.other, exact)
    assert found.ess.min() > 7.9
    assert not found.trusted.any()
    assert "3 of 3 data are untrusted, chains from guide and prior differing" in str(found)


def test_chains_that_lag_behind_are_not_trusted():
    """Thirty numbers, a guide half as wide: of eight chains more than two count often, two nats too low."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(30), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) * 0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 30), 0.5).to_event(1))

    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    found = pv.annealed_importance_sampling(pv.Pair(model, guide), x, pv.Annealing(8, 10, 2), progress=False)
    error = found.value - dist.Normal(0.0, 1.0).log_prob(x).numpy()
    many = found.ess >= 2
    assert many.sum() > 5
    assert error[many].mean() < -1.5
    assert not found.trusted.any()


def test_few_chains_are_not_trusted():
    how = pv.Annealing(num_chains=16)

    def judged(ess, other, stderr=0.1, how=how):
        one = np.ones(1)
        return pv.AnnealedLogLikelihood(
            0 * one, stderr * one, ess * one, 0 * one, one, other * one, stderr * one, 16 * one, how, 1, 0
        )

    assert judged(8.0, 0.0).trusted.all()
    assert not judged(7.9, 0.0).trusted.any()
    assert not judged(8.0, 0.3).trusted.any()  # t times its error of 0.14 is 0.29
    assert judged(8.0, 0.3, 0.12).trusted.all()  # 0.35
    assert not judged(8.0, 0.3, 0.15).trusted.any()  # 0.3 and 0.43: half of p(x) may be lost
    assert judged(8.0, 0.0, 0.2).trusted.all()
    assert not judged(8.0, 0.0, 0.25).trusted.any()
    assert not judged(3.0, 0.0, how=pv.Annealing(num_chains=4)).trusted.any()
    assert not judged(1.0, 0.0, how=pv.Annealing(num_chains=1)).trusted.any()
    assert how.in_words() in str(judged(1.0, 0.0))


def test_starts_that_seldom_agree_do_so_by_chance():
    """Chains of one start lose half of p(x); those of the other err by 0.17: one datum in forty may agree."""
    rng, one = np.random.default_rng(0), np.ones(4000)
    other = np.log(2) + 0.17 * rng.standard_normal(4000)

    def judged(lost: int):
        here = np.where(np.arange(4000) < lost, other, other - np.log(2))
        return pv.AnnealedLogLikelihood(
            0 * one, 1e-3 * one, 16 * one, 0 * one, one, here, 0.17 * one, 16 * one, pv.Annealing(16), 1, 0
        ).trusted

    assert not judged(4000).any()
    mixed = judged(2000)
    assert 0 < mixed[:2000].mean() < 0.03
    assert mixed[2000:].mean() > 0.9


def test_without_another_start_nothing_is_trusted():
    ppca = small_ppca()
    how, x = pv.Annealing(8, 3, 2), ppca.sample(3)
    both = pv.annealed_importance_sampling(ppca, x, how, progress=False)
    alone = pv.annealed_importance_sampling(ppca, x, how, compare_starts=False, progress=False)
    assert_close(both.value, alone.value)
    assert np.isnan(alone.other).all()
    assert not alone.trusted.any()
    assert "no chains from another start to hold theirs against" in str(alone)
