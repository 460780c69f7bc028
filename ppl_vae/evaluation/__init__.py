"""Estimates of how good a pair is, each with its error."""

from ppl_vae.evaluation.accounting import ledger
from ppl_vae.evaluation.annealed import (
    AnnealedLogLikelihood,
    Sandwich,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.annealing import Annealing
from ppl_vae.evaluation.calibrated import Calibration
from ppl_vae.evaluation.calibration import calibrate
from ppl_vae.evaluation.comparison import compare
from ppl_vae.evaluation.curve import KCurve, k_curve
from ppl_vae.evaluation.decomposition import GapDecomposition
from ppl_vae.evaluation.entries import Entry, LatentUse, Ledger
from ppl_vae.evaluation.escalated_result import EscalatedLogLikelihood
from ppl_vae.evaluation.escalation import escalate
from ppl_vae.evaluation.evidence import log_evidence
from ppl_vae.evaluation.exact_result import ExactLogLikelihood
from ppl_vae.evaluation.exactness import Agreement, agreement
from ppl_vae.evaluation.gaps import gap_decomposition
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.local import LocalSearch
from ppl_vae.evaluation.predictive import PosteriorPredictive, posterior_predictive
from ppl_vae.evaluation.ranking import Comparison, Difference
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.evaluation.surgery import Surgery

__all__ = [
    "Agreement",
    "AnnealedLogLikelihood",
    "Annealing",
    "Calibration",
    "Comparison",
    "Difference",
    "Entry",
    "EscalatedLogLikelihood",
    "ExactLogLikelihood",
    "GapDecomposition",
    "KCurve",
    "LatentUse",
    "Ledger",
    "LocalSearch",
    "LogLikelihood",
    "PosteriorPredictive",
    "Sandwich",
    "Surgery",
    "agreement",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "calibrate",
    "compare",
    "escalate",
    "gap_decomposition",
    "k_curve",
    "ledger",
    "log_evidence",
    "log_likelihood",
    "posterior_predictive",
]
