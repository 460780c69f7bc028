"""Optima that training must reach: closed forms, conjugate posteriors, and the same on every device."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.rng import key
from tests.pairs import small_ppca
from tests.statistical import assert_estimates, assert_within
from tests.training import fresh


class LinearVAE(nn.Module):
    """A VAE whose evidence is known: p(x) is normal with covariance W W^T + sigma^2."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 5), nn.Linear(5, 2)
        self.log_noise, self.log_width = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_noise.exp()).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x), self.log_width.exp()).to_event(1))

    @torch.no_grad()
    def log_prob(self, x):
        loading, noise = self.decoder.weight, self.log_noise.exp()
        covariance = loading @ loading.T + noise**2 * torch.eye(5, device=x.device)
        return dist.MultivariateNormal(self.decoder.bias, covariance).log_prob(x)


@pytest.mark.usefixtures("float64")
def test_a_linear_vae_reaches_the_ppca_optimum(device):
    """S2 (Lucas et al. 2019): gap to the closed-form maximum likelihood of at most 0.01 nat per datum."""
    x = small_ppca(dim=5, latent=2).sample(400, seed=1)
    optimum = float(pv.PPCA.fit(x, 2).log_prob(x).mean())
    pair, steps = fresh(make=LinearVAE), 1500
    pv.fit(
        pair,
        x,
        steps=steps,
        batch_size=400,
        learning_rate=2e-2,
        objective=pv.ELBO(num_particles=4),
        schedule=schedules.Cosine(1.0, 0.0, steps),
        device=device,
        progress=False,
    )
    assert next(pair.parameters()).device.type == device.type
    reached = float(pair.log_prob(x.to(device)).mean())
    assert optimum - 0.01 <= reached <= optimum


@pytest.mark.usefixtures("float64")
def test_log_likelihoods_agree_with_the_evidence_and_between_devices(device, seed):
    """S14: devices draw different noise, so they agree within the error bars."""
    x = small_ppca(dim=5, latent=2).sample(200, seed=seed)
    pair = fresh(seed, LinearVAE)
    pv.fit(pair, x, epochs=100, batch_size=100, learning_rate=2e-2, device="cpu", progress=False)
    here = pv.log_likelihood(pair, x, 2000, seed=key(seed, 0), device="cpu", progress=False)
    there = pv.log_likelihood(pair, x, 2000, seed=key(seed, 1), device=device, progress=False)
    assert next(pair.parameters()).device.type == "cpu"
    assert not np.array_equal(here.value, there.value)
    assert_estimates(there.value, there.stderr, pair.log_prob(x), effect=0.3)
    assert_estimates(there.value, np.hypot(here.stderr, there.stderr), here.value, effect=0.4)


def test_global_latents_train():
    """A site outside the data plate: its posterior is conjugate and known."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 2.0

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 200, subsample=torch.arange(x.shape[0])):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        width = pyro.param("width", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(mean, width))
        with pyro.plate("data", 200, subsample=torch.arange(x.shape[0])):
            pass

    pair = pv.Pair(model, guide)
    steps = 2000
    pv.fit(
        pair, x, steps=steps, batch_size=50, learning_rate=4e-2, schedule=schedules.Cosine(1, 0, steps), progress=False
    )
    values = pair.state_dict()
    reason = "2000 steps of Adam on mini-batches of 50; the posterior is 0.07 wide"
    assert_within(values["store.param:mean"], x.sum() / 201, absolute=0.02, reason=reason)
    assert_within(values["store.param:width"].exp(), 201**-0.5, relative=0.1, reason=reason)
