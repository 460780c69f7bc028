"""Likelihoods whose support depends on a latent: an exact guide works everywhere, a guide that misses is named."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppl_vae as pv
from tests.statistical import assert_close, assert_estimates, assert_within
from tests.training import train

pytestmark = pytest.mark.usefixtures("float64")

SHAPE, LARGEST = 2.0, 6


def uniform_model(x):
    """t ~ Pareto(1, a) and x uniform on (0, t)."""
    with pyro.plate("data", len(x)):
        t = pyro.sample("t", dist.Pareto(1.0, SHAPE))
        pyro.sample("x", dist.Uniform(0.0, t), obs=x)


def pareto_pair(scale=lambda x: x.clamp_min(1.0), start=SHAPE + 1.0):
    """The posterior of t is Pareto(max(1, x), a + 1)."""

    def guide(x):
        shape = pyro.param("shape", torch.tensor(start), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Pareto(scale(x), shape))

    return pv.Pair(uniform_model, guide)


def log_evidence_of_uniform(x):
    """The integral of a t^-(a + 1) / t over t > max(1, x)."""
    return math.log(SHAPE / (SHAPE + 1)) - (SHAPE + 1) * x.clamp_min(1.0).log()


def count_model(x):
    """n on 0..6 and x of n coins."""
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Categorical(torch.ones(LARGEST + 1)))
        pyro.sample("x", dist.Binomial(n.to(x), 0.3), obs=x)


def joint_of_counts(x):
    """log p(n, x) as (N, 7)."""
    n = torch.arange(LARGEST + 1).to(x)
    log_lik = dist.Binomial(n, 0.3, validate_args=False).log_prob(x[:, None])
    return torch.where(n >= x[:, None], log_lik, -torch.inf) - math.log(LARGEST + 1)


def count_pair(probs=lambda x: joint_of_counts(x).softmax(-1)):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Categorical(probs(x)))

    return pv.Pair(count_model, guide)


UNIFORM_DATA = torch.tensor([0.2, 0.7, 1.5, 3.0, 8.0, 40.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 1.0, 3.0, 6.0, 6.0, 2.0], dtype=torch.float64)


def thinned_pair():
    """n ~ Poisson(4) and x of n with probability 0.3: x ~ Poisson(1.2), and n - x ~ Poisson(2.8) given x."""

    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(4.0))
            pyro.sample("x", dist.Binomial(n, 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            shift = dist.transforms.AffineTransform(x, 1.0)
            pyro.sample("n", dist.TransformedDistribution(dist.Poisson(torch.full_like(x, 2.8)), shift))

    return pv.Pair(model, guide)


@pytest.mark.parametrize(
    ("case", "compile"), [("uniform", False), ("counts", False), ("thinned", False), ("uniform", True)]
)
def test_an_exact_guide_has_equal_weights(case, compile, interpreted):
    """Its support is smaller than that of the prior, by exactly what the datum excludes."""
    pair, x, exact = {
        "uniform": (pareto_pair(), UNIFORM_DATA, log_evidence_of_uniform(UNIFORM_DATA)),
        "counts": (count_pair(), COUNTS, joint_of_counts(COUNTS).logsumexp(-1)),
        "thinned": (thinned_pair(), COUNTS, dist.Poisson(1.2).log_prob(COUNTS)),
    }[case]
    pv.check(pair, x)
    ll = pv.log_likelihood(pair, x, 50, compile=compile, progress=False)
    assert_close(ll.value, exact)
    assert (ll.ess == 50).all()
    assert not ll.zero_weights.any()


def test_the_posterior_is_found_by_training():
    """At the optimum, the shape a + 1, the ELBO of every datum is its log-evidence."""
    pair = pareto_pair(start=1.5)
    objective = pv.ELBO(num_particles=8, gradient="stl")
    result = train(pair, UNIFORM_DATA, epochs=300, batch_size=6, learning_rate=0.02, objective=objective)
    assert_within(pair.param("shape").detach(), SHAPE + 1, absolute=1e-2, reason="300 steps of Adam at 0.02")
    gap = result.history[-1].elbo - float(log_evidence_of_uniform(UNIFORM_DATA).mean())
    assert_within(gap, 0.0, absolute=1e-2, reason="what is left of the noise where the shape is right to 0.01")


def test_draws_under_which_a_datum_is_impossible_are_named_and_count_as_zero():
    """The prior as guide: p-hat is the share of draws that allow the datum, times their density."""
    x = UNIFORM_DATA[:4]
    for use in (lambda p: pv.check(p, x), lambda p: train(p, x)):
        with pytest.raises(pv.PairError, match=r"'x', row \d.*guide draws values.*impossible.*minus infinity"):
            use(pareto_pair(scale=torch.ones_like))
    ll = pv.log_likelihood(pareto_pair(scale=torch.ones_like), x, 40000, progress=False)
    assert ll.zero_weights[0] == 0
    assert ll.zero_weights[3] > 30000
    assert_estimates(ll.value[2:], ll.stderr[2:], log_evidence_of_uniform(x[2:]), effect=0.2)


def test_a_density_that_is_finite_outside_its_support_does_not_count():
    """torch's Pareto gives a number below its scale; the weight there is zero all the same."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(()), 4.0))
            pyro.sample("x", dist.Pareto(z + 1.0, 3.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros(()), 4.0))

    x = torch.tensor([2.0, 3.0])
    exact = torch.log((x**4 - 1) / 4 * 3 * x**-4 / 4)  # the integral of 3 s^3 / (4 x^4) over 1 < s < x
    ll = pv.log_likelihood(pv.Pair(model, guide), x, 20000, progress=False)
    assert ll.zero_weights.min() > 0
    assert_estimates(ll.value, ll.stderr, exact, effect=0.15)


