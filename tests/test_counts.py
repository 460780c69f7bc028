"""Counts whose log-probability torch loses to rounding: a caution of the checker, an error of an evaluation."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from tests.statistical import assert_within

LARGE = [3e3, 1e4, 1e6]


def count_pair(make, to_event=0):
    """x ~ make(log mean) with a guide near the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 10.0))
            loc = z.unsqueeze(-1) if to_event else z
            pyro.sample("x", make(loc).to_event(to_event), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            first = x[:, 0] if to_event else x
            width = pyro.param("width", x.new_tensor(1.1))
            pyro.sample("z", dist.Normal((first + 0.5).log(), width / (first + 1).sqrt()))

    return pv.Pair(model, guide)


def poisson(z):
    return dist.Poisson(z.exp())


def binomial(z):
    return dist.Binomial(torch.full_like(z, 2e6), logits=z - 14)


def negative_binomial(z):
    return dist.NegativeBinomial(torch.full_like(z, 1e3), logits=z - 7)


def shares(z):
    return dist.Multinomial(1_000_000, logits=torch.stack([z, -z], -1))


@pytest.mark.parametrize("evaluate", [pv.log_likelihood, pv.log_evidence])
def test_an_evaluation_names_the_row(evaluate):
    x = torch.tensor([3e3] * 300 + [1e6, 1e4])
    with pytest.raises(pv.DataError, match=r"row 300: site 'x': .*torch's Poisson .*ppl_vae.distributions.Poisson"):
        evaluate(count_pair(poisson), x, progress=False)


@pytest.mark.parametrize("make", [poisson, binomial, negative_binomial])
@pytest.mark.parametrize("to_event", [0, 1])
def test_the_checker_cautions(make, to_event):
    x = torch.tensor(LARGE)
    found = pv.check(count_pair(make, to_event), x.unsqueeze(-1) if to_event else x)
    assert len(found.cautions) == 1
    assert "double precision" in found.cautions[0]
    assert found.cautions[0] in found.notes


def test_a_fit_warns():
    with pytest.warns(UserWarning, match="torch's Poisson"):
        pv.fit(count_pair(poisson), torch.tensor(LARGE), steps=1, progress=False, compile=False)


def test_counts_that_share_a_total():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", shares(z.expand(len(x))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    x = torch.tensor([[4e5, 6e5]]).expand(3, 2)
    assert "torch's Multinomial" in pv.check(pv.Pair(model, guide), x).cautions[0]


def zero_inflated(z):
    return dist.ZeroInflatedPoisson(z.exp(), gate=torch.tensor(0.3))


def zero_inflated_negative_binomial(z):
    return dist.ZeroInflatedNegativeBinomial(torch.tensor(1e3), logits=z - 7, gate=torch.tensor(0.3))


def mixture(z, kind=dist.Poisson):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), kind(torch.stack([z, z + 1e-3], -1).exp()))


@pytest.mark.parametrize("make", [zero_inflated, zero_inflated_negative_binomial, mixture])
def test_counts_under_another_name(make):
    pair, x = count_pair(make), torch.tensor([1e4, 1e6])
    assert len(pv.check(pair, x).cautions) == 1
    with pytest.raises(pv.DataError, match="row 1: site 'x'"):
        pv.log_likelihood(pair, x, 20, progress=False)


def test_equal_rates_round_alike():
    """Counts of 850, of which each errs by less than a thousandth of a nat: all 784 by more than a tenth."""
    x = torch.poisson(torch.full((20, 784), 850.0), generator=torch.Generator().manual_seed(0))
    pair = count_pair(lambda loc: dist.Poisson(loc.exp().expand(-1, 784)), to_event=1)
    assert "errs by as much as 0." in pv.check(pair, x).cautions[0]
    with pytest.raises(pv.DataError, match="torch's Poisson"):
        pv.log_likelihood(pair, x, 20, progress=False)
    few = count_pair(lambda loc: dist.Poisson(loc.exp().expand(-1, 4)), to_event=1)
    assert pv.check(few, x[:, :4]).cautions == ()


@pytest.mark.parametrize("kind", ["handler", "distribution"])
def test_what_a_mask_takes_away_is_not_judged(kind):
    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            if kind == "handler":
                with pyro.poutine.mask(mask=seen):
                    pyro.sample("x", dist.Poisson(z.exp()), obs=x)
            else:
                pyro.sample("x", dist.Poisson(z.exp()).mask(seen), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    x = torch.tensor([2.0, 1e6, 3.0])
    pair = pv.Pair(model, guide)
    assert pv.check(pair, (x, x < 10)).cautions == ()
    pv.log_likelihood(pair, (x, x < 10), 20, progress=False)
    assert len(pv.check(pair, (x, x > 0)).cautions) == 1


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (poisson, torch.tensor([3e3, 1e4])),
        (poisson, torch.tensor(LARGE, dtype=torch.float64)),
        (lambda z: pv.distributions.Poisson(z.exp()), torch.tensor(LARGE)),
        (lambda z: mixture(z, pv.distributions.Poisson), torch.tensor(LARGE)),
        (negative_binomial, torch.tensor([3e3, 1e4])),
    ],
    ids=["small counts", "double precision", "our Poisson", "mixture of ours", "small counts, negative binomial"],
)
def test_what_is_computed_well_is_evaluated(make, x):
    pair = count_pair(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pv.check(pair, x).cautions == ()
    pv.log_likelihood(pair, x, 20, progress=False)


def test_what_is_allowed_errs_by_as_little():
    x = torch.arange(1e3, 1.7e4, 250)
    error = dist.Poisson(x * 1.001).log_prob(x).double() - torch.as_tensor(stats.poisson.logpmf(x, x.double() * 1.001))
    assert_within(error, torch.zeros(len(x)).double(), absolute=0.02, reason="what is not refused errs by no more")
