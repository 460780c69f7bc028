"""The single place where a pair is run: K particles in, per-datum log-probabilities (K, N) out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vae.along import run_along
from ppl_vae.errors import PairError
from ppl_vae.kl import analytic_kl
from ppl_vae.pair import Pair
from ppl_vae.reductions import (
    bounded_log_prob,
    draw_log_prob,
    is_local,
    nested_scale,
    scale_within_data,
    site_log_prob,
    sum_but,
    sum_to_data,
)
from ppl_vae.rng import current_state, restore_state
from ppl_vae.tape import Batch, Layout, Site, Tape, run_program

__all__ = ["Terms", "outer_plates", "run"]


class Terms:
    """The log-probabilities of one run of a pair with K particles on N data; each property is computed on first use.

    Per-datum properties have shape (K, N) and are in nats. Plate scales of "data" are left out (objectives are means
    over data); other scales are kept where `scaled`, so that a program rescaled by the user trains as written.
    """

    def __init__(
        self,
        runs: Sequence[tuple[Tape, Tape]],
        batch: Batch,
        layout: Layout,
        *,
        scaled: bool = True,
        enumerated: Mapping[str, int] | None = None,
        drawn: Sequence[Tape] | None = None,
    ) -> None:
        self._runs = runs
        self._drawn = [guide for guide, _ in runs] if drawn is None else drawn
        self._batch = batch
        self._layout = layout
        self._scaled = scaled
        self._enumerated = enumerated or {}
        self._kl: dict[frozenset[str], dict[str, Tensor]] = {}

    def unscaled(self) -> Terms:
        """The same run without the user's own scale handlers: the true log-probabilities."""
        if not (self._scaled and self._layout.rescaled):
            return self
        return Terms(
            self._runs, self._batch, self._layout, scaled=False, enumerated=self._enumerated, drawn=self._drawn
        )

    @cached_property
    def log_lik(self) -> Tensor:
        """log p(x given z): observed sites of the model."""
        return self._total(lambda guide, model: (s for s in model.sites.values() if s["is_observed"] and is_local(s)))

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(z): local latent sites of the model."""
        return self._total(lambda guide, model: (model.sites[name] for name in self._layout.local_latents))

    @cached_property
    def log_guide(self) -> Tensor:
        """log q(z given x): local latent sites of the guide, auxiliary ones included."""
        return self._total(lambda guide, model: (s for s in guide.sites.values() if is_local(s)))

    @property
    def log_weight(self) -> Tensor:
        """log p(x given z) + log p(z) - log q(z given x)."""
        return self.log_lik + self.log_prior - self.log_guide

    @cached_property
    def log_score(self) -> Tensor | None:
        """log q of the local draws that carry no pathwise gradient, or None if all do."""
        return self._score(pathwise=True)

    @cached_property
    def log_score_all(self) -> Tensor | None:
        """log q of every local draw, for the score-function estimator on all of them."""
        return self._score(pathwise=False)

    def kl(self, analytic: frozenset[str]) -> dict[str, Tensor]:
        """KL(q, p) of each local latent site, (K, N): closed form for the sites named, else its one-sample estimate."""
        if analytic in self._kl:
            return self._kl[analytic]
        names = self._layout.local_latents
        extra = {s["name"] for s in self._runs[0][0].sites.values() if is_local(s)} - set(names)
        per_site = {name: torch.cat([self._kl_site(g, m, name, analytic) for g, m in self._runs]) for name in names}
        for name in extra:
            per_site[name] = torch.cat([self._log_prob(g.sites[name]) for g, _ in self._runs])
        self._kl[analytic] = per_site
        return per_site

    @cached_property
    def global_kl(self) -> Tensor | None:
        """log q - log p of the latent sites outside the data plate over the number of data, (K, 1), or None."""
        if not self._layout.global_latents:
            return None

        def cost(guide: list[Site], model: list[Site]) -> list[Tensor]:
            latents = (site for site in model if not site["is_observed"])
            return [self._weighed(site) for site in guide] + [-self._weighed(site) for site in latents]

        return self._global(self._runs, cost) / self.full_size

    @cached_property
    def global_score(self) -> Tensor | None:
        """log q of the global draws that carry no pathwise gradient, (K, 1), or None."""
        sites = self._runs[0][0].sites.values()
        if all(is_local(s) or s["fn"].has_rsample for s in sites):
            return None
        drawn = [(guide, guide) for guide in self._drawn]
        return self._global(drawn, lambda guide, _: [draw_log_prob(s) for s in guide if not s["fn"].has_rsample])

    @cached_property
    def particle_weights(self) -> Tensor | None:
        """q of each enumerated assignment over the number of repeats, (K, N); None where particles weigh the same."""
        if not self._enumerated:
            return None
        log_q = self._log_q(lambda site: site["name"] in self._enumerated)
        repeats = log_q.shape[0] // math.prod(self._enumerated.values())
        return log_q.exp() / repeats

    @property
    def full_size(self) -> int:
        """Number of rows of the whole data set as far as the pair states it."""
        return self._layout.full_size or len(self._batch[0])

    @property
    def reconstructs(self) -> bool:
        """Whether an observed site reads what it observes: log p(x given z) is then no likelihood."""
        return bool(self._layout.reconstructed)

    def scale_paths(self, weights: Tensor) -> None:
        """Multiplies the gradient that will flow back into each draw by `weights` (K, N)."""
        for i, (guide, _) in enumerate(self._runs):
            of_run = weights if len(self._runs) == 1 else weights[i : i + 1]
            for site in guide.sites.values():
                if site["value"].requires_grad and is_local(site):
                    factor = self._aligned(of_run, site["fn"].event_dim)
                    site["value"].register_hook(lambda gradient, factor=factor: gradient * factor)

    def _aligned(self, matrix: Tensor, event_dim: int) -> Tensor:
        """Reshapes (K, N) so that it broadcasts against a site's values."""
        shape = [1] * -self._layout.particle_dim
        shape[0], shape[self._layout.data_dim] = matrix.shape
        aligned = matrix.reshape(shape + [1] * event_dim)
        return aligned if len(matrix) > 1 else aligned.squeeze(0)

    def _total(self, choose: Callable[[Tape, Tape], Any]) -> Tensor:
        return self._sum_sites([[self._log_prob(s) for s in choose(g, m)] for g, m in self._runs])

    def _score(self, pathwise: bool) -> Tensor | None:
        def without_path(site: Site) -> bool:
            drawn = is_local(site) and site["name"] not in self._enumerated
            return drawn and not (pathwise and site["fn"].has_rsample)

        if not any(without_path(s) for s in self._runs[0][0].sites.values()):
            return None
        return self._log_q(without_path)

    def _log_q(self, choose: Callable[[Site], bool]) -> Tensor:
        """log q of the sites chosen, in the run that drew them: a function of the parameters, whatever the gradient."""
        chosen = [[s for s in guide.sites.values() if choose(s)] for guide in self._drawn]
        return self._sum_sites([[self._reduce(s, draw_log_prob(s)) for s in sites] for sites in chosen])

    def _global(
        self, runs: Sequence[tuple[Tape, Tape]], parts: Callable[[list[Site], list[Site]], list[Tensor]]
    ) -> Tensor:
        """Sum of what sites outside the data plate contribute, (K, 1)."""
        rows = []
        for guide, model in runs:
            of_guide, of_model = ([s for s in t.sites.values() if not is_local(s)] for t in (guide, model))
            sums = [sum_but(part, self._layout.particle_dim, None) for part in parts(of_guide, of_model)]
            rows.append(torch.as_tensor(sum(sums)).reshape(-1, 1))
        return torch.cat(rows)

    def _weighed(self, site: Site) -> Tensor:
        """The log-density of a site with its scale and mask."""
        log_prob: Tensor = scale_and_mask(site_log_prob(site), self._scale(site), site["mask"])
        return log_prob

    def _kl_site(self, guide: Tape, model: Tape, name: str, analytic: frozenset[str]) -> Tensor:
        q, p = guide.sites[name], model.sites[name]
        closed = analytic_kl(q["fn"], p["fn"]) if name in analytic else None
        if closed is None:
            return self._log_prob(q) - self._log_prob(p)
        return self._reduce(q, scale_and_mask(closed, 1.0, q["mask"]), self._scale(q))

    def _log_prob(self, site: Site) -> Tensor:
        log_prob = bounded_log_prob(site, self._layout)
        return self._reduce(site, scale_and_mask(log_prob, 1.0, site["mask"]), self._scale(site))

    def _scale(self, site: Site) -> Tensor | float:
        return scale_within_data(site) if self._scaled else nested_scale(site)

    def _reduce(self, site: Site, log_prob: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        if isinstance(scale, Tensor) or not math.isclose(scale, 1.0):
            log_prob = log_prob * scale
        return sum_to_data(log_prob, self._layout).expand(-1, len(self._batch[0]))

    def _sum_sites(self, runs: list[list[Tensor]]) -> Tensor:
        if not runs[0]:
            return torch.zeros(len(runs), len(self._batch[0]), device=self._batch[0].device)
        totals = [sum(sites[1:], sites[0]) for sites in runs]
        return totals[0] if len(totals) == 1 else torch.cat(totals)


def run(
    pair: Pair,
    batch: Batch,
    num_particles: int,
    layout: Layout,
    *,
    enumerate_discrete: bool = False,
    path_only: bool = False,
    detach_draws: bool = False,
) -> Terms:
    """Runs guide and model once with K particles and returns their log-probabilities.

    With K = 1 the programs run exactly as written. With K > 1 they run inside an outer plate, so that the encoder is
    evaluated once and the decoder broadcasts; a pair that cannot broadcast runs K times.

    Args:
        pair: The pair.
        batch: The arguments of its programs, each with N rows.
        num_particles: K.
        layout: The layout that `ppl_vae.check` found.
        enumerate_discrete: Let the particles go through every joint value of the discrete local latents (each K times),
            weighted by q, instead of drawing them.
        path_only: Evaluate log q(z given x) as a function of the draws z alone, so that its gradient reaches the
            guide's parameters only through them (Roeder et al. 2017), wherever its distributions keep these. Scores
            and the weights of enumerated particles stay functions of the parameters.
        detach_draws: Cut the pathwise gradient at every draw, for the score-function estimator.
    """
    enumerated = layout.cardinalities if enumerate_discrete else {}
    total = num_particles * math.prod(enumerated.values())
    if total > 1 and enumerated and not layout.vectorized:
        raise PairError("discrete latents: enumeration needs programs that accept a leading particle dimension")
    runs, drawn = [], []
    for size in outer_plates(total, layout):
        noise = current_state(batch[0].device) if path_only else None
        guide = run_program(pair, pair.guide, batch, size, layout, enumerated=enumerated, detach=detach_draws)
        drawn.append(guide)
        values = guide.replay
        if path_only:
            values = {name: v.view_as(v) if v.requires_grad else v for name, v in values.items()}
            restore_state(noise)
            guide = run_along(pair, batch, size, layout, values, enumerated)
        runs.append((guide, run_program(pair, pair.model, batch, size, layout, values)))
    return Terms(runs, batch, layout, enumerated=enumerated, drawn=drawn)


def outer_plates(num_particles: int, layout: Layout) -> list[int | None]:
    """Sizes of the particle plates to run, one after another; None is a run without one."""
    if num_particles == 1:
        return [None]
    return [num_particles] if layout.vectorized else [None] * num_particles
