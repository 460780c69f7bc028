"""Which latents are used: after training, and through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppl_vae.arrays import finite_array
from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import BETWEEN, DARK, LIGHT, MIDDLE, check_given, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bound_in_parts", "latent_curves"]

_UNUSED = 0.01  # nats; see LatentUse.collapsed


def bound_in_parts(ledger: Any, title: str = "What the bound is made of") -> Figure:
    r"""Draw -ELBO as a bar of its parts, and the rate of each latent scalar, largest first.

    Args:
        ledger: A `Ledger`. With the aggregate posterior its rate is split into what is information on the datum and
            the rest, KL(q(z), p(z)).
        title: Title of the figure.

    Raises:
        DataError: It is no such ledger, there is no latent, or a number is not finite.

    Example:
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA([[1.0], [0.5]], [0.0, 0.0], 0.5)
        >>> figure = bound_in_parts(pv.ledger(ppca, ppca.sample(20), progress=False))
        >>> figure.axes[1].get_title()
        "latent 'z': 1 of 1 scalars used"
    """
    check_given("ledger", ledger, "what ledger has returned", "latents", "distortion", "rate", "surgery")
    sites = {latent.name: finite_array(latent.name, latent.kl.mean(0), 1) for latent in ledger.latents}
    if not sites:
        raise DataError("expected the KL of at least one latent site, found none")
    parts = {"distortion": ledger.distortion.mean, "rate": ledger.rate.mean}
    if ledger.surgery is not None:
        information = ledger.surgery.mutual_information
        parts = {
            "distortion": ledger.distortion.mean,
            "rate: mutual information": information,
            "rate: marginal KL": ledger.rate.mean - information,
        }
    figure = new_figure(4.0 + 4.0 * len(sites), 3.8)
    figure.suptitle(title, fontweight="bold")
    bar, *others = figure.subplots(1, 1 + len(sites), width_ratios=[1.0] + [1.6] * len(sites))
    _draw_parts(bar, parts)
    for axes, (name, values) in zip(others, sites.items(), strict=True):
        _draw_scalars(axes, name, values)
    return figure


def _draw_parts(axes: Axes, parts: Mapping[str, float]) -> None:
    base = 0.0
    for (name, value), colour, hatch in zip(parts.items(), (BETWEEN, DARK, LIGHT), ("", "", "//"), strict=False):
        axes.bar(0, value, bottom=base, color=colour, hatch=hatch, width=0.6, label=f"{name}: {value:.1f}")
        base += value
    axes.set(xlim=(-0.5, 0.5), xticks=[], ylabel="nats per datum", title=f"−ELBO = {base:.1f} nats")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False)
    quiet(axes)


def _draw_scalars(axes: Axes, name: str, values: NDArray[np.float64]) -> None:
    ordered = np.sort(values)[::-1]
    used = int((ordered > _UNUSED).sum())
    axes.bar(np.arange(len(ordered)), ordered, color=[DARK] * used + [LIGHT] * (len(ordered) - used))
    floor = _UNUSED / 10
    axes.set_yscale("symlog", linthresh=0.1)
    axes.axhline(_UNUSED, color=MIDDLE, linestyle=":", label=f"{_UNUSED} nats: below, unused")
    axes.set_ylim(-floor, max(1.0, 1.5 * float(ordered[0])))
    axes.set(xlabel="scalars, by KL", ylabel="KL(q ‖ prior), nats per datum")
    axes.set_title(f"latent {name!r}: {used} of {len(ordered)} scalars used")
    axes.legend(frameon=False, loc="upper right")
    quiet(axes)


def latent_curves(history: Any, site: str = "z", title: str = "Latent scalars through training") -> Figure:
    """Draw the KL of each latent scalar through training, and how many are used.

    Args:
        history: `Fit.history` of `fit(..., record_kl=True)` with validation data.
        site: The latent site.
        title: Title of the figure.

    Raises:
        ValueError: The KL of that site was not recorded; the sites are named that were.
        DataError: It is no such history, or a number is not finite.

    Example:
        >>> import torch, ppl_vae as pv
        >>> encoder = pv.encoders.DiagonalNormal.mlp(3, [], 2)
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.decoders.Bernoulli.mlp(2, [], 3), encoder)
        >>> fit = pv.fit(vae, torch.eye(3), epochs=2, validation=torch.eye(3), record_kl=True, progress=False)
        >>> latent_curves(fit.history).axes[1].get_ylabel()
        'scalars used'
    """
    check_given("history", history, "Fit.history", "kl", "__iter__")
    values = finite_array("kl", history.kl(site), 2)
    x = [record.step for record in history]
    figure = new_figure(8.0, 3.6)
    figure.suptitle(title, fontweight="bold")
    curves, number = figure.subplots(1, 2, width_ratios=[1.6, 1.0])
    for of_scalar in values.T:
        used = of_scalar[-1] > _UNUSED
        curves.plot(x, of_scalar, color=DARK if used else LIGHT, linestyle="-" if used else "--", linewidth=0.9)
    curves.plot([], [], color=DARK, label="used at the end")
    curves.plot([], [], color=LIGHT, linestyle="--", label=f"unused: below {_UNUSED} nats")
    curves.set_yscale("symlog", linthresh=_UNUSED)
    curves.set_ylim(bottom=min(0.0, float(values.min())))
    curves.set(ylabel="KL(q ‖ prior), nats per datum", title="each scalar")
    curves.legend(frameon=False)
    number.plot(x, (values > _UNUSED).sum(1), color=DARK, marker="o", markersize=3)
    number.set(ylabel="scalars used", title=f"how many of {values.shape[1]} are above {_UNUSED} nats")
    number.set_ylim(0, values.shape[1] * 1.05)
    for axes in (curves, number):
        axes.set_xlabel("optimisation step")
        quiet(axes)
    return figure
