"""Annealed importance sampling of one block of data: tuned on chains of its own, then frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.hamiltonian import transition
from ppl_vae.evaluation.path import Ends, Path
from ppl_vae.options import whole_number

__all__ = ["Annealing", "Frozen", "forward", "reverse", "tune"]

# The acceptance that leapfrog steps do best at (Beskos et al. 2013), and how fast to approach it.
_TARGET, _RATE = 0.65, 0.2
_FIRST_STEP, _SETTLING = 0.2, 30
_STEEPNESS = 4.0


@dataclass(frozen=True)
class Annealing:
    r"""How to anneal from a start to the posterior.

    Args:
        num_chains: K, independent chains of each datum.
        num_temperatures: T, intermediate densities f_t = f_0^(1 - t) f_1^t; the bounds close as 1 / T.
        num_leapfrog: Leapfrog steps of a transition.
        schedule: Temperatures: `linear`; `sigmoid`, denser at both ends (Grosse, Ghahramani and Adams 2015);
            `adaptive`, dense where log f_1 - log f_0 spreads most among the chains that tune.
        start: f_0: `guide`, which is nearer; or `prior`, which owes nothing to the guide.

    Example:
        >>> Annealing(num_chains=4).num_temperatures
        200
    """

    num_chains: int = 16
    num_temperatures: int = 200
    num_leapfrog: int = 10
    schedule: Literal["linear", "sigmoid", "adaptive"] = "sigmoid"
    start: Literal["prior", "guide"] = "guide"

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_leapfrog"):
            whole_number(name, getattr(self, name), least=1)
        for name, choices in (("schedule", ("linear", "sigmoid", "adaptive")), ("start", ("prior", "guide"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}")

    def in_words(self) -> str:
        """All of it in a line.

        Example:
            >>> Annealing(num_chains=4).in_words()
            '4 chains of 200 temperatures (sigmoid) from the guide, 10 leapfrog steps'
        """
        return (
            f"{self.num_chains} chains of {self.num_temperatures} temperatures ({self.schedule}) from the "
            f"{self.start}, {self.num_leapfrog} leapfrog steps"
        )

    def temperatures(self) -> np.ndarray:
        """0 = t_0 < ... < t_T = 1; those of the tuning where the schedule is adaptive."""
        even = np.linspace(0.0, 1.0, self.num_temperatures + 1)
        if self.schedule == "linear":
            return even
        bent = 1 / (1 + np.exp(-_STEEPNESS * (2 * even - 1)))
        return (bent - bent[0]) / (bent[-1] - bent[0])


class Frozen(NamedTuple):
    """What tuning found; chains that count take it as it is, so that it owes nothing to them."""

    temperatures: np.ndarray
    """t_0 to t_T (T + 1,)."""
    step_sizes: Tensor
    """Step size of the transition at t_i, for each datum, (T + 1, N)."""


def tune(path: Path, annealing: Annealing, num_data: int) -> Frozen:
    """Goes the path once with step sizes that follow the acceptance, and remembers them."""
    temperatures = annealing.temperatures()
    points = path.draw()
    step = torch.full((num_data,), _FIRST_STEP, dtype=next(iter(points.values())).dtype).to(_device(points))
    steps, spreads = [step], [path.ends(points)]
    for i, temperature in enumerate(temperatures[1:]):
        for _ in range(1 if i else _SETTLING):
            points, accepted = transition(path.density(temperature), points, step, annealing.num_leapfrog, path.space)
            step = step * ((accepted.mean(0) - _TARGET) * _RATE).exp()
        steps.append(step)
        spreads.append(path.ends(points))
    frozen = Frozen(temperatures, torch.stack(steps))
    return _respaced(frozen, _spread(spreads)) if annealing.schedule == "adaptive" else frozen


def forward(path: Path, frozen: Frozen, num_leapfrog: int) -> tuple[Tensor, Tensor]:
    r"""Log-weights of chains from the start to the joint density, (K, N), and how often each datum's moves were taken.

    .. math:: \log w = \sum_{i=1}^{T} (t_i - t_{i-1}) [\log f_1(u_{i-1}) - \log f_0(u_{i-1})]

    with u_0 ~ f_0 and u_i from a transition that leaves f at t_i invariant: E w = p(x).

    Raises:
        EstimateError: A density on the way is NaN or plus infinity; row and site are named. Or draws of the start round
            to the edge of a latent's support.

    Reference:
        Neal (2001), Annealed Importance Sampling.
    """
    points = path.draw()
    path.check_start(points)
    log_weight, taken = torch.zeros(()), []
    for i, (before, after) in enumerate(pairwise(frozen.temperatures), start=1):
        log_weight = log_weight + _increment(path.sure_ends(points), after - before)
        if after < 1:
            points, accepted = transition(path.density(after), points, frozen.step_sizes[i], num_leapfrog, path.space)
            taken.append(accepted.mean(0))
    return log_weight, torch.stack(taken).mean(0) if taken else log_weight.new_ones(log_weight.shape[1])


def reverse(path: Path, frozen: Frozen, num_leapfrog: int, points: Mapping[str, Tensor]) -> Tensor:
    """Log-weights of the same chains run backwards from exact draws of the posterior: E 1 / w = 1 / p(x).

    Raises:
        EstimateError: As `forward`.

    Reference:
        Grosse, Ghahramani and Adams (2015), Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.
    """
    log_weight = torch.zeros(())
    for i in range(len(frozen.temperatures) - 1, 0, -1):
        before, after = frozen.temperatures[i - 1], frozen.temperatures[i]
        log_weight = log_weight + _increment(path.sure_ends(points), after - before)
        if before > 0:
            points, _ = transition(path.density(before), points, frozen.step_sizes[i - 1], num_leapfrog, path.space)
    return log_weight


def _increment(ends: Ends, width: float) -> Tensor:
    return width * (ends.joint - ends.start)


def _spread(ends: Iterable[Ends]) -> np.ndarray:
    """Standard deviation of log f_1 - log f_0 among chains, at each temperature, over all data (T + 1,).

    Chains where the datum is impossible have no part in it.
    """
    differences = torch.stack([e.joint - e.start for e in ends]).double()
    finite = differences.isfinite()
    count = finite.sum(1, keepdim=True).clamp_min(1)
    mean = torch.where(finite, differences, 0.0).sum(1, keepdim=True) / count
    variance = (torch.where(finite, differences - mean, 0.0).square() / count).sum(1)
    return variance.mean(-1).sqrt().cpu().numpy()


def _respaced(frozen: Frozen, spread: np.ndarray) -> Frozen:
    """As many temperatures, so that every step changes log f by as much as any other; as they are if none does."""
    t = frozen.temperatures
    length = np.concatenate([[0.0], np.cumsum(np.diff(t) * (spread[1:] + spread[:-1]) / 2)])
    if not length[-1] > 0:
        return frozen
    chosen = np.interp(np.linspace(0, length[-1], len(t)), length, t)
    chosen[0], chosen[-1] = 0.0, 1.0  # of temperatures between which nothing changes, the last is what is found
    nearest = torch.from_numpy(np.searchsorted(t, chosen).clip(max=len(t) - 1))
    return Frozen(chosen, frozen.step_sizes[nearest.to(frozen.step_sizes.device)])


def _device(points: Mapping[str, Tensor]) -> torch.device:
    return next(iter(points.values())).device
