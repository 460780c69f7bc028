"""The verdict on a rate-distortion curve."""

from __future__ import annotations

from math import exp, log

from experiments.common.front import front
from tests.statistical import assert_close


def rows(betas: list[float], scale: float, seed: int = 0) -> list[dict[str, float]]:
    """Minimisers of a exp(-R) + beta R, at R = log(a / beta)."""
    return [{"beta": b, "seed": seed, "r": log(scale / b), "d": scale * exp(-log(scale / b))} for b in betas]


def test_minimisers_are_a_front_with_slopes_between_their_betas():
    found = front(rows([0.1, 1.0, 4.0], 10.0) + rows([4.0, 0.1, 1.0], 20.0, seed=1), "r", "d")
    slopes = found["slopes"]
    assert [(s["from"], s["to"]) for s in slopes] == [(0.1, 1.0), (1.0, 4.0)]
    assert_close([s["mean"] for s in slopes], [0.9 / log(10), 3 / log(4)])
    assert_close([s["stderr"] for s in slopes], [0.0, 0.0], scale=1.0)
    assert_close(found["monotone"]["mean"], 0.9)
    chord = 0.1 + log(10) / log(40) * 3.9  # at beta = 1, where D = 1
    assert_close(found["convex"]["mean"], chord - 1)


def test_points_above_a_chord_and_rising_rates_are_seen():
    above = [{"beta": b, "seed": 0, "r": r, "d": d} for b, r, d in ((1, 3, 0), (2, 2, 5), (3, 1, 4))]
    found = front(above, "r", "d")
    assert_close(found["monotone"]["mean"], -1.0)
    assert_close(found["convex"]["mean"], -3.0)
