"""Figures of a run: functions from arrays to matplotlib figures, drawn off screen."""

from __future__ import annotations

from ppl_vae.figures.canvas import save
from ppl_vae.figures.curves import learning_curves, log_likelihood_histogram
from ppl_vae.figures.gaps import gap_bars
from ppl_vae.figures.images import image_grid, reconstructions, show_rows
from ppl_vae.figures.sheet import contact_sheet

__all__ = [
    "contact_sheet",
    "gap_bars",
    "image_grid",
    "learning_curves",
    "log_likelihood_histogram",
    "reconstructions",
    "save",
    "show_rows",
]
