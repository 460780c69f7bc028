"""Estimates of how good a pair is, each with its error."""

from ppl_vae.evaluation.annealed import (
    AnnealedLogLikelihood,
    Sandwich,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.decomposition import GapDecomposition
from ppl_vae.evaluation.evidence import log_evidence
from ppl_vae.evaluation.gaps import gap_decomposition
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.local import LocalSearch
from ppl_vae.evaluation.result import LogLikelihood

__all__ = [
    "AnnealedLogLikelihood",
    "Annealing",
    "GapDecomposition",
    "LocalSearch",
    "LogLikelihood",
    "Sandwich",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "gap_decomposition",
    "log_evidence",
    "log_likelihood",
]
