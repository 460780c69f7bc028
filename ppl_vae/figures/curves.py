"""Curves of training and the distribution of log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_vae.arrays import as_numpy, real_array
from ppl_vae.errors import DataError
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, check_given, new_figure, quiet
from ppl_vae.wording import is_lower_bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["learning_curves", "log_likelihood_histogram"]


def learning_curves(
    history: Sequence[Any] | Mapping[str, ArrayLike], title: str = "Training", objective: str = "objective trained"
) -> Figure:
    r"""Draw the bound and its two parts against the optimisation step.

    $$\mathrm{ELBO} = -\,\mathrm{distortion} - \mathrm{rate}$$

    The trained objective is drawn only if it differs from the ELBO (beta, importance weights), the validation ELBO only
    where it was computed; a long history as a running mean over pale raw values.

    Args:
        history: Records with attributes `step`, `objective`, `elbo`, `distortion`, `rate` and, optionally,
            `validation_elbo`, `validation_distortion` and `validation_rate` (nats per datum; `None` or NaN where
            absent), or a mapping of columns of these names.
        title: Title of the figure.
        objective: What the trained objective is called in the legend.

    Returns:
        A figure of three panels.

    Raises:
        DataError: If it is no history, is empty, lacks a column, or has columns of different lengths.

    Example:
        >>> columns = {"step": [1, 2], "objective": [-9, -8], "elbo": [-9, -8], "distortion": [8, 6], "rate": [1, 2]}
        >>> [axes.get_title() for axes in learning_curves(columns).axes]
        ['ELBO (higher is better)', 'Distortion: −E log p(x | z)', 'Rate: KL(q ‖ prior)']
    """
    columns = _columns(history)
    figure = new_figure(11.0, 3.4)
    figure.suptitle(title, fontweight="bold")
    bound, distortion, rate = figure.subplots(1, 3)

    _curve(bound, columns, "elbo", "ELBO, training")
    if not np.allclose(columns["objective"], columns["elbo"], rtol=1e-6, equal_nan=True):
        _curve(bound, columns, "objective", objective, MIDDLE, ":")
    _curve(bound, columns, "validation_elbo", "ELBO, validation", LIGHT, "--", marker="o")
    _curve(distortion, columns, "distortion", "distortion")
    _curve(rate, columns, "rate", "rate")
    for axes, name in ((distortion, "validation_distortion"), (rate, "validation_rate")):
        _curve(axes, columns, name, "validation", LIGHT, "--", marker="o")
        if len(axes.get_lines()) > 1:
            axes.get_lines()[0].set_label("training")
            axes.legend(frameon=False)

    bound.set_title("ELBO (higher is better)")
    bound.set_ylabel("nats per datum")
    if len(bound.get_lines()) > 1:
        bound.legend(loc="lower right", frameon=False)
    distortion.set_title("Distortion: −E log p(x | z)")
    rate.set_title("Rate: KL(q ‖ prior)")
    for axes in (bound, distortion, rate):
        axes.set_xlabel("optimisation step")
        _frame_late_part(axes)
        quiet(axes)
    return figure


def log_likelihood_histogram(
    values: ArrayLike, trusted: ArrayLike | None = None, title: str = "Held-out data"
) -> Figure:
    """Draw the distribution of log p(x) over the data, and mark the data whose estimate is not to be trusted.

    Args:
        values: (N,), log-likelihood per datum in nats; data of minus infinity are counted in the legend.
        trusted: (N,), whether it can be trusted, such as `LogLikelihood.trusted`; absent where it is exact.
        title: Title of the figure.

    Raises:
        DataError: If a value is NaN or plus infinity, or the shapes differ.

    Example:
        >>> log_likelihood_histogram([-3.0, -2.0], trusted=[True, False]).axes[0].get_xlabel()
        'log p(x), nats per datum'
    """
    values = real_array("values", values)
    if values.ndim != 1 or not (values < np.inf).all():
        raise DataError(
            f"expected one log-likelihood per datum, (N,), finite or -inf, found shape {values.shape} or +inf or NaN"
        )
    doubtful = np.zeros(values.shape, dtype=bool) if trusted is None else ~as_numpy(trusted).astype(bool)
    if doubtful.shape != values.shape:
        raise DataError(f"trusted: expected one truth value per datum, {values.shape}, found {doubtful.shape}")

    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    groups, labels, colours = [values], ["exact" if trusted is None else f"trusted: all of {values.size} data"], [DARK]
    if doubtful.any():
        share = doubtful.mean()
        groups = [values[~doubtful], values[doubtful]]
        labels = [f"trusted: {1 - share:.1%}", f"untrusted, rather too low: {share:.1%}"]
        colours = [DARK, LIGHT]
    edges = np.histogram_bin_edges(values[np.isfinite(values)], bins=min(60, max(10, math.isqrt(values.size))))
    axes.hist(groups, bins=edges.tolist(), stacked=True, color=colours, label=labels)
    bound = "≥ " if is_lower_bound(float(doubtful.mean())) else ""
    mean = f"mean {bound}{values.mean():.2f} nats".replace("-", "−")
    if excluded := int(np.isneginf(values).sum()):
        mean += f": {excluded} of {values.size} data have probability 0"
    axes.axvline(values.mean(), ymax=0.7, color="black", linestyle="--", label=mean)
    axes.set_ylim(top=axes.get_ylim()[1] / 0.7)  # room for the legend
    axes.set_title(title)
    axes.set_xlabel("log p(x), nats per datum")
    axes.set_ylabel("number of data")
    axes.legend(loc="upper left", frameon=False)
    quiet(axes)
    return figure


def _columns(history: Sequence[Any] | Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Columns of a history as float arrays; None becomes NaN, what is absent of validation a column of NaN."""
    held_out = ("validation_elbo", "validation_distortion", "validation_rate")
    required = ("step", "objective", "elbo", "distortion", "rate")
    check_given("history", history, "Fit.history, or columns by name", "__getitem__", "__len__")
    if isinstance(history, Mapping):
        columns = {n: real_array(n, history[n]) for n in (*required, *held_out) if n in history}
    else:
        names = [name for name in (*required, *held_out) if len(history) and hasattr(history[0], name)]
        columns = {name: np.array([getattr(row, name) for row in history], dtype=np.float64) for name in names}
    missing = [name for name in required if name not in columns]
    if missing:
        raise DataError(f"expected a history with columns {required}, missing {missing}: record at least one step")
    for name in held_out:
        columns.setdefault(name, np.full_like(columns["step"], np.nan))
    lengths = {name: columns[name].size for name in (*required, *held_out)}
    if len(set(lengths.values())) != 1 or not lengths["step"]:
        raise DataError(f"expected columns of one positive length, found {lengths}")
    return columns


def _curve(
    axes: Axes,
    columns: Mapping[str, NDArray[np.float64]],
    name: str,
    label: str,
    colour: str = DARK,
    line: str = "-",
    marker: str = "",
) -> None:
    """One curve over its finite points, if any; a long one as a running mean above the pale raw values."""
    seen = np.isfinite(columns[name])
    step, values = columns["step"][seen], columns[name][seen]
    if not values.size:
        return
    window = len(values) // 50
    if window > 3:
        axes.plot(step, values, color=colour, alpha=0.2, linewidth=0.6, label="_raw")
        kernel = np.ones(window) / window
        step, values = np.convolve(step, kernel, "valid"), np.convolve(values, kernel, "valid")
    axes.plot(step, values, color=colour, linestyle=line, marker=marker, markersize=3, label=label)


def _frame_late_part(axes: Axes) -> None:
    """Fit the vertical range to the last 95 % of the steps: the first few, far away, would flatten all the others."""
    if not axes.get_lines():
        axes.text(0.5, 0.5, "not told by this objective", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    points = np.concatenate([line.get_xydata() for line in axes.get_lines()])
    late = points[points[:, 0] >= 0.05 * points[:, 0].max(), 1]
    low, high = late.min(), late.max()
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
