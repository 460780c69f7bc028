"""Pairs at the edge of what can be estimated: every error is typed, and names the site."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import ppl_vae as pv
from ppl_vae.evaluation.refining import _root
from tests.pairs import small_ppca
from tests.running import refined_block
from tests.statistical import assert_close, assert_within

NONE_THERE = (
    r"row \d+: expected finite log-weights, found nan at draw \d+: the density of site 'x' of the model is none there"
)


def undefined() -> pv.Pair:
    """x ~ N(z, 1), but where z is above 2.5, and there is no such density."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = torch.where(z > 2.5, torch.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("estimate", [pv.log_likelihood, pv.k_curve, pv.posterior_predictive])
def test_the_site_of_a_density_that_is_none_is_named(estimate):
    with pytest.raises(pv.EstimateError, match=NONE_THERE):
        estimate(undefined(), torch.zeros(8), 1024, progress=False)


def test_quadrature_names_what_is_no_density():
    with pytest.raises(pv.EstimateError, match=r"row 0: expected a log-density at all latents.*found nan.*site 'x'"):
        pv.log_evidence(undefined(), torch.zeros(2), progress=False)


def test_a_latent_of_no_numbers_is_refused():
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(0), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(0), 1.0).to_event(1).expand([len(x)]))

    pair, x = pv.Pair(model, guide), torch.zeros(5)
    for estimate in (pv.log_likelihood, pv.log_evidence, pv.calibrate, pv.posterior_predictive):
        with pytest.raises(
            pv.PairError, match=r"site 'z': expected a latent of at least one number, found shape \(5, 0\)"
        ):
            estimate(pair, x, progress=False)


def in_bfloat16() -> pv.Pair:
    """A type that NumPy does not have."""
    one = torch.ones((), dtype=torch.bfloat16)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * one, one))
            pyro.sample("x", dist.Normal(z, one), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, one))

    return pv.Pair(model, guide)


@pytest.mark.filterwarnings("ignore:draws of .* unreliable")
def test_results_of_bfloat16_are_arrays():
    pair, x = in_bfloat16(), torch.linspace(-1, 1, 6).bfloat16()
    ll = pv.log_likelihood(pair, x, 100, num_draws=3, compile=False, progress=False)
    made = pv.posterior_predictive(pair, x, 3, num_samples=100, progress=False)
    both = pv.bidirectional_monte_carlo(pair, x, pv.Annealing(2, 3, 1), progress=False)
    for array in (ll.posterior["z"], made.posterior["z"], made.predictive["x"], made.observed["x"], both.x[0]):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert_close(made.observed["x"], x.float(), torch.float32)


def test_a_datum_that_lacks_numbers_is_told_what_a_mask_needs():
    """A mask beside NaN, used in both programs, was told to pass a mask and use it in both programs."""
    x = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    with pytest.raises(pv.DataError, match=r"row 1: .*NaN.*a number in the place of what is missing, pass a mask"):
        pv.log_likelihood(small_ppca(), (x, x.isfinite()), 20, progress=False)


def test_booleans_are_refused_where_a_density_cannot_take_them():
    x = torch.tensor([[True, False, True, True]])
    with pytest.raises(pv.DataError, match=r"site 'x': expected real numbers for Normal, found bool; pass x.float\(\)"):
        pv.log_likelihood(small_ppca(), x, 20, progress=False)


def scored_by(kind: type[dist.Distribution]) -> pv.Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", kind(z.unsqueeze(-1).sigmoid().expand(*z.shape, 3)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        width = pyro.param("width", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), width))

    return pv.Pair(model, guide)


EVALUATIONS = [
    pv.check,
    lambda pair, x: pv.log_likelihood(pair, x, 10, progress=False),
    lambda pair, x: pv.calibrate(pair, x, 10, 9, progress=False),
    lambda pair, x: pv.fit(pair, x, steps=1, progress=False, compile=False),
]


@pytest.mark.parametrize("evaluate", EVALUATIONS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_are_refused_where_torch_does_not_score_them(evaluate, dtype: torch.dtype):
    found = str(dtype).removeprefix("torch.")
    with pytest.raises(pv.DataError, match=rf"site 'x': .* for Bernoulli, found {found}; pass x.float\(\)"):
        evaluate(scored_by(dist.Bernoulli), torch.ones(6, 3, dtype=dtype))


def test_held_out_whole_numbers_are_refused_as_such():
    x = torch.ones(6, 3)
    with pytest.raises(pv.DataError, match="validation data: the pair does not take them: site 'x': log_prob of"):
        pv.fit(scored_by(dist.Bernoulli), x, steps=1, validation=x.long(), progress=False, compile=False)


class NoDensity(dist.Bernoulli):
    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("not yet")


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_what_a_density_raises_is_named(evaluate):
    with pytest.raises(pv.PairError, match="site 'x': log_prob of NoDensity, failed: NotImplementedError: not yet"):
        evaluate(scored_by(NoDensity), torch.ones(6, 3))


def test_a_covariance_without_a_root_grows_until_it_has_one():
    singular = torch.ones(2, 2, dtype=torch.float64).expand(3, 2, 2).clone()
    singular[1] = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    singular[2, 1, 1] = 1 - 1e-6
    root = _root(singular)
    assert bool((root.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert_close(root[1], torch.linalg.cholesky(singular[1]))
    assert_within(root @ root.mT, singular, absolute=1e-5, reason="how far the diagonal has to grow")


def test_a_posterior_narrow_in_single_precision_is_refined():
    """x = z1 - z2 + e of size 1e-4: a ridge; log p(x) is that of N(0, 2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] - z[..., 1], torch.tensor(1e-4)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            root = torch.tensor([[0.5, 0.0], [0.5, 3e-5]])
            pyro.sample("z", dist.MultivariateNormal(torch.stack([x / 2, -x / 2], -1), scale_tril=root))

    pair, x = pv.Pair(model, guide), torch.randn(5, generator=torch.Generator().manual_seed(0))
    found = refined_block(pair, x, 512)
    assert_within(
        found.summary.value, stats.norm.logpdf(x, 0, math.sqrt(2)), absolute=1.0, reason="estimates of a ridge"
    )
