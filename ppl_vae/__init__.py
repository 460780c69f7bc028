"""A probabilistic-programming toolkit for variational autoencoders, on Pyro and PyTorch."""

from ppl_vae import data, decoders, encoders, networks, priors, schedules
from ppl_vae.checking import CheckReport, check
from ppl_vae.errors import DataError, EstimateError, PairError, PplVaeError
from ppl_vae.evaluation import LogLikelihood, log_likelihood
from ppl_vae.exact import GMM, PPCA, AmortisedCategorical, TrainableGMM
from ppl_vae.objectives import ELBO, IWAE, Renyi, from_pyro, scale_latents
from ppl_vae.pair import Pair
from ppl_vae.svi import Fit, fit
from ppl_vae.vae import VAE

__all__ = [
    "ELBO",
    "GMM",
    "IWAE",
    "PPCA",
    "VAE",
    "AmortisedCategorical",
    "CheckReport",
    "DataError",
    "EstimateError",
    "Fit",
    "LogLikelihood",
    "Pair",
    "PairError",
    "PplVaeError",
    "Renyi",
    "TrainableGMM",
    "check",
    "data",
    "decoders",
    "encoders",
    "fit",
    "from_pyro",
    "log_likelihood",
    "networks",
    "priors",
    "scale_latents",
    "schedules",
]

__version__ = "0.1.0"