def test_the_data_are_blamed_only_where_no_draw_allows_them():
    x = torch.tensor([0.5, -1.0])
    with pytest.raises(pv.DataError, match=r"'x', row 1.*none of 500 draws of the prior"):
        pv.check(pareto_pair(), x)
    many = torch.full((600,), 0.5)
    many[500] = -1.0
    with pytest.raises(pv.DataError, match="row 500"):
        train(pareto_pair(), many, batch_size=10)
    with pytest.raises(pv.EstimateError, match="row 500: all 20 weights are zero"):
        pv.log_likelihood(pareto_pair(), many, 20, progress=False)


@pytest.mark.parametrize(
    "pair",
    [
        pareto_pair(scale=lambda x: x.clamp_min(1.0) + 0.01),
        count_pair(lambda x: torch.nn.functional.one_hot(torch.full((len(x),), LARGEST), LARGEST + 1).to(x)),
    ],
    ids=["uniform", "counts"],
)
def test_a_guide_that_leaves_out_what_the_datum_allows_is_refused(pair):
    x = torch.tensor([2.0, 3.0])
    for use in (lambda: pv.check(pair, x), lambda: pv.log_likelihood(pair, x, 10, progress=False)):
        with pytest.raises(pv.PairError, match=r"'[tn]'.*every estimate would be biased"):
            use()


def test_a_guide_that_is_too_short_above_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Uniform(x.clamp_min(1.0), 1000.0))

    with pytest.raises(pv.PairError, match=r"'t'.*every estimate would be biased"):
        pv.check(pv.Pair(uniform_model, guide), UNIFORM_DATA)


def test_bounds_of_the_data_alone_are_judged_as_before():
    """A support that depends on a second array, not on a latent: a datum outside is the data's fault."""

    def model(x, top):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Binomial(top, logits=z), obs=x)

    def guide(x, top):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    pair, top = pv.Pair(model, guide), torch.full((4,), 5.0)
    assert not pv.check(pair, (top - 1, top)).layout.bounded
    with pytest.raises(pv.DataError, match="'x', row 2"):
        pv.check(pair, (torch.tensor([1.0, 2.0, 6.0, 0.0]), top))
