"""Export to ArviZ, old (0.x, InferenceData) and new (1.x, DataTree): the only place that knows the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppl_vae.evaluation.result import LogLikelihood

__all__ = ["to_arviz"]


_TAKEN = {"chain", "draw", "datum", "x", "value", "stderr", "ess", "khat", "elbo"}


def to_arviz(result: LogLikelihood) -> Any:
    """Builds the groups of `LogLikelihood.to_arviz`."""
    import arviz

    latents = {f"{name}_" if name in _TAKEN else name: value for name, value in result.posterior.items()}
    groups = {
        "posterior": {name: value[np.newaxis] for name, value in latents.items()},
        "log_likelihood": {"x": result.posterior_log_lik[np.newaxis]},
        "constant_data": {name: getattr(result, name) for name in ("value", "stderr", "ess", "khat", "elbo")},
    }
    dims = {name: ["datum", *(f"{name}_dim_{i}" for i in range(value.ndim - 2))] for name, value in latents.items()}
    dims |= {name: ["datum"] for name in ("x", *groups["constant_data"])}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims)
    return arviz.from_dict(**groups, dims=dims)
