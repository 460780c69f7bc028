"""Names what went wrong when a loss or a gradient is not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.pair import Pair
from ppl_vae.reductions import bounded_log_prob, sum_to_data
from ppl_vae.tape import DATA, Batch, Layout, Site, run_program
from ppl_vae.terms import outer_plates

__all__ = ["NO_SITE", "explain_non_finite"]

NO_SITE = "no single site is to blame: their sum overflows"


def explain_non_finite(pair: Pair, batch: Batch, layout: Layout, num_particles: int) -> str:
    """The first site (draws, then density) or parameter that is not finite, with the rows of the batch.

    Args:
        pair: The pair, with the parameters the step started from and the gradients it found.
        batch: The batch of the step; the generators are in the state it began with.
        layout: Layout of the pair.
        num_particles: K of the step.
    """
    with torch.no_grad():
        for name, parameter in pair.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"parameter {name!r} is not finite"
        for size in outer_plates(num_particles, layout):
            guide = run_program(pair, pair.guide, batch, size, layout)
            model = run_program(pair, pair.model, batch, size, layout, guide.replay)
            for role, tape in (("guide", guide), ("model", model)):
                for name, site in tape.sites.items():
                    if what := _fault(site, layout):
                        return f"site {name!r} of the {role} {what}"
    for name, parameter in pair.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of parameter {name!r} is not finite"
    return NO_SITE


def _fault(site: Site, layout: Layout) -> str:
    value, event_dim = site["value"], site["fn"].event_dim
    if value.is_floating_point() and not bool((finite := torch.isfinite(value)).all()):
        bad = ~finite.flatten(value.dim() - event_dim).all(-1) if event_dim else ~finite
        return f"draws values that are not finite{_rows(bad, site, layout)}"
    if not bool((finite := torch.isfinite(bounded_log_prob(site, layout))).all()):
        return f"has a log-density that is not finite{_rows(~finite, site, layout)}"
    return ""


def _rows(bad: Tensor, site: Site, layout: Layout) -> str:
    if not any(frame.name == DATA for frame in site["cond_indep_stack"]):
        return ""
    rows = (sum_to_data(bad.float(), layout) > 0).any(0).nonzero()[:5, 0].tolist()
    return f" (rows {rows} of the batch)"
