"""What probes find where samples of the guide cannot have been: against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.evaluation import likelihood
from ppl_vae.evaluation.probing import probes_enough, widening
from tests.pairs import positive_latent, scaled_guide, small_ppca
from tests.running import estimate
from tests.statistical import assert_close, assert_mean
from tests.zoo import ZOO

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("constrained", [False, True])
def test_probes_find_as_much_as_there_is(constrained):
    """A guide of half the width: mass where |z|^2 (1 / s^2 - 1) / 2 + d log s > log(K / 10) has a closed form."""
    s, dim, k = 0.5, 1 if constrained else 2, 1000
    ppca = small_ppca(4, 2)
    x = torch.randn(2000) if constrained else ppca.sample(2000, seed=1)
    pair = positive_latent(s) if constrained else scaled_guide(ppca, s)
    ll = estimate(pair, x, k, num_draws=0)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x) if constrained else ppca.log_prob(x)
    radius = 2 * (math.log(k / 10) - dim * math.log(s)) / (1 / s**2 - 1)
    # The estimate is on average too low by what was not seen: a ratio to the exact p(x) is 1 / (1 - error) of that.
    truth = stats.chi2.sf(radius, dim)
    assert_mean(ll.unseen * np.exp(ll.value - exact.numpy()), truth, effect=0.3 * truth)
    assert (ll.verdict == "reliable").mean() < 0.1


@pytest.mark.parametrize("s", [1.0, 1.5])
def test_probes_find_nothing_where_nothing_is_missing(s):
    ppca = small_ppca()
    ll = estimate(scaled_guide(ppca, s), ppca.sample(50, seed=1), 200)
    assert (ll.unseen == 0).all()
    assert (ll.verdict == "reliable").all()


def test_probes_are_as_wide_as_dimensions_allow():
    for d in (1, 2, 30):
        c = widening(d)
        assert_close(np.array((c**2 / math.sqrt(2 * c**2 - 1)) ** d), np.array(4.0))


def test_latents_of_a_mixture_can_be_probed():
    """The support of a mixture has no transform of its own; that of its components has."""
    case = ZOO["mixture as prior"]
    x = case.data[:4].double()
    assert np.isfinite(estimate(case.make(), x, 60, compile=False).unseen).all()


def mixed(log_odds: float, s: float = 1.0, masked: bool = False) -> pv.Pair:
    """c in {0, 1}, z ~ N(0, 1), x ~ N(z + c, 1); the guide of c, its posterior where x = 1/2 and the log-odds are 0.

    That of z given c is the posterior s times as wide. Masked, c says nothing, and x ~ N(z, 1).
    """

    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=not masked):
                c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5])))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z if masked else z + c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=not masked):
                c = pyro.sample("c", dist.Categorical(logits=torch.tensor([0.0, log_odds]).expand(len(x), 2)))
            pyro.sample("z", dist.Normal((x if masked else x - c) / 2, s * 0.5**0.5))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("log_odds", [-14.0, -800.0])
def test_probes_go_through_all_values_of_discrete_latents(log_odds):
    """x = 1/2: c = 1 has half of the posterior, and no sample."""
    x = torch.full((500,), 0.5)
    ll = estimate(mixed(log_odds), x, 1000, num_draws=0, num_probes=8)
    exact = dist.Normal(torch.tensor([0.0, 1.0]), 2**0.5).log_prob(x[:, None]).logsumexp(1).numpy() - np.log(2)
    assert_mean(ll.unseen * np.exp(ll.value - exact), 0.5, effect=0.2)
    assert (ll.verdict == "unreliable").mean() > 0.95


@pytest.mark.parametrize("masked", [False, True])
def test_probes_weigh_discrete_values_as_samples_do(masked):
    """The closed form of `test_probes_find_as_much_as_there_is`, for c drawn from its posterior, or masked."""
    s, k, x = 0.5, 1000, torch.full((1000,), 0.5)
    ll = estimate(mixed(0.0, s, masked), x, k, num_draws=0)
    radius = 2 * (math.log(k / 10) - math.log(s)) / (1 / s**2 - 1)
    truth = stats.chi2.sf(radius, 1)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()  # at 1/2 the same for both c, and without
    assert_mean(ll.unseen * np.exp(ll.value - exact), truth, effect=0.3 * truth)
    assert (estimate(mixed(0.0, 1.0, masked), x[:50], k).verdict == "reliable").all()


def counted(rate: float = 2.0) -> pv.Pair:
    """A latent without end: n ~ Poisson(2), x ~ N(n, 1); the guide, Poisson(rate), knows nothing of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(torch.full((len(x),), 2.0)))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Poisson(rate + 0 * x))

    return pv.Pair(model, guide)


