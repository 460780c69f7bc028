"""The verdict on an estimate: its rules, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.evaluation import intervals
from ppl_vae.evaluation.verdict import shrunk, verdict
from ppl_vae.weights import Stream, khat_threshold
from tests.pairs import scaled_guide, small_ppca
from tests.running import estimate
from tests.statistical import assert_close, assert_within

pytestmark = pytest.mark.usefixtures("float64")


# Rules


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({}, "reliable"),
        ({"khat": -np.inf, "stderr": 0.0, "ess": 1000.0, "unseen": 0.0}, "reliable"),
        ({"khat": 0.55}, "noisy"),
        ({"khat": 0.75}, "unreliable"),
        ({"khat": np.inf}, "unreliable"),
        ({"ess": 20.0}, "noisy"),
        ({"unseen": 0.01}, "noisy"),
        ({"unseen": 0.03}, "unreliable"),
        ({"khat": -np.inf, "stderr": 0.0, "unseen": 0.1}, "unreliable"),
        ({"unseen": np.nan}, "noisy"),
        ({"khat": -np.inf, "stderr": 0.0, "unseen": np.nan}, "noisy"),  # equal weights know of one mode alone
        ({"num_samples": 10, "ess": 9.0}, "unreliable"),
        ({"num_samples": 50, "ess": 40.0, "khat": 0.45}, "unreliable"),  # above 1 - 1 / log10(50)
    ],
)
def test_the_verdict_on_a_datum(found, word):
    usual = {"khat": 0.3, "stderr": 0.02, "ess": 400.0, "unseen": 0.001, "unseen_stderr": 0.0005, "num_samples": 1000}
    (said,) = verdict(**{name: np.array([value]) for name, value in (usual | found).items()})
    assert said == word


def test_a_khat_above_its_threshold_is_unreliable_in_whatever_company():
    """Drawn towards its light neighbours it would pass; its own weights say that it has no variance."""
    khat = np.append(0.1 + 0.05 * np.random.default_rng(0).normal(size=200), 0.75)
    every = np.ones(201)
    assert shrunk(khat, np.full(201, 1000)).khat[-1] < 0.5
    said = verdict(khat, 0.02 * every, 400 * every, 0.001 * every, 0 * every, np.full(201, 1000))
    assert said[-1] == "unreliable"
    assert set(said[:-1]) == {"reliable"}


def test_khat_is_shrunk_by_its_noise():
    """Shapes that differ by noise alone become one; those of two kinds of data stay apart; infinities stay."""
    rng = np.random.default_rng(0)
    size = 3 * math.sqrt(1000)
    alike = 0.4 + 1.4 / math.sqrt(size) * rng.normal(size=500)
    k = np.full(500, 1000)
    assert shrunk(alike, k).khat.std() < 0.3 * alike.std()
    assert_within(
        shrunk(alike, k).chance, np.full(500, 1.4 / math.sqrt(size)), relative=0.2, reason="nearly all of it is noise"
    )
    apart = np.where(np.arange(500) < 250, 0.0, 1.0) + 0.1 * rng.normal(size=500)
    assert np.abs(shrunk(apart, k).khat - apart).max() < 0.1
    assert shrunk(apart, k).chance.max() < 0.05
    infinite = shrunk(np.append(alike, [np.inf, -np.inf]), np.append(k, [1000, 1000]))
    assert infinite.khat[-2:].tolist() == [np.inf, -np.inf]
    assert infinite.chance[-2:].tolist() == [0.0, 0.0]


def of_equal_data(s, dim, n):
    """What 1,000 samples of the posterior, its width times s, say of n equal data of log p = 0."""
    log_weight = dim * math.log(s) - (s**2 - 1) / 2 * np.random.default_rng(dim).chisquare(dim, size=(1000, n))
    stream = Stream(n, 1000)
    stream.add(torch.from_numpy(log_weight))
    found = stream.summary()
    return found, verdict(found.khat, found.stderr, found.ess, np.zeros(n), np.zeros(n), np.full(n, 1000))


def test_what_looks_best_by_chance_is_not_called_reliable():
    """Weights of a guide 1.23 times as wide in 50 dimensions: alone, one in four of equals would pass."""
    found, said = of_equal_data(1.23, 50, 300)
    assert ((found.khat < 0.5) & (found.ess > 30)).mean() > 0.2
    assert not (said == "reliable").any()


@pytest.mark.parametrize(("s", "share"), [(1.3, 0.05), (0.85, 0.5)])
def test_what_is_no_better_than_its_equals_is_not_called_noisy(s, share):
    """In 50 dimensions a share of equals has a k-hat below the threshold: their intervals cover 74 and 86 %."""
    found, said = of_equal_data(s, 50, 300)
    assert (found.khat < khat_threshold(1000)).mean() > share
    assert (said == "unreliable").all()


@pytest.mark.parametrize("s", [1.23, 0.87])
def test_intervals_of_noisy_data_cover_nearly_as_often(s):
    """Nine times in ten; fewer than 84 % would be seen."""
    found, said = of_equal_data(s, 50, 1000)
    noisy = said == "noisy"
    assert noisy.mean() > 0.6
    low, high = intervals.interval_of_each(found.value, found.stderr, found.skewness, np.zeros(1000), 0.95)
    assert ((low <= 0) & (high >= 0))[noisy].mean() > 0.9 - 5.91 * math.sqrt(0.09 / noisy.sum())


def test_a_verdict_depends_on_the_data_that_are_judged_together():
    """k-hat of one datum is noise by a third: its company says more of it."""
    khat = np.array([0.4, *np.linspace(0.5, 0.62, 50)])
    rest = [np.full(51, v) for v in (0.02, 400.0, 0.0, 0.0, 1000)]
    alone = verdict(khat[:1], *(v[:1] for v in rest))
    assert [alone[0], verdict(khat, *rest)[0]] == ["reliable", "noisy"]


def test_light_tails_of_few_samples_are_no_bad_company():
    """At K = 50 the threshold is 0.41, and chance moves a k-hat by as much: what passes is as good as what does not."""
    khat = 0.25 + 0.1 * np.linspace(-1, 1, 50)
    said = verdict(khat, np.full(50, 0.01), np.full(50, 48.0), np.zeros(50), np.zeros(50), np.full(50, 50))
    assert (said == "reliable").all()


def of_few_hits(n, hits, unseen, error=1.0):
    """Equal data, of some of which one probe of 64 found something: k-hat, stderr, ESS, unseen, its error, K."""
    found = np.where(np.arange(n) < hits, unseen, 0.0)
    return np.full(n, 0.45), np.full(n, 0.1), np.full(n, 90.0), found, error * found, np.full(n, 2000)


@pytest.mark.parametrize(("unseen", "rest"), [(0.02, "reliable"), (0.15, "noisy"), (0.6, "unreliable")])
def test_what_a_few_of_equals_miss_they_all_miss(unseen, rest):
    """One in four was hit by a probe: of a standard error 0.05, 0.375 and 1.25 are unseen in the mean."""
    said = verdict(*of_few_hits(40, 10, unseen))
    assert set(said[10:]) == {rest}


def test_data_that_differ_are_no_company():
    """Where many probes tell of some data, others are as good as they look; one that misses all counts as 5."""
    said = verdict(*of_few_hits(60, 30, 0.5, error=0.1))
    assert set(said[:30]) == {"unreliable"}
    assert set(said[30:]) == {"reliable"}
    alone = verdict(*of_few_hits(60, 1, 1e6))
    assert set(alone[1:]) == {"reliable"}
    assert verdict(*of_few_hits(2, 1, 0.5)).tolist() == ["unreliable", "reliable"]


def test_what_most_miss_the_others_are_not_trusted_to_have_seen():
    """By many probes each: one of the others may have its mode too far away for them. Exact ones are no others."""
    khat, error, ess, unseen, noise, k = of_few_hits(60, 31, 0.5, error=0.1)
    khat[50:], error[50:] = -np.inf, 0.0
    said = verdict(khat, error, ess, unseen, noise, k)
    assert set(said[:31]) == {"unreliable"}
    assert set(said[31:50]) == {"noisy"}
    assert set(said[50:]) == {"reliable"}


def test_perfect_data_and_those_that_nobody_probed_are_no_company():
    khat, error, ess, unseen, noise, k = of_few_hits(60, 5, 0.3)
    khat[30:], error[30:] = -np.inf, 0.0
    said = verdict(khat, error, ess, unseen, noise, k)
    assert set(said[5:30]) == {"noisy"}
    assert set(said[30:]) == {"reliable"}
    khat, error, ess, unseen, noise, k = of_few_hits(60, 5, 0.3)
    unseen[30:] = np.nan
    said = verdict(khat, error, ess, unseen, noise, k)
    assert set(said[5:]) == {"noisy"}


def test_what_nobody_reads_condemns_nobody():
    khat, _, ess, _, _, k = of_few_hits(1, 1, 0.0)
    for unseen, error in ((1.1e-4, 1e-4), (1.5e-4, 3e-4)):
        assert verdict(khat, 0 * khat + error, ess, 0 * khat + unseen, 0 * khat, k) == ["reliable"]


# Intervals


def test_the_transformation_of_an_interval_is_halls():
    lean, t = np.array([0.0, 0.3, -0.2]), 1.3
    x = intervals._untransformed(t, lean)
    assert_close(x + lean * x**2 / 3 + lean**2 * x**3 / 27 + lean / 6, np.full(3, t), scale=1e5)


def test_the_interval_of_a_mean_is_narrower_by_the_root_of_its_data():
    """Near that of one datum for one, and of a sum, whose skewness has gone, for many; what was not seen is added."""
    one = [np.array([v]) for v in (-3.0, 0.1, 0.3, 0.0)]
    each, mean = (f(*one, 0.9) for f in (intervals.interval_of_each, intervals.interval_of_mean))
    assert np.abs(np.array(mean) - np.array(each)[:, 0]).max() < 0.01
    many = [np.repeat(v, 10_000) for v in one]
    low, high = intervals.interval_of_mean(*many, 0.9)
    assert_close(np.array(low + high) / 2, np.array(-3.0 + 0.1**2 / 2), scale=1e6)
    assert (high - low) * 100 == pytest.approx(2 * 1.645 * 0.1, rel=1e-3)
    many[3][:] = 0.02
    assert intervals.interval_of_mean(*many, 0.9).high - high == pytest.approx(math.log(1.02))


@pytest.mark.parametrize(("s", "dim"), [(0.9, 10), (1.5, 10), (1.5, 2)])
def test_intervals_cover_where_the_verdict_is_reliable(s, dim):
    """1,000 repetitions; a standard error of the coverage is 0.7 %."""
    ppca = small_ppca(dim + 2, dim)
    x = ppca.sample(1000, seed=2)
    ll = estimate(scaled_guide(ppca, s), x, 500, num_draws=0)
    exact = ppca.log_prob(x).numpy()
    low, high = ll.intervals()
    reliable = ll.verdict == "reliable"
    covered = (low <= exact) & (exact <= high)
    assert reliable.mean() > 0.95
    assert 0.915 < covered[reliable].mean() < 0.985
    sound = ll.trusted  # one of 1,000 may be unreliable by chance, which takes the upper end from the mean of all
    found = (array[sound] for array in (ll.value, ll.stderr, ll.skewness, ll.unseen))
    low, high = intervals.interval_of_mean(*found, 1 - 1e-6)
    assert low <= exact[sound].mean() <= high
    assert high - low < 0.05


@pytest.mark.parametrize("k", [500, 2000])
def test_a_mean_field_guide_of_a_correlated_posterior_is_not_called_reliable(k):
    """Its marginals are right; k is 0.75, k-hat below 1/2, and most data hide it: intervals cover 85 to 88 %."""
    loading = torch.from_numpy(np.random.default_rng(3).normal(size=(10, 8)))
    ppca = pv.PPCA(loading, torch.zeros(10), 0.5)

    def guide(x):
        with pyro.plate("data", len(x)):
            q = ppca.posterior(x)
            pyro.sample("z", dist.Normal(q.loc, q.variance.sqrt()).to_event(1))

    ll = estimate(pv.Pair(ppca.model, guide), ppca.sample(100, seed=4), k, num_draws=0)
    assert (ll.unseen == 0).mean() > 0.4
    assert not (ll.verdict == "reliable").any()


def test_intervals_of_weights_that_lean_cover_more_than_symmetric_ones():
    """Guides far too wide: symmetric intervals fail upwards."""
    ppca = small_ppca(22, 20)
    x = ppca.sample(1000, seed=2)
    ll = estimate(scaled_guide(ppca, 1.5), x, 300, num_draws=0, num_probes=0)
    exact = ppca.log_prob(x).numpy()
    low, high = ll.intervals()
    symmetric = np.abs(ll.value - exact) <= 1.96 * ll.stderr
    covered = (low <= exact) & (exact <= high)
    assert covered.mean() > symmetric.mean() + 0.02
    assert (ll.verdict == "reliable").mean() < 0.02


def test_one_unreliable_datum_takes_the_upper_end_from_the_interval_of_the_mean():
    """A perfect guide but for one datum of 200, of scale 0.05 there: a symmetric interval ends below the truth."""
    ppca = small_ppca()
    x = ppca.sample(200, seed=1)
    first = torch.arange(200) == int(x[:, 0].argmax())

    def guide(x):
        q = ppca.posterior(x)
        narrow = torch.where(x[:, 0] == x[:, 0].max(), 0.05, 1.0)[:, None, None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=narrow * q.scale_tril))

    ll = estimate(pv.Pair(ppca.model, guide), x, 500)
    np.testing.assert_array_equal(ll.verdict == "unreliable", first.numpy())
    truth = ppca.log_prob(x).numpy().mean()
    assert intervals.interval_of_mean(ll.value, ll.stderr, ll.skewness, ll.unseen, 0.95).high < truth
    low, high = ll.interval()
    assert low <= truth < high == math.inf
    assert ll.is_lower_bound
    assert str(ll).startswith(f"log p(x) ≥ {ll.mean:.2f} nats")
    assert "199 reliable, 0 noisy, 1 unreliable" in str(ll)


def test_what_the_prior_finds_is_held_against_its_own():
    """Draws of the prior, whose error is infinite, and the guide spread out, do not water each other's finds down."""
    zero, error = np.zeros(20), np.full(20, 0.02)
    unseen = np.where(np.arange(20) < 10, [0.0, 0.1] * 10, 0.0)
    unseen_stderr = np.where(np.arange(20) < 10, np.inf, 0.01)
    words = verdict(zero + 0.1, error, zero + 900, unseen, unseen_stderr, zero + 1000)
    assert words.tolist() == ["unreliable"] * 10 + ["reliable"] * 10


def test_equal_weights_are_company_where_finding_nothing_says_nothing():
    """Weights are equal under a guide that lacks a value: a few data, by a probe or two of the others, tell of all."""
    zero = np.zeros(20)
    unseen = np.where(np.arange(20) % 4 == 0, 0.1, 0.0)
    for error, others in ((np.inf, "unreliable"), (0.1, "reliable")):
        words = verdict(zero - np.inf, zero, zero + 1000, unseen, zero + error, zero + 1000)
        assert words.tolist() == ["unreliable", others, others, others] * 5
