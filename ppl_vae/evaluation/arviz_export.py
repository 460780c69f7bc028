"""Export to ArviZ, old (0.x, InferenceData) and new (1.x, DataTree): the only place that knows the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vae.averages import above

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ppl_vae.evaluation.predictive import PosteriorPredictive
    from ppl_vae.evaluation.ranking import Comparison
    from ppl_vae.evaluation.result import LogLikelihood

__all__ = ["comparison_to_arviz", "predictive_to_arviz", "to_arviz"]

_DIMENSIONS = {"chain", "draw", "datum"}
_TAKEN = _DIMENSIONS | {"x", "value", "stderr", "ess", "khat", "elbo"}


def to_arviz(result: LogLikelihood) -> Any:
    """Builds the groups of `LogLikelihood.to_arviz`."""
    latents = _renamed(result.posterior, _TAKEN)
    constants = {name: getattr(result, name) for name in ("value", "stderr", "ess", "khat", "elbo")}
    groups = {"posterior": _one_chain(latents), "log_likelihood": _one_chain({"x": result.posterior_log_lik})}
    dims = _dims(latents, 2) | {name: ["datum"] for name in ("x", *constants)}
    return _export(groups | {"constant_data": constants}, dims)


def predictive_to_arviz(result: PosteriorPredictive) -> Any:
    """Builds the groups of `PosteriorPredictive.to_arviz`."""
    latents = _renamed(result.posterior, _DIMENSIONS)
    made, observed = (_renamed(values, _DIMENSIONS) for values in (result.predictive, result.observed))
    single = [name for name, value in observed.items() if value.ndim == 1 and len(observed) == 1]
    log_lik = {single[0] if single else "log_lik": result.log_lik}
    groups = {
        "posterior": _one_chain(latents),
        "log_likelihood": _one_chain(log_lik),
        "posterior_predictive": _one_chain(made),
        "observed_data": observed,
    }
    return _export(groups, _dims(latents, 2) | _dims(log_lik, 2) | _dims(observed, 1))


def comparison_to_arviz(comparison: Comparison) -> Any:
    """Builds the group of `Comparison.to_arviz`."""
    found = [comparison.estimates[name] for name in comparison.names]
    arrays = {name: np.stack([getattr(e, name) for e in found]) for name in ("value", "stderr", "trusted")}
    arrays["behind_best"] = above(arrays["value"][:1], arrays["value"])
    dims = {name: ["model", "datum"] for name in arrays}
    return _export({"constant_data": arrays}, dims, {"model": list(comparison.names)})


def _export(
    groups: dict[str, dict[str, np.ndarray]], dims: dict[str, list[str]], coords: Mapping[str, list[str]] | None = None
) -> Any:
    import arviz

    coords = dict(coords or {})
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims, coords=coords)
    return arviz.from_dict(**groups, dims=dims, coords=coords)


def _renamed(values: Mapping[str, np.ndarray], taken: set[str]) -> dict[str, np.ndarray]:
    """Values by names that nothing else has: a name that is taken gets as many underscores as that needs."""
    found = {}
    for name, value in values.items():
        free = name
        while free in taken or (free != name and free in values):
            free += "_"
        found[free] = value
    return found


def _one_chain(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[np.newaxis] for name, value in values.items()}


def _dims(values: Mapping[str, np.ndarray], leading: int) -> dict[str, list[str]]:
    """Names of the dimensions behind draws: the datum, then those of one value."""
    return {
        name: ["datum", *(f"{name}_dim_{i}" for i in range(value.ndim - leading))] for name, value in values.items()
    }
