"""Looks where the guide hardly goes: draws of the guide, spread out, tell what its samples cannot have seen."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import PairError, is_lack_of_memory
from ppl_vae.evaluation.proposal import Proposal, evaluate_guide, propose
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.unconstrained import Unconstrained
from ppl_vae.pair import Pair
from ppl_vae.rng import key, seeded
from ppl_vae.shrinking import Places, Shrinking, as_index, rows_of
from ppl_vae.tape import Batch, Layout, run_program

__all__ = ["Prober", "widening"]

_PROBES, _MEAN = 1, 2  # what noise is for
_FEW = 2  # data of which a bound that moves from datum to datum has more than one value
_SPREAD = 4.0  # 1 + chi2 of a normal posterior under a probe of its own shape, widened
_RARE = 10.0  # a sample that counts for more than a tenth of all K is drawn rarely, if at all


def widening(dimension: int) -> float:
    r"""How many times as wide as the guide probes are: as far out as D dimensions allow.

    .. math:: \left(c^2 / \sqrt{2 c^2 - 1}\right)^D = 4

    Example:
        >>> [round(widening(d), 2) for d in (1, 2, 50)]
        [5.61, 2.73, 1.14]
    """
    t = _SPREAD ** (2 / dimension)
    return math.sqrt(t + math.sqrt(t * t - t))


class Prober:
    r"""The share of p(x) that K samples of the guide cannot have seen.

    Draws u of the guide in unconstrained coordinates are spread by c around their mean m, u' = m + c (u - m), which
    makes them draws of q'(u') = q(u) / c^D. With their weights w' = p(x, u') / q'(u'),

    .. math:: \mathrm{unseen} = \frac{1}{n} \sum_i \frac{w'_i}{\hat p(x)} \,
              \mathbb{1}\left[\frac{p(x, u'_i)}{q(u'_i)} > \frac{K \hat p(x)}{10}\right]

    estimates the posterior mass where a single sample of the guide would count for more than a tenth of all K. Mass
    that is further away, in a mode of its own, is not found.

    Args:
        pair: The pair, in evaluation mode.
        layout: Layout of the pair.
        score: What scores draws under the model.
        num_probes: n for each datum.
        device: Where it runs.

    Reference:
        Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions.
    """

    def __init__(self, pair: Pair, layout: Layout, score: Scorer, num_probes: int, device: torch.device) -> None:
        self._pair, self._layout, self._score = pair, layout, score
        self._num_probes, self._device = num_probes, device
        self._within_memory = Shrinking("the guide's density of its draws, spread out")
        moves = layout.local_latents and not (layout.cardinalities or layout.may_leave_support)
        self._possible = bool(num_probes > 1 and layout.vectorized and moves)

    def __call__(self, batch: Batch, value: np.ndarray, num_samples: np.ndarray, seed: int) -> np.ndarray:
        """Unseen share of each datum of a block, (N,); NaN where the pair cannot be probed.

        Args:
            batch: A block of data.
            value: Estimates of log p(x) (N,), in nats.
            num_samples: K of each datum (N,).
            seed: Of the probes of this block.
        """
        unknown = np.full(len(value), np.nan)
        if not self._possible:
            return unknown
        with seeded(key(seed, _MEAN), self._device):
            space = self._unconstrained(batch)
            if space is None:
                return unknown
            pilot = propose(self._pair, batch, self._num_probes, self._layout)
        with seeded(key(seed, _PROBES), self._device):
            drawn = propose(self._pair, batch, self._num_probes, self._layout)
        probes, log_wide = _spread(space, drawn, pilot)
        try:
            log_lik, log_prior = self._score(batch, probes, self._num_probes)
            density = partial(self._log_guide, batch, probes)
            (log_guide,) = self._within_memory(density, range(len(batch[0])), range(self._num_probes))
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if is_lack_of_memory(error):
                raise
            return unknown  # programs need no answer where the guide does not go
        joint, wide, guide = (t.double().cpu().numpy() for t in (log_lik + log_prior, log_wide, log_guide))
        with np.errstate(invalid="ignore", over="ignore"):
            rare = joint - value - guide > np.log(num_samples / _RARE)
            share = np.exp(joint - value - wide)
        return np.where(np.isfinite(wide).any(0), np.where(rare & np.isfinite(share), share, 0.0).mean(0), np.nan)

    def _log_guide(self, batch: Batch, probes: Proposal, place: Places, draws: range) -> tuple[Tensor]:
        """log q of some probes of some data."""
        latents = probes.part(self._layout, as_index(place), slice(draws.start, draws.stop))
        size = probes.outer_size(len(draws))
        return (evaluate_guide(self._pair, rows_of(batch, place), latents, self._layout, size),)

    def _unconstrained(self, batch: Batch) -> Unconstrained | None:
        """Coordinates of the latents of a block; None where there are none to spread."""
        guide = run_program(self._pair, self._pair.guide, batch, None, self._layout)
        if set(guide.latents) != set(self._layout.local_latents):
            return None  # draws of its own: its density at given latents is an integral
        event_dims = {name: guide.sites[name]["fn"].event_dim for name in guide.latents}
        drawn, few = Proposal([guide.latents], event_dims, False, batch[0].new_empty(0)), slice(0, _FEW)
        latents = drawn.part(self._layout, few, slice(0, 1))[0]
        model = run_program(self._pair, self._pair.model, tuple(a[few] for a in batch), None, self._layout, latents)
        try:
            return Unconstrained(model, self._layout)
        except PairError:
            return None  # a discrete latent, or a support that moves


def _spread(space: Unconstrained, drawn: Proposal, pilot: Proposal) -> tuple[Proposal, Tensor]:
    """Draws spread around the mean of a pilot, and their own log-density (n, N)."""
    points = space.points(drawn.latents[0])
    size = space.flat(points).shape[-1]
    centres = {name: u.mean(0) for name, u in space.points(pilot.latents[0]).items()}
    spread = {name: centres[name] + widening(size) * (u - centres[name]) for name, u in points.items()}
    _, log_det = space.values(points)
    values, log_det_spread = space.values(spread)
    log_wide = drawn.log_guide + log_det - log_det_spread - size * math.log(widening(size))
    return drawn._replace(latents=[values]), log_wide
