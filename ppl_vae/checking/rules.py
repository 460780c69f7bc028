"""The rules that model and guide must keep, each an error that names the site and a mend."""

from __future__ import annotations

import difflib
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ppl_vae.checking.sites import distribution_name, frame_of, is_point
from ppl_vae.errors import DataError, PairError, located
from ppl_vae.pair import Pair
from ppl_vae.reductions import mask_of, site_log_prob
from ppl_vae.supports import covers, excluded_values, first_outside, support_name, support_of, support_of_data
from ppl_vae.tape import DATA, Layout, Site, Tape

__all__ = [
    "check_agreement",
    "check_draws_inside",
    "check_inside",
    "check_observed",
    "check_plates",
    "check_scored",
    "check_sites",
    "check_supports",
    "size_mend",
]


_LEVELS = "make levels 0, 1, ... of grey images: ppl_vae.data.quantize(x, levels)"
_MENDS = {
    "Bernoulli": "binarise it: ppl_vae.data.binarize(x, seed=0), or in fit binarize='dynamic'",
    "CategoricalLevels": _LEVELS,
    "DiscretizedLogistic": _LEVELS,
}


def _seen_in_guide(site: Site) -> str:
    """What a site of the guide that draws nothing is, what was found, and what to do."""
    if isinstance(getattr(site["fn"], "base_dist", site["fn"]), dist.Unit):
        return (
            "factor in the guide, found pyro.factor(...), which would make q(z | x) no density; move it to the model, "
            "or leave it out"
        )
    return "observed site in the guide, found obs=...; observe it in the model"


def check_sites(guide: Tape, model: Tape) -> None:
    """Model and guide have the same latent sites, and the model observes something."""
    for name, site in guide.sites.items():
        if site["is_observed"]:
            raise PairError(f"site {name!r}: expected no {_seen_in_guide(site)}")
    if not any(s["is_observed"] for s in model.sites.values()):
        raise PairError(
            "model: expected at least one observed site, found none; pass obs=x to the last sample statement"
        )
    latents = set(model.latents)
    if missing := sorted(latents - set(guide.sites)):
        name = missing[0]
        others = {other.lower(): other for other in sorted(set(guide.sites) - latents)}
        close = difflib.get_close_matches(name.lower(), others, n=1)
        mend = f"rename {others[close[0]]!r}" if close else f'add pyro.sample("{name}", ...) to the guide'
        raise PairError(f"site {name!r}: expected in the guide as in the model, found only in the model; {mend}")
    extra = [n for n in guide.sites if n not in latents]
    for name in extra:
        if name in model.sites:
            raise PairError(f"site {name!r}: expected latent in the model, found observed; remove it from the guide")
        auxiliary = (guide.sites[name]["infer"] or {}).get("is_auxiliary", False)
        if not (auxiliary and any(is_point(guide.sites[n]) for n in latents)):
            raise PairError(
                f"site {name!r}: expected no latent that the model lacks, found one in the guide; "
                "remove it, or add it to the model"
            )


def size_mend(pair: Pair, role: str) -> str:
    """What to do where a program has another number of rows than its batch."""
    if role == "guide" and isinstance(pair.guide, AutoGuide):
        return (
            f"{type(pair.guide).__name__} keeps a value for each row of its first batch: write a guide that computes "
            "them from x, as an encoder does"
        )
    return 'take sizes from the batch, as in pyro.plate("data", x.shape[0])'


def check_plates(pair: Pair, role: str, tape: Tape, num_rows: int) -> None:
    """Every site lies in a plate "data" over the rows of the batch, with batch dimensions that plates explain."""
    if role == "model" and not any(frame_of(s, DATA) for s in tape.sites.values()):
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
        frame = frame_of(site, DATA)
        if frame is None:
            if site["is_observed"]:
                raise PairError(
                    f'{role}, site {name!r}: expected inside the plate "data", found outside; move it inside'
                )
            continue
        if frame.size not in (-1, num_rows):
            raise PairError(
                f'{role}, site {name!r}: expected plate "data" to have the {num_rows} rows of the batch, found '
                f"{frame.size}; {size_mend(pair, role)}"
            )
        _check_batch_shape(role, site, num_rows)


def _check_batch_shape(role: str, site: Site, num_rows: int) -> None:
    name, shape = site["name"], tuple(site["fn"].batch_shape)
    frames = {f.dim: f for f in site["cond_indep_stack"]}
    data_dim = frame_of(site, DATA).dim
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


