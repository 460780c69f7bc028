"""Names what went wrong when a loss or a gradient is not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout, run_program

__all__ = ["explain_non_finite"]


def explain_non_finite(pair: Pair, batch: Batch, layout: Layout) -> str:
    """The first site (draws, then density) or parameter that is not finite, with the rows of the batch.

    Args:
        pair: The pair, with the parameters the step started from.
        batch: The batch of the step.
        layout: Layout of the pair.
    """
    with torch.no_grad():
        for name, parameter in pair.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"parameter {name!r} is not finite"
        guide = run_program(pair, pair.guide, batch, None, layout)
        model = run_program(pair, pair.model, batch, None, layout, guide.replay)
        for role, tape in (("guide", guide), ("model", model)):
            for name, site in tape.sites.items():
                if rows := _bad_rows(site["value"], len(batch[0])):
                    return f"site {name!r} of the {role} draws values that are not finite (rows {rows} of the batch)"
                if rows := _bad_rows(site["fn"].log_prob(site["value"]), len(batch[0])):
                    return (
                        f"site {name!r} of the {role} has a log-density that is not finite (rows {rows} of the batch)"
                    )
    if bad := [
        name for name, p in pair.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]:
        return f"the gradient of parameter {bad[0]!r} is not finite"
    return "no single site is to blame: their sum overflows"


def _bad_rows(value: Tensor, num_rows: int) -> list[int]:
    bad = ~torch.isfinite(value) if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)
    if not bool(bad.any()):
        return []
    rows = bad.reshape(num_rows, -1).any(1) if bad.shape[:1] == (num_rows,) else bad.reshape(-1)
    return [int(r) for r in rows.nonzero()[:5, 0]]
