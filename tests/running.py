"""One evaluation of an objective on given noise, its gradient, and log-weights by nothing but Pyro's own handlers."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine

import ppl_vae as pv
from ppl_vae.evaluation.proposal import first_draw
from ppl_vae.evaluation.refining import refine
from ppl_vae.evaluation.tally import Frailty
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, seeded


def evaluate(pair, x, objective, seed=0):
    """The values of an objective with the noise of `seed`, after a check of the pair."""
    pair = as_pair(pair)
    layout = pv.check(pair, x).layout
    with seeded(seed):
        return objective.evaluate(pair, (x,), layout, objective.beta)


def flat(gradients, parameters):
    """Gradients as one vector; a parameter that the loss does not reach has gradient zero."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def gradient(pair, x, objective, layout, seed):
    """The gradient of the loss, one vector, with the noise of `seed`."""
    with seeded(seed):
        loss = objective.evaluate(as_pair(pair), (x,), layout, objective.beta).loss
    parameters = list(as_pair(pair).parameters())
    return flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)


def many_gradients(pair, x, objective, n, seed=0):
    """Independent gradients, (n, number of parameters)."""
    layout = pv.check(pair, x).layout
    return torch.stack([gradient(pair, x, objective, layout, key(seed, i)) for i in range(n)])


def log_weights(model, guide, x, num_particles):
    """(K, N) of log p(x, z) - log q(z given x), by Pyro's own handlers and nothing of the library."""

    def particles(program):
        def repeated(x):
            with pyro.plate("particles", num_particles, dim=-2):
                program(x)

        return repeated

    q = poutine.trace(particles(guide)).get_trace(x)
    p = poutine.trace(poutine.replay(particles(model), trace=q)).get_trace(x)
    p.compute_log_prob()
    q.compute_log_prob()
    return p.nodes["x"]["log_prob"] + p.nodes["z"]["log_prob"] - q.nodes["z"]["log_prob"]


def estimate(pair, x, k, seed=0, **options):
    """The log-likelihood with K = k, without a progress bar."""
    return pv.log_likelihood(pair, x, k, seed, progress=False, **options)


def refined_block(pair, x, k, seed=0):
    """What samples of a fitted proposal say of one block of data."""
    pair, batch, device = as_pair(pair), (x,), torch.device("cpu")
    layout = pv.check(pair, batch).layout
    with torch.no_grad():
        frailty = Frailty.of(pair, batch, layout, first_draw(pair, batch, layout))
        return refine(pair, batch, layout, frailty, 0, k, seed, device)
