"""The bound against the number of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, check_given, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bound_against_samples"]


def bound_against_samples(curve: Any, title: str = "Bound on log p(x) against samples") -> Figure:
    """Draw L_k with its extrapolation, where there is one, and what each doubling of k adds beside the law chi2 / 4k.

    Args:
        curve: A `KCurve`.
        title: Title of the figure.

    Raises:
        DataError: It is no such curve.

    Reference:
        Domke and Sheldon (2018), Importance Weighting and Variational Inference.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> curve = pv.k_curve(ppca, ppca.sample(3), num_samples=4, progress=False)
        >>> [axes.get_ylabel() for axes in bound_against_samples(curve).axes]
        ['bound, nats per datum', 'rise from k to 2k, nats per datum']
    """
    check_given("curve", curve, "what k_curve has returned", "extrapolated", "rise", "law")
    figure = new_figure(9.0, 3.6)
    figure.suptitle(title, fontweight="bold")
    bound, rise = figure.subplots(1, 2)
    k = curve.num_samples
    bound.plot(k, curve.mean, "o-", color=DARK, markersize=4, label="bound with k samples")
    limit = curve.extrapolated.mean()
    if np.isfinite(limit):
        bound.axhline(limit, color=LIGHT, linestyle="--", label=f"extrapolated: {limit:.2f}".replace("-", "−"))
    bound.set(xscale="log", xlabel="samples k", ylabel="bound, nats per datum")
    width = 2 * np.nan_to_num(curve.rise_stderr)
    rise.errorbar(k[:-1], curve.rise, width, fmt="o", color=DARK, markersize=4, label="measured, ± 2 standard errors")
    rise.plot(k[:-1], curve.law, color=MIDDLE, label="law: chi2 / 4k")
    positive = bool((curve.rise > 0).any() and (curve.law > 0).any())
    rise.set(
        xscale="log", yscale="log" if positive else "linear", xlabel="samples k",
        ylabel="rise from k to 2k, nats per datum",
    )  # fmt: skip
    bound.set_title("where it goes")
    held = "as the law says" if curve.follows_law else "not yet as the law says"
    held = held if curve.has_law else "no law: chi2 looks infinite"
    rise.set_title(held if curve.can_tell else "too few data to tell whether as the law says")
    for axes in (bound, rise):
        quiet(axes)
        axes.legend(frameon=False, fontsize="small")
    return figure
