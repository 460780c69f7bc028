"""Models whose posterior and log-likelihood are known exactly: Gaussian mixtures and probabilistic PCA."""

from ppl_vae.exact.gmm import GMM
from ppl_vae.exact.ppca import PPCA
from ppl_vae.exact.trainable import AmortisedCategorical, TrainableGMM

__all__ = ["GMM", "PPCA", "AmortisedCategorical", "TrainableGMM"]
