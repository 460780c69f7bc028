r"""Training objectives: frozen values that turn the terms of a run into a number to maximise, in nats per datum."""

from ppl_vae.objectives.base import Objective, Values
from ppl_vae.objectives.bounds import IWAE, Renyi
from ppl_vae.objectives.elbo import ELBO
from ppl_vae.objectives.pyro_elbo import FromPyro, from_pyro, scale_latents
from ppl_vae.objectives.supervised import Supervised

__all__ = ["ELBO", "IWAE", "FromPyro", "Objective", "Renyi", "Supervised", "Values", "from_pyro", "scale_latents"]
