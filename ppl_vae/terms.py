"""The single place where a pair is run: K particles in, per-datum log-probabilities (K, N) out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.kl import analytic_kl
from ppl_vae.pair import Pair, Program

__all__ = [
    "DATA",
    "Layout",
    "Proposal",
    "Tape",
    "Terms",
    "evaluate_model",
    "is_rescaled",
    "propose",
    "run",
    "run_program",
    "sum_to_data",
]

DATA = "data"
_PARTICLES = "_particles"

Batch = Sequence[Tensor]
Site = Mapping[str, Any]


class Layout(NamedTuple):
    """How a pair uses tensor dimensions; found by `ppl_vae.check`, the same for every batch."""

    data_dim: int
    """Dimension of the plate "data", counted from the right (-1 where it is the innermost)."""
    particle_dim: int
    """Dimension of the outer particle plate, left of every plate of the pair."""
    vectorized: bool
    """Whether K particles run at once; otherwise they run one after another."""
    local_latents: tuple[str, ...]
    """Latent sites inside the data plate, in the order of the guide."""
    global_latents: tuple[str, ...]
    """Latent sites outside the data plate."""
    analytic: frozenset[str]
    """Local latent sites whose KL(guide, model) has a closed form that may be used."""
    cardinalities: Mapping[str, int]
    """Number of values of each discrete local latent site that can be enumerated."""
    may_leave_support: frozenset[str]
    """Latent sites where the guide can draw values outside the model's support."""
    rescaled: bool
    """Whether a program scales sites by a handler of its own (`poutine.scale`, `scale_latents`)."""
    subsampled: bool
    """Whether a plate nested inside "data" is subsampled."""
    full_size: int | None
    """Number of rows of the whole data set where the data plate states it; None where it states those of the batch."""


class Tape(Messenger):
    """Records the sample statements of a program and puts given values in the place of draws (trace and replay)."""

    def __init__(self, values: Mapping[str, Tensor] | None = None, detach: bool = False) -> None:
        super().__init__()
        self.values = values or {}
        self._detach = detach
        self.sites: dict[str, Any] = {}
        self.subsamples: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[name] = msg["value"]
        elif name in self.sites:
            raise PairError(f"site {name!r}: expected one sample statement of that name, found two: rename one")
        elif not (msg["infer"] or {}).get("_deterministic"):
            if self._detach:
                msg["value"] = msg["value"].detach()
            self.sites[name] = msg

    @property
    def latents(self) -> dict[str, Tensor]:
        """Values of the latent sites, by name."""
        return {name: site["value"] for name, site in self.sites.items() if not site["is_observed"]}


