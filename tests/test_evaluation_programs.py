"""Programs as they come, evaluated: that cannot broadcast, with bounds in tensors, with values that differ by row."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.pair import as_pair
from ppl_vae.terms import run
from tests.chains import path_of
from tests.statistical import assert_close, assert_estimates, assert_within

X = torch.tensor([[1.0, 2.0], [2.5, 0.5], [0.2, 2.8]], dtype=torch.float64)


def shares(dim: int) -> pv.Pair:
    """x ~ N(3 softmax(z), 1/2): with `dim` 1 the softmax is over the data where particles come first."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(3 * z.softmax(dim), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    return pv.Pair(model, guide)


def length(dim: int) -> pv.Pair:
    """x ~ N(|z|, 1/2) with one number z, whose length is along `dim`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square().sum(dim), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))

    return pv.Pair(model, guide)


# Programs that cannot broadcast


def test_chains_of_programs_that_cannot_broadcast_run_one_after_another():
    """Densities of chains at once and one by one are the same; a plate took the softmax over the data."""
    alone, together = (path_of(shares(dim), X, 3) for dim in (1, -1))
    with torch.no_grad():
        points = together.draw()
        for one, two in zip(alone.ends(points), together.ends(points), strict=True):
            assert_close(one, two)
        assert alone.draw()["z"].shape == points["z"].shape
    assert [check(shares(dim), X).layout.vectorized for dim in (1, -1)] == [False, True]
    found = pv.bidirectional_monte_carlo(shares(1), X, pv.Annealing(2, 1, 1), progress=False)
    assert np.isfinite(found.upper - found.lower).all()


def test_quadrature_of_programs_that_cannot_broadcast():
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert not check(length(1), x).layout.vectorized
    assert_within(
        pv.log_evidence(length(1), x, progress=False),
        pv.log_evidence(length(-1), x, progress=False),
        absolute=1e-6,
        reason="two rules agree to 1e-4 at least",
    )


def test_values_are_not_summed_where_programs_cannot_broadcast():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5).double()))
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square().sum(1) + c, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))

    for estimate in (pv.log_evidence, pv.annealed_importance_sampling):
        with pytest.raises(pv.PairError, match=r"site 'c': expected programs that take a leading.*use log_likelihood"):
            estimate(pv.Pair(model, guide), torch.ones(2).double(), progress=False)


# Bounds in tensors


def between(low, high) -> pv.Pair:
    """z ~ Uniform(low(x), high(x)), x ~ N(z, 1/2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(low(x), high(x)))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(low(x), high(x)))

    return pv.Pair(model, guide)


def test_bounds_that_are_the_same_at_every_row_do_not_move():
    """They are tensors with an entry for each row, as `zeros_like` makes them."""
    x = torch.tensor([0.2, 0.9], dtype=torch.float64)
    pair = between(torch.zeros_like, torch.ones_like)
    exact = np.log(stats.norm.cdf((1 - x) / 0.5) - stats.norm.cdf(-x / 0.5))
    found = pv.log_evidence(pair, x, progress=False)
    assert_within(found, exact, absolute=1e-5, reason="the tolerance of quadrature")
    ll = pv.log_likelihood(pair, x, 500, progress=False)
    assert_estimates(ll.value, ll.stderr, exact, effect=0.5)
    assert np.isfinite(ll.unseen).all()
    with pytest.raises(pv.PairError, match=r"site 'z': expected a support that is the same whatever the datum"):
        pv.log_evidence(between(torch.zeros_like, lambda x: 1 + x), x, progress=False)


def test_a_bound_that_depends_on_a_latent_is_seen_in_a_single_row():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.full_like(x, 2.0), 1.0))
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), top))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.full_like(x, 2.0), 1.0))
            pyro.sample("z", dist.Uniform(torch.zeros_like(x), top))

    with pytest.raises(pv.PairError, match="site 'z': expected a support that is the same"):
        path_of(pv.Pair(model, guide), torch.ones(1).double(), 1)


# Discrete latents


def counts(x, n):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Binomial(n, torch.full_like(x, 0.5)))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def guessed(x, n):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Binomial(n, torch.full_like(x, 0.5)))


