"""Estimates of how good a pair is, each with its error."""

from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.result import LogLikelihood

__all__ = ["LogLikelihood", "log_likelihood"]
