"""Ways of annealing beta, and what they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.statistics import paired
from ppl_vae.schedules import Cyclical, Linear, Schedule

__all__ = ["annealing", "schedule"]


def schedule(how: str, beta: float, num_steps: int) -> float | Schedule:
    """Beta by step: constant, in a line over the first half, or in four cycles."""
    if how == "linear":
        return Linear(0.0, beta, max(num_steps // 2, 1))
    return Cyclical(0.0, beta, max(num_steps // 4, 1)) if how == "cyclical" else beta


def annealing(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Annealed minus constant, over seeds, at the same beta."""
    found = []
    for how, beta in sorted({(row["how"], row["beta"]) for row in rows if row["how"] != "constant"}):
        own, other = ([row for row in rows if (row["how"], row["beta"]) == (h, beta)] for h in (how, "constant"))
        for what in ("log_likelihood", "rate", "active"):
            annealed, constant = ([row[what] for row in part] for part in (own, other))
            found.append({"how": how, "beta": beta, "what": what, **paired(annealed, constant)._asdict()})
    return found
