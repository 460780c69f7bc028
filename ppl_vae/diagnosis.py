"""Names what went wrong when a loss or a gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.nans import nan_parameters
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.reductions import bounded_log_prob, sum_to_data
from ppl_vae.tape import DATA, Batch, Layout, Site, UndrawnError, run_program
from ppl_vae.terms import outer_plates

__all__ = ["NO_SITE", "SiteRange", "cannot_draw", "explain_non_finite", "fault_of_beta", "site_ranges"]

NO_SITE = "no single site is to blame: their sum overflows"
_UNDRAWN = "undrawn"


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


def fault_of_beta(beta: float) -> str:
    """That the weight of the rate is not finite, in words; empty where it is."""
    return "" if math.isfinite(beta) else f"beta is {beta}"


@torch.no_grad()
def cannot_draw(pair: Pair, batch: Batch, layout: Layout, objective: Objective) -> bool:
    """Whether a program fails at a draw whose parameters are NaN, as those of torch do that are not reparametrised."""
    try:
        return any(_UNDRAWN in site for _, _, site in _sites(pair, batch, layout, objective.num_particles))
    except Exception:
        return False


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
    """Every site of guide and model, in the order in which the programs run, up to one that cannot be drawn."""
    for size in outer_plates(num_particles, layout):
        drawn: Mapping[str, Tensor] = {}
        for role, program in (("guide", pair.guide), ("model", pair.model)):
            with _Drawing() as drawing:
                drawn = run_program(pair, program, batch, size, layout, drawn).replay
            for name, site in drawing.sites.items():
                yield role, name, site
            if drawing.stopped:
                return


class _Drawing(Messenger):
    """Keeps the sites of a program, which ends at a draw that fails, as torch's do from parameters that are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Any] = {}
        self.stopped = False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        super().__exit__(kind, error, trace)
        if kind is not UndrawnError:
            return False
        undrawn = nan_parameters(error.site["fn"])
        nan = torch.where(undrawn, torch.nan, 0.0)
        self.sites[error.site["name"]] = error.site | {"value": nan, "unscaled_log_prob": nan, _UNDRAWN: undrawn}
        self.stopped = True
        return True

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        try:
            msg["value"], msg["done"] = msg["fn"](*msg["args"], **msg["kwargs"]), True
        except Exception as error:
            if bool(nan_parameters(msg["fn"]).any()):
                raise UndrawnError(msg) from error
            raise

    def _pyro_post_sample(self, msg: Any) -> None:
        if not (msg["infer"] or {}).get("_deterministic") and not isinstance(msg["fn"], _Subsample):
            self.sites[msg["name"]] = msg


def _fault(site: Site, index: Tensor, layout: Layout) -> str:
    if (undrawn := site.get(_UNDRAWN)) is not None:
        return f"draws from parameters that are NaN{_rows(undrawn, site, index, layout)}"
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
