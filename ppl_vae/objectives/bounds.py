"""Bounds on log p(x) from several particles: importance-weighted and Renyi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.objectives.base import Values, check_choice, check_gradient, check_particles, true_terms
from ppl_vae.options import finite_number
from ppl_vae.pair import Pair
from ppl_vae.tape import Batch, Layout
from ppl_vae.terms import Terms, run
from ppl_vae.weights import leave_one_out, log_mean_exp

__all__ = ["IWAE", "Renyi"]


@dataclass(frozen=True)
class IWAE:
    r"""Importance-weighted bound log 1/K sum_k p(x, z_k) / q(z_k given x) (Burda, Grosse and Salakhutdinov 2016).

    Args:
        num_particles: K.
        gradient: `pathwise`; `dreg`, doubly reparametrised for the guide (Tucker et al. 2019), lower variance at
            large K; `score`, the score function for every latent; or `vimco`, the same with a baseline for each draw
            from the others (Mnih and Rezende 2016): the bound with its weight replaced by their geometric mean.
            Latents that cannot be reparametrised use the score function in any case, in `dreg` with that baseline.

    Raises:
        ValueError: For an option that has no meaning, or `vimco` with one particle, which has no others.

    Example:
        >>> IWAE(num_particles=5, gradient="dreg")
        IWAE(num_particles=5, gradient='dreg')
    """

    num_particles: int = 5
    gradient: Literal["pathwise", "dreg", "score", "vimco"] = "pathwise"

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        check_choice("gradient", self.gradient, ("pathwise", "dreg", "score", "vimco"))
        if self.gradient == "vimco" and self.num_particles < 2:
            raise ValueError("gradient='vimco' needs num_particles of at least 2")

    @property
    def beta(self) -> float:
        """The rate enters a bound on log p(x) with weight one."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, bound, true ELBO, distortion and rate."""
        _check_per_datum(layout)
        doubly = self.gradient == "dreg"
        if self.gradient != "pathwise":
            check_gradient(self.gradient, layout)
        by_score = self.gradient in ("score", "vimco")
        terms = run(pair, batch, self.num_particles, layout, path_only=doubly, detach_draws=by_score)
        bound = log_mean_exp(terms.log_weight)
        log_score = terms.log_score_all if by_score else terms.log_score
        baseline = 0.0 if log_score is None else self._baseline(terms.log_weight.detach())
        if doubly:
            # d bound / d z_k = v_k d log w_k / d z_k with v = softmax(log w); DReG has v_k^2: one more factor there.
            share = terms.log_weight.detach().softmax(0)
            terms.scale_paths(share)
        return _bound_values(terms, bound, log_score, baseline)

    def judge(self) -> IWAE:
        """The bound itself."""
        return IWAE(self.num_particles)

    def _baseline(self, log_weight: Tensor) -> Tensor | float:
        """What the bound is less in the score of each draw, (K, N)."""
        if self.gradient not in ("vimco", "dreg") or self.num_particles == 1:
            return 0.0
        others = leave_one_out(log_weight)
        others = others.masked_fill(others.isneginf(), 0.0)  # others that are all outside the support say nothing
        if self.gradient == "vimco":
            return others
        # The bound has -v_k d log q(y_k), which no path brings for a discrete y_k: the score does, with 1/K added, of
        # mean zero, so that nothing is left where weights are equal.
        return others + log_weight.softmax(0) - 1 / self.num_particles


@dataclass(frozen=True)
class Renyi:
    r"""Renyi bound 1 / (1 - alpha) log 1/K sum_k w_k^(1 - alpha) (Li and Turner 2016).

    Args:
        alpha: Order, any number but 1 (that is the ELBO); 0 is the importance-weighted bound.
        num_particles: K.

    Example:
        >>> Renyi(0.5, num_particles=10).alpha
        0.5
    """

    alpha: float
    num_particles: int = 5

    def __post_init__(self) -> None:
        check_particles(self.num_particles)
        finite_number("alpha", self.alpha)
        if self.alpha == 1:
            raise ValueError("alpha=1 is the ELBO: use ELBO(num_particles=...)")

    @property
    def beta(self) -> float:
        """The rate enters with weight one."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, bound, true ELBO, distortion and rate."""
        _check_per_datum(layout)
        terms = run(pair, batch, self.num_particles, layout)
        order = 1.0 - self.alpha
        return _bound_values(terms, log_mean_exp(order * terms.log_weight) / order, terms.log_score)

    def judge(self) -> Renyi:
        """The bound itself."""
        return self


def _bound_values(terms: Terms, bound: Tensor, log_score: Tensor | None, baseline: Tensor | float = 0.0) -> Values:
    objective = bound.mean()
    loss = -objective if log_score is None else -(objective + (log_score * (bound.detach() - baseline)).sum(0).mean())
    return Values(loss, objective.detach(), *true_terms(terms, frozenset()))


def _check_per_datum(layout: Layout) -> None:
    layout.check_likelihood()
    if layout.global_latents:
        raise PairError(
            f"site {layout.global_latents[0]!r}: a per-datum bound needs every latent inside the data plate; use ELBO()"
        )
    if layout.subsampled:
        raise PairError(
            "a plate inside the data plate is subsampled: p(x given z) would be a noisy estimate inside a logarithm, "
            "and the bound above log p(x); use the whole plate, or ELBO()"
        )
