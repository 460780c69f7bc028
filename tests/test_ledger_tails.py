"""The ledger where a latent has no mean, or a guide has tails so heavy that the ELBO is minus infinity."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_vae as pv
from ppl_vae.pareto import has_no_error, largest_deviations

pytestmark = pytest.mark.usefixtures("float64")

DATA = np.random.default_rng(0).normal(size=(40, 2))[:, 0]


@pytest.mark.parametrize("num_data", [1, 70])  # of the second block alone, where some data have a mean
def test_latents_without_a_mean_have_no_active_units(num_data: int):
    """torch says NaN of Cauchy, and infinity of Pareto: the ledger was found and could not be printed."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Cauchy(torch.zeros(len(x)), 1.0))
            y = pyro.sample("y", dist.Pareto(torch.ones(len(x)), 0.8))
            pyro.sample("x", dist.StudentT(3.0, z + y.log(), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Cauchy(x, 1.0))
            pyro.sample("y", dist.Pareto(torch.ones(len(x)), torch.where(x < 1, 2.0, 0.9)))

    x = torch.zeros(num_data)
    x[-1] = 2.0
    found = pv.ledger(pv.Pair(model, guide), x, progress=False)
    assert [(latent.means, latent.noise, latent.active) for latent in found.latents] == [(None, None, None)] * 2
    assert "latent 'y': 1 scalar; KL" in str(found)


def guided_by_t(df: float) -> pv.Pair:
    """z ~ N(0, 1), x ~ N(z, 1/2), and a guide whose tails are those of t: E z^2 is infinite up to df = 2."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(torch.full((len(x),), df), 0.8 * x, 0.4))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("num_samples", [16, 256])
def test_an_elbo_that_is_minus_infinity_has_no_error(num_samples: int):
    found = pv.ledger(guided_by_t(1.5), DATA, num_samples, num_aggregate=0, progress=False)
    assert found.elbo.mean_stderr == found.elbo.population_stderr == math.inf
    assert "± inf" in str(found)
    assert "may be -inf" in str(found)
    assert "bits per dimension" not in str(found)


@pytest.mark.parametrize("df", [10.0, 1000.0])
@pytest.mark.parametrize("num_samples", [3, 16, 256])
def test_an_elbo_that_is_finite_has_an_error(df: float, num_samples: int):
    found = pv.ledger(guided_by_t(df), DATA, num_samples, num_aggregate=0, progress=False)
    assert found.elbo.population_stderr < math.inf
    assert "inf" not in str(found)


def squares_of_t(df: float):
    return lambda rng, shape: rng.standard_t(df, shape) ** 2 / 2


def nearly_equal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) * np.where(rng.random(shape) < 0.03, 1, 1e-3)


def distance_of_angles(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Bounded; some of the data are where it has its minimum, and draws of those hardly move."""
    return 2 * (rng.normal(size=shape[1]) - np.cos(rng.vonmises(np.pi, 5.0, shape))) ** 2


@pytest.mark.parametrize(
    ("draw", "num_data", "least", "most"),
    [
        (squares_of_t(2), 300, 0.6, 1.0),
        (squares_of_t(2), 3000, 0.7, 1.0),
        (lambda rng, shape: rng.standard_cauchy(shape), 1000, 0.7, 1.0),
        (squares_of_t(3), 3000, 0.3, 1.0),
        (squares_of_t(4.5), 1000, 0.0, 0.1),
        (lambda rng, shape: np.exp(rng.normal(size=shape)), 1000, 0.0, 0.1),
        (nearly_equal, 300, 0.0, 0.2),
        (distance_of_angles, 1000, 0.0, 0.05),
        (lambda rng, shape: rng.normal(size=shape) ** 4, 1000, 0.0, 0.05),
    ],
    ids=["t2 of 300", "t2", "Cauchy", "t3", "t4.5", "lognormal", "nearly equal", "angles", "fourth power"],
)
def test_how_often_heavy_tails_are_seen(draw, num_data: int, least: float, most: float):
    """Half of the shapes above 1/2 were missed, and the more data, the more."""
    rngs = [np.random.default_rng([num_data, seed]) for seed in range(20)]
    seen = [has_no_error(largest_deviations(draw(rng, (16, num_data))), 16) for rng in rngs]
    assert least <= np.mean(seen) <= most


def test_heavy_tails_of_few_draws_of_many_data_are_seen():
    """Of less than ten draws each nothing was said."""
    shape, rngs = (4, 1000), [np.random.default_rng(seed) for seed in range(20)]
    for draw, least, most in ((squares_of_t(2), 0.7, 1.0), (lambda rng, shape: rng.normal(size=shape) ** 2, 0.0, 0.05)):
        seen = [has_no_error(largest_deviations(draw(rng, shape)), 4) for rng in rngs]
        assert least <= np.mean(seen) <= most
