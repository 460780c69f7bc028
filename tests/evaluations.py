"""Evaluations of three data, made without a pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ppl_vae.rundir import Bounds, Evaluation, write_bounds, write_evaluation


def evaluation(settings: str = "the guide as proposal", mean: float = -1.5, **changes: Any) -> Evaluation:
    found = Evaluation(
        data="data",
        data_sha256="0" * 64,
        num_data=3,
        event_size=4,
        kind="probability",
        method="ais",
        settings=settings,
        num_samples=10,
        seed=0,
        mean=mean,
        mean_stderr=0.1,
        population_stderr=0.2,
        elbo=None,
        ess=None,
        khat_threshold=None,
        share_untrusted=0.0,
        seconds=1.0,
        verdict="a number",
    )
    return replace(found, **changes)


def result(mean: float = -1.5) -> SimpleNamespace:
    return SimpleNamespace(value=np.full(3, mean), stderr=np.full(3, 0.1), trusted=np.ones(3, dtype=bool))


def evaluated(root: Path, settings: str = "the guide as proposal", mean: float = -1.5) -> None:
    write_evaluation(root, evaluation(settings, mean), result(mean))


def bounds(**changes: Any) -> Bounds:
    found = Bounds(
        data="data",
        num_data=3,
        settings="3 chains",
        seed=0,
        lower=-2.0,
        upper=-1.0,
        gap=1.0,
        gap_stderr=0.1,
        seconds=1.0,
        verdict="two numbers",
    )
    return replace(found, **changes)


def bounded(root: Path) -> None:
    write_bounds(root, bounds(), np.full(3, -2.0), np.full(3, -1.0))
