"""A comparison in words: the table, the order, and what stands in its way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ppl_vae.averages import mean_stderr
from ppl_vae.wording import in_words

if TYPE_CHECKING:
    from ppl_vae.evaluation.ranking import Comparison

__all__ = ["as_text", "notes"]

_HEADINGS = ("rank", "pair", "log p(x)", "behind the best", "its Monte Carlo error", "untrusted")


def as_text(comparison: Comparison) -> str:
    """The table, one row for each pair, and the notes below it."""
    rows = [_HEADINGS, *(_row(comparison, name) for name in comparison.names)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = f"log p(x), nats per datum, higher is better; {comparison.num_data:,} data; ± standard errors"
    return "\n".join([title, *lines, *notes(comparison)])


def notes(comparison: Comparison) -> list[str]:
    """The order as far as it is known, and the data that cannot be trusted; a sentence each."""
    return [*_order(comparison), *_doubts(comparison)]


def _order(comparison: Comparison) -> list[str]:
    groups, unplaced = comparison.groups, comparison.unplaced
    placed, lines = {name for group in groups for name in group}, []
    if sum(map(len, groups)) > 1:
        text = f"order: {' > '.join(' = '.join(group) for group in groups)}"
        if any(len(group) > 1 for group in groups):
            text += "; = joins pairs that cannot all be told apart, more data may"
        assumed = "" if comparison.exact.issuperset(placed) else ", as long as no guide misses a mode"
        lines.append(f"{text} (any mistake in it: probability at most {1 - comparison.level:.2g}{assumed})")
    if unplaced:
        lines.append(
            f"{', '.join(unplaced)}: mostly untrusted, not placed, for lower bounds cannot rank each other: take more "
            "samples, a better guide, or annealed importance sampling"
        )
    return lines


def _doubts(comparison: Comparison) -> list[str]:
    counts = {name: int((~comparison.estimates[name].trusted).sum()) for name in comparison.names}
    return [
        f"{name}: {count:,} of {comparison.num_data:,} data are untrusted, rather too low: what another pair is above "
        "it there does not count, nor on half as many others"
        for name, count in counts.items()
        if count
    ]


def _row(comparison: Comparison, name: str) -> tuple[str, ...]:
    estimate, share = comparison.estimates[name], comparison.share_untrusted(name)
    stderr = mean_stderr(estimate.stderr)
    best, worst = comparison.ranks[name]
    behind = comparison.behind(name)
    return (
        f"{best}" if best == worst else f"{best} to {worst}",
        name,
        in_words(float(estimate.value.mean()), None if name in comparison.exact else stderr, share),
        "" if behind is None else "both -inf" if math.isnan(behind.mean) else in_words(behind.mean, behind.stderr, 0.0),
        "" if behind is None or math.isnan(behind.monte_carlo) else f"{behind.monte_carlo:.2g}",
        f"{share:.1%}",
    )
