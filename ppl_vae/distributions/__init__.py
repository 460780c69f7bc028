"""Distributions that neither torch nor Pyro has, or has only for part of their parameters."""

from ppl_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_vae.distributions.levels import CategoricalLevels, DiscretizedLogistic
from ppl_vae.distributions.negative_binomial import NegativeBinomial
from ppl_vae.distributions.poisson import Poisson

__all__ = ["CategoricalLevels", "ContinuousBernoulli", "DiscretizedLogistic", "NegativeBinomial", "Poisson"]
