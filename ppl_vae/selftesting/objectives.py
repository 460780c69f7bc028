"""Bounds and their gradients against quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ppl_vae.checking import check
from ppl_vae.objectives import ELBO, IWAE
from ppl_vae.objectives.base import Values
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, seeded
from ppl_vae.selftesting.programs import Replicas, Setting, bound
from ppl_vae.selftesting.rows import Row, between, estimated

__all__ = ["bounds", "gradients"]

_REPEATS, _DATA = 60, 1000
_GRADIENTS: dict[str, tuple[ELBO | IWAE, int]] = {
    "ELBO, pathwise": (ELBO(kl="sampled"), 1),
    "ELBO, sticking the landing": (ELBO(gradient="stl"), 1),
    "ELBO, score function": (ELBO(2, gradient="score"), 1),
    "IWAE of 2, pathwise": (IWAE(2), 2),
    "IWAE of 2, doubly reparametrised": (IWAE(2, gradient="dreg"), 2),
}


def bounds(setting: Setting) -> Iterator[Row]:
    """The ELBO and the importance-weighted bound of two draws; that of 64 lies between it and log p(x)."""
    pair = Replicas()
    exact = [bound(pair.loc, pair.log_scale, num_particles).item() for num_particles in (1, 2)]
    log_evidence = -0.5 * math.log(4 * math.pi) - 0.25  # x = 1 under N(0, 2)
    for name, objective, expected in (("ELBO", ELBO(kl="sampled"), exact[0]), ("IWAE bound of 2", IWAE(2), exact[1])):
        mean, stderr = _repeated(objective, setting, lambda values, _: values.objective)
        yield estimated(name, mean, expected, stderr)
    mean, stderr = _repeated(IWAE(64), setting, lambda values, _: values.objective)
    yield between("IWAE bound of 64, above that of 2 and below log p(x)", mean, exact[1], log_evidence, stderr)


def gradients(setting: Setting) -> Iterator[Row]:
    """The derivative by the guide's mean less that by its log-scale, of every estimator."""
    for name, (objective, num_particles) in _GRADIENTS.items():
        pair = Replicas()
        expected = _slope(bound(pair.loc, pair.log_scale, num_particles), pair).item()
        mean, stderr = _repeated(objective, setting, lambda values, pair: -_slope(values.loss, pair))
        yield estimated(f"gradient of {name}", mean, expected, stderr)


def _slope(value: Tensor, pair: Replicas) -> Tensor:
    by_loc, by_log_scale = torch.autograd.grad(value, (pair.loc, pair.log_scale))
    return by_loc - by_log_scale


def _repeated(
    objective: ELBO | IWAE, setting: Setting, number: Callable[[Values, Replicas], Tensor]
) -> tuple[float, float]:
    """Mean of a number of an objective over repeats with noise of their own, and its standard error."""
    pair = Replicas().to(setting.device)
    x, layout = pair.data(_DATA), check(pair, pair.data(8)).layout
    found = []
    for i in range(_REPEATS):
        with seeded(key(setting.seed, i), setting.device):
            found.append(number(objective.evaluate(as_pair(pair), (x,), layout, 1.0), pair).item())
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(_REPEATS))
