"""Everything that decides a fit besides pair and data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import torch

from ppl_vae.objectives import ELBO, Objective
from ppl_vae.options import positive_number, seed_number, whole_number
from ppl_vae.schedules import Schedule

__all__ = ["FitSettings", "OnNonfinite", "OptimizerFactory"]

OptimizerFactory = Callable[..., torch.optim.Optimizer]
OnNonfinite = Literal["stop", "skip", "rollback"]

_DEFAULT_EPOCHS = 50
_OPTIONAL = ("epochs", "steps", "patience", "clip_norm")


@dataclass(frozen=True)
class FitSettings:
    """Everything that decides a fit besides pair and data; written into the run directory."""

    objective: Objective = ELBO()
    """What is maximised."""
    epochs: int | None = None
    """Passes over the data, at most."""
    steps: int | None = None
    """Steps, at most."""
    batch_size: int = 128
    """Rows a step."""
    learning_rate: float = 1e-3
    """Of the optimiser."""
    optimizer: OptimizerFactory | None = None
    """Called as `optimizer(parameters, lr=...)`; None is Adam."""
    schedule: Schedule | None = None
    """Factor of the learning rate by step."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient."""
    binarize: Literal["dynamic", "fixed"] | None = None
    """Whether the first array holds probabilities, and when binary data are drawn from them."""
    patience: int | None = None
    """Epochs without a better validation after which the fit stops."""
    record_kl: bool = False
    """Whether the history holds the KL of each latent scalar on the validation data."""
    seed: int = 0
    """Of the order of the data and of all noise."""
    on_nonfinite: OnNonfinite = "stop"
    """What becomes of a step whose loss or gradient is not finite."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed_number("seed", self.seed))
        given = [name for name in _OPTIONAL if getattr(self, name) is not None] + ["batch_size", "learning_rate"]
        for name in given:
            if name not in ("clip_norm", "learning_rate"):
                object.__setattr__(self, name, whole_number(name, getattr(self, name)))
            positive_number(name, getattr(self, name))
        if self.schedule is not None and not callable(self.schedule):
            raise ValueError(f"schedule: expected a function step -> factor, found {self.schedule!r}")
        if self.optimizer is not None and not callable(self.optimizer):
            raise ValueError(
                "optimizer: expected a class such as torch.optim.AdamW, or a function (parameters, lr=...) that makes "
                f"one, found {type(self.optimizer).__name__}: fit makes it itself, of the parameters of the pair"
            )
        if self.binarize not in (None, "dynamic", "fixed"):
            raise ValueError(f"binarize: expected None, 'dynamic' or 'fixed', found {self.binarize!r}")
        if self.on_nonfinite not in get_args(OnNonfinite):
            raise ValueError(f"on_nonfinite: expected 'stop', 'skip' or 'rollback', found {self.on_nonfinite!r}")
        if isinstance(self.objective, type) or not hasattr(self.objective, "evaluate"):
            mend = "; wrap it as from_pyro(...)" if isinstance(self.objective, pyro.infer.ELBO) else ""
            mend = "; call it, as in ELBO()" if isinstance(self.objective, type) else mend
            raise ValueError(f"objective: expected an objective such as ELBO(), found {self.objective!r}{mend}")

    def total_steps(self, num_data: int) -> int:
        """Number of steps on a data set: the smaller of `epochs` and `steps`, 50 epochs if neither is given."""
        per_epoch = math.ceil(num_data / self.batch_size)
        epochs = _DEFAULT_EPOCHS if self.epochs is None and self.steps is None else self.epochs
        limits = [limit for limit in (self.steps, None if epochs is None else epochs * per_epoch) if limit is not None]
        return min(limits)
