"""The parts of a gap with their errors, from the log-weights of a guide, of its best q, and of a richer q."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.probing import Unseen
from ppl_vae.evaluation.verdict import UNRELIABLE, verdict
from ppl_vae.pareto import has_no_error, largest_deviations
from ppl_vae.weights import Stream

__all__ = ["exact_parts", "sampled_parts", "without_errors"]

_TAIL = "tail of "
_MADE_OF = {
    "elbo": ("elbo", "gap", "amortisation"),
    "best_elbo": ("approximation", "amortisation", "richer_gain"),
    "richer_elbo": ("richer_gain",),
}
_ERRORS = ("log_evidence", "elbo", "gap", "approximation", "amortisation", "richer_gain")


def exact_parts(log_evidence: Tensor, elbo: Tensor, best_elbo: Tensor) -> dict[str, np.ndarray]:
    """Parts without error, where everything has been summed over."""
    found = {"log_evidence": log_evidence, "elbo": elbo, "best_elbo": best_elbo}
    parts = {name: value.double().cpu().numpy() for name, value in found.items()}
    nothing = np.zeros_like(parts["elbo"])
    parts["richer_elbo"], parts["trusted"] = np.full_like(nothing, np.nan), np.ones_like(nothing, dtype=bool)
    parts["unseen"] = nothing
    return parts | {f"{name}_stderr": nothing for name in _ERRORS}


def sampled_parts(
    guide: np.ndarray,
    best: np.ndarray,
    richer: np.ndarray | None,
    known: np.ndarray | None,
    first: int,
    epsilon: float,
    look: Callable[[np.ndarray], Unseen],
) -> dict[str, np.ndarray]:
    r"""Parts from log-weights (K, N) of the three on the same noise, with the errors of differences.

    An ELBO is the mean of its log-weights; log p(x) = log 1/K sum_k w_k, whose part of draw k is w_k / mean(w) - 1 by
    the delta method. The standard error of a difference is that of the mean of the differences of these parts.

    The tails of the log-weights go along, for `without_errors`.

    Args:
        guide: log w of the guide.
        best: log w of the best q of its family.
        richer: log w of the best q of the richer family, if there is one: log p(x) is estimated with it.
        known: log p(x) where it is exact (N,).
        first: Row of the first datum, for messages.
        epsilon: Rounding of the numbers that log-weights were computed in.
        look: Estimates of log p(x) (N,) to the share of p(x) that draws of the best q cannot have seen.
    """
    num_samples, num_data = guide.shape
    proposal = best if richer is None else richer
    if known is None:
        stream = Stream(num_data, num_samples, first)
        stream.add(torch.from_numpy(proposal), epsilon=epsilon)
        summary = stream.summary()
        counts, value = np.full(num_data, num_samples), summary.value
        unseen, unseen_stderr = look(value)
        words = verdict(summary.khat, summary.stderr, summary.ess, unseen, unseen_stderr, counts)
        trusted = words != UNRELIABLE
        of_evidence = np.exp(proposal - value) - 1
    else:
        value, trusted, of_evidence = known, np.ones(num_data, dtype=bool), np.zeros_like(guide)
        unseen = np.zeros(num_data)
    moved = np.full_like(guide, np.nan) if richer is None else richer
    differences = {
        "log_evidence": of_evidence,
        "elbo": guide,
        "gap": of_evidence - guide,
        "approximation": of_evidence - best,
        "amortisation": best - guide,
        "richer_gain": moved - best,
    }
    errors = {f"{name}_stderr": d.std(0, ddof=1) / math.sqrt(num_samples) for name, d in differences.items()}
    of_elbo = {"elbo": guide, "best_elbo": best, "richer_elbo": moved}
    elbos = {name: log_weight.mean(0) for name, log_weight in of_elbo.items()}
    tails = {_TAIL + name: largest_deviations(log_weight) for name, log_weight in of_elbo.items()}
    return {"log_evidence": value, "trusted": trusted, "unseen": unseen} | elbos | errors | tails


def without_errors(parts: Mapping[str, np.ndarray], num_samples: int) -> dict[str, np.ndarray]:
    """Parts of all data without the tails of log-weights; errors of means that have none are infinite."""
    found = {name: value for name, value in parts.items() if not name.startswith(_TAIL)}
    for elbo, names in _MADE_OF.items():
        if _TAIL + elbo in parts and has_no_error(parts[_TAIL + elbo], num_samples):
            found |= {f"{name}_stderr": np.full_like(found[elbo], np.inf) for name in names}
    return found
