"""Likelihoods whose support depends on latents: which draws allow a datum, and what a guide may leave out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vae.checking.sites import distribution_name
from ppl_vae.errors import DataError, PairError
from ppl_vae.pair import Pair
from ppl_vae.reductions import outside_support, sum_to_data
from ppl_vae.supports import bounds, differ, excluded_values, is_stateless, support_name, support_of, support_of_data
from ppl_vae.tape import Batch, Layout, Site, Tape, run_program
from ppl_vae.terms import Terms, outer_plates
from ppl_vae.validation import validating

__all__ = ["bounded_by_latents", "check_allowed", "check_gaps"]

_DRAWS, _PRIOR_DRAWS = 8, 500
_INTO_GAP, _BEYOND = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.99), (1e-4, 1e-3, 0.01, 0.1, 1.0, 100.0)


def bounded_by_latents(pair: Pair, batch: Batch) -> frozenset[str]:
    """Observed sites whose support differs between draws of the prior, as that of Uniform(0, z)."""
    with validating(False):
        first = run_program(pair, pair.model, batch, None, None)
        supports = {n: support_of_data(s["fn"]) for n, s in first.sites.items() if s["is_observed"]}
        if all(is_stateless(support) for support in supports.values()):
            return frozenset()
        others = [run_program(pair, pair.model, batch, None, None, first.subsamples) for _ in range(_DRAWS)]
        return frozenset(
            name
            for name, support in supports.items()
            if any(differ(support, support_of_data(other.sites[name]["fn"])) for other in others)
        )


def check_allowed(pair: Pair, batch: Batch, layout: Layout, start: int = 0) -> None:
    """Every draw of the guide allows the observed datum; `start` is the first row in the data set.

    Raises:
        PairError: Some draw of the guide makes the datum impossible: the ELBO is minus infinity.
        DataError: No draw of guide or prior allows it.
    """
    for name in sorted(layout.bounded):
        impossible = _impossible(pair, batch, layout, name, _DRAWS, from_guide=True)
        if not bool(impossible.any()):
            continue
        share = impossible.float().mean(0)
        row = int(share.argmax())
        alone = tuple(a[row : row + 1] for a in batch)
        if share[row] == 1 and bool(_impossible(pair, alone, layout, name, _PRIOR_DRAWS, from_guide=False).all()):
            raise DataError(
                f"site {name!r}, row {start + row}: expected a datum inside the support of its likelihood, which "
                f"depends on latents, found that none of {_PRIOR_DRAWS} draws of the prior allows it; choose a "
                "likelihood for such data"
            )
        raise PairError(
            f"site {name!r}, row {start + row}: the guide draws values under which the observed datum is impossible, "
            "outside the support of its likelihood: the ELBO is minus infinity; choose a guide whose draws always "
            "allow the datum"
        )


def _impossible(pair: Pair, batch: Batch, layout: Layout, name: str, draws: int, *, from_guide: bool) -> Tensor:
    """For each draw and datum, whether the datum lies outside the support of the site that observes it: (draws, N)."""
    found = []
    with validating(False):
        for size in outer_plates(draws, layout):
            values = run_program(pair, pair.guide, batch, size, layout).replay if from_guide else None
            model = run_program(pair, pair.model, batch, size, layout, values)
            found.append(outside_support(model.sites[name], layout).expand(-1, len(batch[0])))
    return torch.cat(found)


def check_gaps(pair: Pair, batch: Batch, layout: Layout, guide: Tape, model: Tape) -> None:
    """Values that the model allows and the guide never draws must make the datum impossible.

    Tried are all values of a discrete latent, and some in each gap between the bounds of the guide and of the model,
    with the other latents as the guide drew them.

    Raises:
        PairError: Naming the site and the value.
    """
    if not layout.bounded:
        return
    with validating(False):
        for name in layout.local_latents:
            for value, missing in _gaps(guide.sites[name], model.sites[name]):
                run = run_program(pair, pair.model, batch, None, layout, {**guide.replay, name: value})
                allowed = Terms([(run, run)], batch, layout).log_lik > -torch.inf
                if bool((allowed & (sum_to_data(missing.float(), layout) > 0)).any()):
                    of_guide = guide.sites[name]["fn"]
                    raise PairError(
                        f"site {name!r}: expected a guide that covers every value under which the observed datum is "
                        f"possible, found {distribution_name(of_guide)} on {support_name(support_of(of_guide))}, which "
                        "leaves some out: every estimate would be biased; give each of them some density"
                    )


def _gaps(guide: Site, model: Site) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields values of a site, and where in its batch shape they are values that model allows and guide excludes."""
    of_guide, of_model = (excluded_values(site["fn"]) for site in (guide, model))
    if of_guide is not None and of_model is not None and len(of_guide) == len(of_model):
        candidates = guide["fn"].enumerate_support(expand=True)
        for value, missing in zip(candidates, of_guide & ~of_model, strict=True):
            yield value, missing.expand(guide["fn"].batch_shape)
        return
    inner, outer = (bounds(support_of(site["fn"])) for site in (guide, model))
    if inner is not None and outer is not None:
        for low, high, sign in ((inner[0], outer[0], -1.0), (inner[1], outer[1], 1.0)):
            yield from _beyond(guide, low, high, sign)


def _beyond(guide: Site, edge: Tensor, end: Tensor, sign: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Values between a bound of the guide and the end of the model's support on that side."""
    fn, drawn = guide["fn"], guide["value"]
    edge, end = edge.to(drawn), end.to(drawn)
    gap, unit = sign * (end - edge), 1 + edge.abs()
    missing = (gap > 1e-6 * unit).expand(drawn.shape)
    if not bool(missing.any()):
        return
    for inside, beyond in zip(_INTO_GAP, _BEYOND, strict=True):
        step = torch.where(torch.isfinite(end), inside * gap, beyond * unit)
        step = step.ceil() if support_of(fn).is_discrete else step
        yield torch.where(missing, edge + sign * step, drawn), missing.reshape(*fn.batch_shape, -1).any(-1)
