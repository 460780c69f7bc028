"""Time of the importance-sampled log-likelihood, beside the decoder's matrix products alone.

The time is that of one more image: set-up, checks and compiling cancel. `log_likelihood` also gives what the sampler by
hand does not: standard error, ESS, k-hat and posterior draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, marginal
from benchmarks.workload import images, make_vae, moments

__all__ = ["by_hand_log_likelihood", "evaluate", "evaluation_case"]

CHUNK = 2048  # decodes at once of the sides by hand: more run no faster and fall out of the cache
WRITTEN, COMPILED, PRODUCTS = "ppl_vae log_likelihood", "ppl_vae log_likelihood, compiled", "matrix products"
LIMITS = (Limit(COMPILED, PRODUCTS, 1.4),)


def evaluation_case(name: str, setting: Setting) -> Case:
    """Time of the log-likelihood of one more image: set-up and compiling cancel."""
    few, many = setting.choose(16, 2), setting.choose(208, 6)
    num_samples = setting.choose(5000, 50)
    vae, x = make_vae(setting.device), images(many, setting.device)
    sides: dict[str, Callable[[], float]] = {
        WRITTEN: partial(marginal, lambda n: evaluate(vae, x[:n], num_samples, False), few, many),
        COMPILED: partial(marginal, lambda n: evaluate(vae, x[:n], num_samples, True), few, many),
        "PyTorch by hand": partial(marginal, lambda n: by_hand_log_likelihood(vae, x[:n], num_samples), few, many),
        PRODUCTS: partial(marginal, lambda n: _products(vae, n * num_samples), few, many),
    }
    title = f"Log-likelihood of an image at K = {num_samples:,}"
    return Case(name, title, "image", sides, reference=PRODUCTS, floor=PRODUCTS, limits=LIMITS)


def evaluate(vae: pv.VAE, x: Tensor, num_samples: int, compile: bool) -> None:
    """Let the library do it."""
    pv.log_likelihood(vae, x, num_samples, device=x.device, compile=compile, progress=False)


@torch.no_grad()
def by_hand_log_likelihood(vae: pv.VAE, x: Tensor, num_samples: int) -> Tensor:
    """Return log 1/K sum_k p(x, z_k) / q(z_k given x) of data (N, 784), in nats: (N,), with nothing but PyTorch."""
    posterior = torch.distributions.Normal(*moments(vae, x), validate_args=False)
    prior = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    particles = max(1, CHUNK // len(x))
    log_weights = []
    for drawn in range(0, num_samples, particles):
        z = posterior.sample((min(particles, num_samples - drawn),))
        logits = vae.decoder.get_submodule("network")(z)
        distortion = nn.functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_weights.append((prior.log_prob(z) - posterior.log_prob(z)).sum(-1) - distortion.sum(-1))
    return torch.cat(log_weights).logsumexp(0) - math.log(num_samples)


@torch.no_grad()
def _products(vae: pv.VAE, decodes: int) -> None:
    weights = [module.weight.T for module in vae.decoder.modules() if isinstance(module, nn.Linear)]
    for start in range(0, decodes, CHUNK):
        features = weights[0].new_ones(min(CHUNK, decodes - start), len(weights[0]))
        for weight in weights:
            features = features @ weight