def test_what_cannot_be_probed_is_not_known():
    ppca = small_ppca()
    x = ppca.sample(5)
    ll = estimate(ppca, x, 50, num_probes=0)
    assert np.isnan(ll.unseen).all()
    assert (ll.verdict != "reliable").all()
    assert np.isnan(estimate(ppca, ppca.sample(5), 10).unseen).all()
    for wrong, said in ((-1, "expected at least 0"), (1, "expected 0, or at least 2")):
        with pytest.raises(ValueError, match=f"num_probes: {said}"):
            estimate(ppca, ppca.sample(5), 50, num_probes=wrong)


@pytest.mark.parametrize(("rate", "k"), [(0.01, 5000), (0.05, 500)])
def test_the_prior_looks_where_a_guide_of_counts_does_not_go(rate, k):
    """Draws of 0 and now and then of 1 look like a good guide; log p(x) is more than a nat above their estimate."""
    x = torch.distributions.Poisson(2.0).sample((40,)) + torch.randn(40)
    ll, n = estimate(counted(rate), x, k), torch.arange(80.0)
    exact = (dist.Poisson(2.0).log_prob(n) + dist.Normal(n, 1.0).log_prob(x[:, None])).logsumexp(1)
    assert ll.mean < float(exact.mean()) - 1
    assert (ll.verdict == "unreliable").all()
    assert ll.interval().high == math.inf


def test_finding_nothing_from_the_prior_makes_nothing_reliable():
    ll = estimate(counted(), torch.full((5,), 2.0), 500)
    assert (ll.unseen == 0).all()
    assert np.isinf(ll.unseen_stderr).all()
    assert set(ll.verdict) <= {"noisy", "unreliable"}


def many_coins(logit: float) -> pv.Pair:
    """Twelve fair coins, more values than samples; x is their number, with noise; the guide knows one side better."""

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.full((len(x), 12), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=torch.full((len(x), 12), logit)).to_event(1))

    return pv.Pair(model, guide)


def test_the_prior_looks_where_discrete_latents_have_more_values_than_samples():
    x = torch.full((20,), 6.0)
    assert (estimate(many_coins(-4.0), x, 1000).verdict == "unreliable").all()
    found = estimate(many_coins(0.0), x, 1000)
    assert (found.unseen == 0).all()
    assert found.trusted.all()


