"""log q(z given x) as a function of the draws alone: the guide's run again, with a gradient that no parameter takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.pair import Pair, kept_buffers
from ppl_vae.reductions import site_log_prob
from ppl_vae.tape import Batch, Layout, Tape, run_program

__all__ = ["run_along"]


def run_along(
    pair: Pair,
    batch: Batch,
    num_particles: int | None,
    layout: Layout,
    draws: Mapping[str, Tensor],
    enumerated: Mapping[str, int],
) -> Tape:
    """Runs the guide on draws of its own, and keeps log q of each site with a gradient that flows to them alone.

    The noise has to be that of the run that drew them, so that dropout and the like are what the draws saw; sites that
    were enumerated there took none.
    """
    copies = {name: v.detach().requires_grad_() if v.requires_grad else v for name, v in draws.items()}
    with kept_buffers(pair):
        guide = run_program(pair, pair.guide, batch, num_particles, layout, copies, enumerated, redraw=True)
    sites = list(guide.sites.values())
    log_probs = [site_log_prob(site) for site in sites]
    moving = [name for name, v in copies.items() if v.requires_grad]
    kept = _AlongDraws.apply(log_probs, [copies[n] for n in moving], *[draws[n] for n in moving])
    for site, log_prob in zip(sites, kept, strict=True):
        site["unscaled_log_prob"] = log_prob
        site["value"] = draws.get(site["name"], site["value"])
    return guide


class _AlongDraws(torch.autograd.Function):
    """Log-probabilities of copies of draws, with the gradient of the copies handed to the draws.

    The copies are all that is asked for a gradient: parameters get none, whether the distributions of a guide compute
    with them, hold them themselves, or keep views of them from one run to the next.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: list[Tensor], copies: list[Tensor], *draws: Tensor) -> tuple[Tensor, ...]:
        ctx.log_probs, ctx.copies = log_probs, copies
        ctx.set_materialize_grads(False)
        return tuple(log_prob.detach() for log_prob in log_probs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.log_probs, gradients, strict=True)
        reached = [(log_prob, g) for log_prob, g in pairs if log_prob.requires_grad and g is not None]
        if not reached:
            return (None, None, *(None for _ in ctx.copies))
        outputs, by_output = zip(*reached, strict=True)
        found = torch.autograd.grad(outputs, ctx.copies, by_output, retain_graph=True, allow_unused=True)
        return (None, None, *found)
