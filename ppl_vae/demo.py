"""The demonstration: what each model makes of the same handwritten digits, in numbers that compare and in pictures."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data, decoders, encoders, figures, priors, report, schedules
from ppl_vae.errors import PplVaeError
from ppl_vae.evaluation import log_likelihood
from ppl_vae.exact import GMM, PPCA
from ppl_vae.objectives import ELBO, IWAE
from ppl_vae.recipes import bernoulli_vae
from ppl_vae.rng import key, seeded
from ppl_vae.svi import Fit, fit
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DemoSettings", "run_demo"]

_MARK = "demo.json"
_BATCH = 64
_SIDE = 8
_COLUMNS, _NUM_SAMPLES = 8, 32


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demonstration; the defaults take a minute on two cores."""

    epochs: int = 60
    """Passes over the 1,257 training digits."""
    num_samples: int = 2000
    """K of the importance-sampled log-likelihoods."""
    num_test: int = 360
    """How many of the 360 test digits are evaluated."""
    num_components: int = 40
    """Components of the mixture."""
    seed: int = 0
    """Of everything random."""


@dataclass
class _Results:
    """What the parts of the demonstration collect."""

    root: Path
    settings: DemoSettings
    tables: dict[str, list[report.ModelRow]] = field(default_factory=dict)
    pictures: dict[str, Figure] = field(default_factory=dict)


def run_demo(root: Path, settings: DemoSettings = DemoSettings()) -> Path:  # noqa: B008 - a frozen value
    """Train VAEs, a mixture and PPCA on scikit-learn's digits; print two tables, draw a contact sheet.

    Within a table, all models score the same test data by the same kind of likelihood: binary digits by a probability,
    dequantised grey levels by a density. Numbers of different tables do not compare.

    Args:
        root: Directory of the results. An earlier demonstration in it is replaced; anything else is left alone.
        settings: Sizes.

    Returns:
        The path of the contact sheet.

    Raises:
        PplVaeError: `root` holds something else than an earlier demonstration.
    """
    start = time.monotonic()
    _make_empty(root, settings)
    results = _Results(root, settings)
    binary_digits(results)
    grey_digits(results)
    sheet = _write(results)
    print(f"{time.monotonic() - start:.0f} seconds; all results in {root}, the figures on one page: {sheet}")
    return sheet
