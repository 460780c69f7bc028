"""The checker of pairs: says in words what is wrong before the first number, and finds the layout of the pair."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.errors import DataError, PairError, PplVaeError
from ppl_vae.kl import analytic_kl
from ppl_vae.pair import Pair, Program, as_pair, frozen_modes
from ppl_vae.rng import seeded
from ppl_vae.supports import bounds, first_outside, is_fixed, support_name
from ppl_vae.terms import DATA, Batch, Layout, Site, Tape, Terms, is_rescaled, run, run_program, sum_to_data

__all__ = ["CheckReport", "SiteReport", "check", "check_observations"]

_PRIOR_DRAWS = 64
_PROBE_ROWS = 8
_LOOPED_DRAWS = 8
_SEED = 0


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
            row = (s.name, s.kind, s.model, s.guide, str(s.event_shape), " > ".join(s.plates), s.support, s.gradient, s.kl)
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


def check(pair: Any, batch: Any, *, proposes_outside: bool = False) -> CheckReport:
    """Checks that model and guide form a valid pair on a batch, and describes it.

    Nothing is changed: no parameter, buffer, mode or random state.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        batch: A tensor or array (N, *event), or a tuple of them: the arguments of the two programs.
        proposes_outside: Accept a guide that draws values outside the model's support. Their weight is zero, which
            keeps an importance-sampled estimate right, while the ELBO is minus infinity.

    Returns:
        The report; `print(report)` shows sites and parameters as tables.

    Raises:
        PairError: Naming the site, what was expected, what was found, and a mend.
        DataError: If observed values lie outside the support of their site (the row is named).

    Example:
        >>> import torch, ppl_vae as pv
        >>> gmm = pv.GMM(torch.ones(2) / 2, torch.tensor([[-1.0], [1.0]]), torch.ones(2))
        >>> report = pv.check(gmm, torch.zeros(5, 1))
        >>> [(s.name, s.kind, s.model, s.gradient) for s in report.sites][0]
        ('z', 'latent', 'Categorical', 'score function')
    """
    pair = as_pair(pair)
    rows = as_rows(batch).with_dtype(parameter_dtype(pair))
    args = rows.take(slice(0, len(rows)), _device(pair))
    with _quiet(pair):
        guide = _trace(pair, "guide", args)
        prior = _trace(pair, "model", args)
        _check_sites(guide, prior)
        for role, tape in (("model", prior), ("guide", guide)):
            _check_plates(role, tape, len(rows))
        _check_agreement(guide, prior)
        layout = _layout(guide, prior)
        _check_supports(guide, prior)
        posterior = _trace(pair, "model", args, guide)
        _check_observed(posterior)
        if not proposes_outside:
            _check_draws_inside(guide, posterior)
        notes = []
        few = tuple(a[:_PROBE_ROWS] for a in args)
        if reason := _cannot_broadcast(pair, few, layout):
            layout = layout._replace(vectorized=False)
            notes.append(f"particles run one after another: {reason}")
        _check_coverage(pair, few, layout)
        if len(rows) > 1:
            _check_other_size(pair, args)
    _check_leaves(pair, args, layout)
    if layout.rescaled:
        notes.append("a program scales its sites (poutine.scale): training follows it, evaluation does not")
    sampled = [name for name in layout.local_latents if name not in layout.analytic]
    if sampled:
        notes.append(f"no closed-form KL at {', '.join(map(repr, sampled))}: that part of the rate is sampled")
    parameters = tuple((name, tuple(p.shape)) for name, p in pair.named_parameters() if p.requires_grad)
    return CheckReport(_describe_sites(guide, prior, layout), parameters, layout, tuple(notes))


def check_for_pyro(pair: Pair, batch: Batch) -> bool:
    """Whether the model has latents that only a Pyro objective can sum out (marked `enumerate`, absent from the guide).

    The rest of the pair is checked as far as it goes without running it as a pair.
    """
    with _quiet(pair):
        guide, model = (_trace(pair, role, batch) for role in ("guide", "model"))
        summed = {n for n in model.latents if n not in guide.sites and (model.sites[n]["infer"] or {}).get("enumerate")}
        if not summed:
            return False
        for name in summed:
            del model.sites[name]
        _check_sites(guide, model)
        _check_observed(model)
        return True


def check_observations(pair: Pair, rows: Rows, skip: tuple[int, ...] = (), block: int = 1024) -> None:
    """Checks once that every row of a data set lies in the support of the site that observes it.

    An array handed to a site as it is is checked directly; anything else by running the model block by block.

    Args:
        pair: The pair.
        rows: The whole data set.
        skip: Positions of arrays known to be inside (binarised ones).
        block: Rows a run.

    Raises:
        DataError: Naming the site and the row.
    """
    device = _device(pair)
    first = rows.take(slice(0, min(len(rows), block)), device)
    with _quiet(pair):
        tape = _trace(pair, "model", first)
        observed = [s for s in tape.sites.values() if s["is_observed"]]
        sources = {s["name"]: _source(s["value"], first) for s in observed}
        if all(i is not None and (i in skip or is_fixed(s["fn"].support)) for s, i in zip(observed, sources.values(), strict=True)):
            for start, batch in rows.blocks(block, device):
                for site in observed:
                    position = sources[site["name"]]
                    if position not in skip:
                        _check_inside(site, batch[position].reshape(-1, *site["value"].shape[1:]), start)
            return
        for start, batch in rows.blocks(block, device):
            _check_observed(_trace(pair, "model", batch), start)


def parameter_dtype(pair: Pair) -> torch.dtype | None:
    """The one floating dtype of a pair's parameters and buffers, or None where there is none or several."""
    tensors = [*pair.parameters(), *pair.buffers()]
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _device(pair: Pair) -> torch.device:
    return next((p.device for p in pair.parameters()), torch.device("cpu"))


