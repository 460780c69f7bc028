"""An objective with a term that trains a part of the guide on known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.objectives.base import Objective, Values
from ppl_vae.options import finite_number
from ppl_vae.pair import Pair, kept_buffers
from ppl_vae.schedules import Schedule
from ppl_vae.tape import Batch, Layout

__all__ = ["Supervised"]


@dataclass(frozen=True)
class Supervised:
    r"""An objective plus weight x mean_n log q(y_n given x_n), which the programs of the pair never see.

    True ELBO, distortion, rate, held-out bounds and every evaluation are those of the pair alone.

    Args:
        objective: What trains the pair, such as `ELBO(discrete="enumerate")`.
        log_prob: Called with a batch, returns log q of each row's label (N,), zero where there is none, as
            `SemiSupervisedVAE.log_label`; its parameters are those of the pair.
        weight: Of each labelled row, in nats per nat. The paper's alpha = 0.1 N, for the mean over N_l labelled of N
            rows, is weight = 0.1 N / N_l.

    Raises:
        ValueError: The weight is negative or not finite, or there is no function.

    Reference:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-Supervised Learning with Deep Generative Models, equation 9.

    Example:
        >>> from ppl_vae.objectives import ELBO
        >>> Supervised(ELBO(discrete="enumerate"), lambda x, y: 0.0 * x[:, 0], weight=2.0).num_particles
        1
    """

    objective: Objective
    log_prob: Callable[..., Tensor]
    weight: float

    def __post_init__(self) -> None:
        finite_number("weight", self.weight, least=0)
        if not callable(self.log_prob):
            raise ValueError(f"log_prob: expected a function of a batch, found {self.log_prob!r}")

    @property
    def num_particles(self) -> int:
        """That of the objective."""
        return self.objective.num_particles

    @property
    def beta(self) -> float | Schedule:
        """That of the objective."""
        return self.objective.beta

    def begin(self, pair: Pair) -> None:
        """Readies what the objective keeps."""
        if (begin := getattr(self.objective, "begin", None)) is not None:
            begin(pair)

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, objective, true ELBO, distortion and rate.

        Raises:
            PairError: `log_prob` returns no tensor (N,).
        """
        values = self.objective.evaluate(pair, batch, layout, beta)
        term = self.weight * self._scored(pair, batch).mean()
        return values._replace(loss=values.loss - term, objective=values.objective + term.detach())

    def fault(self, pair: Pair, batch: Batch) -> str:
        """What the log-probability of the labels has that is not finite, in words; empty where nothing is."""
        bad = (~torch.isfinite(self._scored(pair, batch))).nonzero()[:5, 0].tolist()
        return f"log_prob of the labels is not finite (rows {bad} of the batch)" if bad else ""

    def _scored(self, pair: Pair, batch: Batch) -> Tensor:
        with pair.scope(), kept_buffers(pair):  # the statistics of a batch norm move once a step
            found: Any = self.log_prob(*batch)
        if not isinstance(found, Tensor) or found.shape != batch[0].shape[:1]:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise PairError(
                f"log_prob of Supervised: expected log q of the label of each row, a tensor of shape "
                f"({len(batch[0])},), found {what}: sum over all but the rows, and give zero where there is no label"
            )
        return found

    def judge(self) -> Objective:
        """The objective that judges held-out data, without the term."""
        return self.objective.judge()
