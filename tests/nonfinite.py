"""Pairs, data and optimisers whose steps are not finite."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.svi.order import Order
from tests.pairs import ModuleVAE
from tests.training import state, train

ROWS, BATCH, POISONED = 12, 4, 5
PER_EPOCH = ROWS // BATCH


class Gaussian(nn.Module):
    """A Gaussian VAE whose loss overflows on a row of 1e30, which is a number all the same."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 4)), nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x.clamp(-9.0, 9.0)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class Rare(ModuleVAE):
    """NaN where a latent is drawn above 1.5."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            edge = torch.where(z[..., :1] > 1.5, torch.nan, 0.0)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)


def clean(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(ROWS, 3, generator=generator)


def poisoned(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[POISONED] = 1e30
    return x


def bad_steps(epochs: int, seed: int = 0) -> list[int]:
    """The steps that see the row."""
    order = Order(ROWS, BATCH, seed)
    return [step for step in range(epochs * PER_EPOCH) if POISONED in order.at(step)]


def sgd(pair: nn.Module, x: torch.Tensor, **options: object) -> pv.Fit:
    return train(pair, x, epochs=3, optimizer=torch.optim.SGD, learning_rate=0.01, **options)


class Overflowing(torch.optim.SGD):
    """Keeps a sum that overflows in the fourth step, while gradients and parameters stay numbers."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["sum"] = self.state[p].get("sum", torch.ones_like(p)) * 1e10


def overflowing_at(count: int) -> type[torch.optim.SGD]:
    """SGD whose update of this number is infinite, by a clock that nobody puts back."""

    class Overflowing(torch.optim.SGD):
        clock = itertools.count(1)

        def step(self, closure=None):
            super().step()
            if next(self.clock) == count:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(math.inf)

    return Overflowing


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = state(a), state(b)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)
