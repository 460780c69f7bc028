"""Is a rate-distortion curve a front: monotone, convex, with the slopes that its betas promise?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.statistics import mean

__all__ = ["front"]


def front(rows: Sequence[Mapping[str, Any]], rate: str, distortion: str) -> dict[str, Any]:
    """Judge the curve of models with rising beta, seed by seed; means over seeds with their standard errors.

    A model that minimises distortion + beta rate beats its neighbours at its own beta, whence the slope of the chord,
    (D' - D) / (R - R'), lies between the two betas, and the curve is monotone and convex.

    Args:
        rows: One for each beta and seed, with "beta", "seed" and the two quantities in nats per datum.
        rate: Name of the rate.
        distortion: Name of the distortion.

    Returns:
        `monotone`: the smallest rise of distortion from one beta to the next; `convex`: the smallest depth of a point
        under the chord of its neighbours, both in nats and positive for a front; `slopes`: those of the chords.
    """
    betas, seeds = (sorted({row[name] for row in rows}) for name in ("beta", "seed"))
    at = {(row["seed"], row["beta"]): row for row in rows}
    r, d = (np.array([[at[s, b][name] for b in betas] for s in seeds]) for name in (rate, distortion))
    slopes = np.diff(d) / -np.diff(r)
    share = (r[:, 1:-1] - r[:, 2:]) / (r[:, :-2] - r[:, 2:])
    chord = d[:, 2:] + share * (d[:, :-2] - d[:, 2:])
    return {
        "monotone": mean(np.diff(d).min(1))._asdict(),
        "convex": mean((chord - d[:, 1:-1]).min(1))._asdict(),
        "slopes": [
            {"from": low, "to": high, **mean(slope)._asdict()}
            for low, high, slope in zip(betas, betas[1:], slopes.T, strict=False)
        ],
    }
