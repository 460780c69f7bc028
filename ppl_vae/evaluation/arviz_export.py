"""Export to ArviZ, old (0.x, InferenceData) and new (1.x, DataTree): the only place that knows the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppl_vae.evaluation.ranking import Comparison
    from ppl_vae.evaluation.result import LogLikelihood

__all__ = ["comparison_to_arviz", "to_arviz"]


_TAKEN = {"chain", "draw", "datum", "x", "value", "stderr", "ess", "khat", "elbo"}


def to_arviz(result: LogLikelihood) -> Any:
    """Builds the groups of `LogLikelihood.to_arviz`."""
    latents = {f"{name}_" if name in _TAKEN else name: value for name, value in result.posterior.items()}
    groups = {
        "posterior": {name: value[np.newaxis] for name, value in latents.items()},
        "log_likelihood": {"x": result.posterior_log_lik[np.newaxis]},
        "constant_data": {name: getattr(result, name) for name in ("value", "stderr", "ess", "khat", "elbo")},
    }
    dims = {name: ["datum", *(f"{name}_dim_{i}" for i in range(value.ndim - 2))] for name, value in latents.items()}
    dims |= {name: ["datum"] for name in ("x", *groups["constant_data"])}
    return _from_groups(groups, dims, {})


def comparison_to_arviz(comparison: Comparison) -> Any:
    """Builds the group of `Comparison.to_arviz`."""
    found = [comparison.estimates[name] for name in comparison.names]
    arrays = {name: np.stack([getattr(e, name) for e in found]) for name in ("value", "stderr", "trusted")}
    arrays["behind_best"] = arrays["value"][:1] - arrays["value"]
    dims = {name: ["model", "datum"] for name in arrays}
    return _from_groups({"constant_data": arrays}, dims, {"model": list(comparison.names)})


def _from_groups(groups: dict[str, Any], dims: dict[str, list[str]], coords: dict[str, list[str]]) -> Any:
    import arviz

    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims, coords=coords)
    return arviz.from_dict(**groups, dims=dims, coords=coords)
