"""What a ledger says of a pair: its bound in two terms, each latent, and the aggregate posterior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppl_vae.coordinates import Form
from ppl_vae.evaluation.means import MeanOverData, observed_bits
from ppl_vae.evaluation.surgery import Surgery
from ppl_vae.latents.units import active_units
from ppl_vae.wording import in_words

__all__ = ["NO_ERROR", "Entry", "LatentUse", "Ledger"]

_COLLAPSED, _SHARE = 0.01, 0.99  # epsilon in nats and 1 - delta of Lucas et al. (2019)
_NOTHING = 0.01  # nats
_SHOWN = 5

NO_ERROR = (
    "log-weights of {} fall off so slowly that no error of their mean can be told (their variance looks infinite): its "
    "ELBO is too high rather than too low, and may be -inf; give it lighter tails, or take log_likelihood, to which "
    "they do no harm"
)


@dataclass(frozen=True, eq=False)
class Entry(MeanOverData):
    """A term of the bound for each datum, in nats."""

    value: np.ndarray
    """Mean over samples, (N,)."""
    stderr: np.ndarray
    """Its Monte Carlo standard error, (N,); 0 where a closed form leaves no noise; infinite, for all data, where
    samples fall off so slowly that their variance looks infinite (one time in seven that of exp of twice a normal, say,
    which is not)."""

    @property
    def population_stderr(self) -> float:
        """Standard error of `mean` for new data, Monte Carlo error included; infinite where `stderr` is."""
        return super().population_stderr if self.has_error else np.inf

    @property
    def has_error(self) -> bool:
        """Whether an error can be told."""
        return not np.isinf(self.stderr).any()

    def __str__(self) -> str:
        return in_words(self.mean, self.mean_stderr, 0.0)


@dataclass(frozen=True, eq=False)
class LatentUse:
    """How a pair uses one latent site of D scalars."""

    name: str
    """Of the site."""
    kl: np.ndarray
    """KL(q, p) of each datum and scalar, (N, D), in nats; see `form`."""
    form: Form
    """`each`: q and p factorise, the sum over scalars is the rate of the site. `marginal`: KL of the marginals of
    scalars that depend on each other. `whole`: the value cannot be taken apart, D = 1 here."""
    means: np.ndarray | None
    """E[z given x] of each datum and scalar, (N, D), in units of z; None for discrete or masked latents, and where a
    distribution has no finite mean."""
    noise: np.ndarray | None
    """Monte Carlo variance of `means`, (N, D)."""
    apart: np.ndarray
    """KL(q, q') of each scalar, in nats, with the guide at another datum of these, a random one, as q': (N, D) where q
    can be taken apart, whether or not p can, and (N, 1) where it cannot."""
    num_scalars: int
    """Numbers of a value, whether or not it is taken apart."""

    @property
    def collapsed(self) -> np.ndarray:
        """Scalars whose KL is below 0.01 nats for 99 % of the data, (D,) bool.

        Reference:
            Lucas, Tucker, Grosse and Norouzi (2019), Don't Blame the ELBO!, definition 1.
        """
        return (self.kl < _COLLAPSED).mean(0) >= _SHARE

    @property
    def constant(self) -> np.ndarray:
        """Scalars that say nothing of the data, at the prior or not, (D,) bool as in `apart`: below 0.01 nats in mean.

        In expectation `apart` is at least the mutual information of scalar and data, since KL(q, p) is convex in p.
        """
        return self.apart.mean(0) < _NOTHING if len(self.apart) > 1 else np.zeros(self.apart.shape[1], dtype=bool)

    @property
    def active(self) -> np.ndarray | None:
        """Active units, (D,) bool: the posterior mean varies by more than 0.01 (Burda et al. 2016)."""
        return None if self.means is None else active_units(self.means, noise=self.noise)

    @property
    def alarm(self) -> str:
        """Posterior collapse in words; empty where there is none."""
        away = self.constant & ~self.collapsed
        said = {
            f"KL from the prior below {_COLLAPSED} nats for {_SHARE:.0%} of the data": self.collapsed,
            "not at the prior, but the same for all data": away,
        }
        return "; ".join(
            f"{self._which(scalars)}: {words}, which says nothing of x"
            for words, scalars in said.items()
            if any(scalars)
        )

    def _which(self, scalars: np.ndarray) -> str:
        """Some scalars (D,) bool of the latent, or all of it, in words."""
        found, size = np.flatnonzero(scalars), len(scalars)
        if len(found) == size:
            return f"latent {self.name!r}"
        noun = "scalar" if len(found) == 1 else "scalars"
        return f"{len(found)} of {size} scalars of latent {self.name!r} ({noun} {_ranges(found)})"

    def __str__(self) -> str:
        size = self.num_scalars
        active = "" if self.active is None else f", {int(self.active.sum())} active"
        largest = np.sort(self.kl.mean(0))[::-1]
        shown = ", ".join(f"{value:.2f}" for value in largest[:_SHOWN]) + (", ..." if len(largest) > _SHOWN else "")
        return (
            f"latent {self.name!r}: {size} {'scalar' if size == 1 else 'scalars'}{active}; "
            f"KL{' of the marginals' if self.form == 'marginal' else ''} {largest.sum():.2f} nats"
            f"{f' ({shown})' if len(largest) > 1 else ''}"
        )


@dataclass(frozen=True, eq=False)
class Ledger:
    """The evidence lower bound of a pair on data, entry by entry; `print` gives all of it in words."""

    elbo: Entry
    """ELBO = -(distortion + rate)."""
    distortion: Entry
    """-E log p(x given z)."""
    rate: Entry
    """KL(q(z given x), p(z)) over all latents."""
    latents: tuple[LatentUse, ...]
    """Each latent site, in the order of the guide."""
    surgery: Surgery | None
    """The rate by the aggregate posterior; None where it was not asked for, or there is no latent."""
    num_samples: int
    """K."""
    num_dimensions: int
    """D, how many numbers of a datum the model observes, masked ones left out; 0 where that differs among data."""
    seconds: float
    """Wall time."""

    def bits_per_dimension(self, num_dimensions: int | None = None) -> float:
        """-ELBO / (D log 2), an upper bound on that of log p(x), with the observed D unless another is given.

        Raises:
            EstimateError: None is given where masks leave more of some data than of others.
        """
        return observed_bits(self.elbo.mean, self.num_dimensions, num_dimensions)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Posterior collapse in words: latents or scalars that say nothing of the data, at the prior or not, if any."""
        found = []
        if (s := self.surgery) is not None and s.num_data > 1:
            informed = s.mutual_information + s.mutual_information_stderr
            if self.rate.mean > _NOTHING > informed:
                found.append(
                    f"the guide does not look at the data: of a rate of {self.rate.mean:.2f} nats only "
                    f"{max(0.0, s.mutual_information):.2f} are mutual information with x"
                )
        return (*found, *(latent.alarm for latent in self.latents if latent.alarm))

    def __str__(self) -> str:
        lines = [
            f"ELBO {self.elbo} nats per datum ({len(self.elbo.value)} data, K = {self.num_samples}; "
            f"± {self.elbo.population_stderr:.2g} for new data)"
            + (f"; at most {self.bits_per_dimension():.3f} bits per dimension" if self._has_bits else ""),
            f"= -(distortion {self.distortion} + rate {self.rate})",
            *map(str, self.latents),
        ]
        if not self.elbo.has_error:
            lines.append(NO_ERROR.format("the guide"))
        if self.surgery is not None:
            lines.append(str(self.surgery))
        return "\n".join([*lines, *(f"posterior collapse: {alarm}" for alarm in self.alarms)])

    @property
    def _has_bits(self) -> bool:
        return bool(self.num_dimensions) and self.elbo.has_error


def _ranges(numbers: np.ndarray) -> str:
    """Ascending whole numbers in words: 0, 3 to 5."""
    groups = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{g[0]} to {g[-1]}" if len(g) > 1 else f"{g[0]}" for g in groups)