def test_programs_need_no_answer_where_the_guide_does_not_go():
    """A model that fails far out is evaluated without probes there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            if z.detach().abs().max() > 6.0:
                raise ValueError("too far out")
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.5**0.5))

    x = torch.linspace(-1.0, 1.0, 50)
    ll = estimate(pv.Pair(model, guide), x, 100, compile=False)
    assert np.isnan(ll.unseen).all()
    assert (ll.verdict == "noisy").all()


def test_probes_have_noise_of_their_own(monkeypatch):
    """Blocks of rows are probed by different draws, none of which weighs in an estimate."""
    monkeypatch.setattr(likelihood, "_block_shape", lambda *_: (4, 500))
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.5), ppca.sample(1, seed=1).repeat(8, 1)
    with_probes, without = estimate(pair, x, 500), estimate(pair, x, 500, num_probes=0)
    np.testing.assert_array_equal(with_probes.value, without.value)
    assert (with_probes.unseen[:4] != with_probes.unseen[4:]).all()


def test_few_data_are_probed_more_often():
    """25,000 probes of a call, or 64 a datum, at most K / 8: data of a block share their noise."""
    assert [probes_enough(n, 2000, 200) for n in (1, 200, 1000)] == [200, 125, 64]
    ppca = small_ppca()
    pair, x = scaled_guide(ppca, 0.5), ppca.sample(3, seed=1)
    found = estimate(pair, x, 1600)
    np.testing.assert_array_equal(found.unseen, estimate(pair, x, 1600, num_probes=200).unseen)


SIDES, POSTERIOR = 8, math.log(0.9 * 7 / 0.1)


def dice(logits, side=False) -> pv.Pair:
    """Ten dice of 8 sides, each seen as it fell nine times in ten; log-odds of these in the guide, die by die.

    By the side of them, where asked for, a latent that says nothing and has a perfect guide.
    """
    odds, right = torch.tensor(logits).expand(10), 0.9 * torch.eye(SIDES) + 0.1 / (SIDES - 1) * (1 - torch.eye(SIDES))

    def aside(x):
        if side:
            pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            aside(x)
            z = pyro.sample("z", dist.Categorical(torch.ones(len(x), 10, SIDES)).to_event(1))
            pyro.sample("x", dist.Categorical(right[z]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            aside(x)
            seen = torch.nn.functional.one_hot(x, SIDES)
            pyro.sample("z", dist.Categorical(logits=odds[:, None] * seen).to_event(1))

    return pv.Pair(model, guide)


FALLEN = torch.randint(SIDES, (20, 10), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize(
    "logits",
    [20.0, 12.0, 7.5, [20.0] + 9 * [POSTERIOR], [8.0] + 9 * [POSTERIOR]],
    ids=["20", "12", "7.5", "one", "less"],
)
def test_values_that_a_guide_hardly_gives_are_missed(logits, side):
    """Weights of the values that it gives are equal, or look good; log p(x) is 0.1 to a nat above their estimate."""
    ll = estimate(dice(logits, side), FALLEN, 1000, num_draws=0)
    missed = ll.value < -10 * math.log(SIDES) - 0.08
    assert missed.any()
    assert (ll.verdict[missed] == "unreliable").all()


@pytest.mark.parametrize("side", [False, True])
def test_perfect_guides_over_many_values_are_the_best_case(side):
    for probes in (None, 0):
        ll = estimate(dice(POSTERIOR, side), FALLEN, 1000, num_draws=0, num_probes=probes)
        assert (ll.khat == -np.inf).all()
        assert (ll.ess == 1000).all()
        assert (ll.verdict == "noisy").all()
    assert_close(ll.value, np.full(20, -10 * math.log(SIDES)))
    near = estimate(dice(POSTERIOR - 0.5, side), FALLEN, 1000, num_draws=0)
    assert near.trusted.all()


def test_equal_weights_of_one_value_tell_nothing():
    ll = estimate(dice(20.0), FALLEN, 1000, num_draws=0, num_probes=0)
    assert (ll.khat == np.inf).all()
    assert not ll.trusted.any()
    few = estimate(dice(20.0), FALLEN, 1000, num_draws=0, num_probes=0, target_stderr=1e-9)
    assert (few.khat == np.inf).all()


def hinge(start):
    """A decoder that is dead but for z above a start, with its prior as guide; and log p(x) by quadrature."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(8 * torch.relu(z - start), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))

    x = torch.from_numpy(np.random.default_rng(0).normal(size=100))
    above = np.linspace(0, 8, 8001)
    density = stats.norm.pdf(start + above) * stats.norm.pdf(x.numpy()[:, None] - 8 * above)
    truth = np.log(stats.norm.cdf(start) * stats.norm.pdf(x.numpy()) + np.trapezoid(density, above, axis=1))
    return pv.Pair(model, guide), x, truth


@pytest.mark.parametrize(("start", "k"), [(2.7, 300), (3.0, 300), (2.7, 1000)])
def test_equal_weights_of_a_guide_that_is_not_perfect_are_not_called_reliable(start, k):
    """The few draws that differ were not drawn, or one or two of them: errors of nothing, and of nothing much."""
    pair, x, truth = hinge(start)
    found = [pv.log_likelihood(pair, x, k, seed=s, num_draws=0, compile=False, progress=False) for s in range(8)]
    low, high = (np.concatenate(ends) for ends in zip(*(ll.intervals() for ll in found), strict=True))
    reliable = np.concatenate([ll.verdict == "reliable" for ll in found])
    covered = (low <= np.tile(truth, 8)) & (np.tile(truth, 8) <= high)
    assert (reliable & ~covered).mean() < 0.02
    equal = np.concatenate([ll.khat == -np.inf for ll in found])
    assert equal.any()
    assert not (reliable & equal).any()


def test_equal_weights_of_a_perfect_guide_stay_reliable():
    for dtype in (torch.float32, torch.float64):
        ppca = pv.PPCA(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6), 0.3).to(dtype)
        found = pv.log_likelihood(ppca, ppca.sample(50, seed=0), 300, num_draws=0, compile=False, progress=False)
        assert (found.khat == -np.inf).all()
        assert (found.verdict == "reliable").all()
