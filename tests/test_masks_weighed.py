"""Masked latents in evaluations: no ratio of densities, so that nothing of them is outside, unseen or at an edge."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_vae as pv
from tests.statistical import assert_close, assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def sample(name: str, fn: dist.TorchDistribution, mask: Tensor, kind: str) -> Tensor:
    """A latent masked by a handler or by its distribution."""
    if kind == "distribution":
        return pyro.sample(name, fn.mask(mask))
    with pyro.poutine.mask(mask=mask):
        return pyro.sample(name, fn)


@pytest.mark.parametrize("kind", ["handler", "distribution"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_masked_number_outside_the_support_is_no_sample_of_weight_zero(kind: str, compile: bool, interpreted: None):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = sample("z", dist.Exponential(torch.ones(len(x))), x > 0, kind)
            pyro.sample("x", dist.Normal(torch.where(x > 0, z, 0.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            sample("z", dist.Normal(torch.ones(len(x)), 1.0), x > 0, kind)

    x = torch.tensor([-1.0, -0.5, 0.5, 2.0])
    found = pv.log_likelihood(pv.Pair(model, guide), x, 500, compile=compile, progress=False)
    assert_close(found.value[:2], dist.Normal(0.0, 1.0).log_prob(x[:2]))
    assert (found.zero_weights > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("num", [1, 3])
def test_within_an_event_those_count_that_are_not_masked(num: int):
    """Of a vector the first number is masked, where the guide leaves the support."""
    counts = torch.arange(num + 1) > 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones(len(x), num + 1)).mask(counts).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1:].sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = torch.cat([torch.full((len(x), 1), -5.0), torch.full((len(x), num), 9.0)], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).mask(counts).to_event(1))

    found = pv.log_likelihood(pv.Pair(model, guide), torch.linspace(1.0, 2.0, 3), 200, progress=False)
    assert not found.zero_weights.any()


def beside(kind: str, num: int):
    """A narrow guide of a latent, and masked ones beside it where `num` is not 0."""

    def both(x: Tensor, mask: Tensor, z: dist.TorchDistribution) -> Tensor:
        with pyro.plate("data", len(x)):
            if num:
                sample("y", dist.Gamma(torch.full((len(x), num), 2.0), 1.0).to_event(1), mask, kind)
            return pyro.sample("z", z)

    def model(x: Tensor, mask: Tensor) -> None:
        z = both(x, mask, dist.Normal(torch.zeros(len(x)), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        both(x, mask, dist.Normal(x / 2, 0.3))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("kind", ["handler", "distribution"])
@pytest.mark.parametrize("num", [1, 3])
def test_masked_numbers_hide_nothing(kind: str, num: int):
    x = torch.linspace(-2, 2, 60)
    options = {"num_probes": 1000, "compile": False, "progress": False}
    alone = pv.log_likelihood(beside(kind, 0), (x, x > 9), 1000, **options)
    found = pv.log_likelihood(beside(kind, num), (x, x > 9), 1000, **options)
    assert alone.unseen.mean() > 0.1
    assert_mean(found.unseen - alone.unseen, 0.0, effect=0.06)


def test_masked_numbers_are_at_no_edge():
    x = torch.linspace(-2, 2, 40, dtype=torch.float32)

    def both(x: Tensor, mask: Tensor, z: dist.TorchDistribution) -> Tensor:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Beta(torch.full_like(x, 0.3), torch.full_like(x, 0.04)).mask(mask))
            return pyro.sample("z", z)

    def model(x: Tensor, mask: Tensor) -> None:
        z = both(x, mask, dist.Normal(torch.zeros_like(x), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        both(x, mask, dist.Normal(x / 2, 0.8))

    found = pv.log_likelihood(pv.Pair(model, guide), (x, x > 0), 500, progress=False)
    np.testing.assert_array_equal(found.rounded, x > 0)


@pytest.mark.parametrize("kind", ["handler", "distribution", "within"])
def test_a_masked_latent_is_whole_and_has_no_means_in_the_ledger(kind: str):
    """A scalar that is masked was said to be active, and to say nothing of x."""

    def masked_sample(fn: dist.TorchDistribution, x: Tensor) -> Tensor:
        if kind == "within":
            return pyro.sample("z", fn.mask(torch.tensor([True, False])).to_event(1))
        return sample("z", fn.to_event(1), x[:, 0] > 0, kind)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            masked_sample(dist.Normal(torch.zeros(len(x), 2), 1.0), x)
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            masked_sample(dist.Normal(5 * x, 1.0), x)

    x = torch.randn(40, 2)
    found = pv.ledger(pv.Pair(model, guide), x, num_aggregate=0, progress=False)
    (latent,) = found.latents
    assert latent.means is None
    assert latent.form == "whole"
    assert str(latent).startswith("latent 'z': 2 scalars; KL ")
    counts = torch.tensor([True, False]) if kind == "within" else x[:, :1] > 0
    assert_close(latent.kl.sum(1), (12.5 * x.square() * counts).sum(1))
    assert_close(found.rate.value, latent.kl.sum(1))
