"""What simulation-based calibration found: ranks, tests of them, coverage, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ppl_vae.evaluation.ranks import central_coverage, holm, relative_width, score, smooth_test
from ppl_vae.options import probability

__all__ = ["LOG_JOINT", "LOG_LIK", "Calibration", "Coverage", "Departure"]

LOG_LIK, LOG_JOINT = "log p(x given z)", "log p(x, z)"
_FALSE_ALARM = 0.01
_NAMED = 3.0  # scores from which a part of the shape is named
_SHOWN = 5
_FEW = 100  # simulations: of fewer the law of the test has heavier tails than chi2, and departures go unseen
_SHIFT, _WIDTH = ("draws biased low", "draws biased high"), ("too narrow", "too wide")
_DENSITY_SHIFT = ("lower at the draws than at the truth", "higher at the draws than at the truth")
_DENSITY_WIDTH = ("too alike among the draws", "too different among the draws")


class Departure(NamedTuple):
    """A quantity whose ranks are not uniform."""

    quantity: str
    """A latent number, such as z[3], or a log-density."""
    p_value: float
    """Adjusted for the number of quantities (Holm 1979)."""
    effect: str
    """In words."""


class Coverage(NamedTuple):
    """How often central intervals of the draws hold the truth."""

    due: np.ndarray
    """The share that is due, which is that of a whole number of draws, (levels,)."""
    share: np.ndarray
    """The share found, (Q, levels), in the order of `Calibration.quantities`."""
    stderr: np.ndarray
    """Its standard error where the share due is right, (levels,)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truth among draws for simulated data: uniform on 0..L where the draws are of the posterior."""

    ranks: Mapping[str, np.ndarray]
    """Ranks (R, D) of the D numbers of each latent site, and of the log-densities (R, 1), by name."""
    num_draws: int
    """L."""
    corrected: bool
    """Whether the draws were resampled by importance weight."""
    seconds: float
    """Wall time."""

    @property
    def num_simulations(self) -> int:
        """R."""
        return len(next(iter(self.ranks.values())))

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the Q quantities: latent numbers by site, z[0], z[1], ..., and log-densities."""
        return tuple(
            f"{name}[{i}]" if found.shape[1] > 1 else name
            for name, found in self.ranks.items()
            for i in range(found.shape[1])
        )

    @cached_property
    def scores(self) -> np.ndarray:
        """Standardised polynomials of the ranks, (Q, 4): shift, width, skew, tails; see `ranks.score`."""
        return score(self._all, self.num_draws)

    @cached_property
    def p_values(self) -> np.ndarray:
        """Of the smooth test of each quantity, adjusted for their number, (Q,): the smallest is that of all."""
        return holm(smooth_test(self.scores))

    @property
    def widths(self) -> np.ndarray:
        """Standard deviation of the draws over that of the truth, (Q,), as normal distributions would have it."""
        return relative_width(self._all, self.num_draws)

    def departures(self, false_alarm: float = _FALSE_ALARM) -> tuple[Departure, ...]:
        """Quantities that are not calibrated, the clearest first.

        Args:
            false_alarm: Probability that a calibrated guide has any, over all quantities.
        """
        probability("false_alarm", false_alarm)
        found = [int(i) for i in np.argsort(self.p_values, kind="stable") if self.p_values[i] < false_alarm]
        return tuple(Departure(self.quantities[i], float(self.p_values[i]), self._effect(i)) for i in found)

    @property
    def calibrated(self) -> bool:
        """Whether no departure is seen by a test that raises a false alarm in one of a hundred calibrated guides."""
        return not self.departures()

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Coverage:
        """How often central intervals hold the truth, for each quantity.

        Raises:
            ValueError: A level is not between 0 and 1.
        """
        for level in levels:
            probability("levels", level)
        share, due = central_coverage(self._all, self.num_draws, np.asarray(levels, dtype=np.float64))
        return Coverage(due, share, np.sqrt(due * (1 - due) / self.num_simulations))

    def __str__(self) -> str:
        departures, quantities = self.departures(), len(self.quantities)
        how = (
            f"{self.num_simulations} simulations, {self.num_draws} draws each"
            f"{' resampled by weight' if self.corrected else ''} (false alarms: {_FALSE_ALARM:.0%} in all)"
        )
        few = "; so few say little" if self.num_simulations < _FEW else ""
        if not departures:
            return f"calibrated: no departure in {quantities} quantities, {how}{few}\n{self._covered()}"
        shown = [f"{d.quantity}: {d.effect} (p = {d.p_value:.1g})" for d in departures[:_SHOWN]]
        more = [f"and {len(departures) - _SHOWN} more"] * (len(departures) > _SHOWN)
        title = f"not calibrated in {len(departures)} of {quantities} quantities, {how}{few}"
        return "\n".join([title, *shown, *more, self._covered()])

    def _covered(self) -> str:
        found = self.coverage((0.9,))
        of_latents = found.share[: len(self.quantities) - self._num_densities, 0]
        among = f", from {of_latents.min():.1%} to {of_latents.max():.1%}" if len(of_latents) > 1 else ""
        return (
            f"central {found.due[0]:.0%} intervals hold the latents in {of_latents.mean():.1%} of the simulations"
            f"{among} (± {found.stderr[0]:.1%} for each number)"
        )

    @property
    def _all(self) -> np.ndarray:
        return np.concatenate(list(self.ranks.values()), 1)

    @property
    def _num_densities(self) -> int:
        return sum(name in self.ranks for name in (LOG_LIK, LOG_JOINT))

    def _effect(self, i: int) -> str:
        """What shift and width of the ranks say of the draws, where they say it clearly."""
        scores, width = self.scores[i], float(self.widths[i])
        clear = np.abs(scores) >= min(_NAMED, np.abs(scores).max())
        density = i >= len(self.quantities) - self._num_densities
        shift, narrow = bool(scores[0] > 0), bool(scores[1] > 0)
        words = []
        if clear[0]:
            low, high = _DENSITY_SHIFT if density else _SHIFT
            words.append(low if shift else high)
        if clear[1] and narrow == (width < 1):  # ranks that are shifted alone lie off the middle too
            small, large = _DENSITY_WIDTH if density else _WIDTH
            about = "" if density else f" (standard deviation about {width:.2f} of the right one)"
            words.append((small if narrow else large) + about)
        return " and ".join(words) or "ranks of another shape"
