"""The parts of a gap with their errors, from the log-weights of a guide, of its best q, and of a richer q."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ppl_vae.evaluation.edges import move_an_estimate
from ppl_vae.evaluation.trust import JUDGED, trust
from ppl_vae.evaluation.verdict import UNRELIABLE
from ppl_vae.pareto import has_no_error, largest_deviations

__all__ = ["exact_parts", "known_evidence", "sampled_parts", "trusted_parts"]

_TAIL, _JUDGED, _EDGE = "tail of ", "judged by ", "edge of "
_MADE_OF = {
    "elbo": ("elbo", "gap", "amortisation"),
    "best_elbo": ("approximation", "amortisation", "richer_gain"),
    "richer_elbo": ("richer_gain",),
}
_ERRORS = ("log_evidence", "elbo", "gap", "approximation", "amortisation", "richer_gain")


def known_evidence(value: np.ndarray) -> dict[str, np.ndarray]:
    """log p(x) itself (N,), with what an estimate of it would be judged by."""
    nothing = np.zeros_like(value)
    return {"value": value} | dict.fromkeys(JUDGED, nothing) | {"khat": nothing - np.inf}


def exact_parts(log_evidence: Tensor, elbo: Tensor, best_elbo: Tensor) -> dict[str, np.ndarray]:
    """Parts without error, where everything has been summed over."""
    known, guide, best = (value.double().cpu().numpy() for value in (log_evidence, elbo, best_elbo))
    nothing = np.zeros_like(known)
    parts = {"elbo": guide, "best_elbo": best, "richer_elbo": np.full_like(nothing, np.nan)}
    return parts | _judged_by(known_evidence(known)) | {f"{name}_stderr": nothing for name in _ERRORS}


def sampled_parts(
    guide: np.ndarray,
    best: np.ndarray,
    richer: np.ndarray | None,
    evidence: Mapping[str, np.ndarray],
    is_known: bool,
    at_edge: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    r"""Parts from log-weights (K, N) of the three on the same noise, with the errors of differences.

    An ELBO is the mean of its log-weights; log p(x) = log 1/K sum_k w_k, whose part of draw k is w_k / mean(w) - 1 by
    the delta method. The standard error of a difference is that of the mean of the differences of these parts, and of
    rounding, but where two ELBOs round alike.

    What tells how far to trust them goes along, for `trusted_parts`.

    Args:
        guide: log w of the guide.
        best: log w of the best q of its family.
        richer: log w of the best q of the richer family, if there is one.
        evidence: log p(x) (N,) as `value`, by the last of these that there is, with what it is `JUDGED` by.
        is_known: Whether it is log p(x) itself.
        at_edge: Share of the draws behind an ELBO that round to the edge of a latent's support (N,), by its name.
    """
    num_samples, value = len(guide), evidence["value"]
    proposal = best if richer is None else richer
    of_evidence = np.zeros_like(guide) if is_known else np.exp(proposal - value) - 1
    moved = np.full_like(guide, np.nan) if richer is None else richer
    differences = {
        "log_evidence": of_evidence,
        "elbo": guide,
        "gap": of_evidence - guide,
        "approximation": of_evidence - best,
        "amortisation": best - guide,
        "richer_gain": moved - best,
    }
    of_elbo = {"elbo": guide, "best_elbo": best, "richer_elbo": moved}
    sampled = {name: _stderr(d) for name, d in differences.items()}
    rounded = {"elbo", "gap", "approximation"} if is_known else {"log_evidence", "elbo", "gap", "approximation"}
    errors = {
        f"{name}_stderr": np.hypot(error, evidence["rounding"]) if name in rounded else error
        for name, error in sampled.items()
    }
    elbos = {name: log_weight.mean(0) for name, log_weight in of_elbo.items()}
    tails = {_TAIL + name: largest_deviations(log_weight) for name, log_weight in of_elbo.items()}
    moved_by_edges = {
        _EDGE + name: move_an_estimate(share, _stderr(of_elbo[name]), np.full(len(value), num_samples))
        for name, share in at_edge.items()
    }
    return elbos | errors | tails | moved_by_edges | _judged_by(evidence)


def trusted_parts(parts: Mapping[str, np.ndarray], num_samples: int) -> dict[str, np.ndarray]:
    """Parts of all data, judged together; errors of means that have none are infinite."""
    found = {name: value for name, value in parts.items() if not name.startswith((_TAIL, _JUDGED, _EDGE))}
    for elbo, names in _MADE_OF.items():
        if _TAIL + elbo in parts and has_no_error(parts[_TAIL + elbo], num_samples):
            found |= {f"{name}_stderr": np.full_like(found[elbo], np.inf) for name in names}
    judged = {name: parts[_JUDGED + name] for name in JUDGED}
    words, rounded = trust(judged, np.full(len(found["elbo"]), num_samples))
    for name in (name for name in parts if name.startswith(_EDGE)):
        rounded = rounded | parts[name]
    trusted = (words != UNRELIABLE) & ~rounded
    return found | {name: judged[name] for name in ("unseen", "rounding")} | {"trusted": trusted, "rounded": rounded}


def _judged_by(evidence: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"log_evidence": evidence["value"]} | {_JUDGED + name: evidence[name] for name in JUDGED}


def _stderr(parts: np.ndarray) -> np.ndarray:
    """Of the mean of the parts of K draws (K, N)."""
    return parts.std(0, ddof=1) / math.sqrt(len(parts))
