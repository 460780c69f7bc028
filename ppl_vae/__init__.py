"""A probabilistic-programming toolkit for variational autoencoders, on Pyro and PyTorch."""

from ppl_vae import decoders as decoders
from ppl_vae import encoders as encoders
from ppl_vae import priors as priors
from ppl_vae import schedules as schedules
from ppl_vae.checking import CheckReport, check
from ppl_vae.errors import DataError, EstimateError, PairError, PplVaeError
from ppl_vae.evaluation import LogLikelihood, log_likelihood
from ppl_vae.exact import GMM, PPCA
from ppl_vae.objectives import ELBO, IWAE, Renyi, from_pyro, scale_latents
from ppl_vae.pair import Pair
from ppl_vae.svi import Fit, fit
from ppl_vae.vae import VAE

__version__ = "0.1.0"
