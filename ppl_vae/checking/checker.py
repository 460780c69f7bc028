"""The checker of pairs: says in words what is wrong before the first number."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking.bounded import bounded_by_latents, check_allowed, check_gaps
from ppl_vae.checking.counts import check_counts, count_cautions
from ppl_vae.checking.density import density_cautions
from ppl_vae.checking.kinds import first_run
from ppl_vae.checking.layout import cardinalities, find_layout, observed_size, stated_size
from ppl_vae.checking.probes import (
    cannot_broadcast,
    check_coverage,
    check_leaves,
    check_other_size,
    guide_is_noisy,
    quiet,
    rows_are_mixed,
    trace,
)
from ppl_vae.checking.report import CheckReport, describe_parameters, describe_sites
from ppl_vae.checking.rules import (
    check_agreement,
    check_draws_inside,
    check_inside,
    check_observed,
    check_plates,
    check_scored,
    check_sites,
    check_supports,
)
from ppl_vae.checking.sites import frame_of
from ppl_vae.errors import DataError, PairError
from ppl_vae.narrowing import narrowing_cautions
from ppl_vae.pair import Pair, as_pair
from ppl_vae.shrinking import Places, Shrinking, rows_of
from ppl_vae.supports import is_fixed, support_of_data
from ppl_vae.tape import DATA, Batch, Layout, Site, Tape
from ppl_vae.threads import running_programs
from ppl_vae.validation import validating

__all__ = [
    "check",
    "check_draws",
    "check_for_pyro",
    "check_form",
    "check_in_training",
    "check_observations",
    "check_rows",
]

_PROBE_ROWS = 8
_BLOCK_ROWS = 256
_PRIOR_DRAWS, _ROW_DRAWS = 64, 8


@running_programs()
def check(pair: Any, batch: Any, *, proposes_outside: bool = False) -> CheckReport:
    """Checks that model and guide form a valid pair on a batch, and describes it.

    Nothing is changed: no parameter, buffer, mode or random state, and no number, text, tensor or array that programs
    keep in attributes, variables or entries of containers, where they reach them by name. What the first run of a pair
    makes stays: values of `pyro.param`, and the random state that a function given to it draws from. So do entries that
    programs add to containers, what iterators have passed, and what is written into tensors and arrays of more than a
    million numbers.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        batch: A tensor or array (N, *event), or a tuple of them: the arguments of the two programs.
        proposes_outside: Accept a guide that draws values outside the model's support. Their weight is zero, which
            keeps an importance-sampled estimate right, while the ELBO is minus infinity.

    Returns:
        The report; `print(report)` shows sites and parameters as tables.

    Raises:
        PplVaeError: If another thread checks, fits or evaluates a pair.
        PairError: Naming the site, what was expected, what was found, and a mend.
        DataError: If observed values lie outside the support of their site (the row is named), or are too large for the
            type of the parameters. That they lose there what varies in them is a caution, as a batch does not tell how
            all data vary; `fit` and evaluations, which see all of them, refuse it.
        EstimateError: If memory does not suffice for the batch.

    Example:
        >>> import torch, ppl_vae as pv
        >>> gmm = pv.GMM(torch.ones(2) / 2, torch.tensor([[-1.0], [1.0]]), torch.ones(2))
        >>> report = pv.check(gmm, torch.zeros(5, 1))
        >>> [(s.name, s.kind, s.model, s.gradient) for s in report.sites][0]
        ('z', 'latent', 'Categorical', 'score function')
    """
    pair = as_pair(pair)
    rows = as_rows(batch)
    first_run(pair, rows.with_dtype(pair.dtype).take(slice(0, len(rows)), pair.device))
    rows = rows.with_dtype(pair.dtype)
    narrowed = narrowing_cautions(rows)
    args = rows.take(slice(0, len(rows)), pair.device)
    with quiet(pair):
        guide = trace(pair, "guide", args)
        prior = trace(pair, "model", args)
        check_sites(guide, prior)
        for role, tape in (("model", prior), ("guide", guide)):
            check_plates(pair, role, tape, len(rows))
        check_agreement(guide, prior)
        smaller = check_other_size(pair, args) if len(rows) > 1 else prior
        model = _replayed(pair, args, guide, prior)
        few = tuple(a[:_PROBE_ROWS] for a in args)
        bounded = bounded_by_latents(pair, few)
        check_supports(guide, model, bounded)
        layout = find_layout(guide, model, bounded)._replace(full_size=stated_size(smaller))
        if not proposes_outside:
            check_draws_inside(guide, prior, layout)
        with validating(not layout.may_leave_support):
            check_observed(trace(pair, "model", args, guide), bounded)
        check_scored(model)
        notes = []
        if noisy := guide_is_noisy(pair, few, layout):
            notes.append(
                "the guide draws noise that is no sample site (dropout that is always on, torch.randn): its density is "
                "that given the noise, and no check of its rows is possible"
            )
        if reason := "noisy runs cannot be compared" if noisy else cannot_broadcast(pair, few, layout):
            layout = layout._replace(vectorized=False)
            notes.append(f"particles run one after another: {reason}")
        check_coverage(pair, few, layout, _PRIOR_DRAWS)
        check_gaps(pair, args, layout, guide, model)
        if not proposes_outside:
            check_allowed(pair, args, layout)
        mixed = len(rows) > 1 and not layout.subsampled and rows_are_mixed(pair, few, layout)
        if mixed and not noisy:
            notes.append("the guide mixes rows: its draws for a datum depend on the rest of the batch")
    check_leaves(pair, args, layout)
    if layout.rescaled:
        notes.append("a program scales its sites (poutine.scale): training follows it, evaluation does not")
    sampled = [name for name in layout.local_latents if name not in layout.analytic]
    if sampled:
        notes.append(f"no closed-form KL at {', '.join(map(repr, sampled))}: that part of the rate is sampled")
    if layout.reconstructed:
        notes.append(f"site {layout.reconstructed[0]!r} reads what it observes: a reconstruction, without log p(x)")
    cautions = narrowed + density_cautions(model) + count_cautions(model, layout)
    sites, parameters = describe_sites(guide, prior, layout), describe_parameters(pair)
    return CheckReport(sites, parameters, layout, (*notes, *cautions), cautions)


def _replayed(pair: Pair, batch: Batch, guide: Tape, prior: Tape) -> Tape:
    """A run of the model on the draws of the guide, which may lie outside its support."""
    try:
        with validating(False):
            return trace(pair, "model", batch, guide)
    except PairError:
        check_supports(guide, prior)  # which may tell why
        raise


def check_in_training(pair: Pair, batch: Batch) -> None:
    """Checks that model and guide have the same latent sites in training mode too.

    Raises:
        PairError: Naming the site.
    """
    with quiet(pair, training=True):
        check_sites(trace(pair, "guide", batch), trace(pair, "model", batch))


def check_for_pyro(pair: Pair, batch: Batch) -> CheckReport | None:
    """The report of a pair whose model has latents that only a Pyro objective can sum out; None for any other pair.

    Such latents are marked `infer={"enumerate": ...}` in the model and absent from the guide. The rest is checked as
    far as it goes without running it as a pair.
    """
    with quiet(pair):
        guide, model = (trace(pair, role, batch) for role in ("guide", "model"))
        summed = {n for n in model.latents if n not in guide.sites and (model.sites[n]["infer"] or {}).get("enumerate")}
        if not summed:
            return None
        for name in summed:
            del model.sites[name]
        check_sites(guide, model)
        check_plates(pair, "model", model, len(batch[0]))
        bounded = bounded_by_latents(pair, batch)
        check_observed(model, bounded)
        layout = find_layout(guide, model, bounded)
    note = f"summed out of the model by the objective: {', '.join(map(repr, sorted(summed)))}"
    return CheckReport(describe_sites(guide, model, layout), describe_parameters(pair), layout, (note,))


def check_form(pair: Pair, rows: Rows, layout: Layout) -> None:
    """Checks that both programs take data of this form, such as held-out data, as they take those of `check`.

    Raises:
        DataError: They fail on the first rows, or these do not fit the shapes of the sites.
    """
    few = rows.take(slice(0, layout.largest_batch(_PROBE_ROWS)), pair.device)
    with quiet(pair):
        try:
            for role in ("guide", "model"):
                check_plates(pair, role, trace(pair, role, few), len(few[0]))
            with validating(False):
                check_scored(trace(pair, "model", few))
        except PairError as error:
            raise DataError(
                f"the pair does not take them: {error}; give arrays like those that it trains on"
            ) from error


def check_observations(pair: Pair, rows: Rows, layout: Layout, binarized: tuple[int, ...] = ()) -> None:
    """Checks once that every row of a data set lies in the support of the site that observes it.

    An array handed to a site as it is is checked directly; anything else by running the model block by block, on data
    such as it trains on.

    Args:
        pair: The pair.
        rows: The whole data set.
        layout: Layout of the pair.
        binarized: Positions of arrays of probabilities that training makes binary.

    Raises:
        DataError: Naming the site and the row.
    """
    device, block = pair.device, layout.largest_batch(_BLOCK_ROWS)
    with quiet(pair):
        first = _binary(rows.take(slice(0, _PROBE_ROWS), device), binarized)
        tape = trace(pair, "model", first)
        observed = [s for n, s in tape.sites.items() if s["is_observed"] and n not in layout.bounded]
        sources = [_source(s, first) for s in observed]
        if any(i is None or not is_fixed(support_of_data(s["fn"])) for s, i in zip(observed, sources, strict=True)):
            within_memory = Shrinking("the check of what is observed")
            for start, batch in rows.blocks(block, device):
                drawn = _binary(batch, binarized)
                within_memory(partial(_check_observed, pair, drawn, layout, start), range(len(drawn[0])), range(1))
            return
        for start, batch in rows.blocks(block, device):
            for site, i in zip(observed, sources, strict=True):
                if i is not None and i not in binarized:  # a draw is 0 or 1, as those that `check` has seen
                    check_inside(site, batch[i].reshape(-1, *site["value"].shape[1:]), start)


def _binary(batch: Batch, positions: tuple[int, ...]) -> Batch:
    """A batch with draws in the place of the probabilities at some positions."""
    return tuple(torch.bernoulli(a) if i in positions else a for i, a in enumerate(batch))


def _check_observed(pair: Pair, batch: Batch, layout: Layout, start: int, some: Places, _: range) -> tuple[Tensor, ...]:
    check_observed(trace(pair, "model", rows_of(batch, some)), layout.bounded, start + int(some[0]))
    return ()


def check_draws(pair: Pair, rows: Rows, layout: Layout) -> None:
    """Checks once that the guide's draws allow every row of a data set, where the support of data depends on latents.

    Raises:
        PairError: Naming the site and the row.
        DataError: If no draw of guide or prior allows the row.
    """
    if layout.bounded:
        with quiet(pair):
            for start, batch in rows.blocks(layout.largest_batch(_BLOCK_ROWS), pair.device):
                check_allowed(pair, batch, layout, start)


def check_rows(pair: Pair, rows: Rows, layout: Layout) -> Layout:
    """Checks that the guide covers the model's support at every row, whose bounds may depend on the datum.

    And that counts are not so large that their log-probability is lost to rounding.

    Returns:
        The layout for all rows: a discrete latent that has more values at some of them cannot be enumerated, and where
        fewer numbers are observed at some there is no observed size.

    Raises:
        PairError: Naming the site.
        DataError: Naming the row and the site of such counts.
    """
    within_memory, found = Shrinking("the check of the guide at every row"), [layout]
    with quiet(pair), validating(False):
        for start, batch in rows.blocks(layout.largest_batch(_BLOCK_ROWS), pair.device):
            within_memory(partial(_check_some, pair, batch, found, start), range(len(batch[0])), range(1))
    return found[0]


def _check_some(
    pair: Pair, batch: Batch, found: list[Layout], start: int, some: Places, _: range
) -> tuple[Tensor, ...]:
    batch, layout = rows_of(batch, some), found[0]
    guide = trace(pair, "guide", batch)
    model = trace(pair, "model", batch, guide)
    check_sites(guide, model)
    check_supports(guide, model, layout.bounded)
    check_coverage(pair, batch, layout, _ROW_DRAWS)
    check_gaps(pair, batch, layout, guide, model)
    check_counts(model, layout, start + int(some[0]))
    sizes = cardinalities(guide, layout.local_latents)
    alike = {name: size for name, size in layout.cardinalities.items() if sizes.get(name) == size}
    size = layout.num_dimensions if observed_size(model) == layout.num_dimensions else 0
    found[0] = layout._replace(cardinalities=alike, num_dimensions=size)
    return ()


def _source(site: Site, batch: Batch) -> int | None:
    """Position of the argument that a site observes as it is, rows first."""
    value = site["value"]
    if frame_of(site, DATA).dim != -len(site["fn"].batch_shape):
        return None
    for i, argument in enumerate(batch):
        if value.numel() == argument.numel() and value.data_ptr() == argument.data_ptr():
            return i
    return None
