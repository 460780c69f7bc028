"""What `ppl-vae fit` maximises: what its options ask for, or the pair itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ppl_vae import schedules
from ppl_vae.errors import PairError
from ppl_vae.objectives import ELBO, IWAE, Objective
from ppl_vae.rundir import TrainingSpec
from ppl_vae.tape import Layout

__all__ = ["decided", "name_of", "objective_of", "score_caution"]

_OPTIONS = {
    "num_particles": ("--num-particles", 1),
    "beta": ("--beta", 1.0),
    "beta_warmup": ("--beta-warmup", 0),
    "gradient": ("--gradient", "pathwise"),
    "discrete": ("--discrete", "score"),
}
_MOST_VALUES = 1000  # of discrete latents together: each is a run of the decoder


def decided(training: TrainingSpec, pair: Any) -> TrainingSpec:
    """The training with its objective decided: that of the pair, where it has one and no other was asked for.

    Raises:
        PairError: The pair has an objective, and options shape another.
    """
    if training.objective != "auto":
        return training
    if getattr(pair, "objective", None) is None:
        return replace(training, objective="elbo")
    given = [option for field, (option, usual) in _OPTIONS.items() if getattr(training, field) != usual]
    if given:
        raise PairError(
            f"the pair trains by an objective of its own, a {type(pair.objective).__name__}: leave out "
            f"{', '.join(given)}, or choose another by --objective"
        )
    return replace(training, objective="own")


def objective_of(training: TrainingSpec, pair: Any, num_data: int) -> Objective:
    """The objective of a training that is decided.

    Raises:
        PairError: It is the pair's own, which has none any more.
    """
    if training.objective == "own":
        if (own := getattr(pair, "objective", None)) is None:
            raise PairError("expected pair.objective, by which the run trained, found none: let the factory set it")
        return own  # make_pair has looked at it
    if training.objective == "iwae":
        return IWAE(training.num_particles, gradient=training.gradient)  # type: ignore[arg-type]  # the options fit
    beta: float | schedules.Schedule = training.beta
    if training.beta_warmup:
        steps = replace(training, epochs=training.beta_warmup).total_steps(num_data)
        beta = schedules.Linear(0.0, training.beta, steps)
    return ELBO(
        training.num_particles,
        beta=beta,
        gradient=training.gradient,  # type: ignore[arg-type]  # the options fit
        discrete=training.discrete,
    )


def name_of(training: TrainingSpec) -> str:
    """The objective in words, as learning curves have it."""
    return {"iwae": "IWAE bound", "own": "objective of the pair"}.get(training.objective, "ELBO with beta")


def score_caution(objective: Objective, layout: Layout) -> str | None:
    """What to say of discrete latents that train by the score function where a sum would do; None if all is well."""
    by_score = isinstance(objective, ELBO) and objective.discrete == "score" and objective.gradient != "score"
    values = math.prod(layout.cardinalities.values())
    outside = set(layout.global_latents) & set(layout.not_reparametrised)
    if not (by_score and layout.cardinalities and layout.vectorized and values <= _MOST_VALUES):
        return None
    if layout.not_enumerable or outside:
        return None
    names = ", ".join(map(repr, layout.cardinalities))
    return (
        f"{names}: discrete latents train by the score function, whose gradient is noisy: --discrete enumerate sums "
        f"over the {values} values instead"
    )
