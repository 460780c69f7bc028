"""A step that was not finite, done again from what the fit has left of it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.checking import check, check_for_pyro
from ppl_vae.device import choose_device, full_precision
from ppl_vae.diagnosis import SiteRange, cannot_draw, explain_non_finite, fault_of_beta, site_ranges
from ppl_vae.distributed import current
from ppl_vae.errors import CheckpointError, is_of_programs
from ppl_vae.objectives import ELBO, FromPyro, Objective
from ppl_vae.pair import Pair, as_pair, frozen_modes
from ppl_vae.rng import reseed, seeded
from ppl_vae.rundir import as_plain
from ppl_vae.storage import Checkpoint, read, step_folder, steps
from ppl_vae.storage.exact import of_exact
from ppl_vae.supports import first_outside
from ppl_vae.svi import forms
from ppl_vae.svi.facts import differences, facts_of_machine, other_programs
from ppl_vae.svi.gradient import Gradient, Metrics, binarized, check_gradients_enabled
from ppl_vae.svi.kept import check_parameters, put_parameters
from ppl_vae.svi.programs import facts_of_programs
from ppl_vae.svi.saving import BAD_STEPS
from ppl_vae.svi.state import BATCH, CHECKED, ROWS
from ppl_vae.tape import Layout
from ppl_vae.validation import validating

__all__ = ["Replay", "replay"]

T = TypeVar("T")
_SHOWN, _LARGEST = 16, int(sys.float_info.max)
_UNKNOWN = ("the programs draw from Python or NumPy, or read what nobody keeps, such as the clock",)
_FORM = forms.fields(
    {
        "step": forms.whole(),
        "seed": forms.whole(),
        "beta": forms.anything,
        "arrays": forms.whole(1),
        "rank": forms.whole(),
        "reason": forms.text,
        "objective": forms.anything,
        "binarize": forms.flag,
        "compiled": forms.flag,
        "device": forms.text,
        "moved": forms.each(forms.text),
        "facts": forms.anything,
    }
)
_TOLD = ("device", "processes")  # the first is told anyhow, and a step is that of one process


@dataclass(frozen=True)
class Replay:
    """A step done again."""

    step: int
    """Steps done before it."""
    loss: float
    """What was to be minimised, in nats per datum."""
    elbo: float
    """True ELBO, in nats per datum; NaN where the objective does not tell."""
    grad_norm: float
    """Norm of the whole gradient."""
    reason: str
    """The first site or parameter that is not finite, with its rows; empty where the step is finite."""
    rows: tuple[int, ...]
    """Position in the data of each row of the batch."""
    sites: tuple[SiteRange, ...]
    """What each site of guide and model drew and scored."""
    recorded: str
    """What the fit said of it."""
    differences: tuple[str, ...] = ()
    """What is known not to be as it was in the fit."""

    @property
    def is_finite(self) -> bool:
        """Whether the step is finite now."""
        return not self.reason

    def __str__(self) -> str:
        found = self.reason or f"it is finite now: {'; '.join(self.differences or _UNKNOWN)}"
        lines = [
            f"step {self.step + 1}: loss {self.loss:g}, norm of the gradient {self.grad_norm:g}: {found}",
            *(str(site) for site in self.sites),
            f"rows of the data: {', '.join(map(str, self.rows[:_SHOWN]))}{', ...' * (len(self.rows) > _SHOWN)}",
        ]
        return "\n".join(lines)


class _Step(NamedTuple):
    """A bad step as it was kept."""

    tensors: dict[str, Tensor]
    """Parameters and buffers before it, its rows, and where they stand in the data."""
    plain: dict[str, Any]
    """Seed, beta, objective, and what the fit said."""

    @property
    def batch(self) -> tuple[Tensor, ...]:
        """Its rows."""
        return self._arrays(BATCH)

    @property
    def checked(self) -> tuple[Tensor, ...]:
        """The rows on which the fit checked the pair; those of the step may be what no program takes."""
        return self._arrays(CHECKED)

    def _arrays(self, name: str) -> tuple[Tensor, ...]:
        return tuple(self.tensors[f"{name}/{i}"] for i in range(self.plain["arrays"]))


def replay(
    pair: Any,
    run_dir: str | Path,
    *,
    step: int | None = None,
    objective: Objective = ELBO(),
    device: str | torch.device | None = None,
) -> Replay:
    """Does a step of a fit again that was not finite: with its parameters, rows and noise.

    `fit(run_dir=...)` leaves the first three such steps in `bad-steps/`. Afterwards the pair has the parameters of
    that step, and its gradients in `.grad`. What programs keep beside parameters and buffers, and random states of
    Python and NumPy, are not kept: they are those of the pair that is given, and of now; `Replay.differences` names
    what the fit had changed, and programs, versions and settings of torch that are not those of the fit.

    Args:
        pair: A pair of the same programs.
        run_dir: The run directory.
        step: Which of the steps, by the number of steps before it; the first one if None.
        objective: That of the fit.
        device: Where to do it; None where the fit did it, if there is such a device. Another type of device draws other
            noise, and a warning says so.

    Returns:
        A `Replay`.

    Raises:
        CheckpointError: There is no such step, or what was kept of it is damaged; or pair or objective are not those of
            the fit.
        PairError: The pair does not take the rows on which the fit has checked it.
        PplVaeError: Gradients are switched off outside.

    Example:
        >>> import tempfile, torch, ppl_vae as pv
        >>> decoder, encoder = pv.decoders.Gaussian.mlp(1, [8], 2), pv.encoders.DiagonalNormal.mlp(2, [8], 1)
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), decoder, encoder)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     try:
        ...         _ = pv.fit(vae, torch.full((8, 2), 1e30), run_dir=run, epochs=1, progress=False)
        ...     except pv.EstimateError:
        ...         print(pv.replay(vae, run).reason)  # doctest: +ELLIPSIS
        site 'x' of the model has a log-density that is not finite (rows [0, 1, 2, 3, 4] of the batch, [...] of ...)
    """
    check_gradients_enabled()
    kept, pair = _kept(Path(run_dir) / BAD_STEPS, step), as_pair(pair)
    target = _device(kept.plain["device"], device)
    if (wanted := kept.plain["objective"]) != (given := as_plain(objective)):
        raise CheckpointError(f"objective: expected that of the fit, {wanted}, found {given}")
    layout = _layout(pair, kept.checked, objective)
    with full_precision(target):
        changes = tuple(_differences(pair, kept.plain, target))
    if (begin := getattr(objective, "begin", None)) is not None:
        begin(pair)
    check_parameters(pair, kept.tensors)
    pair.to(target)
    put_parameters(pair, kept.tensors)
    with (
        seeded(kept.plain["seed"], target),
        full_precision(target),
        validating(False),
        frozen_modes(pair, training=True),
    ):
        on_device = tuple(x.to(target) for x in kept.batch)
        return replace(_again(pair, on_device, layout, objective, kept), differences=changes)


def _kept(folder: Path, step: int | None) -> _Step:
    if not folder.parent.is_dir():
        raise CheckpointError(f"{folder.parent}: expected the run directory of a fit, found no such directory")
    if not (there := steps(folder)):
        raise CheckpointError(f"{folder}: expected a step that was not finite, found none: fit leaves one in run_dir")
    found = read(step_folder(folder, there[0] if step is None else step))
    try:
        return _checked(found)
    except CheckpointError as error:
        raise CheckpointError(
            f"{found.path}: expected a step that this version of fit has kept, found one that ppl_vae {found.library} "
            f"has left: {error}"
        ) from error


def _checked(found: Checkpoint) -> _Step:
    """What a bad step holds, looked at before anything is done with it."""
    _FORM(found.plain, "state")
    forms.whole(found.step, found.step)(found.plain["step"], "state.step")
    kept = _Step(found.tensors, of_exact(found.plain))
    if type(beta := kept.plain["beta"]) not in (int, float) or (type(beta) is int and abs(beta) > _LARGEST):
        raise CheckpointError(f"state.beta: expected a number, found {beta!r:.60}")
    names = {name for name in found.tensors if name == ROWS or name.startswith((f"{BATCH}/", f"{CHECKED}/"))}
    count = min(found.plain["arrays"], len(found.tensors))
    if odd := sorted(names ^ {ROWS, *(f"{name}/{i}" for name in (BATCH, CHECKED) for i in range(count))}):
        raise CheckpointError(f"{odd[0]}: expected rows and batch, found others")
    for one, other in zip(kept.batch, kept.checked, strict=True):
        if (one.dtype, one.shape[1:]) != (other.dtype, other.shape[1:]):
            raise CheckpointError(f"{CHECKED}: expected rows such as those of the batch, found others")
    rows = found.tensors[ROWS]
    shapes = [array.shape[:1] for array in kept.batch]
    if rows.dtype != torch.int64 or rows.dim() != 1 or not len(rows) or any(shape != rows.shape for shape in shapes):
        raise CheckpointError(f"{ROWS}: expected the positions of the rows of the batch, found others")
    if kept.plain["binarize"] and not _are_probabilities(kept.batch[0]):
        raise CheckpointError(f"{BATCH}/0: expected probabilities, from which binary data are drawn, found others")
    return kept


def _are_probabilities(array: Tensor) -> bool:
    return array.is_floating_point() and first_outside(constraints.unit_interval, array) is None


def _device(kept: str, wanted: str | torch.device | None) -> torch.device:
    """Where to do a step that was done on a type of device."""
    if wanted is None and kept == "cuda" and not torch.cuda.is_available():
        wanted = "cpu"
    target = choose_device(kept if wanted is None and kept in ("cpu", "cuda") else wanted or "cpu")
    if target.type != kept:
        warnings.warn(
            f"the fit did this step on {kept}, and it is done again on {target.type}, whose noise is another: what was "
            "not finite may be finite now",
            UserWarning,
            stacklevel=3,
        )
    return target


def _layout(pair: Pair, batch: tuple[Tensor, ...], objective: Objective) -> Layout:
    """The layout, found with the parameters that the pair has: those of the step may draw what nobody can score."""
    first = tuple(array.to(pair.device) for array in batch)
    with seeded(0):
        summed = check_for_pyro(pair, first) if isinstance(objective, FromPyro) else None
        return (summed or check(pair, first)).layout


def _differences(pair: Pair, plain: dict[str, Any], device: torch.device) -> Iterator[str]:
    """What is known not to be as it was in the fit, of a pair as it is given."""
    if plain["compiled"]:
        yield "the fit ran it compiled"
    if plain["device"] != device.type:
        yield "the fit ran it on another device"
    now = {"programs": facts_of_programs(pair), "machine": facts_of_machine(device, current())}
    if others := other_programs(plain["facts"], now, plain["moved"]):
        yield f"the programs are not those of the fit ({_listed([change.name for change in others])})"
    for change in differences(plain["facts"], now, "machine"):
        if change.name not in _TOLD:
            yield f"{change.name} was {change.before!r} and is {change.now!r}"
    if moved := plain["moved"]:
        yield f"the programs had changed {_listed(moved)}, which is not kept with a step"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:5]))}{' and more' * (len(names) > 5)}"


def _again(pair: Pair, batch: tuple[Tensor, ...], layout: Layout, objective: Objective, kept: _Step) -> Replay:
    binary, rows = kept.plain["binarize"], kept.tensors[ROWS]
    parameters = [p for p in pair.parameters() if p.requires_grad]
    gradient = Gradient(pair, objective, layout, parameters, binarize=binary, clip_norm=None)
    device = batch[0].device
    beta = torch.tensor(kept.plain["beta"], dtype=torch.float64)

    def again(act: Callable[..., T], *more: Tensor) -> T:
        reseed(kept.plain["seed"], device)
        data = (binarized(batch[0]), *batch[1:]) if binary else batch
        return act(pair, data, *more, layout, objective)

    try:
        metrics, *gradients = gradient(torch.arange(len(batch[0]), device=device), beta, *batch)
    except Exception as error:
        if is_of_programs(error) and again(cannot_draw):
            metrics, gradients = torch.full((len(Metrics._fields),), math.nan), []
        else:
            raise
    pair.zero_grad()
    for parameter, found in zip(gradient.reached, gradients, strict=True):
        parameter.grad = found
    seen = Metrics(*metrics.tolist())
    finite = math.isfinite(seen.loss + seen.norm)
    return Replay(
        step=kept.plain["step"],
        loss=seen.loss,
        elbo=seen.elbo,
        grad_norm=seen.norm,
        reason="" if finite else fault_of_beta(kept.plain["beta"]) or again(explain_non_finite, rows),
        rows=tuple(rows.tolist()),
        sites=tuple(again(site_ranges)),
        recorded=kept.plain["reason"],
    )
