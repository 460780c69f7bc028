"""What a gap decomposition says of each datum, and of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ppl_vae.averages import mean_stderr, population_stderr
from ppl_vae.evaluation.edges import REASON
from ppl_vae.evaluation.entries import NO_ERROR
from ppl_vae.evaluation.intervals import Interval, two_sided
from ppl_vae.wording import in_words

__all__ = ["GapDecomposition", "PartOfGap"]

Part = Literal["log_evidence", "elbo", "gap", "approximation", "amortisation", "richer_gain"]

_FROM_SEARCH, _NEVER_NEGATIVE = (
    ("approximation", "richer_gain"),
    ("gap", "approximation", "amortisation", "richer_gain"),
)
_OF_EVIDENCE = ("log_evidence", "gap", "approximation")
_ROUND_ALIKE = ("amortisation", "richer_gain")
_ASTRAY = 2.0  # standard errors below zero


class PartOfGap(NamedTuple):
    """The mean of a part over data."""

    value: float
    """Nats per datum."""
    stderr: float
    """Monte Carlo standard error on these data."""
    population_stderr: float
    """Standard error as an estimate for new data: the spread over data, Monte Carlo error included."""


@dataclass(frozen=True, eq=False)
class GapDecomposition:
    """log p(x) - ELBO of each datum and its parts; every array has shape (N,), every number is in nats."""

    log_evidence: np.ndarray
    """log p(x): by importance sampling with the best q that was found, or exact."""
    elbo: np.ndarray
    """ELBO of the guide."""
    best_elbo: np.ndarray
    """ELBO of the best q of the guide's family for this datum."""
    richer_elbo: np.ndarray
    """ELBO of the best q of the richer family, that of the guide's where none is surely better; NaN where there is
    none."""
    log_evidence_stderr: np.ndarray
    """Monte Carlo standard error of `log_evidence`; 0 where it is exact."""
    elbo_stderr: np.ndarray
    """Monte Carlo standard error of `elbo`; this and those of parts that contain an ELBO are infinite, for all data,
    where its log-weights fall off so slowly that their variance looks infinite. Of a best q whose log-weights are
    equal but for a few far away, as at a rare value of a discrete latent, that may be a false alarm."""
    gap_stderr: np.ndarray
    """Monte Carlo standard error of `gap`; this and the following are of differences on the same noise."""
    approximation_stderr: np.ndarray
    """Monte Carlo standard error of `approximation`."""
    amortisation_stderr: np.ndarray
    """Monte Carlo standard error of `amortisation`."""
    richer_gain_stderr: np.ndarray
    """Monte Carlo standard error of `richer_gain`."""
    trusted: np.ndarray
    """Whether log p(x) is exact, or the verdict on its weights and probes is not `unreliable`, else it is too low; and
    the datum not `rounded`."""
    rounded: np.ndarray
    """Whether draws that round to the edge of a latent's support may have moved a part, to either side, as
    `LogLikelihood.rounded`."""
    rounding: np.ndarray
    """The part that is rounding of the errors of `log_evidence` (where it is not exact), `elbo`, `gap` and
    `approximation`, as `LogLikelihood.rounding`; the others are differences of ELBOs that round alike."""
    unseen: np.ndarray
    """Share of p(x) where no draw can have been, as `LogLikelihood.unseen`; 0 where log p(x) is exact."""
    late_gain: np.ndarray
    """What the last round of the search for `best_elbo` gained: near zero at the optimum, and about as much as is left.

    Below zero the round lost and was taken back; -inf says that it diverged.
    """
    late_gain_stderr: np.ndarray
    """Monte Carlo standard error of `late_gain`."""
    converged: np.ndarray
    """Whether `late_gain` is no loss, and at most the tolerance of the search with two standard errors added."""
    richer_late_gain: np.ndarray
    """The same as `late_gain` for `richer_elbo`; 0 where there is none. Where the best q of the guide's family stands
    in its place, since it was not surely better, what its whole search has gained: as much may be left."""
    richer_late_gain_stderr: np.ndarray
    """Monte Carlo standard error of `richer_late_gain`."""
    richer_converged: np.ndarray
    """The same for `richer_elbo`; True where there is none."""
    family: Mapping[str, str]
    """The distribution of each latent in the guide."""
    is_supremum: bool
    """Whether the family is all that these distributions can be.

    Where one latent of the guide depends on another, or a flow keeps its transforms, or a parameter moves the support,
    that part of it stays as the encoder made it: the best q may be better still, so that the approximation gap is at
    most what is said, and the amortisation gap at least.
    """
    no_richer: str
    """Why there is no richer family; empty if there is one."""
    num_samples: int
    """K."""
    seconds: float
    """Wall time."""

    @property
    def gap(self) -> np.ndarray:
        """log p(x) - ELBO = KL(q, posterior): the sum of the two parts."""
        return self.approximation + self.amortisation

    @property
    def approximation(self) -> np.ndarray:
        """Approximation gap: what even the best q of the family leaves."""
        return self.log_evidence - self.best_elbo

    @property
    def amortisation(self) -> np.ndarray:
        """Amortisation gap: what is lost because one encoder serves all data."""
        return self.best_elbo - self.elbo

    @property
    def richer_gain(self) -> np.ndarray:
        """What the richer family gains: the part of the approximation gap that it closes."""
        return self.richer_elbo - self.best_elbo

    def mean(self, part: Part) -> PartOfGap:
        """Mean of a part over data with both of its errors: `found.mean("amortisation").value`."""
        values, errors = getattr(self, part), getattr(self, f"{part}_stderr")
        spread = np.inf if np.isinf(errors).any() else population_stderr(values)
        return PartOfGap(float(values.mean()), mean_stderr(errors), spread)

    def interval(self, part: Part, level: float = 0.95, *, new_data: bool = False) -> Interval:
        """Interval of the mean of a part over these data: for its Monte Carlo error, and for what searches have left.

        An estimate of log p(x) is on average s^2 / 2 too low, which is added, and lacks what no draw can have seen,
        which is added on the upper side. What searches have left belongs to the amortisation gap, and is counted in the
        approximation gap; what that of the richer family has left belongs to its gain. Of a datum that has converged it
        is about `late_gain`; of another, and where the family is no supremum, as much as all of its approximation gap.
        Where a log p(x) is not trusted, the upper ends of what contains it are infinite; where a mean of log-weights
        has no error, or a datum is `rounded`, so are both ends. Rounding may lean to the same side for all data: its
        mean widens the interval in quadrature. No gap is below zero.

        Args:
            part: Name of the part.
            level: Coverage, such as 0.95.
            new_data: Whether it is of the mean over all data, of which these are a sample; NaN for one datum.
        """
        found, z = self.mean(part), two_sided(level)
        rounding = self._rounding(part)
        error = z * math.hypot(found.population_stderr if new_data else self._sampled(part), rounding.mean())
        low, high = found.value - error, found.value + error
        if part in _OF_EVIDENCE:
            low, high = low + self._bias.mean(), high + (self._bias + self._missed).mean()
        if part == "amortisation":
            high += self._left(z)
        if part in _FROM_SEARCH:
            low -= self._left(z)
        if part == "richer_gain":
            high += self._richer_left(z)
        if part == "richer_gain" and not self.richer_converged.all():
            high = max(high, float(self.interval("approximation", level, new_data=new_data).high))
        if part in _OF_EVIDENCE and not self.trusted.all():
            high = math.inf
        if self.rounded.any():
            low, high = -math.inf, math.inf
        least = 0.0 if part in _NEVER_NEGATIVE else -math.inf
        return Interval(low=max(float(low), least), high=max(float(high), least))

    @property
    def _bias(self) -> np.ndarray:
        """By how much the logarithm of a mean is on average too low (N,)."""
        return (np.square(self.log_evidence_stderr) - np.square(self._rounding("log_evidence"))) / 2

    def _rounding(self, part: Part) -> np.ndarray:
        """The part that is rounding of the error of a part (N,)."""
        return np.minimum(0.0 if part in _ROUND_ALIKE else self.rounding, getattr(self, f"{part}_stderr"))

    def _sampled(self, part: Part) -> float:
        """Standard error of the mean of a part without rounding."""
        errors = np.square(getattr(self, f"{part}_stderr")) - np.square(self._rounding(part))
        return mean_stderr(np.sqrt(errors))

    @property
    def _missed(self) -> np.ndarray:
        """By how much log p(x) is too low for what no draw can have seen (N,)."""
        return np.log1p(np.nan_to_num(self.unseen))

    def _left(self, z: float) -> float:
        """How much a better search or family may move from the approximation gap to that of amortisation, at most."""
        sure = self.converged & self.is_supremum
        if not self.trusted[~sure].all():
            return math.inf
        errors = np.where(sure, self.late_gain_stderr, self.approximation_stderr)
        open_gap = self.approximation + self._bias + self._missed
        left = max(0.0, self.late_gain[sure].sum()) + open_gap[~sure].clip(0.0).sum()
        return float(left / len(errors)) + z * mean_stderr(errors)

    def _richer_left(self, z: float) -> float:
        """How much a better search of the richer family may add where it has converged, at most."""
        sure = self.richer_converged
        left = max(0.0, self.richer_late_gain[sure].sum()) / len(sure)
        return float(left) + z * mean_stderr(np.where(sure, self.richer_late_gain_stderr, 0.0))

    def __str__(self) -> str:
        of = ", ".join(dict.fromkeys(self.family.values()))
        is_known, is_near = bool(self.trusted.all()), bool(self.rounded.any())
        sign = "near" if is_near else "=" if is_known else "≥"
        lines = [
            f"log p(x) - ELBO {sign} {self._in_words('gap', is_known)} nats per datum ({len(self.elbo)} data, q: {of})"
        ]
        at_least = "about " if is_near else "" if self.is_supremum else "at least "
        # A log p(x) that is too low makes the gap larger than is said, a q that is not the best makes it smaller.
        bound = {(True, True): "", (True, False): "at most ", (False, True): "at least ", (False, False): "about "}
        about = "about " if is_near else bound[is_known, self.is_supremum]
        approximation = about + self._in_words("approximation", is_known)
        lines.append(f"  approximation gap  {approximation}  left by the best q of each datum")
        amortisation = at_least + self._in_words("amortisation", not is_near)
        lines.append(f"  amortisation gap   {amortisation}  lost by one encoder for all data")
        if not self.no_richer:
            lines.append(f"  an affine map of q for each datum gains {self._in_words('richer_gain')}")
        return "\n".join(lines + self._cautions())

    def _in_words(self, part: Part, is_known: bool = True) -> str:
        found = self.mean(part)
        return in_words(found.value, found.stderr, 0.0) if is_known else f"{found.value:.2f}"

    def _cautions(self) -> list[str]:
        num, found = len(self.elbo), []
        for what, errors in (("the guide", self.elbo_stderr), ("the best q", self.approximation_stderr)):
            if np.isinf(errors).any():
                found.append("  " + NO_ERROR.format(what))
        if astray := int((self.late_gain < -_ASTRAY * self.late_gain_stderr).sum()):
            found.append(
                f"  {astray} of {num} searches lost in their last round, which was taken back: lower the learning rate"
            )
        if late := int((~self.converged).sum()):
            found.append(f"  {late} of {num} searches have not converged: allow more rounds or steps")
        if rounded := int(self.rounded.sum()):
            found.append(f"  of {rounded} of {num} data {REASON}")
        if doubtful := int((~self.trusted & ~self.rounded).sum()):
            found.append(
                f"  {doubtful} of {num} log p(x) cannot be trusted, and are rather too low, by nobody knows how much: "
                "so is the approximation gap"
            )
        return found
