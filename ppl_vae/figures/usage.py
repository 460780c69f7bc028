"""Which latents are used: after training, and through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import BETWEEN, DARK, LIGHT, MIDDLE, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bound_in_parts", "latent_curves"]

_UNUSED = 0.01  # nats; see LatentUse.collapsed


def bound_in_parts(
    distortion: float,
    rate: float,
    kl: Mapping[str, ArrayLike],
    mutual_information: float | None = None,
    title: str = "What the bound is made of",
) -> Figure:
    r"""Draw -ELBO as a bar of its parts, and the rate of each latent scalar, largest first.

    Args:
        distortion: -E log p(x given z), in nats per datum.
        rate: KL(q, prior), in nats per datum.
        kl: KL of each scalar, mean over data, (D,) for each latent site.
        mutual_information: What of the rate is information on the datum; the rest is KL(q(z), p(z)).
        title: Title of the figure.

    Raises:
        DataError: There is no latent, or a number is not finite.

    Example:
        >>> figure = bound_in_parts(80.0, 20.0, {"z": [15.0, 5.0, 0.0]}, 18.0)
        >>> [axes.get_title() for axes in figure.axes]
        ['−ELBO = 100.0 nats', "latent 'z': 2 of 3 scalars used"]
    """
    sites = {name: _finite(name, values) for name, values in kl.items()}
    if not sites:
        raise DataError("expected the KL of at least one latent site, found none")
    parts = {"distortion": distortion, "rate": rate}
    if mutual_information is not None:
        parts = {
            "distortion": distortion,
            "rate: mutual information": mutual_information,
            "rate: marginal KL": rate - mutual_information,
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


def latent_curves(
    kl: ArrayLike, steps: ArrayLike | None = None, title: str = "Latent scalars through training"
) -> Figure:
    """Draw the KL of each latent scalar through training, and how many are used.

    Args:
        kl: Of one site, (epochs, D), in nats per datum: `history.kl(site)`.
        steps: Optimisation step of each row; epochs where absent.
        title: Title of the figure.

    Raises:
        DataError: The shape is another, or a number is not finite.

    Example:
        >>> latent_curves([[0.5, 0.1], [1.0, 0.001]], steps=[10, 20]).axes[1].get_ylabel()
        'scalars used'
    """
    values = _finite("kl", kl, dimensions=2)
    x = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    if x.shape != (len(values),):
        raise DataError(f"expected one step for each of {len(values)} rows, found {x.shape}")
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
        axes.set_xlabel("epoch" if steps is None else "optimisation step")
        quiet(axes)
    return figure


def _finite(name: str, values: ArrayLike, dimensions: int = 1) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != dimensions or not found.size or not np.isfinite(found).all():
        raise DataError(f"{name}: expected {dimensions} dimensions of finite numbers, found shape {found.shape}")
    return found
