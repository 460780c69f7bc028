"""Looks where the guide hardly goes: draws of the guide, spread out, tell what its samples cannot have seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import PairError, is_lack_of_memory
from ppl_vae.evaluation.flattening import Flatten, finite_numbers
from ppl_vae.evaluation.proposal import Proposal, evaluate_guide, masks_of
from ppl_vae.evaluation.scoring import CHUNK_ROWS, Scorer
from ppl_vae.evaluation.unconstrained import OTHER_DRAWS, Unconstrained
from ppl_vae.pair import Pair
from ppl_vae.rng import key, seeded
from ppl_vae.shrinking import Places, Shrinking, as_index, rows_of, undivided
from ppl_vae.tape import Batch, Layout, Tape, run_program
from ppl_vae.terms import Terms
from ppl_vae.weights import Summary

__all__ = ["Prober", "Unseen", "looked", "probes_enough", "unseen_shares", "widening"]

Found = TypeVar("Found")

_PROBES, _MEAN, _PRIOR, _FLAT = 1, 2, 3, 4  # what noise is for
_FEW = 2  # data of which a bound that moves from datum to datum has more than one value
_SPREAD = 4.0  # 1 + chi2 of a normal posterior under a probe of its own shape, widened
# Probes of a datum, of all data of a call together, and the share of K that they may cost.
_LEAST, _TOGETHER, _COST = 64, 25_000, 8
_RARE = 10.0  # a sample that counts for more than a tenth of all K is drawn rarely, if at all
_ROUNDINGS, _ALIKE = 200.0, 1e-6  # as for weights that are equal
_OF_EQUAL = 2.0  # where all samples count alike, one that would count twice was not drawn


def widening(dimension: int) -> float:
    r"""How many times as wide as the guide probes are: as far out as D dimensions allow.

    .. math:: \left(c^2 / \sqrt{2 c^2 - 1}\right)^D = 4

    Example:
        >>> [round(widening(d), 2) for d in (1, 2, 50)]
        [5.61, 2.73, 1.14]
    """
    t = _SPREAD ** (2 / dimension)
    return math.sqrt(t + math.sqrt(t * t - t))


def flattening(numbers: int) -> float:
    r"""The share of discrete numbers put anywhere among their values: as many as S numbers of a datum allow.

    .. math:: (1 - e)^S = 1 / 4

    Example:
        >>> [round(flattening(s), 2) for s in (1, 2, 50)]
        [0.75, 0.5, 0.03]
    """
    return 1 - _SPREAD ** (-1 / numbers)


class Unseen(NamedTuple):
    """What probes found of a block of data."""

    share: np.ndarray
    """Share of p(x) that samples cannot have seen (N,); NaN where nobody could look."""
    stderr: np.ndarray
    """Its standard errors (N,); infinite where finding nothing says nothing: the guide could not be spread, or all
    weights are equal and it falls short."""
    fall_short: np.ndarray | bool = False
    """Where samples that count for less than others may not have been drawn (N,)."""

    @classmethod
    def of(cls, shares: np.ndarray) -> Unseen:
        """The mean of what each probe says (n, N); what a single one says is no draw, and has no error."""
        with np.errstate(over="ignore"):  # of squares
            error = shares.std(0, ddof=1) / math.sqrt(len(shares)) if len(shares) > 1 else np.zeros(shares.shape[1])
            return cls(shares.mean(0), error)

    @classmethod
    def unknown(cls, num_data: int) -> Unseen:
        """Where nobody could look."""
        return cls(np.full(num_data, np.nan), np.full(num_data, np.nan))


def probes_enough(num_data: int, num_samples: int, at_once: int) -> int:
    """Probes for each datum, of data that are judged together: few data have more each, at most K / 8, all at once.

    Example:
        >>> probes_enough(10_000, 5000, 5000), probes_enough(100, 5000, 5000), probes_enough(24, 1000, 100)
        (64, 250, 100)
    """
    return max(_LEAST, min(_TOGETHER // num_data, num_samples // _COST, at_once))


class Prober:
    r"""The share of p(x) that K samples of the guide cannot have seen.

    Draws u of the guide in unconstrained coordinates are spread by c around their mean m, u' = m + c (u - m), which
    makes them draws of q'(u') = q(u) / c^D. With their weights w' = p(x, u') / q'(u'),

    .. math:: \mathrm{unseen} = \frac{1}{n} \sum_i \frac{w'_i}{\hat p(x)} \,
              \mathbb{1}\left[\frac{p(x, u'_i)}{q(u'_i)} > \frac{K \hat p(x)}{10}\right]

    estimates the posterior mass where a single sample of the guide would count for more than a tenth of all K, or,
    where all weights are equal, for twice one of them. Weights that are equal tell of a perfect guide where p / q is
    p(x) at the probes, too; where it is less there, by more than a millionth in mean over the guide, samples that count
    for less were not drawn, and the error of what is unseen is infinite. Discrete latents are not drawn but go through
    all their joint values, n probes for each; q' is that of the others, given these, and the n-th part of the sum over
    all probes takes the place of the mean; where all latents are discrete, nothing is drawn, and n = 1. Mass that is
    further away, in a mode of its own, is not found.

    Where the guide cannot be spread, as where discrete latents have no end or too many values, draws of the prior look
    instead, q' = p(z); and, where discrete numbers have finitely many values, draws of the guide with about one of them
    put anywhere (`flattening`). The larger share is told. They may seldom come where the posterior is: what they find
    counts, but finding nothing says nothing, so that their error is infinite.

    Args:
        pair: The pair, in evaluation mode.
        layout: Layout of the pair.
        score: What scores draws under the model.
        num_probes: n for each datum.
        most: Probes of a datum, at most, where n would be for each of many values.
        device: Where it runs.

    Reference:
        Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions.
    """

    def __init__(
        self, pair: Pair, layout: Layout, score: Scorer, num_probes: int, most: int, device: torch.device
    ) -> None:
        self._pair, self._layout, self._score, self._device = pair, layout, score, device
        self._num_values = math.prod(layout.cardinalities.values())
        continuous = tuple(name for name in layout.local_latents if name not in layout.cardinalities)
        wanted = num_probes if continuous else min(num_probes, 1)
        enough = 2 if continuous else 1  # what is drawn has an error
        self._num_probes = min(wanted, most // self._num_values) if layout.cardinalities else wanted
        self._num_of_prior = num_probes
        self._within_memory = Shrinking("the guide's density of its draws, spread out")
        self._spread_out = layout._replace(local_latents=continuous)
        self._possible = bool(num_probes > 1 and layout.vectorized and layout.local_latents)
        self._spreads = self._num_probes >= enough and not layout.may_leave_support

    def __call__(self, batch: Batch, summary: Summary, num_samples: np.ndarray, seed: int) -> Unseen:
        """Unseen share of each datum of a block; NaN where the pair cannot be probed.

        Args:
            batch: A block of data.
            summary: Of their weights.
            num_samples: K of each datum (N,).
            seed: Of the probes of this block.
        """
        value, unknown = summary.value, Unseen.unknown(len(batch[0]))
        num_samples = np.where(summary.khat == -np.inf, _OF_EQUAL * _RARE, num_samples)
        if not self._possible:
            return unknown
        with seeded(key(seed, _MEAN), self._device):
            guide = run_program(self._pair, self._pair.guide, batch, None, self._layout)
        if set(guide.latents) != set(self._layout.local_latents):
            return unknown  # draws of its own: its density at given latents is an integral
        if (spread := self._spread_guide(guide, batch, seed) if self._spreads else None) is None:
            given = batch, value, num_samples, seed
            found = looked(partial(self._look_from_prior, *given), unknown)
            flat = looked(partial(self._look_around, guide, *given), unknown)
            return Unseen(np.fmax(found.share, flat.share), np.fmax(found.stderr, flat.stderr))
        found = looked(partial(self._look, *spread, batch, value, num_samples), unknown)
        return Unseen(found.share, np.where((summary.khat == -np.inf) & found.fall_short, np.inf, found.stderr))

    def _look(
        self, probes: Proposal, log_wide: Tensor, batch: Batch, value: np.ndarray, num_samples: np.ndarray
    ) -> Unseen:
        """What the guide spread out finds."""
        (log_joint, log_prior), log_guide = self._scored(batch, probes), self._density(batch, probes)
        shares = unseen_shares(log_joint, log_wide, log_guide, value, num_samples)
        lower = _shortfalls(log_joint, log_prior, log_wide, log_guide, value)
        known = log_wide.isfinite().any(0).cpu().numpy()
        of_probe, lower = (s.reshape(self._num_probes, self._num_values, -1).sum(1) for s in (shares, lower))
        return Unseen.of(np.where(known, of_probe, np.nan))._replace(fall_short=lower.mean(0) > _ALIKE)

    def _look_from_prior(self, batch: Batch, value: np.ndarray, num_samples: np.ndarray, seed: int) -> Unseen:
        """What draws of the prior find."""
        with seeded(key(seed, _PRIOR), self._device):
            probes = self._drawn_from_prior(batch)
        return self._look_at(probes, batch, value, num_samples)

    def _look_around(self, guide: Tape, batch: Batch, value: np.ndarray, num_samples: np.ndarray, seed: int) -> Unseen:
        """What the guide finds with some of its discrete numbers put anywhere."""
        numbers = {name: finite_numbers(guide.sites[name]) for name in self._layout.local_latents}
        if not any(numbers.values()) or self._layout.may_leave_support:
            return Unseen.unknown(len(value))
        flat = Flatten([name for name, n in numbers.items() if n], flattening(-(-sum(numbers.values()) // len(value))))
        count = self._num_of_prior
        with seeded(key(seed, _FLAT), self._device), undivided(f"{count} draws of the guide for each datum"), flat:
            tape = run_program(self._pair, self._pair.guide, batch, count, self._layout)
        log_flat = Terms([(tape, tape)], batch, self._layout, scaled=False).log_guide
        return self._look_at(self._proposal([tape], log_flat), batch, value, num_samples)

    def _look_at(self, probes: Proposal, batch: Batch, value: np.ndarray, num_samples: np.ndarray) -> Unseen:
        """What draws find that are not the guide's own, spread out."""
        log_joint, _ = self._scored(batch, probes)
        shares = unseen_shares(log_joint, probes.log_guide, self._density(batch, probes), value, num_samples)
        return Unseen(shares.mean(0), np.full(len(value), np.inf))

    def _scored(self, batch: Batch, probes: Proposal) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log p(z) of probes (n, N)."""
        log_lik, log_prior = self._score(batch, probes, len(probes.log_guide))
        return log_lik + log_prior, log_prior

    def _density(self, batch: Batch, probes: Proposal) -> Tensor:
        """log q of probes (n, N)."""
        density, draws = partial(self._log_guide, batch, probes), range(len(probes.log_guide))
        return self._within_memory(density, range(len(batch[0])), draws)[0]

    def _spread_guide(self, guide: Tape, batch: Batch, seed: int) -> tuple[Proposal, Tensor] | None:
        """Draws of the guide spread out, and their own log-density (n, N); None where they cannot be spread."""
        if not self._spread_out.local_latents:
            with seeded(key(seed, _PROBES), self._device):
                values = self._drawn(batch)
            return values, values.log_guide
        with seeded(key(seed, _MEAN), self._device):
            if (space := self._unconstrained(guide, batch)) is None:
                return None
            pilot = self._drawn(batch)
        with seeded(key(seed, _PROBES), self._device):
            return self._spread(space, self._drawn(batch), pilot)

    def _drawn(self, batch: Batch) -> Proposal:
        """Draws of the guide, discrete latents at all their values in turn; log q is that of the others given these."""
        values, count = self._layout.cardinalities, self._num_probes * self._num_values
        with undivided(f"{count} draws of the guide for each of {len(batch[0])} data"):
            tape = run_program(self._pair, self._pair.guide, batch, count, self._layout, enumerated=values)
            return self._proposal([tape], self._log_guide_given_discrete(tape, batch))

    def _drawn_from_prior(self, batch: Batch) -> Proposal:
        """Draws of the model, few at a time: it makes data of them, too."""
        count, at_once = self._num_of_prior, max(1, CHUNK_ROWS // len(batch[0]))
        sizes = [min(at_once, count - i) for i in range(0, count, at_once)]
        tapes = [run_program(self._pair, self._pair.model, batch, size, self._layout) for size in sizes]
        log_prior = [Terms([(tape, tape)], batch, self._layout, scaled=False).log_prior for tape in tapes]
        return self._proposal(tapes, torch.cat(log_prior))

    def _proposal(self, tapes: Sequence[Tape], log_density: Tensor) -> Proposal:
        """Draws of runs of a program, in one for all particles."""
        latents = {name: torch.cat([tape.latents[name] for tape in tapes]) for name in self._layout.local_latents}
        event_dims = {name: tapes[0].sites[name]["fn"].event_dim for name in latents}
        masks = [masks_of(tape, self._layout) for tape in tapes]
        joined = {name: torch.cat([mask[name] for mask in masks]) for name in masks[0]}
        return Proposal([latents], event_dims, True, log_density, [joined])

    def _log_guide_given_discrete(self, tape: Tape, batch: Batch) -> Tensor:
        terms = Terms([(tape, tape)], batch, self._layout, scaled=False, enumerated=self._layout.cardinalities)
        if (weights := terms.particle_weights) is None:
            return terms.log_guide
        others = Tape()
        others.sites = {name: site for name, site in tape.sites.items() if name not in self._layout.cardinalities}
        plain = Terms([(others, others)], batch, self._layout, scaled=False).log_guide
        # Of a masked value, which has no density of its own, the guide's draws are averaged: it counts by q.
        masked = terms.log_guide - (weights * self._num_probes).log()
        return torch.where(weights > 0, masked, plain)  # q may be too small for a number

    def _spread(self, space: Unconstrained, drawn: Proposal, pilot: Proposal) -> tuple[Proposal, Tensor]:
        """Draws spread around the mean of a pilot at the same discrete values, and their own log-density (n, N).

        Masked numbers have no density, and stay where they are.
        """
        points = space.points(drawn.latents[0])
        times = widening(space.flat(points).shape[-1])
        centres = {name: self._means(u) for name, u in space.points(pilot.latents[0]).items()}
        spread = {name: centres[name] + times * (u - centres[name]) for name, u in points.items()}
        counted = {n: space.counted(n, mask, points[n]) for n, mask in drawn.masks[0].items() if n in points}
        spread |= {name: spread[name].where(mask, points[name]) for name, mask in counted.items()}
        _, log_det = space.values(points)
        values, log_det_spread = space.values(spread)
        log_wide = drawn.log_guide + log_det - log_det_spread - space.dimension(counted, points) * math.log(times)
        return drawn._replace(latents=[drawn.latents[0] | values]), log_wide

    def _means(self, u: Tensor) -> Tensor:
        """The mean of draws at each joint value of the discrete latents, in the place of each draw."""
        of_value = u.unflatten(0, (self._num_probes, self._num_values))
        return of_value.mean(0, keepdim=True).expand_as(of_value).flatten(0, 1)

    def _log_guide(self, batch: Batch, probes: Proposal, place: Places, draws: range) -> tuple[Tensor]:
        """log q of some probes of some data."""
        latents = probes.part(self._layout, as_index(place), slice(draws.start, draws.stop))
        size = probes.outer_size(len(draws))
        return (evaluate_guide(self._pair, rows_of(batch, place), latents, self._layout, size),)

    def _unconstrained(self, guide: Tape, batch: Batch) -> Unconstrained | None:
        """Coordinates of the continuous latents of a block; None where they cannot be spread."""
        event_dims = {name: guide.sites[name]["fn"].event_dim for name in guide.latents}
        drawn, few = Proposal([guide.latents], event_dims, False, batch[0].new_empty(0), [{}]), slice(0, _FEW)
        latents = drawn.part(self._layout, few, slice(0, 1))[0]
        model = partial(run_program, self._pair, self._pair.model, tuple(a[few] for a in batch), None, self._layout)
        try:
            return Unconstrained(model(latents), self._spread_out, (), (model() for _ in range(OTHER_DRAWS)))
        except PairError:
            return None  # a discrete latent without end, or a support that moves


def unseen_shares(
    log_joint: Tensor, log_wide: Tensor, log_proposal: Tensor, value: np.ndarray, num_samples: np.ndarray | int
) -> np.ndarray:
    """What each probe says of the mass that K samples of a proposal cannot have seen, w' / p-hat or 0, (n, N).

    Args:
        log_joint: log p(x, u') of probes (n, N), in nats.
        log_wide: Their own log-density.
        log_proposal: Log-density of the proposal there.
        value: Estimates of log p(x) (N,).
        num_samples: K, one for all data or one each (N,).
    """
    joint, wide, proposal = (t.double().cpu().numpy() for t in (log_joint, log_wide, log_proposal))
    with np.errstate(invalid="ignore", over="ignore"):
        rare = joint - value - proposal > np.log(num_samples / _RARE)
        share = np.exp(joint - value - wide)
    return np.where(rare & np.isfinite(share), share, 0.0)


def _shortfalls(
    log_joint: Tensor, log_prior: Tensor, log_wide: Tensor, log_guide: Tensor, value: np.ndarray
) -> np.ndarray:
    """What each probe says of the mean over the guide of how far p / q is below p(x), in units of p(x), (n, N).

    Args:
        log_joint: log p(x, u') of probes (n, N), in nats.
        log_prior: The part of it that is the prior's.
        log_wide: Their own log-density.
        log_guide: Log-density of the guide there.
        value: Estimates of log p(x) (N,).
    """
    joint, prior, wide, guide = (t.double().cpu().numpy() for t in (log_joint, log_prior, log_wide, log_guide))
    epsilon = max(torch.finfo(t.dtype).eps for t in (log_joint, log_guide))
    with np.errstate(invalid="ignore", over="ignore"):
        rounding = np.maximum(_ROUNDINGS * epsilon * (np.abs(joint - prior) + np.abs(prior) + np.abs(guide)), _ALIKE)
        short = value - (joint - guide)
        is_lower = np.isfinite(guide) & ((short > rounding) | np.isneginf(joint))
        share = -np.expm1(-short) * np.exp(guide - wide)
    return np.where(is_lower & np.isfinite(share), share, 0.0)


def looked(look: Callable[[], Found], unknown: Found) -> Found:
    """What a look at draws finds, or nothing where it fails: programs need no answer where the guide does not go."""
    try:
        return look()
    except (ArithmeticError, RuntimeError, ValueError) as error:
        if is_lack_of_memory(error):
            raise
        return unknown
