"""The exact evidence where a mode lies beyond a valley: against closed forms."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from tests.statistical import assert_within


def evidence(pair, x):
    return pv.log_evidence(pair, x, progress=False)


def seen_from(prior, guide_scale: float | None = None) -> pv.Pair:
    """z of a prior, x ~ N(z, 5); the guide is the prior, or lies around x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            pyro.sample("x", dist.Normal(z, 5.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, guide_scale).to_event(1) if guide_scale else prior(x))

    return pv.Pair(model, guide)


def rare_component(far: torch.Tensor, scale: float, rare: float, guide_scale: float | None):
    """A pair with z ~ rare N(far, scale) + (1 - rare) N(0, 1), see `seen_from`; data; log p(x)."""
    zero = torch.zeros_like(far)
    weights, scales = far.new_tensor([rare, 1 - rare]), far.new_tensor([scale, 1.0])

    def prior(x):
        parts = dist.Normal(torch.stack([far, zero]), scales[:, None]).to_event(1).expand([len(x), 2])
        return dist.MixtureSameFamily(dist.Categorical(weights.expand(len(x), 2)), parts)

    x = torch.stack([far, zero, far + 2])
    by_part = [dist.Normal(at, np.hypot(5, s)).log_prob(x).sum(-1) for at, s in ((far, scale), (zero, 1.0))]
    return seen_from(prior, guide_scale), x, torch.logaddexp(np.log(rare) + by_part[0], np.log1p(-rare) + by_part[1])


@pytest.mark.parametrize("guide_scale", [None, 1.0])
@pytest.mark.parametrize("rare", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("far", "scale"), [((-50.0,), 1.0), ((-1000.0,), 1.0), ((20.0,), 0.01), ((-1000.0,), 0.01), ((-50.0, 20.0), 0.1)]
)
def test_a_rare_component_of_the_prior_is_not_lost(far, scale: float, rare: float, guide_scale):
    """A smooth mode beyond a valley: it was up to 19,000 nats too low."""
    pair, x, exact = rare_component(torch.tensor(far, dtype=torch.float64), scale, rare, guide_scale)
    assert_within(evidence(pair, x), exact, absolute=1e-4, reason="the tolerance of quadrature")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("far", "scale"), [(-50.0, 1.0), (1000.0, 0.1), (-300.0, 0.02)])
def test_a_mode_that_nothing_but_its_slope_leads_to_is_climbed(far: float, scale: float, dtype):
    """p(z) = N(0, 1) + 1e-4 N(far, scale), of which no draw of prior or guide knows; NaN, or an error, farther out."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            if far == -50.0 and z.abs().max() > 1e3:
                raise ArithmeticError("too far out")
            other = dist.Normal(x.new_tensor(far), scale).log_prob(z) + np.log(1e-4)
            rule = torch.logaddexp(torch.zeros(()), other - dist.Normal(0.0, 1.0).log_prob(z))
            rule = torch.where(z.abs() > 5e3, torch.nan, rule)
            pyro.sample("x", dist.Normal(z, 5.0), obs=x)
            pyro.sample("rule", dist.Unit(rule, validate_args=False), obs=x.new_empty(len(x), 0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    x = torch.tensor([far, far + 3.0, 0.0], dtype=dtype)
    values = x.double().numpy()
    exact = np.logaddexp(
        stats.norm.logpdf(values, 0, np.hypot(5, 1)), np.log(1e-4) + stats.norm.logpdf(values, far, np.hypot(5, scale))
    )
    assert_within(
        evidence(pv.Pair(model, guide), x),
        exact,
        absolute=1e-4 if dtype == torch.float64 else 0.1,
        reason="p(x, z) of 1e5 nats rounds",
    )


def test_latents_follow_a_rare_component_of_the_one_they_depend_on():
    """z_1 ~ 1e-4 N(30, 0.1) + (1 - 1e-4) N(0, 1), z_2 ~ N(z_1, 0.1), x ~ N(z_2, 2): x = 30 was 80 nats too low."""
    far, x = 30.0, torch.tensor([30.0, 0.0, 28.0], dtype=torch.float64)

    def model(x):
        parts = dist.Normal(x.new_tensor([far, 0.0]), x.new_tensor([0.1, 1.0]))
        prior = dist.MixtureSameFamily(dist.Categorical(x.new_tensor([1e-4, 1 - 1e-4])), parts)
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", prior.expand([len(x)]))
            second = pyro.sample("second", dist.Normal(first, 0.1))
            pyro.sample("x", dist.Normal(second, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("second", dist.Normal(first, 0.1))

    exact = np.logaddexp(
        np.log(1e-4) + stats.norm.logpdf(x, far, np.sqrt(4.02)),
        np.log1p(-1e-4) + stats.norm.logpdf(x, 0, np.sqrt(5.01)),
    )
    assert_within(evidence(pv.Pair(model, guide), x), exact, absolute=1e-6, reason="a smooth density")


def test_numbers_that_are_mixtures_each_have_a_support_and_components():
    """Rare and common together, of which no draw of the prior has both, and no component of one choice for all."""
    weights, at = torch.tensor([0.001, 0.999]).double(), torch.tensor([-50.0, 50.0]).double()

    def prior(x):
        parts = dist.Normal(at.expand(len(x), 2, 2), 1.0)
        return dist.MixtureSameFamily(dist.Categorical(weights.expand(len(x), 2, 2)), parts).to_event(1)

    x = torch.tensor([[-50.0, 50.0], [50.0, 50.0], [-50.0, -50.0]]).double()
    each = dist.Normal(at, 26**0.5).log_prob(x[..., None]) + weights.log()
    assert_within(evidence(seen_from(prior), x), each.logsumexp(-1).sum(-1).numpy(), absolute=1e-4, reason="promised")
