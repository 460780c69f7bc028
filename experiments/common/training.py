"""Trainings of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

import ppl_vae as pv
from ppl_vae.rng import key, seeded

__all__ = ["Score", "score", "trained"]

Made = TypeVar("Made")


def trained(make: Callable[[], Made], x: Tensor, seed: int, **options: Any) -> tuple[Made, pv.Fit]:
    """Make a pair from a seed and fit it with the same seed; options are those of `ppl_vae.fit`."""
    with seeded(key(seed, 0)):
        pair = make()
    return pair, pv.fit(pair, x, seed=seed, progress=False, **options)


class Score(NamedTuple):
    """The log-likelihood of a pair on held-out data."""

    log_likelihood: float
    """Mean over data, nats per datum."""
    stderr: float
    """Standard error of the mean over these data, Monte Carlo, nats."""
    elbo: float
    """Mean over data, nats per datum; the same draws."""
    untrusted: float
    """Share of the data whose estimate cannot be trusted: it is rather too low."""
    values: np.ndarray
    """Each datum's (N,), nats, for paired comparisons; left out of records."""

    def numbers(self) -> dict[str, float]:
        """All but the values of single data."""
        return {name: value for name, value in self._asdict().items() if name != "values"}


def score(pair: Any, x: Tensor, num_samples: int, seed: int = 0) -> Score:
    """Importance-sampled log-likelihood of each datum with K = num_samples."""
    ll = pv.log_likelihood(pair, x, num_samples, seed, num_draws=0, progress=False)
    return Score(ll.mean, ll.mean_stderr, float(ll.elbo.mean()), 1 - float(ll.trusted.mean()), ll.value)
