"""Decoders: modules whose forward maps z (..., latent_dim) to the distribution p(x given z), batch shape (...)."""

from ppl_vae.decoders.bernoulli import Bernoulli, ContinuousBernoulli
from ppl_vae.decoders.counts import NegativeBinomial, Poisson
from ppl_vae.decoders.gaussian import Gaussian
from ppl_vae.decoders.levels import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "NegativeBinomial",
    "Poisson",
]
