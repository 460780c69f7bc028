"""What annealed estimates say of each datum, and how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ppl_vae.averages import population_stderr
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.coarseness import ROUNDING
from ppl_vae.evaluation.intervals import Interval, interval_of_each, interval_of_mean
from ppl_vae.evaluation.means import MeanLogLikelihood
from ppl_vae.evaluation.trust import is_too_coarse

__all__ = ["AnnealedLogLikelihood", "Sandwich"]

# Chains that count, at least; what two starts differ by where one has lost half of p(x); and what nobody reads.
_FEWEST, _HALF, _NOTHING = 4.0, math.log(2), 1e-3
# One datum in forty agrees by chance where half is lost: of those that agree no more than one in twenty may.
_AGREE = 1 / 3


@dataclass(frozen=True, eq=False)
class AnnealedLogLikelihood(MeanLogLikelihood):
    """Annealed estimate of log p(x) for each datum; arrays (N,), in nats: in mean a lower bound."""

    value: np.ndarray
    """log 1/K sum_k w_k over K chains."""
    stderr: np.ndarray
    """Monte Carlo standard error of `value` (delta method), itself an estimate from K chains: see `intervals`; with
    `rounding`."""
    ess: np.ndarray
    """Effective number of the K chains."""
    skewness: np.ndarray
    """Skewness of the mean of their weights; intervals lean by it."""
    acceptance: np.ndarray
    """Mean probability with which the moves of a datum's chains were accepted; in [0, 1]."""
    other: np.ndarray
    """The same by K chains from the other start, the prior instead of the guide or the reverse; NaN without them."""
    other_stderr: np.ndarray
    """Standard error of `other`."""
    other_ess: np.ndarray
    """Effective number of its chains."""
    annealing: Annealing
    """How it was annealed."""
    num_dimensions: int
    """D, how many numbers of a datum the model observes."""
    seconds: float
    """Wall time."""
    rounding: np.ndarray | float = 0.0
    """The part of `stderr` that is rounding within log-densities, in nats."""

    @property
    def trusted(self) -> np.ndarray:
        """Whether chains from guide and prior agree, within errors so small that half of p(x) cannot be lost in them.

        Of both at least four chains have to count, and a half: chains that lag behind the path, or that all miss a
        mode, may have weights that are alike. Where fewer than a third of the data agree, those that do may owe it to
        chance, and none is trusted. What neither start finds is not seen.
        """
        from scipy.stats import t

        chains = self.annealing.num_chains
        enough = np.minimum(self.ess, self.other_ess) >= max(_FEWEST, chains / 2)
        error = t.ppf(0.975, max(1, 2 * chains - 2)) * np.hypot(self.stderr, self.other_stderr)
        apart = np.abs(self.value - self.other)
        agree = enough & (apart <= error + _NOTHING) & (apart + error <= _HALF)
        return agree & (agree.mean() >= _AGREE)

    def intervals(self, level: float = 0.95) -> Interval:
        """Interval of log p(x) of each datum, (N,) and (N,), in nats, by Student's t with K - 1 degrees of freedom.

        It leans as the weights of the chains do. The upper end is infinite where a datum is not trusted.
        """
        found = interval_of_each(*self._estimates, level, self._degrees, self.rounding)
        return found._replace(high=np.where(self.trusted, found.high, np.inf))

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of the mean of log p(x) over these data, in nats per datum: Student's t for errors of few chains.

        Logarithms of means are on average s^2 / 2 too low, which is added. The upper end is infinite where data are
        untrusted: the mean is then rather too low, by nobody knows how much.
        """
        return self._borne(interval_of_mean(*self._estimates, level, self._degrees, self.rounding))

    @property
    def _estimates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.value, self.stderr, self.skewness, np.zeros_like(self.value)

    @property
    def _degrees(self) -> int:
        return max(1, self.annealing.num_chains - 1)

    def __str__(self) -> str:
        text = (
            f"{self._mean_in_words()} ({len(self.value)} data, {self.annealing.in_words()}; "
            f"median ESS {np.median(self.ess):.1f}, acceptance {self.acceptance.mean():.2f})"
        )
        if doubtful := int((~self.trusted).sum()):
            text += f"; {doubtful} of {len(self.value)} data are untrusted, {self._doubt()}"
        if coarse := int(is_too_coarse(np.asarray(self.rounding), self.stderr).sum()):
            text += f"; the error of {coarse} is {ROUNDING}"
        return text

    def _doubt(self) -> str:
        """Why data are untrusted, and what to do."""
        if np.isnan(self.other).all():
            why = "there being no chains from another start to hold theirs against"
        else:
            why = "chains from guide and prior differing, or fewer than half of them counting"
        return (
            f"{why}: rather too low; more temperatures close the gap, bidirectional_monte_carlo tells how wide it is "
            "on simulated data"
        )


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Bounds on log p(x) from both sides for data simulated from the model; arrays (N,), in nats."""

    lower: np.ndarray
    """Annealed estimate, in mean below log p(x)."""
    upper: np.ndarray
    """Reverse annealed estimate from the latents that made the data, in mean above log p(x)."""
    x: tuple[np.ndarray, ...]
    """The simulated data: arguments of the programs."""
    annealing: Annealing
    """How it was annealed."""
    seconds: float
    """Wall time."""

    @property
    def gap(self) -> float:
        """Mean of upper - lower: how much an annealed estimate of such data can be wrong, in nats per datum."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_stderr(self) -> float:
        """Standard error of `gap` over data."""
        return population_stderr(self.upper - self.lower)

    def __str__(self) -> str:
        low, high = self.lower.mean(), self.upper.mean()
        over = f"nats per datum in mean over {len(self.lower)} simulated data"
        gap = f"gap {self.gap:.3f} ± {self.gap_stderr:.3f}"
        if low > high:
            return (
                f"log p(x) about {low:.3f} from below and {high:.3f} from above, closer than their noise, {over}; {gap}"
            )
        return f"{low:.3f} <= log p(x) <= {high:.3f} {over}; {gap}"
