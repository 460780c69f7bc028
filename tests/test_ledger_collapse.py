"""Latents that say nothing of the data, wherever they are, and those that do in ways that are easily overlooked."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.evaluation.accounting import _partners

pytestmark = pytest.mark.usefixtures("float64")


def rows(n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_a_scalar_that_is_the_same_for_all_data_is_named_far_from_the_prior(seed):
    """The second of two is N(2, 0.3) for every x, whatever the unit of z; beside it the prior, and one that is used."""
    for unit in (1.0, 1e-3):
        scale = torch.tensor([unit, unit, 1.0])

        def model(x, scale=scale):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), scale).to_event(1))
                pyro.sample("x", dist.Normal(z / scale, 1.0).to_event(1), obs=x)

        def guide(x, scale=scale):
            loc = torch.stack([x[:, 0] / 2, torch.full((len(x),), 2.0), torch.zeros(len(x))], -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(scale * loc, scale * torch.tensor([0.7, 0.3, 1.0])).to_event(1))

        found = pv.ledger(pv.Pair(model, guide), rows(100, 3), 4, seed, num_aggregate=50, progress=False)
        (latent,) = found.latents
        assert latent.constant.tolist() == [False, True, True]
        assert latent.collapsed.tolist() == [False, False, True]
        (alarm,) = found.alarms
        assert "(scalar 1): not at the prior, but the same for all data, which" in alarm
        assert "(scalar 2): KL from the prior below 0.01 nats" in alarm
        alone = pv.ledger(pv.Pair(model, guide), rows(1, 3), 4, seed, num_aggregate=0, progress=False).latents[0]
        assert not alone.constant.any()


def test_what_is_said_by_the_scale_or_the_layer_below_alarms_nobody(seed):
    """The mean of w is the same for all data, but not its scale; v is drawn from w alone, and knows of x by it."""

    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0))
            v = pyro.sample("v", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(v.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros(len(x)), x[:, 0].sigmoid() + 0.1))
            pyro.sample("v", dist.Normal(3 * w, 0.1))

    found = pv.ledger(pv.Pair(model, guide), rows(100, 1), 4, seed, progress=False)
    assert found.alarms == ()


def test_partners_are_other_data(seed):
    partners = _partners(50, seed)
    assert sorted(partners.tolist()) == list(range(50))
    assert (partners != torch.arange(50)).all()
