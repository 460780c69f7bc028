"""What the checker says of a pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ppl_vae.checking.sites import distribution_name
from ppl_vae.pair import Pair
from ppl_vae.supports import support_name, support_of
from ppl_vae.tape import Layout, Site, Tape

__all__ = ["CheckReport", "SiteReport", "describe_parameters", "describe_sites"]


class SiteReport(NamedTuple):
    """One sample site of a pair."""

    name: str
    """Name of the site."""
    kind: str
    """`latent`, `global latent` or `observed`."""
    model: str
    """Distribution in the model."""
    guide: str
    """Distribution in the guide; empty for observed sites."""
    event_shape: tuple[int, ...]
    """Shape of one value."""
    plates: tuple[str, ...]
    """Plates around the site, outermost first, with their sizes."""
    support: str
    """Support of the model's distribution."""
    gradient: str
    """`pathwise` or `score function`; empty for observed sites."""
    kl: str
    """`analytic` or `sampled`; empty for observed sites."""


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; printing it gives a table."""

    sites: tuple[SiteReport, ...]
    """Every sample site, latents first."""
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of every trainable parameter."""
    layout: Layout
    """How the pair uses tensor dimensions."""
    notes: tuple[str, ...]
    """What is worth knowing and no error."""
    cautions: tuple[str, ...] = ()
    """Those of the notes that say that a number means less than it seems; `fit` warns of them."""

    @property
    def num_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(torch.Size(shape).numel() for _, shape in self.parameters)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=118, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        sites = Table(title="Sites", title_justify="left")
        for column in ("site", "kind", "model", "guide", "event", "plates", "support", "gradient", "KL"):
            sites.add_column(column, overflow="fold")
        for s in self.sites:
            row = (
                s.name,
                s.kind,
                s.model,
                s.guide,
                str(s.event_shape),
                " > ".join(s.plates),
                s.support,
                s.gradient,
                s.kl,
            )
            sites.add_row(*row)
        yield sites
        parameters = Table(title=f"Parameters: {self.num_parameters:,} in all", title_justify="left")
        for column in ("parameter", "shape", "size"):
            parameters.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
        for name, shape in self.parameters:
            parameters.add_row(name, str(shape), f"{torch.Size(shape).numel():,}")
        yield parameters
        for note in self.notes:
            yield f"note: {note}"


def describe_sites(guide: Tape, model: Tape, layout: Layout) -> tuple[SiteReport, ...]:
    """One report for each latent of the guide and each observed site of the model."""
    reports = []
    for name in (*layout.global_latents, *layout.local_latents):
        q, p = guide.sites[name]["fn"], model.sites[name]["fn"]
        kind = "latent" if name in layout.local_latents else "global latent"
        gradient = "pathwise" if q.has_rsample else "score function"
        kl = "analytic" if name in layout.analytic else "sampled"
        reports.append(_describe(model.sites[name], kind, distribution_name(p), distribution_name(q), gradient, kl))
    observed = [s for s in model.sites.values() if s["is_observed"]]
    reports += [_describe(s, "observed", distribution_name(s["fn"]), "", "", "") for s in observed]
    return tuple(reports)


def _describe(site: Site, kind: str, model: str, guide: str, gradient: str, kl: str) -> SiteReport:
    plates = tuple(f"{f.name}[{f.size if f.size >= 0 else '?'}]" for f in reversed(site["cond_indep_stack"]))
    fn = site["fn"]
    return SiteReport(
        site["name"], kind, model, guide, tuple(fn.event_shape), plates, support_name(support_of(fn)), gradient, kl
    )


def describe_parameters(pair: Pair) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every parameter that trains."""
    return tuple((name, tuple(p.shape)) for name, p in pair.named_parameters() if p.requires_grad)
