"""Figures of a run: functions from arrays to matplotlib figures, drawn off screen."""

from __future__ import annotations

from ppl_vae.figures.bounds import bound_against_samples
from ppl_vae.figures.calibration import rank_plots
from ppl_vae.figures.canvas import save
from ppl_vae.figures.comparison import rank_intervals
from ppl_vae.figures.curves import learning_curves, log_likelihood_histogram
from ppl_vae.figures.gaps import gap_bars
from ppl_vae.figures.images import image_grid, reconstructions, show_rows
from ppl_vae.figures.sheet import contact_sheet
from ppl_vae.figures.usage import bound_in_parts, latent_curves

__all__ = [
    "bound_against_samples",
    "bound_in_parts",
    "contact_sheet",
    "gap_bars",
    "image_grid",
    "latent_curves",
    "learning_curves",
    "log_likelihood_histogram",
    "rank_intervals",
    "rank_plots",
    "reconstructions",
    "save",
    "show_rows",
]