def run_program(
    pair: Pair,
    program: Program,
    batch: Batch,
    num_particles: int | None,
    layout: Layout | None,
    values: Mapping[str, Tensor] | None = None,
    enumerated: Mapping[str, int] | None = None,
    detach: bool = False,
) -> Tape:
    """Runs one program under a `Tape`, inside an outer plate of `num_particles` unless that is None."""
    tape = Tape(values, detach)
    with pair.scope(), tape:
        if num_particles is None or layout is None:
            program(*batch)
        else:
            with _Enumerate(enumerated or {}), pyro.plate(_PARTICLES, num_particles, dim=layout.particle_dim):
                program(*batch)
    return tape


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
    ) -> None:
        self._runs = runs
        self._batch = batch
        self._layout = layout
        self._scaled = scaled
        self._enumerated = enumerated or {}
        self._kl: dict[frozenset[str], dict[str, Tensor]] = {}

    def unscaled(self) -> Terms:
        """The same run without the user's own scale handlers: the true log-probabilities."""
        if not (self._scaled and self._layout.rescaled):
            return self
        return Terms(self._runs, self._batch, self._layout, scaled=False, enumerated=self._enumerated)

    @cached_property
    def log_lik(self) -> Tensor:
        """log p(x given z): observed sites of the model."""
        return self._total(lambda guide, model: (s for s in model.sites.values() if s["is_observed"] and _is_local(s)))

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(z): local latent sites of the model."""
        return self._total(lambda guide, model: (model.sites[name] for name in self._layout.local_latents))

    @cached_property
    def log_guide(self) -> Tensor:
        """log q(z given x): local latent sites of the guide, auxiliary ones included."""
        return self._total(lambda guide, model: (s for s in guide.sites.values() if _is_local(s)))

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
        extra = {s["name"] for s in self._runs[0][0].sites.values() if _is_local(s)} - set(names)
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
        return self._global(lambda g, m: [(1, s) for s in g] + [(-1, s) for s in m if not s["is_observed"]])

    @cached_property
    def global_score(self) -> Tensor | None:
        """log q of the global draws that carry no pathwise gradient, (K, 1), or None."""
        sites = self._runs[0][0].sites.values()
        if all(_is_local(s) or s["fn"].has_rsample for s in sites):
            return None
        return self._global(lambda g, m: [(1, s) for s in g if not s["fn"].has_rsample]) * self.full_size

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

    def scale_paths(self, weights: Tensor) -> None:
        """Multiplies the gradient that will flow back into each draw by `weights` (K, N)."""
        for i, (guide, _) in enumerate(self._runs):
            of_run = weights if len(self._runs) == 1 else weights[i : i + 1]
            for site in guide.sites.values():
                if site["value"].requires_grad and _is_local(site):
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
            drawn = _is_local(site) and site["name"] not in self._enumerated
            return drawn and not (pathwise and site["fn"].has_rsample)

        if not any(without_path(s) for s in self._runs[0][0].sites.values()):
            return None
        return self._log_q(without_path)

    def _log_q(self, choose: Callable[[Site], bool]) -> Tensor:
        chosen = [[s for s in guide.sites.values() if choose(s)] for guide, _ in self._runs]
        return self._sum_sites([[self._reduce(s, _log_prob(s)) for s in sites] for sites in chosen])

    def _global(self, choose: Callable[[list[Any], list[Any]], list[tuple[int, Site]]]) -> Tensor:
        rows = []
        for guide, model in self._runs:
            of_guide, of_model = ([s for s in t.sites.values() if not _is_local(s)] for t in (guide, model))
            total: Tensor | float = 0.0
            for sign, site in choose(of_guide, of_model):
                log_prob = scale_and_mask(_log_prob(site), self._scale(site), site["mask"])
                total = total + sign * _sum_but(log_prob, self._layout.particle_dim, None)
            rows.append(torch.as_tensor(total).reshape(-1, 1))
        return torch.cat(rows) / self.full_size

    def _kl_site(self, guide: Tape, model: Tape, name: str, analytic: frozenset[str]) -> Tensor:
        q, p = guide.sites[name], model.sites[name]
        closed = analytic_kl(q["fn"], p["fn"]) if name in analytic else None
        if closed is None:
            return self._log_prob(q) - self._log_prob(p)
        return self._reduce(q, scale_and_mask(closed, 1.0, q["mask"]), self._scale(q))

    def _log_prob(self, site: Site) -> Tensor:
        return self._reduce(site, scale_and_mask(_log_prob(site), 1.0, site["mask"]), self._scale(site))

    def _scale(self, site: Site) -> Tensor | float:
        return _scale_within_data(site) if self._scaled else _nested_scale(site)

    def _reduce(self, site: Site, log_prob: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        if isinstance(scale, Tensor) or not math.isclose(scale, 1.0):
            log_prob = log_prob * scale
        return sum_to_data(log_prob, self._layout).expand(-1, len(self._batch[0]))

    def _sum_sites(self, runs: list[list[Tensor]]) -> Tensor:
        if not runs[0]:
            return torch.zeros(len(runs), len(self._batch[0]), device=self._batch[0].device)
        totals = [sum(sites[1:], sites[0]) for sites in runs]
        return totals[0] if len(totals) == 1 else torch.cat(totals)


class Proposal(NamedTuple):
    """Draws of a guide: what an evaluation needs to weigh them."""

    latents: list[dict[str, Tensor]]
    """Values of the latent sites: one dictionary for all particles, or one a particle where they run one by one."""
    event_dims: dict[str, int]
    """Number of event dimensions of each."""
    log_guide: Tensor
    """log q(z given x), (K, N), in nats."""

    def slice(self, layout: Layout, rows: slice, particles: slice | None) -> dict[str, Tensor]:
        """Latent values of some rows and particles; `particles` is None where there is no particle dimension."""
        part = {}
        for name, value in self.latents[0].items():
            index = [slice(None)] * value.dim()
            index[value.dim() - self.event_dims[name] + layout.data_dim] = rows
            if particles is not None:
                index[0] = particles
            part[name] = value[tuple(index)]
        return part

    def particles_first(self, layout: Layout) -> dict[str, Tensor]:
        """Latent values as (K, N, *rest), whatever the plates."""
        found = {}
        for name, event_dim in self.event_dims.items():
            values = [latents[name] for latents in self.latents]
            single = values[0].dim() - event_dim < -layout.particle_dim
            stacked = torch.stack(values) if single else values[0]
            found[name] = stacked.movedim(stacked.dim() - event_dim + layout.data_dim, 1)
        return found


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
        path_only: Evaluate log q(z given x) with the guide's parameters detached, so that its gradient reaches them
            only through the draws z (Roeder et al. 2017).
        detach_draws: Cut the pathwise gradient at every draw, for the score-function estimator.
    """
    enumerated = layout.cardinalities if enumerate_discrete else {}
    total = num_particles * math.prod(enumerated.values())
    if total > 1 and enumerated and not layout.vectorized:
        raise PairError("discrete latents: enumeration needs programs that accept a leading particle dimension")
    runs = []
    for size in _outer(total, layout):
        guide = run_program(pair, pair.guide, batch, size, layout, enumerated=enumerated, detach=detach_draws)
        values = _replayed(guide)
        if path_only:
            values = {name: v.view_as(v) if v.requires_grad else v for name, v in values.items()}
            guide = run_program(pair, _detached(pair, pair.guide), batch, size, layout, values)
        runs.append((guide, run_program(pair, pair.model, batch, size, layout, values)))
    return Terms(runs, batch, layout, enumerated=enumerated)


