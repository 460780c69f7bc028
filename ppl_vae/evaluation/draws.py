"""Posterior draws by importance resampling, kept while the weights stream by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import as_numpy
from ppl_vae.evaluation.proposal import Proposal
from ppl_vae.rng import generator_of
from ppl_vae.tape import Layout

__all__ = ["LOG_LIK", "DrawPlan", "PosteriorDraws", "pick", "put_in", "resample", "taken_out"]

LOG_LIK = ""  # no site has that name
_PART = "draws "  # nor is a number of a datum called so


def put_in(draws: Mapping[str, np.ndarray], part: str = _PART) -> dict[str, np.ndarray]:
    """Draws (S, n, ...) by site in the form in which blocks of data are swept: data first, under names of their own.

    Example:
        >>> found = put_in({"z": np.zeros((3, 2, 4))})
        >>> found["draws z"].shape, taken_out(found)["z"].shape, found
        ((2, 3, 4), (3, 2, 4), {})
    """
    return {f"{part}{name}": values.swapaxes(0, 1) for name, values in draws.items()}


def taken_out(arrays: dict[str, np.ndarray], part: str = _PART) -> dict[str, np.ndarray]:
    """The draws among swept arrays, which keep the others, (S, N, ...) by site."""
    names = [name for name in arrays if name.startswith(part)]
    return {name.removeprefix(part): arrays.pop(name).swapaxes(0, 1) for name in names}


class DrawPlan(NamedTuple):
    """What is drawn for each datum: of the guide, or resampled from more draws of it by weight."""

    num_draws: int
    """L, draws that are kept."""
    num_proposed: int
    """Draws of the guide; as many as are kept unless corrected."""
    corrected: bool
    """Whether they are resampled."""
    seed: int
    """Of all that is drawn."""

    @classmethod
    def of(cls, num_draws: int, num_samples: int, corrected: bool, seed: int) -> DrawPlan:
        """The plan of `corrected` draws from `num_samples`, or of draws as they come."""
        return cls(num_draws, num_samples if corrected else num_draws, corrected, seed)


class PosteriorDraws:
    """Draws from p(z given x), a fixed number for each datum: each is one of the K samples, with probability w / sum w.

    A later block of samples replaces a kept draw with the probability its share of the total weight gives it, so that
    no sample has to be stored.
    """

    def __init__(self, num_draws: int, layout: Layout) -> None:
        self._num_draws = num_draws
        self._layout = layout
        self._log_total: Tensor | None = None
        self._kept: dict[str, Tensor] = {}

    def add(
        self, log_weight: Tensor, log_lik: Tensor, proposal: Proposal, seed: int, wanted: Tensor | None = None
    ) -> None:
        """Adds a block of samples with log-weights (k, N); only of the data that are `wanted` (N,), where given."""
        if not self._num_draws:
            return
        log_weight = log_weight.double().cpu()
        if wanted is not None:
            log_weight = torch.where(wanted, log_weight, -torch.inf)
        generator = generator_of(seed)
        choice = resample(log_weight, self._num_draws, generator)
        fresh = {name: pick(value, choice).cpu() for name, value in proposal.particles_first(self._layout).items()}
        fresh[LOG_LIK] = pick(log_lik, choice).cpu()
        log_block = log_weight.logsumexp(0)
        if self._log_total is None:
            self._kept, self._log_total = fresh, log_block
            return
        self._log_total = torch.logaddexp(self._log_total, log_block)
        replace = (
            torch.rand(choice.shape, generator=generator, dtype=torch.float64) < (log_block - self._log_total).exp()
        )
        for name, value in fresh.items():
            mask = replace.reshape(replace.shape + (1,) * (value.dim() - 2))
            self._kept[name] = torch.where(mask, value, self._kept[name])

    def values(self) -> dict[str, np.ndarray]:
        """Latent values (draws, N, *event) by name, and log p(x given z) (draws, N) under `LOG_LIK`."""
        return {name: as_numpy(value) for name, value in self._kept.items()}


def resample(log_weight: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Which of K samples each draw is, with probability w / sum w, (draws, N); any where all weights are zero."""
    log_weight = log_weight.double().cpu()
    share = (log_weight - log_weight.amax(0).clamp_min(torch.finfo(torch.float64).min)).exp()
    dead = ~(share.sum(0) > 0)
    share[:, dead] = 1.0
    return torch.multinomial(share.T, num_draws, replacement=True, generator=generator).T


def pick(value: Tensor, choice: Tensor) -> Tensor:
    """value[choice[d, n], n] for every draw d and datum n."""
    return value[choice.to(value.device), torch.arange(choice.shape[1], device=value.device)]
