"""The evidence lower bound, the one place where beta multiplies the rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.objectives.base import (
    Values,
    check_choice,
    check_gradient,
    check_particles,
    particle_mean,
    total,
    true_terms,
)
from ppl_vae.objectives.baselines import BASELINES, baseline, begin_running, follow
from ppl_vae.options import finite_number
from ppl_vae.pair import Pair
from ppl_vae.schedules import Schedule
from ppl_vae.tape import Batch, Layout
from ppl_vae.terms import Terms, run

__all__ = ["ELBO"]


@dataclass(frozen=True)
class ELBO:
    r"""Evidence lower bound E_q[log p(x given z)] - beta KL(q(z given x), p(z)), estimated with K particles.

    Args:
        num_particles: K, the number of draws per datum and step.
        beta: Weight of the rate (beta-VAE; Higgins et al. 2017): a number, or a schedule step -> number.
        kl: `auto` takes the closed form of each latent site that has one, `analytic` insists on it, `sampled` never.
        gradient: `pathwise` (Kingma and Welling 2014; Rezende et al. 2014); `stl`, the same without the score of q,
            whose variance vanishes at the posterior (Roeder et al. 2017); or `score`, the score function (Williams
            1992) for every latent. Latents that cannot be reparametrised use the score function in any case.
        baseline: Control variate of score-function terms: `leave_one_out`, the mean of the other particles (Kool et
            al. 2019); `batch`, the mean of the other data; `none`; `auto`, the first of these that applies; `running`,
            an average of the rewards of earlier steps that forgets a tenth a step (Mnih and Gregor 2014).
        discrete: `score`, or `enumerate`: sum over the values of discrete latents exactly.
        free_bits: Floor, in nats per datum, under the batch mean of each latent site's rate (Kingma et al. 2016).

    Raises:
        ValueError: For a combination that has no meaning.
        PairError: When used: if `kl="analytic"` meets a site without a closed form.

    Example:
        >>> ELBO(num_particles=4, beta=0.5).num_particles
        4
        >>> ELBO(gradient="stl", kl="analytic")
        Traceback (most recent call last):
            ...
        ValueError: gradient='stl' drops the score of the sampled log q: use kl='sampled' or 'auto'
    """

    num_particles: int = 1
    beta: float | Schedule = 1.0
    kl: Literal["auto", "analytic", "sampled"] = "auto"
    gradient: Literal["pathwise", "stl", "score"] = "pathwise"
    baseline: Literal["auto", "none", "leave_one_out", "batch", "running"] = "auto"
    discrete: Literal["score", "enumerate"] = "score"
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        check_choice("kl", self.kl, ("auto", "analytic", "sampled"))
        check_choice("gradient", self.gradient, ("pathwise", "stl", "score"))
        check_choice("baseline", self.baseline, BASELINES)
        check_choice("discrete", self.discrete, ("score", "enumerate"))
        if self.gradient == "stl" and self.kl == "analytic":
            raise ValueError("gradient='stl' drops the score of the sampled log q: use kl='sampled' or 'auto'")
        if self.gradient == "score" and self.discrete == "enumerate":
            raise ValueError("gradient='score' draws every latent: use discrete='score'")
        if self.baseline == "leave_one_out" and self.num_particles < 2:
            raise ValueError("baseline='leave_one_out' needs num_particles of at least 2")
        if not callable(self.beta):
            finite_number("beta", self.beta, least=0)
        finite_number("free_bits", self.free_bits, least=0)
        if self.free_bits and self.gradient == "score":
            raise ValueError("free_bits has no score-function gradient: use gradient='pathwise'")

    def begin(self, pair: Pair) -> None:
        """Readies what the objective keeps with a pair: the average of `baseline="running"` starts anew."""
        if self.baseline == "running":
            begin_running(pair)

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, objective, true ELBO, distortion and rate."""
        if self.discrete == "enumerate":
            _check_enumerable(layout)
        if self.gradient != "pathwise":
            check_gradient(self.gradient, layout)
        terms = run(
            pair,
            batch,
            self.num_particles,
            layout,
            enumerate_discrete=self.discrete == "enumerate",
            path_only=self.gradient == "stl",
            detach_draws=self.gradient == "score",
        )
        analytic = self._analytic(layout)
        rates = terms.kl(analytic)
        weights = terms.particle_weights
        reward = terms.log_lik - beta * total(rates)
        objective = particle_mean(reward, weights).mean()
        if self.free_bits:
            floors = [particle_mean(r, weights).mean().clamp_min(self.free_bits) for r in rates.values()]
            objective = particle_mean(terms.log_lik, weights).mean() - beta * sum(floors)
        if terms.global_kl is not None:
            objective = objective - beta * terms.global_kl.mean()
        score = self._score_term(pair, terms, reward, weights, beta, analytic != frozenset(layout.local_latents))
        loss = -objective if score is None else -(objective + score)
        return Values(loss, objective.detach(), *true_terms(terms, analytic))

    def judge(self) -> ELBO:
        """The plain ELBO."""
        return ELBO(self.num_particles, discrete=self.discrete)

    def _analytic(self, layout: Layout) -> frozenset[str]:
        if self.kl == "sampled" or self.gradient == "stl":
            return frozenset()
        if self.kl == "analytic" and (missing := [n for n in layout.local_latents if n not in layout.analytic]):
            raise PairError(
                f"site {missing[0]!r}: expected a closed-form KL (kl='analytic'), found none for these distributions; "
                "use kl='auto'"
            )
        return layout.analytic

    def _score_term(
        self, pair: Pair, terms: Terms, reward: Tensor, weights: Tensor | None, beta: Tensor | float, sampled: bool
    ) -> Tensor | None:
        """sum_k log q(z_k) (reward_k - baseline): its gradient is the score-function part, its value means nothing."""
        log_score = terms.log_score_all if self.gradient == "score" else terms.log_score
        if log_score is None and terms.global_score is None:
            if self.baseline in ("leave_one_out", "batch", "running"):
                raise PairError(f"baseline={self.baseline!r} needs a score-function latent, found none: use 'auto'")
            return None
        if self.free_bits:
            raise PairError("free_bits: expected reparametrised latents, found a score-function site; use free_bits=0")
        with torch.no_grad():
            # The sampled rate carries -beta grad log q of its own, which has mean zero: this takes it back.
            own = beta if sampled and self.gradient != "stl" else 0.0
            advantage = reward + own - baseline(self.baseline, reward, pair, self.discrete == "enumerate")
            if terms.global_kl is not None:
                advantage = advantage - beta * terms.global_kl / terms.full_size
        total = torch.zeros((), device=reward.device)
        if log_score is not None:
            total = total + particle_mean(log_score * advantage, None if weights is None else weights.detach()).mean()
        if terms.global_score is not None:
            total = total + self._global_score_term(terms, reward, beta, own)
        if self.baseline == "running":
            follow(pair, reward)
        return total

    def _global_score_term(self, terms: Terms, reward: Tensor, beta: Tensor | float, own: Tensor | float) -> Tensor:
        """The same for latents outside the data plate, whose cost is that of all data."""
        assert terms.global_score is not None
        assert terms.global_kl is not None
        cost = reward.mean(1, keepdim=True) - beta * terms.global_kl + own / terms.full_size
        return (terms.global_score * cost.detach()).mean()


def _check_enumerable(layout: Layout) -> None:
    if not layout.cardinalities:
        raise PairError(
            "discrete='enumerate' needs a discrete latent with finitely many values, found none; leave it out"
        )
    if outside := [name for name in layout.global_latents if name in layout.not_reparametrised]:
        raise PairError(f"site {outside[0]!r}: discrete='enumerate' sums over latents inside the data plate only")
    if layout.not_enumerable:
        raise PairError(
            f"site {layout.not_enumerable[0]!r}: expected a latent with finitely many values and no plate inside the "
            "data plate, for discrete='enumerate', or a reparametrised one; use discrete='score'"
        )
