"""Priors: modules whose forward returns the distribution p(z)."""

from ppl_vae.priors.flow import FlowPrior
from ppl_vae.priors.mixture import MixtureOfNormals, VampPrior
from ppl_vae.priors.normal import StandardNormal

__all__ = ["FlowPrior", "MixtureOfNormals", "StandardNormal", "VampPrior"]
