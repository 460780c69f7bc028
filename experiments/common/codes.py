"""What a VAE's encoder and decoder make of data: codes, distortion and rate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.rng import key, seeded

__all__ = ["Coding", "coding", "posterior_means"]

_BLOCK, _DRAWS = 1000, 8


@torch.no_grad()
def posterior_means(vae: pv.VAE, x: Tensor) -> Tensor:
    """E[z given x] under the guide, (N, latent_dim)."""
    return torch.cat([vae.encoder(rows).mean for rows in x.split(_BLOCK)])


class Coding(NamedTuple):
    """What it costs to say data through the latents, means over data, nats per datum."""

    distortion: float
    """-E log p(x given z)."""
    rate: float
    """KL(q(z given x), p(z)), in closed form."""


@torch.no_grad()
def coding(vae: pv.VAE, x: Tensor, seed: int = 0) -> Coding:
    """Distortion, from eight draws of z a datum, and rate on data (N, D)."""
    distortion, rate = [], []
    for i, rows in enumerate(x.split(_BLOCK)):
        with seeded(key(seed, i)):
            q = vae.encoder(rows)
            distortion.append(-vae.decoder(q.sample((_DRAWS,))).log_prob(rows).mean(0))
            rate.append(kl_divergence(q, vae.prior()))
    return Coding(float(torch.cat(distortion).mean()), float(torch.cat(rate).mean()))
