"""Bounds and their gradients against quadrature."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from ppl_vae.checking import check
from ppl_vae.objectives import ELBO, IWAE
from ppl_vae.rng import key, seeded
from ppl_vae.selftesting.programs import Setting, bound, repeated, replicas
from ppl_vae.selftesting.rows import Row, between, estimated

__all__ = ["bounds", "gradients"]

_REPEATS, _SMALL, _LARGE = 50, 400, 50_000
_GRADIENTS: dict[str, tuple[ELBO | IWAE, int]] = {
    "ELBO, pathwise": (ELBO(kl="sampled"), 1),
    "ELBO, sticking the landing": (ELBO(gradient="stl"), 1),
    "ELBO, score function": (ELBO(2, gradient="score"), 1),
    "IWAE of 2, pathwise": (IWAE(2), 2),
    "IWAE of 2, doubly reparametrised": (IWAE(2, gradient="dreg"), 2),
}


def bounds(setting: Setting) -> Iterator[Row]:
    """The ELBO and the importance-weighted bound of two draws; that of 64 lies between it and log p(x)."""
    _, loc, log_scale = (float(numbers[0]) for numbers in repeated(1, torch.device("cpu")))
    exact = [float(bound(torch.tensor(loc).double(), torch.tensor(log_scale).double(), k)) for k in (1, 2)]
    log_evidence = -0.5 * math.log(4 * math.pi) - 0.25  # x = 1 under N(0, 2)
    for name, objective, expected in (("ELBO", ELBO(kl="sampled"), exact[0]), ("IWAE bound of 2", IWAE(2), exact[1])):
        mean, stderr = _values(objective, setting)
        yield estimated(name, mean, expected, stderr)
    mean, stderr = _values(IWAE(64), setting)
    yield between("IWAE bound of 64, above that of 2 and below log p(x)", mean, exact[1], log_evidence, stderr)


def gradients(setting: Setting) -> Iterator[Row]:
    """The derivative by the guide's mean less that by its log-scale, of every estimator."""
    layout = check(replicas(), repeated(8, setting.device)).layout
    for i, (name, (objective, num_particles)) in enumerate(_GRADIENTS.items()):
        x, loc, log_scale = repeated(_LARGE, setting.device)
        loc.requires_grad_()
        log_scale.requires_grad_()
        with seeded(key(setting.seed, i), setting.device):
            loss = objective.evaluate(replicas(), (x, loc, log_scale), layout, 1.0).loss
        by_loc, by_log_scale = torch.autograd.grad(loss, (loc, log_scale))
        found = -_LARGE * (by_loc - by_log_scale)  # an independent estimate from each datum
        at, log_at = (numbers[0].detach().cpu().requires_grad_() for numbers in (loc, log_scale))
        exact = torch.autograd.grad(bound(at, log_at, num_particles), (at, log_at))
        expected = float(exact[0] - exact[1])
        stderr = float(found.std()) / math.sqrt(_LARGE)
        yield estimated(f"gradient of {name}", float(found.mean()), expected, stderr)


def _values(objective: ELBO | IWAE, setting: Setting) -> tuple[float, float]:
    """Mean of an objective over repeats, and its standard error."""
    batch = repeated(_SMALL, setting.device)
    layout = check(replicas(), repeated(8, setting.device)).layout
    found = []
    for i in range(_REPEATS):
        with seeded(key(setting.seed, i), setting.device), torch.no_grad():
            found.append(float(objective.evaluate(replicas(), batch, layout, 1.0).objective))
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(_REPEATS))
