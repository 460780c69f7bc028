"""The supremum over q: a guide with parameters of its own for every datum, optimised for a fixed model."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppl_vae as pv

__all__ = ["FreeNormal", "Optimised", "optimise"]


class FreeNormal(nn.Module):
    """The pair of a fixed model and `q(z_n) = N(mu_n, diag sigma_n^2)`, mu_n and sigma_n free for each datum n.

    Its programs take the rows of the data too, `pair.data(x) = (x, row)`: batches may come in any order.

    Args:
        module: Has the program `model(x)` of p(x, z) with one latent "z", an event vector.
        loc: Start of mu (N, latent_dim).
        scale: Start of sigma (N, latent_dim), positive.
    """

    def __init__(self, module: nn.Module, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.detach().clone()), nn.Parameter(scale.detach().log())
        self.module = module

    def data(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The data with their rows, as the programs take them."""
        return x, torch.arange(len(x))

    def model(self, x: Tensor, row: Tensor) -> None:
        """Program of p(x, z)."""
        self.module.model(x)  # type: ignore[operator]

    def guide(self, x: Tensor, row: Tensor) -> None:
        """Program of q(z)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc[row], self.log_scale[row].exp()).to_event(1))


class Optimised(NamedTuple):
    """A guide optimised datum by datum."""

    pair: FreeNormal
    """The fixed model with the optimised guide."""
    late_gain: float
    """What the last quarter of the steps gained in ELBO, nats per datum: small where the optimum is reached."""


def optimise(
    module: nn.Module, x: Tensor, loc: Tensor, scale: Tensor, num_steps: int, num_particles: int, seed: int = 0
) -> Optimised:
    """Maximise the ELBO of every datum over its own mu and sigma, all data at once, from the start given.

    Args:
        module: Has the program `model(x)`; its parameters stay as they are.
        x: Data (N, *event).
        loc: Start of mu (N, latent_dim), such as the amortised one.
        scale: Start of sigma (N, latent_dim).
        num_steps: Steps of Adam, whose learning rate falls to zero.
        num_particles: Draws per datum and step.
        seed: Of the draws.
    """
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        pair = FreeNormal(module, loc, scale)
        fit = pv.fit(
            pair,
            pair.data(x),
            objective=pv.ELBO(num_particles),
            steps=num_steps,
            batch_size=len(x),
            learning_rate=0.05,
            schedule=pv.schedules.Cosine(1.0, 0.0, num_steps),
            seed=seed,
            progress=False,
        )
    finally:
        for parameter, before in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)
    elbo, tenth = fit.history["elbo"], max(1, num_steps // 10)
    before = slice(num_steps * 3 // 4 - tenth, num_steps * 3 // 4)
    return Optimised(pair, float(elbo[-tenth:].mean() - elbo[before].mean()))