def propose(pair: Pair, batch: Batch, num_particles: int, layout: Layout) -> Proposal:
    """Draws K particles from the guide."""
    tapes = [run_program(pair, pair.guide, batch, size, layout) for size in _outer(num_particles, layout)]
    terms = Terms([(tape, tape) for tape in tapes], batch, layout, scaled=False)
    event_dims = {name: tapes[0].sites[name]["fn"].event_dim for name in layout.local_latents}
    latents = [{name: tape.latents[name] for name in layout.local_latents} for tape in tapes]
    return Proposal(latents, event_dims, terms.log_guide)


def evaluate_model(
    pair: Pair, batch: Batch, latents: Sequence[Mapping[str, Tensor]], layout: Layout, num_particles: int | None
) -> tuple[Tensor, Tensor]:
    """log p(x given z) and log p(z), each (K, N), of given latent values (`num_particles` in each dictionary)."""
    tapes = [run_program(pair, pair.model, batch, num_particles, layout, values) for values in latents]
    terms = Terms([(tape, tape) for tape in tapes], batch, layout, scaled=False)
    log_lik, log_prior = terms.log_lik, terms.log_prior
    if layout.may_leave_support:
        inside = torch.cat([_inside(tape, layout) for tape in tapes]).expand(log_prior.shape)
        log_lik = torch.where(inside, log_lik, 0.0)
        log_prior = torch.where(inside, log_prior, -torch.inf)
    return log_lik, log_prior


class _Enumerate(Messenger):
    """Gives the discrete sites of a guide every joint value, one assignment a particle."""

    def __init__(self, cardinalities: Mapping[str, int]) -> None:
        super().__init__()
        self._strides: dict[str, int] = {}
        stride = 1
        for name, size in cardinalities.items():
            self._strides[name] = stride
            stride *= size

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self._strides:
            return
        fn = msg["fn"]
        support = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
        assignment = torch.arange(fn.batch_shape[0], device=support.device) // self._strides[msg["name"]] % len(support)
        inner = (1,) * (len(fn.batch_shape) - 1)
        msg["value"] = support[assignment].reshape(-1, *inner, *fn.event_shape).expand(fn.shape())
        msg["done"] = True


def _inside(model: Tape, layout: Layout) -> Tensor:
    """Whether the latent values of each particle and datum lie in the model's support, (K, N)."""
    outside: Tensor | float = 0.0
    for name in layout.may_leave_support:
        site = model.sites[name]
        outside = outside + sum_to_data((~site["fn"].support.check(site["value"])).float(), layout)
    return torch.as_tensor(outside) == 0


def _outer(num_particles: int, layout: Layout) -> list[int | None]:
    """Sizes of the particle plates to run, one after another; None is a run without one."""
    if num_particles == 1:
        return [None]
    return [num_particles] if layout.vectorized else [None] * num_particles


def _detached(pair: Pair, program: Program) -> Program:
    state = {name: parameter.detach() for name, parameter in pair.named_parameters()}

    def detached(*batch: Tensor) -> None:
        with warnings.catch_warnings():  # pyro.module remarks on parameters without a gradient
            warnings.simplefilter("ignore", UserWarning)
            torch.func.functional_call(pair, state, (program, *batch))

    return detached


def _replayed(tape: Tape) -> dict[str, Tensor]:
    return {**tape.latents, **tape.subsamples}


def _is_local(site: Site) -> bool:
    return any(frame.name == DATA for frame in site["cond_indep_stack"])


def _log_prob(site: Site) -> Tensor:
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def is_rescaled(site: Site) -> bool:
    """Whether a site carries a scale that no plate put there."""
    scale = _scale_within_data(site)
    return isinstance(scale, Tensor) or not math.isclose(scale, _nested_scale(site))


def sum_to_data(log_prob: Tensor, layout: Layout) -> Tensor:
    """Sums every batch dimension but those of the particles and the data: (K, N)."""
    return _sum_but(log_prob, layout.particle_dim, layout.data_dim)


def _scale_within_data(site: Site) -> Tensor | float:
    """The scale of a site without the factor (data set / batch) of the data plate."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.name == DATA and frame.size not in (-1, frame.full_size):
            scale = scale * frame.size / frame.full_size
    return scale


def _nested_scale(site: Site) -> float:
    """The scale that subsampled plates inside (or beside) the data plate put on a site."""
    frames = (f for f in site["cond_indep_stack"] if f.name != DATA)
    return math.prod(f.full_size / f.size for f in frames if f.size not in (-1, f.full_size))


def _sum_but(log_prob: Tensor, particle_dim: int, data_dim: int | None) -> Tensor:
    ndim = -particle_dim
    if log_prob.dim() < ndim:
        log_prob = log_prob.reshape((1,) * (ndim - log_prob.dim()) + log_prob.shape)
    others = [d for d in range(particle_dim + 1, 0) if d != data_dim]
    return log_prob.sum(others) if others else log_prob
