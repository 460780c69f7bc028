"""S14: what must not change a log-likelihood: the order of the data, that of the latents, the split of the samples."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Permute

import ppl_vae as pv
from ppl_vae.rng import key
from tests.pairs import ModuleVAE, binary_rows
from tests.statistical import assert_close, assert_estimates
from tests.training import fresh

pytestmark = pytest.mark.usefixtures("float64")


def estimate(pair, x, k, seed=0):
    return pv.log_likelihood(pair, x, k, seed, num_draws=0, progress=False)


def test_the_order_of_the_data_moves_estimates_within_their_errors(seed, generator):
    """Noise belongs to places, so that a datum elsewhere has other draws and the same truth."""
    x, pair = binary_rows(300, seed), fresh(seed)
    order = torch.randperm(300, generator=generator)
    straight, permuted = estimate(pair, x, 2000), estimate(pair, x[order], 2000)
    again = {name: getattr(straight, name)[order.numpy()] for name in ("value", "stderr")}
    assert (permuted.value != again["value"]).mean() > 0.9
    assert_estimates(permuted.value, np.hypot(permuted.stderr, again["stderr"]), again["value"], effect=0.3)


class Permuted(ModuleVAE):
    """A `ModuleVAE` whose latent coordinates are named in another order: the same distribution of the data."""

    ORDER = torch.tensor([1, 0])

    def __init__(self, original):
        super().__init__()
        self.original = original

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.original.decoder(z[..., self.ORDER.argsort()])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.original.encoder(x).chunk(2, -1)
            pyro.sample(
                "z", dist.TransformedDistribution(dist.Normal(loc, raw.exp()).to_event(1), [Permute(self.ORDER)])
            )


def test_the_order_of_the_latents_changes_nothing(seed):
    """On the same noise: the same weights, to rounding."""
    x, original = binary_rows(40, seed), fresh(seed)
    straight, permuted = estimate(original, x, 300), estimate(Permuted(original), x, 300)
    for name in ("value", "stderr", "ess", "elbo"):
        assert_close(getattr(permuted, name), getattr(straight, name))


def test_the_split_of_the_samples_moves_estimates_within_their_errors(seed):
    """The mean of p-hat over four runs of K / 4 samples estimates what one run of K does."""
    x, pair = binary_rows(100, seed), fresh(seed)
    whole = estimate(pair, x, 4000, key(seed, 0))
    parts = [estimate(pair, x, 1000, key(seed, i)) for i in range(1, 5)]
    split = np.logaddexp.reduce([part.value for part in parts]) - np.log(4)
    errors = np.sqrt(np.mean([part.stderr**2 for part in parts], axis=0) / 4)
    assert_estimates(split, np.hypot(errors, whole.stderr), whole.value, effect=0.3)
