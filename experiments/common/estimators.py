"""Estimators of a gradient beside each other: bias, variance and signal-to-noise, early and late in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from experiments.common.gradients import Moments, draw_gradients
from experiments.common.statistics import mean
from ppl_vae.figures.canvas import DARK, LIGHT
from ppl_vae.objectives import Objective

__all__ = ["STAGES", "Reference", "bias_in_words", "compared", "draw_estimators", "summary"]

STAGES = ("early", "late")
_TESTABLE = 0.1  # of the gradient: a bias whose interval is no wider than this on each side is tested


class Reference(NamedTuple):
    """The gradient that estimators are held against."""

    gradient: np.ndarray
    """Its coordinates (P,)."""
    squared_norm: float
    """Its squared norm, without bias."""
    error: float = 0.0
    """Standard error of the gradient along itself, relative to its norm; 0 where it is exact."""

    @classmethod
    def of(cls, moments: Moments, count: int) -> Reference:
        """The mean of `count` draws."""
        error = np.sqrt(moments.variance / count) / np.sqrt(moments.squared_norm)
        return cls(moments.mean, moments.squared_norm, float(error))


def compared(
    pair: Any,
    objectives: Mapping[str, Objective],
    references: Mapping[str, Reference],
    x: Tensor,
    parameters: Sequence[Tensor],
    num_gradients: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every estimator on the same data (N, D), in units of the reference gradient of its name."""
    rows = []
    for name, objective in objectives.items():
        reference = references[name]
        found = draw_gradients(pair, objective, x, parameters, num_gradients, seed, reference.gradient)
        along = mean(found.projections)
        rows.append(
            {
                "estimator": name,
                "bias": along.mean - 1,
                "bias_stderr": float(np.hypot(along.stderr, reference.error)),
                "variance": found.variance / reference.squared_norm,
                "snr": float(np.sqrt(reference.squared_norm / found.variance)),
            }
        )
    return rows


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds for each stage; ratios are averaged as logarithms."""
    out: dict[str, Any] = {"estimator": name}
    for stage in STAGES:
        own = [r for r in rows if r["estimator"] == name and r["stage"] == stage]
        out[stage] = {
            "bias": mean([r["bias"] for r in own]).mean,
            "bias_stderr": float(np.sqrt(np.square([r["bias_stderr"] for r in own]).sum())) / len(own),
            "variance": float(np.exp(np.mean(np.log([r["variance"] for r in own])))),
            "snr": float(np.exp(np.mean(np.log([r["snr"] for r in own])))),
        }
    return out


def bias_in_words(rows: list[dict[str, Any]]) -> str:
    """The largest bias that the intervals of the estimators allow, and how many are too noisy to say."""
    known = [r for r in rows if is_testable(r)]
    if not known:
        return "Biases are not testable at this size"
    most = max(abs(r[stage]["bias"]) + 2 * r[stage]["bias_stderr"] for r in known for stage in STAGES)
    unknown = len(rows) - len(known)
    return f"Bias within {most:.2f} of the gradient for {len(known)};\nnot testable at this size for {unknown}"


def is_testable(row: dict[str, Any]) -> bool:
    """Whether the bias is known to a tenth of the gradient."""
    return all(2 * row[stage]["bias_stderr"] <= _TESTABLE for stage in STAGES)


def draw_estimators(left: Axes, middle: Axes, rows: list[dict[str, Any]]) -> None:
    """One line an estimator, open marks early and filled ones late."""
    height = np.arange(len(rows))
    looks = (("early", 0.15, LIGHT, "none", "s"), ("late", -0.15, DARK, "full", "o"))
    for stage, shift, colour, fill, marker in looks:
        marks = {"color": colour, "fillstyle": fill, "linestyle": "none", "label": f"{stage} in training"}
        left.plot([r[stage]["snr"] for r in rows], height + shift, marker, **marks)
        bias, error = ([r[stage][part] for r in rows] for part in ("bias", "bias_stderr"))
        middle.errorbar(bias, height + shift, xerr=2 * np.array(error), marker=marker, capsize=2, **marks)
    names = [r["estimator"] + (f"  ({r['milliseconds']:.1f} ms)" if "milliseconds" in r else "") for r in rows]
    left.set(xscale="log", yticks=height, yticklabels=names)
    left.legend(frameon=False, loc="upper left")
    middle.set_xscale("symlog", linthresh=_TESTABLE, linscale=1.5)
    middle.axvspan(-_TESTABLE, _TESTABLE, color="0.93", zorder=0)
    middle.axvline(-2, color="0.4", linestyle=":")
    middle.set(yticks=height, yticklabels=[], xticks=[-10, -1, -0.1, 0, 0.1, 1, 10])
    middle.set_xticklabels(["-10", "-1", "-0.1", "0", "0.1", "1", "10"])
    middle.set_xlabel("bias along the true gradient, in units of it\n± 2 standard errors; dotted: the wrong sign")
