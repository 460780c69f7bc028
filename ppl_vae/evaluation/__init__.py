"""Estimates of how good a pair is, each with its error."""

from ppl_vae.evaluation.likelihood import LogLikelihood, log_likelihood

__all__ = ["LogLikelihood", "log_likelihood"]