def test_values_that_later_rows_have_more_of_are_not_left_out():
    """The first rows count to 5, the others to 10: their data came out 4 nats too low, with an error of 0."""
    x, n = torch.full((24,), 8.0).double(), torch.tensor([5.0] * 16 + [10.0] * 8).double()
    pair = pv.Pair(counts, guessed)
    many = np.arange(11)
    exact = np.log((stats.binom.pmf(many, 10, 0.5) * stats.norm.pdf(8, many, 1)).sum())
    found = pv.log_likelihood(pair, (x, n), 2000, progress=False)
    assert_estimates(found.value[16:], found.stderr[16:], exact, effect=1.0)
    assert (found.stderr > 0).all()
    assert_close(pv.log_likelihood(pair, (x[16:], n[16:]), 20, progress=False).value, np.full(8, exact))
    with pytest.raises(pv.PairError, match=r"site 'c': .*more at some rows than at others: use log_likelihood"):
        pv.log_evidence(pair, (x, n), progress=False)
    layout = check(pair, (x[:16], n[:16])).layout
    for rows, found in ((slice(16, 24), "found 11"), (slice(12, 20), "found numbers that differ")):
        with pytest.raises(pv.PairError, match=rf"site 'c': expected 6 values to go through.*{found}"):
            run(as_pair(pair), (x[rows], n[rows]), 1, layout, enumerate_discrete=True)


def test_a_binary_code_is_refused_with_what_would_serve():
    def model(x):
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", dist.Bernoulli(x.new_full((3,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(code.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Bernoulli(x.new_full((len(x), 3), 0.5)).to_event(1))

    for estimate in (pv.log_evidence, pv.annealed_importance_sampling):
        with pytest.raises(pv.PairError, match=r"site 'code': .*found a Bernoulli of several numbers.*one Categorical"):
            estimate(pv.Pair(model, guide), torch.ones(2).double(), progress=False)


# Masks and types


def test_quadrature_refuses_a_masked_latent_by_name():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).mask(x > 0))
            pyro.sample("x", dist.Normal(z, 0.5).mask(x > 0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5).mask(x > 0))

    with pytest.raises(pv.PairError, match=r"site 'z': expected a latent without a mask.*use log_likelihood"):
        pv.log_evidence(pv.Pair(model, guide), torch.tensor([1.0, -1.0]).double(), progress=False)


@pytest.mark.parametrize("simulate", [pv.bidirectional_monte_carlo, pv.calibrate])
def test_simulated_data_are_not_cut_off(simulate):
    """Written into whole numbers they are no draws of the model: an "upper bound" was 0.2 nats below log p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.float(), 0.2))

    with pytest.raises(pv.PairError, match=r"site 'x': expected data of a type.*found int64 and a draw of.*x\.float"):
        simulate(pv.Pair(model, guide), torch.tensor([0, 1, 2]), progress=False)


def test_whole_numbers_that_are_drawn_are_data_of_whole_numbers():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(x + 2.0, 2.0))

    found = pv.bidirectional_monte_carlo(pv.Pair(model, guide), torch.arange(3), pv.Annealing(2, 1, 1), progress=False)
    assert found.x[0].dtype == np.int64


class Dumb(dist.Normal):
    """A distribution without a sampler."""

    has_rsample = False

    def sample(self, sample_shape=()):
        raise NotImplementedError


def test_a_sampler_that_fails_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", Dumb(z, 0.2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.2))

    with pytest.raises(pv.PairError, match=r"site 'x': .*that can be sampled.*NotImplementedError.*log_likelihood and"):
        pv.calibrate(pv.Pair(model, guide), torch.ones(3), 10, 9, progress=False)


def test_bits_are_of_what_is_observed():
    """One of four pixels that counts is one dimension; where their number differs among data there is none."""

    def masked(keep) -> pv.Pair:
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).expand([len(x), 4]).mask(keep(x)).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :1] / 2, 1.0).to_event(1))

        return pv.Pair(model, guide)

    x = torch.ones(20, 4)
    ll = pv.log_likelihood(masked(lambda x: torch.arange(4) < 1), x, 20, progress=False)
    assert ll.num_dimensions == 1
    assert_close(ll.bits_per_dimension(), -ll.mean / np.log(2))
    x[18, 2] = 0.0  # later than the rows that a pair is checked on first
    ll = pv.log_likelihood(masked(lambda x: x > 0), x, 20, progress=False)
    with pytest.raises(pv.EstimateError, match="bits per dimension: expected as many observed numbers"):
        ll.bits_per_dimension()
    assert ll.bits_per_dimension(4) > 0
    found = pv.ledger(masked(lambda x: x > 0), x, 20, num_aggregate=0, progress=False)
    assert "bits" not in str(found)
