"""A trial of what a fit will meet late: the one row that is left over at the end of an epoch."""

from __future__ import annotations

import torch

from ppl_vae.arrays import Rows
from ppl_vae.compile import Snapshot
from ppl_vae.errors import PairError, PplVaeError, first_line
from ppl_vae.pair import Pair, frozen_modes
from ppl_vae.rng import seeded
from ppl_vae.svi.order import Order
from ppl_vae.svi.settings import FitSettings
from ppl_vae.tape import Layout
from ppl_vae.terms import run
from ppl_vae.validation import validating

__all__ = ["check_single_row"]


def check_single_row(pair: Pair, rows: Rows, layout: Layout, settings: FitSettings, order: Order) -> None:
    """Checks that the pair trains on one row, if the fit will give it one; modules such as BatchNorm need two.

    Nothing is changed: no parameter, buffer, mode or random state.

    Raises:
        PairError: Naming the module and the batch.
    """
    if not order.has_single_rows(settings.total_steps(len(rows))):
        return
    if (error := _failure(pair, rows, layout, settings, 1)) is None:
        return
    if len(rows) > 1 and _failure(pair, rows, layout, settings, 2) is not None:
        return  # not the number of rows: the first step says what it is
    raise PairError(
        f"{_failing_module(pair, error)} cannot train on a batch of one row, and {len(rows)} rows in batches of "
        f"{settings.batch_size} leave one: {first_line(error)}; choose a batch_size such that every batch, and every "
        "process's share of it, has two rows or more, or use a layer that does not mix rows"
    ) from error


def _failure(pair: Pair, rows: Rows, layout: Layout, settings: FitSettings, count: int) -> Exception | None:
    """What the programs raise on so many rows in training mode, run as the objective runs them."""
    objective, batch = settings.objective, rows.take(slice(0, count), pair.device)
    enumerates = getattr(objective, "discrete", "") == "enumerate"
    before = Snapshot(pair)  # a batch norm moves its statistics without a sign of it
    try:
        with seeded(0, pair.device), torch.no_grad(), frozen_modes(pair, training=True), validating(False):
            run(pair, batch, objective.num_particles, layout, enumerate_discrete=enumerates)
    except PplVaeError:
        raise
    except Exception as error:
        return error
    finally:
        before.restore()
    return None


def _failing_module(pair: Pair, error: Exception) -> str:
    """Name and class of the innermost module of the pair that the error went through."""
    names = {id(module): name for name, module in pair.named_modules()}
    found, trace = "the pair", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and names.get(id(module)):
            found = f"module {names[id(module)]!r} ({type(module).__name__})"
        trace = trace.tb_next
    return found
