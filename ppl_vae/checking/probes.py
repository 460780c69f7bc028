"""Trial runs of a pair: what only shows when its programs run in another way than once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod

import torch
from torch import Tensor

from ppl_vae.checking.rules import check_plates, size_mend
from ppl_vae.checking.sites import distribution_name, frame_of
from ppl_vae.contents import give, same_numbers
from ppl_vae.errors import EstimateError, PairError, PplVaeError, first_line, is_lack_of_memory
from ppl_vae.pair import Pair, Program, frozen_modes, kept_state
from ppl_vae.reductions import sum_to_data
from ppl_vae.rng import seeded
from ppl_vae.shrinking import Places, Shrinking, rows_of
from ppl_vae.supports import bounds, support_of
from ppl_vae.tape import DATA, Batch, Layout, Site, Tape, run_program
from ppl_vae.terms import Terms, run
from ppl_vae.validation import validating

__all__ = [
    "cannot_broadcast",
    "check_coverage",
    "check_leaves",
    "check_other_size",
    "guide_is_noisy",
    "quiet",
    "rows_are_mixed",
    "trace",
]

_LOOPED_DRAWS = 8
_PROBE_ROWS = 8
_SEED, _TRIES = 0, 3
_TRIES_ALONE = 6  # a row that is blamed fails in all of them, as one in a thousand would whose draw is bad in a third
# What torch says of sizes that do not fit.
_PRODUCT = re.compile(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")
_OF_SHAPES = (
    "size mismatch",
    "must match",
    "channels",
    "expected input",
    "input of size",
    "broadcast",
    "expected tensor",
)
_NUMBER = re.compile(r"\d{1,9}")


@contextmanager
def quiet(pair: Pair, training: bool = False) -> Iterator[None]:
    """Context of a trial run: no gradient, one mode, its own noise, validation on; everything restored."""
    with ExitStack() as stack:
        stack.enter_context(seeded(_SEED, pair.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(frozen_modes(pair, training))
        stack.enter_context(kept_state(pair))
        stack.enter_context(validating(True))
        yield


def trace(pair: Pair, role: str, batch: Batch, guide: Tape | None = None) -> Tape:
    """Runs one program once as written; whatever it raises becomes a PairError that names the program.

    Data that a program writes to would be others in the next run: they are put back, and it is refused.
    """
    program: Program = getattr(pair, role)
    values = guide.replay if guide is not None else None
    try:
        with _refusing_to_write_to(batch, role):
            return run_program(pair, program, batch, None, None, values)
    except PplVaeError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(a.shape)} {str(a.dtype).removeprefix('torch.')}" for a in batch)
        if is_lack_of_memory(error):
            raise EstimateError(
                f"the {role}: expected memory for a batch of {shapes}, found too little: {first_line(error)}; give "
                "fewer rows at once, or use a device that has more"
            ) from error
        where, alone = "", _failing_row(pair, program, batch)
        if alone is not None:
            where, error = f", and on row {alone[0]} of it alone", alone[1]
        raise PairError(
            f"the {role} failed on a batch of {shapes}{where}: {first_line(error)}{_mend(error, batch)}"
        ) from error


def _failing_row(pair: Pair, program: Program, batch: Batch) -> tuple[int, Exception] | None:
    """The first row on which a program fails alone, whatever it draws, with what it says; None where no row is it.

    Of the shortest batch that fails, from the first row on, it is the last row. Alone, another row is no trouble.
    """
    passing, failing = 0, len(batch[0])
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if _error_on(pair, program, batch, slice(0, middle)) is None:
            passing = middle
        else:
            failing = middle
    another = slice(passing - 1, passing) if passing else slice(1, 2)
    if len(batch[0]) < 2 or _error_on(pair, program, batch, another) is not None:
        return None
    errors = [_error_on(pair, program, batch, slice(failing - 1, failing)) for _ in range(_TRIES_ALONE)]
    found = [error for error in errors if error is not None]
    return (failing - 1, found[0]) if len(found) == len(errors) else None


def _error_on(pair: Pair, program: Program, batch: Batch, rows: slice) -> Exception | None:
    """What a program raises on a copy of some rows."""
    try:
        run_program(pair, program, tuple(a[rows].clone() for a in batch), None, None)
    except Exception as error:
        return error
    return None


@contextmanager
def _refusing_to_write_to(batch: Batch, role: str) -> Iterator[None]:
    before = [x.clone() for x in batch]
    try:
        yield
    finally:
        changed = [i for i, (x, copy) in enumerate(zip(batch, before, strict=True)) if not same_numbers(x, copy)]
        for i in changed:
            give(batch[i], before[i])
    if changed:
        raise PairError(
            f"the {role} writes to argument {changed[0]}, which is data: make a new tensor of it, such as x = x / 10 "
            "in the place of x.div_(10) or x /= 10"
        )


def _mend(error: Exception, batch: Batch) -> str:
    text = str(error)
    if "Shape mismatch inside plate" in text:
        return "; declare the dimensions of one value with .to_event(1)"
    told = "same dtype", "expected scalar type", "should be the same"
    if any(words in text for words in told) or ("must match" in text and "dtype" in text):
        return "; convert the data to the dtype of the parameters, x.float(): levels and counts stay whole numbers"
    if "not implemented for '" in text and not any(kind in text for kind in ("'Float'", "'Double'")):
        return "; convert the data to a type that torch draws in, x.float(): levels and counts stay whole numbers"
    if isinstance(error, TypeError) and "argument" in text:
        return "; a program takes one argument for each array of the data"
    return _shape_mend(first_line(error), batch)


def _shape_mend(text: str, batch: Batch) -> str:
    """What to do where sizes do not fit, one of which is that of a row of the data."""
    sizes = {size for a in batch for size in (a.shape[-1], prod(a.shape[1:]), a.numel())}
    column = " (reshape a column to (N, 1))" if any(a.dim() == 1 for a in batch) else ""
    mend = f"give data of the shape that the programs take{column}, or make them for these"
    if found := _PRODUCT.search(text):
        given, taken = map(int, found.groups())
        mend = mend if given in sizes else "make it for those"
        return f"; a layer takes rows of {taken} numbers, found {given}: {mend}"
    is_of_data = not sizes.isdisjoint(int(n) for n in _NUMBER.findall(text) if n != "1")
    return f"; {mend}" if is_of_data and any(words in text for words in _OF_SHAPES) else ""


def guide_is_noisy(pair: Pair, batch: Batch, layout: Layout) -> bool:
    """Whether the guide draws noise of its own, as always-on dropout does; an error if the model does.

    A density that is the same function of its values gives the same numbers twice.
    """
    with validating(False):
        guide = run_program(pair, pair.guide, batch, None, layout)
        model = run_program(pair, pair.model, batch, None, layout, guide.replay)
        again = run_program(pair, pair.model, batch, None, layout, {**guide.replay, **model.subsamples})
        one, other = (Terms([(tape, tape)], batch, layout) for tape in (model, again))
        if not (_same(one.log_lik, other.log_lik) and _same(one.log_prior, other.log_prior)):
            raise PairError(
                "the model: expected log p(x, z) to be a function of x and z, found it changing from run to run: the "
                "program draws noise that is no sample site (dropout that is always on, torch.randn); make the noise "
                "a sample site of both programs, or use nn.Dropout, which evaluation turns off"
            )
        try:
            again = run_program(pair, pair.guide, batch, None, layout, guide.replay)
            return not _same(*(Terms([(t, t)], batch, layout).log_guide for t in (guide, again)))
        except Exception:
            return False  # no density at given points, as a flow without inverse


def cannot_broadcast(pair: Pair, batch: Batch, layout: Layout) -> str:
    """Why the pair cannot run its particles at once; empty if a run of three equals three single runs."""
    with validating(False):  # draws may lie outside the model's support
        # Two numbers of rows: one may by chance be the size that a network takes for its channels.
        fewer = tuple(a[:-1] for a in batch)
        return _compare_runs(pair, batch, layout) or (_compare_runs(pair, fewer, layout) if len(batch[0]) > 1 else "")


def _compare_runs(pair: Pair, batch: Batch, layout: Layout) -> str:
    size = 3 if len(batch[0]) != 3 else 4
    try:
        guide = run_program(pair, pair.guide, batch, size, layout)
        model = run_program(pair, pair.model, batch, size, layout, guide.replay)
        together = Terms([(guide, model)], batch, layout)
        joint = (together.log_guide, together.log_prior, together.log_lik)
        if any(len(value) != size for value in guide.latents.values()):
            return "a latent site ignores the outer plate"
        one_by_one = []
        for k in range(size):
            drawn = {name: value[k] for name, value in guide.latents.items()}
            values = {**drawn, **guide.subsamples, **model.subsamples}
            tapes = [run_program(pair, program, batch, None, layout, values) for program in (pair.guide, pair.model)]
            alone = Terms([(tapes[0], tapes[1])], batch, layout)
            one_by_one.append((alone.log_guide, alone.log_prior, alone.log_lik))
    except PplVaeError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        return first_line(error)
    for at_once, single in zip(joint, zip(*one_by_one, strict=True), strict=True):
        if not _same(at_once, torch.cat(single)):
            return "a program mixes the particle dimension with another one"
    return ""


def check_coverage(pair: Pair, batch: Batch, layout: Layout, num_draws: int) -> None:
    """Prior draws that the data allow must have positive density under the guide."""
    rows, within_memory = range(len(batch[0])), Shrinking("the check of what the guide covers")
    work = partial(_check_covers, pair, batch, layout)
    with validating(False):
        for draws in [range(num_draws)] if layout.vectorized else [range(1)] * min(num_draws, _LOOPED_DRAWS):
            within_memory(work, rows, draws)


def _check_covers(pair: Pair, batch: Batch, layout: Layout, rows: Places, draws: range) -> tuple[Tensor, ...]:
    batch, size = rows_of(batch, rows), len(draws) if layout.vectorized else None
    prior = run_program(pair, pair.model, batch, size, layout)
    try:
        guide = run_program(pair, pair.guide, batch, size, layout, prior.replay)
        densities = {n: _density(guide.sites[n], layout) for n in layout.local_latents}
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        return ()  # no density at arbitrary points, as a flow without inverse
    if any((s["infer"] or {}).get("is_auxiliary") for s in guide.sites.values()):
        return ()
    possible = Terms([(prior, prior)], batch, layout).log_lik > -torch.inf
    for name, density in densities.items():
        if bool(((density == -torch.inf) & possible).any()):
            found = distribution_name(guide.sites[name]["fn"])
            raise PairError(
                f"site {name!r}: expected a guide with positive density wherever the model has some, found "
                f"{found} with density 0 at draws of the prior: every estimate would be biased; "
                "choose a guide with the model's support"
            )
    return ()


def _density(site: Site, layout: Layout) -> Tensor:
    """Log-density summed to (K, N); torch may give outside the support what would be right inside."""
    log_prob, support = site["fn"].log_prob(site["value"]), support_of(site["fn"])
    if bounds(support) is not None:
        log_prob = torch.where(support.check(site["value"]), log_prob, -torch.inf)
    return sum_to_data(log_prob, layout)


def check_other_size(pair: Pair, batch: Batch) -> Tape:
    """The programs must work on fewer rows, as the last batch of an epoch may have; returns that run of the model."""
    fewer = tuple(a[:-1] for a in batch)
    for role in ("guide", "model"):
        try:
            tape = _traced_alone(pair, role, fewer)
        except PairError as error:
            if any(_passes(pair, role, fewer) for _ in range(_TRIES)):
                raise PairError(
                    f"the {role} fails for some draws, and works for others: {error}; what it computes from a draw has "
                    "to be a valid parameter whatever is drawn: clamp it, say"
                ) from error
            mend = f"; {size_mend(pair, role)}"
            raise PairError(
                f"the {role} works on {len(batch[0])} rows but not on {len(fewer[0])}, and the last batch may be "
                f"smaller: {str(error).removesuffix(mend)}{mend}"
            ) from error
    return tape


def _traced_alone(pair: Pair, role: str, batch: Batch) -> Tape:
    tape = trace(pair, role, batch)
    check_plates(pair, role, tape, len(batch[0]))
    return tape


def _passes(pair: Pair, role: str, batch: Batch) -> bool:
    """Whether a program that has failed works with other noise."""
    try:
        _traced_alone(pair, role, batch)
    except PairError:
        return False
    return True


def rows_are_mixed(pair: Pair, batch: Batch, layout: Layout) -> bool:
    """Whether the guide's density of a datum depends on the other rows of the batch; an error if the model's does."""
    fewer = tuple(a[:-1] for a in batch)
    with validating(False), _naming(len(fewer[0])):
        guide = run_program(pair, pair.guide, batch, None, layout)
        model = run_program(pair, pair.model, batch, None, layout, guide.replay)
        kept = {name: _without_last_row(site, layout) for name, site in guide.sites.items()}
        part_model = run_program(pair, pair.model, fewer, None, layout, kept)
        whole, part = Terms([(guide, model)], batch, layout), Terms([(part_model, part_model)], fewer, layout)
        same_model = _same(whole.log_lik[:, :-1], part.log_lik) and _same(whole.log_prior[:, :-1], part.log_prior)
    if not same_model:
        raise PairError(
            "the model: expected log p(x, z) of a datum to depend on its own row, found it changing with the other "
            "rows of the batch; apply networks to each row by itself"
        )
    try:
        with validating(False):
            part_guide = run_program(pair, pair.guide, fewer, None, layout, kept)
            return not _same(whole.log_guide[:, :-1], Terms([(part_guide, part_model)], fewer, layout).log_guide)
    except Exception:
        return False  # no density at given points, as a flow without inverse


@contextmanager
def _naming(num_rows: int) -> Iterator[None]:
    try:
        yield
    except PplVaeError:
        raise
    except Exception as error:
        text = f"the pair fails on a batch of {num_rows} rows: {first_line(error)}; take sizes from the batch"
        raise PairError(text) from error


def _without_last_row(site: Site, layout: Layout) -> Tensor:
    value: Tensor = site["value"]
    if frame_of(site, DATA) is None:
        return value
    dim = value.dim() - site["fn"].event_dim + layout.data_dim
    return value.narrow(dim, 0, value.shape[dim] - 1)


def _same(left: Tensor, right: Tensor) -> bool:
    left, right = torch.broadcast_tensors(left, right)  # in torch 2.11 allclose does not where NaN are equal
    return torch.allclose(left, right, rtol=1e-3, atol=1e-3, equal_nan=True)


def check_leaves(pair: Pair, batch: Batch, layout: Layout) -> None:
    """Every tensor with a gradient must belong to the pair, or it would silently not train."""
    few = tuple(a[:_PROBE_ROWS] for a in batch)
    with seeded(_SEED, pair.device), frozen_modes(pair), kept_state(pair), torch.enable_grad(), validating(False):
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
