"""Estimates of how good a pair is, each with its error."""

from ppl_vae.evaluation.annealed import (
    AnnealedLogLikelihood,
    Sandwich,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.comparison import compare
from ppl_vae.evaluation.evidence import log_evidence
from ppl_vae.evaluation.exactness import Agreement, agreement
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.ranking import Comparison, Difference
from ppl_vae.evaluation.result import LogLikelihood

__all__ = [
    "Agreement",
    "AnnealedLogLikelihood",
    "Annealing",
    "Comparison",
    "Difference",
    "LogLikelihood",
    "Sandwich",
    "agreement",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "compare",
    "log_evidence",
    "log_likelihood",
]
