"""How far to trust the estimates of a call: by weights and probes, by rounding, by the edge of a support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.evaluation.coarseness import COARSE, HIDDEN, ROUNDING
from ppl_vae.evaluation.edges import move_estimates
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE, misses_some, verdict
from ppl_vae.weights import is_hidden

__all__ = ["JUDGED", "Trust", "is_too_coarse", "rounding_in_words", "trust"]

_BY_VERDICT = ("khat", "stderr", "ess", "unseen", "unseen_stderr")
JUDGED = (*_BY_VERDICT, "skewness", "rounding", "at_edge", "num_at_edge")
"""What trust goes by, arrays (N,) named as the fields of `LogLikelihood`."""
# The mean of weights of which all but p K are alike has a skewness of 1 / sqrt(p K), to either side: where so few draws
# tell how far weights differ no interval is right.
_OF_FEW = 0.5


class Trust(NamedTuple):
    """What is said of the estimates of all data of a call; arrays (N,)."""

    verdict: np.ndarray
    """`reliable`, `noisy` or `unreliable`."""
    rounded: np.ndarray
    """Whether samples at the edge of a latent's support may have moved an estimate, to either side."""


def trust(found: Mapping[str, Any], num_samples: np.ndarray) -> Trust:
    """Judges all data of a call together: the verdict on a datum depends on its company.

    Beside what `verdict` asks, a datum is `noisy` at best whose error is much of it rounding, or is told by four draws
    or so that weigh otherwise than the others, and `unreliable` whose samples round to the edge of a support.

    Args:
        found: What is `JUDGED`, and anything else.
        num_samples: K of each datum (N,).
    """
    words = verdict(**{name: found[name] for name in _BY_VERDICT}, num_samples=num_samples)
    of_few = (found["khat"] <= 0) & (np.abs(found["skewness"]) > _OF_FEW)
    doubtful = is_too_coarse(found["rounding"], found["stderr"]) | of_few
    words = np.where(doubtful & (words == RELIABLE), NOISY, words)
    rounded = move_estimates(found["at_edge"], found["num_at_edge"], found["stderr"], num_samples)
    return Trust(np.where(rounded, UNRELIABLE, words), rounded)


def is_too_coarse(rounding: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Whether rounding, which may lean to one side for all data, is more of an error than an interval bears, (N,)."""
    return (rounding > COARSE) & misses_some(rounding, stderr)


def rounding_in_words(rounding: np.ndarray, stderr: np.ndarray, words: np.ndarray) -> str:
    """What rounding does to estimates with these verdicts, each (N,): empty where it does nothing."""
    hidden = is_hidden(rounding) & (words == UNRELIABLE)
    coarse = int((is_too_coarse(rounding, stderr) & ~hidden).sum())
    text = f"; the error of {coarse} is {ROUNDING}" if coarse else ""
    return text + (f"; of {int(hidden.sum())} data {HIDDEN}" if hidden.any() else "")
