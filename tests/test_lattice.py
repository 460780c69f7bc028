"""Draws closer together than numbers of their type: no number that rests on them is called good."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae.evaluation import lattice
from tests.statistical import assert_close

DOUBLE = torch.float64


def large(size: float, width: float, dtype: torch.dtype) -> pv.Pair:
    """z ~ N(0, size), x ~ N(z, 1/2) four times, with the posterior's mean and so many times its width as guide."""
    spread = (1 / size**2 + 4 / 0.25) ** -0.5

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0, dtype=dtype), size))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 4), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(-1) * spread**2 / 0.25, torch.tensor(width * spread, dtype=dtype)))

    return pv.Pair(model, guide)


def drawn(size: float, dtype: torch.dtype, n: int = 60) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(0, size, (n, 1)) + rng.normal(0, 0.5, (n, 4)), dtype=dtype)


def log_prob(x: torch.Tensor, size: float) -> np.ndarray:
    """From the mean of the four, and how far they are from it: nothing large is subtracted."""
    x = x.double().numpy().astype(np.longdouble)
    mean = x.mean(1)
    apart, mean = (x - mean[:, None]).astype(float), mean.astype(float)
    inside = stats.norm.logpdf(apart, 0, 0.5).sum(1) - stats.norm.logpdf(0, 0, 0.25)
    return inside + stats.norm.logpdf(mean, 0, np.hypot(size, 0.25))


@pytest.mark.parametrize("width", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("size", "dtype"), [(1e7, torch.float32), (1e9, torch.float32), (1e16, DOUBLE)])
def test_estimates_on_a_lattice_are_not_trusted_beyond_their_errors(size: float, dtype: torch.dtype, width: float):
    """All were reliable, with an error of 0 and up to 8,000 nats off: draws of a datum were equal, or two or three."""
    x = drawn(size, dtype)
    ll = pv.log_likelihood(large(size, width, dtype), x, 500, progress=False)
    off = np.abs(ll.value - log_prob(x, size))
    assert off.max() > 0.05
    assert (off <= 4 * ll.stderr)[ll.trusted].all()
    assert ll.rounded.mean() > 0.2
    assert ll.interval() == (-np.inf, np.inf)
    assert "to the same few numbers" in str(ll)


@pytest.mark.parametrize(("size", "dtype"), [(1.0, torch.float32), (1e4, torch.float32), (1e13, DOUBLE)])
def test_latents_that_their_type_holds_are_as_good_as_ever(size: float, dtype: torch.dtype):
    x = drawn(size, dtype)
    ll = pv.log_likelihood(large(size, 1.3, dtype), x, 500, progress=False)
    assert (ll.verdict == "reliable").all()
    assert ll.rounding.max() < 1e-3
    assert not ll.rounded.any()


def test_parts_of_a_gap_on_a_lattice_have_no_ends():
    """Those of the guide alone: the best q is wide enough."""
    x, pair = drawn(1e5, torch.float32, 8), large(1e5, 0.03, torch.float32)
    found = pv.gap_decomposition(pair, x, 200, exact=True, search=pv.LocalSearch(100, 2, 64), progress=False)
    assert found.rounded.any()
    assert found.interval("elbo") == (-np.inf, np.inf)
    assert found.interval("amortisation") == (0.0, np.inf)


@pytest.mark.parametrize(("size", "dtype"), [(1e7, torch.float32), (1e9, torch.float32), (1e16, DOUBLE)])
def test_quadrature_on_a_lattice_is_refused(size: float, dtype: torch.dtype):
    """It was up to 6 nats off without a word."""
    with pytest.raises(
        pv.EstimateError, match=r"row \d+: expected p\(x, z\) to be wider than numbers of .* smaller numbers"
    ):
        pv.log_evidence(large(size, 1.3, dtype), drawn(size, dtype), progress=False)


@pytest.mark.parametrize(("size", "dtype"), [(1e5, torch.float32), (1e8, DOUBLE)])
def test_quadrature_of_what_their_type_holds_is_right(size: float, dtype: torch.dtype):
    x = drawn(size, dtype)
    found = pv.log_evidence(large(size, 1.3, dtype), x, progress=False)
    assert np.abs(found - log_prob(x, size)).max() < 0.01  # what differences of such numbers hold


def test_the_spacing_is_in_units_of_the_spread():
    wide = torch.tensor([[0.0], [1.0], [2.0]])
    assert_close(lattice.spacings(wide), torch.tensor([2.0**-22]), dtype=DOUBLE)
    assert_close(lattice.spacings(1e8 + 8 * wide), torch.tensor([1.0]), dtype=DOUBLE)
    assert_close(lattice.spacings(torch.full((3, 1), 1e8)), torch.tensor([10.0]), dtype=DOUBLE)


def test_cells_of_a_lattice_weigh_what_the_estimate_of_their_rounding_says():
    """Root mean square of log [share of a cell / (width x density at its middle)], at the middles that are drawn."""
    for ratio in (0.2, 0.5):
        middle = ratio * np.arange(-60, 61)
        share = stats.norm.cdf(middle + ratio / 2) - stats.norm.cdf(middle - ratio / 2)
        far = np.abs(middle) < 4
        off = np.log(share[far] / (ratio * stats.norm.pdf(middle[far])))
        rms = np.sqrt((share[far] * off**2).sum())
        assert rms == pytest.approx(lattice._OF_A_CELL * ratio**2, rel=0.1)


@pytest.mark.parametrize(
    ("support", "varies"),
    [
        (constraints.real, True),
        (constraints.independent(constraints.real, 1), True),
        (constraints.positive, True),
        (constraints.boolean, False),
        (constraints.simplex, False),
        (constraints.corr_cholesky, False),
    ],
    ids=str,
)
def test_numbers_that_stay_are_not_looked_at(support: constraints.Constraint, varies: bool):
    assert lattice._varies(support) == varies
