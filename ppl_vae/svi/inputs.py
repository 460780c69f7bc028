"""What a fit does before its first step: data made binary and checked, the pair checked."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import constraints

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import (
    CheckReport,
    check,
    check_draws,
    check_for_pyro,
    check_form,
    check_in_training,
    check_observations,
    first_run,
    in_kind_of,
)
from ppl_vae.errors import DataError, PairError
from ppl_vae.objectives import FromPyro
from ppl_vae.pair import Pair
from ppl_vae.rng import key, seeded
from ppl_vae.supports import first_outside
from ppl_vae.svi.settings import FitSettings
from ppl_vae.tape import Batch, Layout

__all__ = ["check_held_out", "check_stated_size", "checked", "first_batch", "training_rows", "validation_rows"]

_FIXED, _VALIDATION = -1, -2  # keys of noise that belongs to no step


def training_rows(pair: Pair, data: Any, settings: FitSettings) -> Rows:
    """The training data, in the type of the pair, which runs first on the first batch; binarised once if so asked."""
    rows = as_rows(data)
    if settings.binarize is not None:
        _check_probabilities(rows)
    if settings.binarize == "fixed":
        rows = _binarized(rows, key(settings.seed, _FIXED))
    first_run(pair, first_batch(pair, rows.with_dtype(pair.dtype), settings))
    return in_kind_of(pair, rows)


def validation_rows(pair: Pair, data: Any, training: Rows, settings: FitSettings) -> Rows:
    """The held-out data, in the type of the pair, which has run; binarised once where training binarises.

    How numbers vary is told by those that train, too: held-out data may be a part in which they are more alike.
    """
    try:
        rows = as_rows(data)
        if settings.binarize is not None:
            _check_probabilities(rows)
            rows = _binarized(rows, key(settings.seed, _FIXED, _VALIDATION))
        return in_kind_of(pair, rows, among=training if len(training.arrays) == len(rows.arrays) else None)
    except DataError as error:
        raise DataError(f"validation data: {error}") from error


def checked(pair: Pair, rows: Rows, settings: FitSettings) -> CheckReport:
    """Checks pair and data as `ppl_vae.check` does, on the first batch and then on every row."""
    batch = first_batch(pair, rows, settings)
    summed = check_for_pyro(pair, batch) if isinstance(settings.objective, FromPyro) else None
    report = summed or check(pair, batch)
    if settings.batch_size < len(rows):
        check_stated_size(report.layout)
    if summed is None and len(batch[0]) > 1:  # a batch norm cannot train on one row
        check_in_training(pair, batch)
    check_data(pair, rows, report.layout, settings)
    return report


def first_batch(pair: Pair, rows: Rows, settings: FitSettings) -> Batch:
    """What a pair is checked on before it trains: the first rows, made binary where steps do that."""
    batch = rows.take(slice(0, settings.batch_size), pair.device)
    if settings.binarize != "dynamic":
        return batch
    with seeded(key(settings.seed, _FIXED)):
        return (torch.bernoulli(batch[0].cpu()).to(pair.device), *batch[1:])  # drawn alike on every device


def check_stated_size(layout: Layout) -> None:
    """Checks that a pair with latents outside the data plate states how many data there are.

    Raises:
        PairError: Naming the site.
    """
    if layout.global_latents and layout.full_size is None:
        raise PairError(
            f"site {layout.global_latents[0]!r}: a latent outside the data plate is weighed against the number of "
            "data, of which a step sees only a part: state the size of the data set, "
            'pyro.plate("data", N, subsample_size=len(x))'
        )


def check_held_out(pair: Pair, rows: Rows, layout: Layout, settings: FitSettings) -> None:
    """Checks held-out data as those that train: both programs take them, and every row is inside its support."""
    try:
        check_form(pair, rows, layout)
        check_data(pair, rows, layout, settings)
    except DataError as error:
        raise DataError(f"validation data: {error}") from error


def check_data(pair: Pair, rows: Rows, layout: Layout, settings: FitSettings) -> None:
    """Checks every row of a data set against the sites that observe them."""
    check_observations(pair, rows, layout, binarized=(0,) if settings.binarize else ())
    if settings.binarize is None and not isinstance(settings.objective, FromPyro):  # whose model may draw on its own
        check_draws(pair, rows, layout)


def _check_probabilities(rows: Rows) -> None:
    for start, batch in rows.blocks(4096):
        if not batch[0].is_floating_point():
            raise DataError(f"binarize: expected floating data in [0, 1], found {batch[0].dtype}; {_to_floats(rows)}")
        if (outside := first_outside(constraints.unit_interval, batch[0])) is not None:
            raise DataError(f"row {start + outside[0]}: binarize expects data in [0, 1], found {outside[1]:.6g}")


def _to_floats(rows: Rows) -> str:
    """How bytes become probabilities, of a file without loading it."""
    if not rows.mapped:
        return "divide by 255"
    return (
        "write x / 255 to a float32 file, some thousand rows at a time, into numpy.lib.format.open_memmap(name, 'w+', "
        "'float32', x.shape), and pass that"
    )


def _binarized(rows: Rows, seed: int) -> Rows:
    if rows.mapped:
        raise DataError("binarize='fixed' would copy a memory-mapped array: binarise the file, or use 'dynamic'")
    with seeded(seed):
        return Rows([torch.bernoulli(torch.as_tensor(rows.arrays[0]).cpu()), *rows.arrays[1:]])