@contextmanager
def _quiet(pair: Pair) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(seeded(_SEED, _device(pair)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(frozen_modes(pair))
        stack.enter_context(pyro.validation_enabled(True))
        yield


def _trace(pair: Pair, role: str, batch: Batch, guide: Tape | None = None) -> Tape:
    program: Program = getattr(pair, role)
    values = {**guide.latents, **guide.subsamples} if guide is not None else None
    try:
        return run_program(pair, program, batch, None, None, values)
    except PplVaeError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(a.shape)} {str(a.dtype).removeprefix('torch.')}" for a in batch)
        raise PairError(f"the {role} failed on a batch of {shapes}: {error}{_mend(error)}") from error


def _mend(error: Exception) -> str:
    text = str(error)
    if "Shape mismatch inside plate" in text:
        return "; declare the dimensions of one value with .to_event(1)"
    if "same dtype" in text or "expected scalar type" in text or "must match" in text and "dtype" in text:
        return "; convert the data to the dtype of the parameters (for images: float in [0, 1])"
    if isinstance(error, TypeError) and "argument" in text:
        return "; a program takes one argument for each array of the data"
    return ""


def _check_sites(guide: Tape, model: Tape) -> None:
    for name, site in guide.sites.items():
        if site["is_observed"]:
            raise PairError(f"site {name!r}: expected no observed site in the guide, found obs=...; observe it in the model")
    latents = set(model.latents)
    if missing := sorted(latents - set(guide.sites)):
        name = missing[0]
        close = difflib.get_close_matches(name, set(guide.sites) - latents, n=1)
        mend = f"rename {close[0]!r}" if close else f'add pyro.sample("{name}", ...) to the guide'
        raise PairError(f"site {name!r}: expected in the guide as in the model, found only in the model; {mend}")
    extra = [n for n in guide.sites if n not in latents]
    for name in extra:
        if name in model.sites:
            raise PairError(f"site {name!r}: expected latent in the model, found observed; remove it from the guide")
        auxiliary = (guide.sites[name]["infer"] or {}).get("is_auxiliary", False)
        if not (auxiliary and any(_is_point(guide.sites[n]) for n in latents)):
            raise PairError(
                f"site {name!r}: expected no latent that the model lacks, found one in the guide; "
                "remove it, or add it to the model"
            )
    if not any(s["is_observed"] for s in model.sites.values()):
        raise PairError("model: expected at least one observed site, found none; pass obs=x to the last sample statement")


def _check_plates(role: str, tape: Tape, num_rows: int) -> None:
    if not any(_frame(s, DATA) for s in tape.sites.values()):
        found = sorted({f.name for s in tape.sites.values() for f in s["cond_indep_stack"]})
        raise PairError(
            f'{role}: expected a plate named "data" around the rows of the batch, found {found or "no plate"}; '
            'write `with pyro.plate("data", x.shape[0]):`'
        )
    for name, site in tape.sites.items():
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:
                raise PairError(
                    f"{role}, site {name!r}: expected vectorised plates, found a loop over plate {frame.name!r}; "
                    f'write `with pyro.plate("{frame.name}", ...):`'
                )
        frame = _frame(site, DATA)
        if frame is None:
            if site["is_observed"]:
                raise PairError(f'{role}, site {name!r}: expected inside the plate "data", found outside; move it inside')
            continue
        if frame.size not in (-1, num_rows):
            raise PairError(
                f'{role}, site {name!r}: expected plate "data" to have the {num_rows} rows of the batch, found '
                f'{frame.size}; write pyro.plate("data", x.shape[0])'
            )
        _check_batch_shape(role, site, num_rows)


def _check_batch_shape(role: str, site: Site, num_rows: int) -> None:
    name, shape = site["name"], tuple(site["fn"].batch_shape)
    frames = {f.dim: f for f in site["cond_indep_stack"]}
    data_dim = _frame(site, DATA).dim
    for dim in range(-len(shape), 0):
        size = shape[dim]
        if size > 1 and dim not in frames:
            raise PairError(
                f"{role}, site {name!r}: expected batch dimensions covered by plates, found batch shape {shape} whose "
                f"dimension {dim} (size {size}) is in none; declare the dimensions of one value with .to_event({-dim})"
                if dim > data_dim or len(frames) == 1
                else f"{role}, site {name!r}: batch shape {shape}, dimension {dim} (size {size}) is in no plate"
            )
    found = shape[data_dim] if len(shape) >= -data_dim else 1
    if found != num_rows:
        raise PairError(
            f"{role}, site {name!r}: expected {num_rows} rows at dimension {data_dim}, found batch shape {shape}; "
            "let its parameters have one row per datum"
        )
    if site["is_observed"] and tuple(site["value"].shape) != tuple(site["fn"].shape()):
        raise PairError(
            f"{role}, site {name!r}: expected observations of shape {tuple(site['fn'].shape())}, found "
            f"{tuple(site['value'].shape)}; reshape the data or the parameters so that they agree"
        )


def _check_agreement(guide: Tape, model: Tape) -> None:
    for name in model.latents:
        q, p = guide.sites[name], model.sites[name]
        if q["fn"].event_shape != p["fn"].event_shape:
            raise PairError(
                f"site {name!r}: expected event shape {tuple(p['fn'].event_shape)} as in the model, found "
                f"{tuple(q['fn'].event_shape)} in the guide; use the same .to_event(...) and latent dimension in both"
            )
        plates = [{(f.name, f.dim) for f in s["cond_indep_stack"]} for s in (p, q)]
        if plates[0] != plates[1]:
            raise PairError(
                f"site {name!r}: expected plates {sorted(plates[0])} as in the model, found {sorted(plates[1])} in the "
                "guide; put both statements inside the same plates"
            )


def _check_supports(guide: Tape, model: Tape) -> None:
    for name in model.latents:
        q, p = guide.sites[name]["fn"], model.sites[name]["fn"]
        if _is_point(guide.sites[name]):
            continue
        of_model, of_guide = bounds(p.support), bounds(q.support)
        if of_model is None or of_guide is None:
            continue
        if bool((of_guide[0] > of_model[0]).any()) or bool((of_guide[1] < of_model[1]).any()):
            raise PairError(
                f"site {name!r}: expected a guide that covers the model's support {support_name(p.support)}, found "
                f"{_name(q)} on {support_name(q.support)}: every estimate would be biased; choose a guide with the model's support"
            )


def _check_observed(model: Tape, start: int = 0) -> None:
    for site in model.sites.values():
        if site["is_observed"]:
            _check_inside(site, site["value"], start)


def _check_inside(site: Site, value: Tensor, start: int) -> None:
    outside = first_outside(site["fn"].support, value)
    if outside is not None:
        row, found = outside
        mend = "binarise it (binarize=...)" if _name(site["fn"]) == "Bernoulli" else "choose a likelihood for such data"
        raise DataError(
            f"site {site['name']!r}, row {start + row}: expected values in the support {support_name(site['fn'].support)} of "
            f"{_name(site['fn'])}, found {found:.6g}; {mend}"
        )


def _check_draws_inside(guide: Tape, model: Tape) -> None:
    for name, value in guide.latents.items():
        if name in model.sites and first_outside(model.sites[name]["fn"].support, value) is not None:
            raise PairError(
                f"site {name!r}: expected draws inside the model's support {support_name(model.sites[name]['fn'].support)}, "
                f"found draws of the guide ({_name(guide.sites[name]['fn'])}) outside: the ELBO is minus infinity; "
                "choose a guide with the model's support"
            )


def _layout(guide: Tape, model: Tape) -> Layout:
    sites = [*model.sites.values(), *guide.sites.values()]
    frames = [f for s in sites for f in s["cond_indep_stack"]]
    nesting = max([-f.dim for f in frames] + [len(s["fn"].batch_shape) for s in sites])
    data_dim = next(f.dim for f in frames if f.name == DATA)
    latents = [n for n in guide.sites if n in model.latents]
    local = [n for n in latents if _frame(guide.sites[n], DATA)]
    return Layout(
        data_dim=data_dim,
        particle_dim=-1 - nesting,
        vectorized=True,
        local_latents=tuple(local),
        global_latents=tuple(n for n in latents if n not in local),
        analytic=frozenset(n for n in local if _has_analytic_kl(n, guide, model)),
        cardinalities=_cardinalities(guide, local),
        may_leave_support=frozenset(n for n in latents if _may_leave(guide.sites[n], model.sites[n])),
        rescaled=any(is_rescaled(s) for s in sites),
        subsampled=any(f.name != DATA and f.size not in (-1, f.full_size) for f in frames),
        full_size=next((f.full_size for f in frames if f.name == DATA and f.size not in (-1, f.full_size)), None),
    )


def _may_leave(guide: Site, model: Site) -> bool:
    of_guide, of_model = bounds(guide["fn"].support), bounds(model["fn"].support)
    if of_guide is None or of_model is None:
        return first_outside(model["fn"].support, guide["value"]) is not None
    return bool((of_guide[0] < of_model[0]).any()) or bool((of_guide[1] > of_model[1]).any())


def _has_analytic_kl(name: str, guide: Tape, model: Tape) -> bool:
    """A closed form integrates z out with its parents held: they must come before it in the guide, as in the model."""
    order, of_guide = list(model.latents), list(guide.sites)
    parents = order[: order.index(name)]
    if any(of_guide.index(parent) > of_guide.index(name) for parent in parents):
        return False
    return analytic_kl(guide.sites[name]["fn"], model.sites[name]["fn"]) is not None


def _cardinalities(guide: Tape, local: list[str]) -> Mapping[str, int]:
    sizes = {}
    for name in local:
        site = guide.sites[name]
        nested = len(site["cond_indep_stack"]) > 1
        if site["fn"].has_enumerate_support and not nested:
            sizes[name] = len(site["fn"].enumerate_support(expand=False))
    return sizes


def _cannot_broadcast(pair: Pair, batch: Batch, layout: Layout) -> str:
    """Why the pair cannot run its particles at once; empty if a run of three equals three single runs."""
    size = 3 if len(batch[0]) != 3 else 4
    try:
        guide = run_program(pair, pair.guide, batch, size, layout)
        model = run_program(pair, pair.model, batch, size, layout, {**guide.latents, **guide.subsamples})
        together = Terms([(guide, model)], batch, layout)
        joint = (together.log_guide, together.log_prior, together.log_lik)
    except PplVaeError:
        raise
    except Exception as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if any(len(value) != size for value in guide.latents.values()):
        return "a latent site ignores the outer plate"
    one_by_one = []
    for k in range(size):
        values = {**{name: value[k] for name, value in guide.latents.items()}, **guide.subsamples}
        tapes = [run_program(pair, program, batch, None, layout, values) for program in (pair.guide, pair.model)]
        alone = Terms([(tapes[0], tapes[1])], batch, layout)
        one_by_one.append((alone.log_guide, alone.log_prior, alone.log_lik))
    for at_once, single in zip(joint, zip(*one_by_one, strict=True), strict=True):
        if not torch.allclose(at_once, torch.cat(single), rtol=1e-3, atol=1e-3, equal_nan=True):
            return "a program mixes the particle dimension with another one"
    return ""


def _check_coverage(pair: Pair, batch: Batch, layout: Layout) -> None:
    """Prior draws that the data allow must have positive density under the guide."""
    outer = [_PRIOR_DRAWS] if layout.vectorized else [None] * _LOOPED_DRAWS
    for size in outer:
        prior = run_program(pair, pair.model, batch, size, layout)
        values = {**prior.latents, **prior.subsamples}
        with pyro.validation_enabled(False):
            try:
                guide = run_program(pair, pair.guide, batch, size, layout, values)
                densities = {n: _density(guide.sites[n], layout) for n in layout.local_latents}
            except Exception:
                return  # A guide without a density at arbitrary points (a flow without inverse): nothing to compare.
        possible = Terms([(prior, prior)], batch, layout).log_lik > -torch.inf
        for name, density in densities.items():
            auxiliary = any((s["infer"] or {}).get("is_auxiliary") for s in guide.sites.values())
            if not auxiliary and bool(((density == -torch.inf) & possible).any()):
                raise PairError(
                    f"site {name!r}: expected a guide with positive density wherever the model has some, found "
                    f"{_name(guide.sites[name]['fn'])} with density 0 at draws of the prior: every estimate would be "
                    "biased; choose a guide with the model's support"
                )


def _density(site: Site, layout: Layout) -> Tensor:
    return sum_to_data(site["fn"].log_prob(site["value"]), layout)


def _check_other_size(pair: Pair, batch: Batch) -> None:
    fewer = tuple(a[:-1] for a in batch)
    for role in ("guide", "model"):
        try:
            _check_plates(role, _trace(pair, role, fewer), len(fewer[0]))
        except PairError as error:
            raise PairError(
                f"the {role} works on {len(batch[0])} rows but not on {len(fewer[0])}, and the last batch may be smaller: "
                f'{error}; take sizes from the batch, as in pyro.plate("data", x.shape[0])'
            ) from error


def _check_leaves(pair: Pair, batch: Batch, layout: Layout) -> None:
    """Every tensor with a gradient must belong to the pair, or it would silently not train."""
    few = tuple(a[:_PROBE_ROWS] for a in batch)
    with seeded(_SEED, _device(pair)), frozen_modes(pair), torch.enable_grad(), pyro.validation_enabled(False):
        total = run(pair, few, 1, layout).log_weight.sum()
    known = {id(p) for p in pair.parameters()}
    strangers = [leaf for leaf in _leaves(total) if id(leaf) not in known]
    if strangers:
        raise PairError(
            f"a tensor of shape {tuple(strangers[0].shape)} requires a gradient but was found in no module, closure or "
            "pyro.param of the pair, so it would not train; keep it in an nn.Module, or register it with pyro.param"
        )


def _leaves(root: Tensor) -> Iterator[Tensor]:
    queue, seen = [root.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        queue += [parent for parent, _ in node.next_functions]


def _source(value: Tensor, batch: Batch) -> int | None:
    """Position of the argument that a site observes as it is."""
    for i, argument in enumerate(batch):
        if value.numel() == argument.numel() and torch.equal(value.reshape(-1), argument.reshape(-1).to(value.dtype)):
            return i
    return None


def _describe_sites(guide: Tape, model: Tape, layout: Layout) -> tuple[SiteReport, ...]:
    reports = []
    for name in (*layout.global_latents, *layout.local_latents):
        q, p = guide.sites[name]["fn"], model.sites[name]["fn"]
        kind = "latent" if name in layout.local_latents else "global latent"
        gradient = "pathwise" if q.has_rsample else "score function"
        kl = "analytic" if name in layout.analytic else "sampled"
        reports.append(_describe(model.sites[name], kind, _name(p), _name(q), gradient, kl))
    for site in model.sites.values():
        if site["is_observed"]:
            reports.append(_describe(site, "observed", _name(site["fn"]), "", "", ""))
    return tuple(reports)


def _describe(site: Site, kind: str, model: str, guide: str, gradient: str, kl: str) -> SiteReport:
    plates = tuple(f"{f.name}[{f.size if f.size >= 0 else '?'}]" for f in reversed(site["cond_indep_stack"]))
    fn = site["fn"]
    return SiteReport(site["name"], kind, model, guide, tuple(fn.event_shape), plates, support_name(fn.support), gradient, kl)


def _frame(site: Site, name: str) -> Any:
    return next((f for f in site["cond_indep_stack"] if f.name == name), None)


def _is_point(site: Site) -> bool:
    return isinstance(getattr(site["fn"], "base_dist", site["fn"]), Delta)


def _name(fn: Any) -> str:
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
