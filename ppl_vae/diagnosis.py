"""Names what went wrong when a loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.reductions import bounded_log_prob, sum_to_data
from ppl_vae.tape import DATA, Batch, Layout, Site, run_program
from ppl_vae.terms import outer_plates

__all__ = ["NO_SITE", "SiteRange", "explain_non_finite", "site_ranges"]

NO_SITE = "no single site is to blame: their sum overflows"


def explain_non_finite(pair: Pair, batch: Batch, index: Tensor, layout: Layout, objective: Objective) -> str:
    """The first site (draws, then density), term or parameter that is not finite, with its rows.

    Args:
        pair: The pair, with the parameters the step started from and the gradients it found.
        batch: The batch of the step; the generators are in the state it began with.
        index: Position in the data of each of its rows.
        layout: Layout of the pair.
        objective: That of the step; what it adds to the terms of the sites is told by its `fault`, if it has one.
    """
    with torch.no_grad():
        for name, parameter in pair.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"parameter {name!r} is not finite"
        for role, name, site in _sites(pair, batch, layout, objective.num_particles):
            if what := _fault(site, index, layout):
                return f"site {name!r} of the {role} {what}"
        if (fault := getattr(objective, "fault", None)) is not None and (what := fault(pair, batch)):
            return what
    for name, parameter in pair.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of parameter {name!r} is not finite"
    return NO_SITE


class SiteRange(NamedTuple):
    """What a site drew and scored."""

    role: str
    """"guide" or "model"."""
    name: str
    """Name of the site."""
    value: tuple[float, float]
    """Smallest and largest number drawn or observed; NaN where one is NaN."""
    log_prob: tuple[float, float]
    """Smallest and largest log-density of a draw, in nats."""

    def __str__(self) -> str:
        value, score = (f"{low:g} to {high:g}" for low, high in (self.value, self.log_prob))
        return f"  {self.role} {self.name}: values {value}, log-density {score}"


@torch.no_grad()
def site_ranges(pair: Pair, batch: Batch, layout: Layout, objective: Objective) -> list[SiteRange]:
    """The ranges of every site in one run of both programs, of the first particles where they run one by one."""
    found: dict[tuple[str, str], SiteRange] = {}
    for role, name, site in _sites(pair, batch, layout, objective.num_particles):
        score = bounded_log_prob(site, layout)
        found.setdefault((role, name), SiteRange(role, name, _range(site["value"]), _range(score)))
    return list(found.values())


def _range(values: Tensor) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.numel() else (float("nan"), float("nan"))


def _sites(pair: Pair, batch: Batch, layout: Layout, num_particles: int) -> Iterator[tuple[str, str, Site]]:
    """Every site of guide and model, in the order in which the programs run."""
    for size in outer_plates(num_particles, layout):
        guide = run_program(pair, pair.guide, batch, size, layout)
        model = run_program(pair, pair.model, batch, size, layout, guide.replay)
        for role, tape in (("guide", guide), ("model", model)):
            for name, site in tape.sites.items():
                yield role, name, site


def _fault(site: Site, index: Tensor, layout: Layout) -> str:
    value, event_dim = site["value"], site["fn"].event_dim
    if value.is_floating_point() and not bool((finite := torch.isfinite(value)).all()):
        bad = ~finite.flatten(value.dim() - event_dim).all(-1) if event_dim else ~finite
        return f"draws values that are not finite{_rows(bad, site, index, layout)}"
    if not bool((finite := torch.isfinite(bounded_log_prob(site, layout))).all()):
        return f"has a log-density that is not finite{_rows(~finite, site, index, layout)}"
    return ""


def _rows(bad: Tensor, site: Site, index: Tensor, layout: Layout) -> str:
    if not any(frame.name == DATA for frame in site["cond_indep_stack"]):
        return ""
    rows = (sum_to_data(bad.float(), layout) > 0).any(0).nonzero()[:5, 0].cpu()
    return f" (rows {rows.tolist()} of the batch, {index.cpu()[rows].tolist()} of the data)"
