"""Stochastic variational inference: the one training loop."""

from ppl_vae.svi.fitting import Fit, fit
from ppl_vae.svi.replaying import Replay, replay
from ppl_vae.svi.settings import FitSettings

__all__ = ["Fit", "FitSettings", "Replay", "fit", "replay"]