def check_agreement(guide: Tape, model: Tape) -> None:
    """Each latent has the same event shape, plates and masks in both programs."""
    for name in model.latents:
        q, p = guide.sites[name], model.sites[name]
        if not p["value"].numel():
            raise PairError(
                f"site {name!r}: expected a latent of at least one number, found shape "
                f"{tuple(p['value'].shape)}; leave the statement out of both programs"
            )
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
        of_model, of_guide = (mask_of(s).expand(s["fn"].shape()) for s in (p, q))
        if not torch.equal(of_model, of_guide):
            raise PairError(
                f"site {name!r}: expected the same mask in both programs, found {int(of_model.sum())} of "
                f"{of_model.numel()} entries that count in the model and {int(of_guide.sum())} in the guide: every "
                "estimate would be biased; put the same mask around both statements"
            )


def check_supports(guide: Tape, model: Tape, bounded: frozenset[str] = frozenset()) -> None:
    """The guide's support covers the model's, as far as bounds tell.

    Where a likelihood is `bounded` by latents, the guide may leave out what the datum excludes: see `check_gaps`.
    """
    for name in model.latents:
        q, p = guide.sites[name]["fn"], model.sites[name]["fn"]
        if is_point(guide.sites[name]):
            continue
        support, found = support_of(p), support_of(q)
        if support.is_discrete != found.is_discrete:
            raise PairError(
                f"site {name!r}: expected a guide with the model's support {support_name(support)}, found "
                f"{distribution_name(q)} on {support_name(found)}: one is discrete, the other is not"
            )
        if bounded:
            continue
        if covers(found, support) is False:
            raise PairError(
                f"site {name!r}: expected a guide that covers the model's support {support_name(support)}, found "
                f"{distribution_name(q)} on {support_name(found)}: every estimate would be biased; "
                "choose a guide with the model's support"
            )
        if found.is_discrete:
            _check_excluded(name, q, p)


def _check_excluded(name: str, guide: Any, model: Any) -> None:
    """No value that the model allows has probability exactly zero under the guide."""
    of_guide, of_model = excluded_values(guide), excluded_values(model)
    if of_guide is None or of_model is None or len(of_guide) != len(of_model):
        return
    missing = of_guide & ~of_model
    if bool(missing.any()):
        value = int(missing.flatten(1).any(1).nonzero()[0]) if missing.dim() > 1 else int(missing.nonzero()[0])
        raise PairError(
            f"site {name!r}: expected a guide that covers the model's support, found {distribution_name(guide)} with "
            f"probability 0 for value {value}, which the model allows: every estimate would be biased; "
            "give every value some probability"
        )


def check_observed(model: Tape, bounded: frozenset[str], start: int = 0) -> None:
    """Every observed value lies in the support of its site, unless that depends on latents.

    Args:
        model: A run of the model.
        bounded: Observed sites whose support depends on latents.
        start: The first row in the data set.
    """
    for name, site in model.sites.items():
        if site["is_observed"] and not site["value"].is_floating_point():
            _check_taken(site)
        if site["is_observed"] and name not in bounded:
            check_inside(site, site["value"], start)


def _check_taken(site: Site) -> None:
    """The distribution of a site takes whole numbers, or booleans; some compute with real ones only."""
    try:
        site_log_prob(site)
    except ValueError:
        return  # outside the support, which is judged apart
    except RuntimeError as error:
        found = str(site["value"].dtype).removeprefix("torch.")
        raise DataError(
            f"site {site['name']!r}: expected real numbers for {distribution_name(site['fn'])}, found {found}; pass "
            "x.float()"
        ) from error


def check_scored(model: Tape) -> None:
    """Every observed site has a log-probability at what it observes.

    Args:
        model: A run of the model, whose distributions do not validate: supports are checked elsewhere.
    """
    for name, site in model.sites.items():
        if site["is_observed"]:
            with located(f"site {name!r}: log_prob of {distribution_name(site['fn'])}"):
                site_log_prob(site)


def check_inside(site: Site, value: Tensor, start: int) -> None:
    """`value`, whose first row is `start` of the data set, lies in the support of a site."""
    support = support_of_data(site["fn"])
    outside = first_outside(support, value, frame_of(site, DATA).dim)
    if outside is not None:
        row, found = outside
        family, allowed = distribution_name(site["fn"]), support_name(support)
        mend = _MENDS.get(family, "choose a likelihood for such data")
        raise DataError(
            f"site {site['name']!r}, row {start + row}: expected values in the support {allowed} of {family}, "
            f"found {found:.6g}; {mend}"
        )


def check_draws_inside(guide: Tape, model: Tape, layout: Layout) -> None:
    """The guide's draws lie in the model's support."""
    for name in guide.latents:
        if name in layout.may_leave_support:
            support, family = support_of(model.sites[name]["fn"]), distribution_name(guide.sites[name]["fn"])
            raise PairError(
                f"site {name!r}: expected draws inside the model's support {support_name(support)}, "
                f"found draws of the guide ({family}) outside: the ELBO is minus infinity; "
                "choose a guide with the model's support"
            )
