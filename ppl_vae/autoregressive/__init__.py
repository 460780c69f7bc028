"""Models that factorise over the entries of a datum: exact likelihoods, and decoders that do not average."""

from ppl_vae.autoregressive.distribution import Autoregressive
from ppl_vae.autoregressive.made import MADE
from ppl_vae.autoregressive.model import AutoregressiveModel
from ppl_vae.autoregressive.pixelcnn import PixelCNN

__all__ = ["MADE", "Autoregressive", "AutoregressiveModel", "PixelCNN"]
