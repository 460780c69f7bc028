r"""Training objectives: frozen values that turn the terms of a run into a number to maximise, in nats per datum.

beta multiplies the rate in one line of `ELBO` and nowhere else; it never touches a program or an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.pair import Pair, Program
from ppl_vae.schedules import Schedule
from ppl_vae.terms import Batch, Layout, Terms, run
from ppl_vae.weights import log_mean_exp

__all__ = ["ELBO", "IWAE", "FromPyro", "Objective", "Renyi", "Values", "from_pyro", "scale_latents"]


class Values(NamedTuple):
    """One evaluation of an objective on a batch: scalar tensors, in nats per datum."""

    loss: Tensor
    """To minimise by backward(); its value is minus `objective` up to terms whose value means nothing."""
    objective: Tensor
    """What is trained: to be maximised."""
    elbo: Tensor
    """The true ELBO (beta = 1, no scaling); NaN where the objective does not tell."""
    distortion: Tensor
    """-E log p(x given z)."""
    rate: Tensor
    """KL(q(z given x), p(z))."""


class Objective(Protocol):
    """What `fit` needs of an objective."""

    @property
    def num_particles(self) -> int:
        """K."""

    @property
    def beta(self) -> float | Schedule:
        """Weight of the rate, or its schedule."""

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch."""

    def judge(self) -> Objective:
        """The objective that judges held-out data: the same bound without beta or any other change of it."""


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
            al. 2019); `batch`, the mean of the other data; `none`; `auto`, the first of these that applies.
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
    baseline: Literal["auto", "none", "leave_one_out", "batch"] = "auto"
    discrete: Literal["score", "enumerate"] = "score"
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)
        _check_choice("kl", self.kl, ("auto", "analytic", "sampled"))
        _check_choice("gradient", self.gradient, ("pathwise", "stl", "score"))
        _check_choice("baseline", self.baseline, ("auto", "none", "leave_one_out", "batch"))
        _check_choice("discrete", self.discrete, ("score", "enumerate"))
        if self.gradient == "stl" and self.kl == "analytic":
            raise ValueError("gradient='stl' drops the score of the sampled log q: use kl='sampled' or 'auto'")
        if self.gradient == "score" and self.discrete == "enumerate":
            raise ValueError("gradient='score' draws every latent: use discrete='score'")
        if self.baseline == "leave_one_out" and self.num_particles < 2:
            raise ValueError("baseline='leave_one_out' needs num_particles of at least 2")
        if self.free_bits < 0:
            raise ValueError(f"free_bits: expected nats >= 0, found {self.free_bits}")
        if self.free_bits and self.gradient == "score":
            raise ValueError("free_bits has no score-function gradient: use gradient='pathwise'")

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, objective, true ELBO, distortion and rate."""
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
        reward = terms.log_lik - beta * _sum(rates)
        objective = _particle_mean(reward, weights).mean()
        if self.free_bits:
            floors = [_particle_mean(r, weights).mean().clamp_min(self.free_bits) for r in rates.values()]
            objective = _particle_mean(terms.log_lik, weights).mean() - beta * sum(floors)
        if terms.global_kl is not None:
            objective = objective - beta * terms.global_kl.mean()
        score = self._score_term(terms, reward, weights, beta, analytic != frozenset(layout.local_latents))
        loss = -objective if score is None else -(objective + score)
        return Values(loss, objective.detach(), *_true_terms(terms, analytic))

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
        self, terms: Terms, reward: Tensor, weights: Tensor | None, beta: Tensor | float, sampled: bool
    ) -> Tensor | None:
        """sum_k log q(z_k) (reward_k - baseline): its gradient is the score-function part, its value means nothing."""
        log_score = terms.log_score_all if self.gradient == "score" else terms.log_score
        if log_score is None and terms.global_score is None:
            return None
        if self.free_bits:
            raise PairError("free_bits: expected reparametrised latents, found a score-function site; use free_bits=0")
        with torch.no_grad():
            # The sampled rate carries -beta grad log q of its own, which has mean zero: this takes it back.
            own = beta if sampled else 0.0
            advantage = reward + own - self._baseline(reward)
            if terms.global_kl is not None:
                advantage = advantage - beta * terms.global_kl / terms.full_size
        total = torch.zeros((), device=reward.device)
        if log_score is not None:
            total = total + _particle_mean(log_score * advantage, None if weights is None else weights.detach()).mean()
        if terms.global_score is not None:
            total = total + self._global_score_term(terms, reward, beta, own)
        return total

    def _global_score_term(self, terms: Terms, reward: Tensor, beta: Tensor | float, own: Tensor | float) -> Tensor:
        """The same for latents outside the data plate, whose cost is that of all data."""
        assert terms.global_score is not None
        assert terms.global_kl is not None
        cost = reward.mean(1, keepdim=True) - beta * terms.global_kl + own / terms.full_size
        return (terms.global_score * cost.detach()).mean()

    def _baseline(self, reward: Tensor) -> Tensor | float:
        """A value independent of the draw it is subtracted from (K, N)."""
        particles, rows = reward.shape
        choice = self.baseline
        if choice == "auto":
            choice = "leave_one_out" if particles > 1 and self.discrete == "score" else "batch" if rows > 1 else "none"
        if choice == "leave_one_out":
            return (reward.sum(0, keepdim=True) - reward) / (particles - 1)
        if choice == "batch" and rows > 1:
            return (reward.sum(1, keepdim=True) - reward) / (rows - 1)
        return 0.0


@dataclass(frozen=True)
class IWAE:
    r"""Importance-weighted bound log 1/K sum_k p(x, z_k) / q(z_k given x) (Burda, Grosse and Salakhutdinov 2016).

    Args:
        num_particles: K.
        gradient: `pathwise`; `dreg`, doubly reparametrised for the guide (Tucker et al. 2019), lower variance at
            large K; or `score`, the score function for every latent.

    Example:
        >>> IWAE(num_particles=5, gradient="dreg")
        IWAE(num_particles=5, gradient='dreg')
    """

    num_particles: int = 5
    gradient: Literal["pathwise", "dreg", "score"] = "pathwise"

    def __post_init__(self) -> None:
        _check_particles(self.num_particles)
        _check_choice("gradient", self.gradient, ("pathwise", "dreg", "score"))

    @property
    def beta(self) -> float:
        """The rate enters a bound on log p(x) with weight one."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, bound, true ELBO, distortion and rate."""
        _refuse_globals(layout)
        doubly = self.gradient == "dreg"
        terms = run(pair, batch, self.num_particles, layout, path_only=doubly, detach_draws=self.gradient == "score")
        log_weight = terms.log_weight
        bound = log_mean_exp(log_weight)
        if not doubly:
            return _bound_values(terms, bound, self.gradient == "score")
        if terms.log_score is not None:
            raise PairError("gradient='dreg' needs reparametrised latents: use gradient='score'")
        # d bound / d z_k = v_k d log w_k / d z_k with v = softmax(log w); DReG has v_k^2: one more factor on the path.
        share = log_weight.detach().softmax(0)
        terms.scale_paths(share)
        return _bound_values(terms, bound, False)

    def judge(self) -> IWAE:
        """The bound itself."""
        return IWAE(self.num_particles)


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
        _check_particles(self.num_particles)
        if self.alpha == 1:
            raise ValueError("alpha=1 is the ELBO: use ELBO(num_particles=...)")

    @property
    def beta(self) -> float:
        """The rate enters with weight one."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs the pair on a batch and returns loss, bound, true ELBO, distortion and rate."""
        _refuse_globals(layout)
        terms = run(pair, batch, self.num_particles, layout)
        order = 1.0 - self.alpha
        return _bound_values(terms, log_mean_exp(order * terms.log_weight) / order, False)

    def judge(self) -> Renyi:
        """The bound itself."""
        return self


@dataclass(frozen=True)
class FromPyro:
    """An ELBO of `pyro.infer` as an objective of `fit`; made by `from_pyro`."""

    elbo: Any
    num_particles: int = 1

    @property
    def beta(self) -> float:
        """Pyro's objectives have no beta of their own."""
        return 1.0

    def evaluate(self, pair: Pair, batch: Batch, layout: Layout, beta: Tensor | float) -> Values:
        """Runs Pyro's own objective; distortion and rate are NaN, the true ELBO too unless the objective is one."""
        full_size = layout.full_size or len(batch[0])
        total = self._loss(pair, batch)
        loss = total / full_size
        unknown = torch.full((), torch.nan, device=loss.device)
        is_elbo = type(self.elbo) in _PLAIN_ELBOS and not layout.rescaled
        objective = -loss.detach()
        return Values(loss, objective, objective if is_elbo else unknown, unknown, unknown)

    def judge(self) -> FromPyro:
        """Pyro's objective itself."""
        return self

    def _loss(self, pair: Pair, batch: Batch) -> Tensor:
        with pair.scope():
            if hasattr(self.elbo, "differentiable_loss"):
                return torch.as_tensor(self.elbo.differentiable_loss(pair.model, pair.guide, *batch))
            if not torch.is_grad_enabled():
                return torch.as_tensor(self.elbo.loss(pair.model, pair.guide, *batch))
            return _loss_with_gradients(self.elbo, pair, batch)


def from_pyro(elbo: Any) -> FromPyro:
    """Lets any `pyro.infer` ELBO (Trace, TraceMeanField, TraceEnum, TraceGraph, Renyi, ...) train in `fit`.

    Example:
        >>> from pyro.infer import TraceEnum_ELBO
        >>> from_pyro(TraceEnum_ELBO(max_plate_nesting=1)).num_particles
        1
    """
    return FromPyro(elbo, int(getattr(elbo, "num_particles", 1)))


def scale_latents(program: Program, beta: float) -> Callable[..., Any]:
    """Wraps a Pyro program so that its latent sites are scaled by beta.

    Applied to model *and* guide, plain `pyro.infer.SVI` with `Trace_ELBO` trains the beta-VAE objective
    E_q log p(x given z) - beta KL, with the same gradients as `ELBO(beta=beta)`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> program = scale_latents(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), beta=0.5)
        >>> pyro.poutine.trace(program).get_trace().nodes["z"]["scale"]
        0.5
    """
    return _ScaleLatents(beta)(program)


class _ScaleLatents(Messenger):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not isinstance(msg["fn"], _Subsample):
            msg["scale"] = msg["scale"] * self._beta


_PLAIN_ELBOS = (
    pyro.infer.Trace_ELBO,
    pyro.infer.TraceMeanField_ELBO,
    pyro.infer.TraceEnum_ELBO,
    pyro.infer.TraceGraph_ELBO,
)


def _loss_with_gradients(elbo: Any, pair: Pair, batch: Batch) -> Tensor:
    """The loss of an objective that only knows how to call backward itself, as a tensor with the same gradient."""
    parameters = [p for p in pair.parameters() if p.requires_grad]
    saved = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    anchor = torch.zeros((), requires_grad=True)

    def guide(*args: Tensor) -> Any:
        pyro.param("_anchor", anchor)  # Pyro calls backward only if it sees some param statement.
        return pair.guide(*args)

    with _Anchor(anchor):
        value = elbo.loss_and_grads(pair.model, guide, *batch)
    linear = sum((p * p.grad).sum() for p in parameters if p.grad is not None)
    for p, grad in zip(parameters, saved, strict=True):
        p.grad = grad
    return value + (linear - linear.detach()) if isinstance(linear, Tensor) else torch.as_tensor(value)


class _Anchor(Messenger):
    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self._anchor = anchor

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] == "_anchor":
            msg["value"], msg["done"] = self._anchor, True


def _bound_values(terms: Terms, bound: Tensor, all_by_score: bool) -> Values:
    objective = bound.mean()
    log_score = terms.log_score_all if all_by_score else terms.log_score
    loss = -objective if log_score is None else -(objective + (log_score.sum(0) * bound.detach()).mean())
    return Values(loss, objective.detach(), *_true_terms(terms, frozenset()))


def _true_terms(terms: Terms, analytic: frozenset[str]) -> tuple[Tensor, Tensor, Tensor]:
    """True ELBO, distortion and rate of the run, without beta and without scales of the programs."""
    with torch.no_grad():
        plain = terms.unscaled()
        weights = plain.particle_weights
        distortion = -_particle_mean(plain.log_lik, weights).mean()
        rate = _particle_mean(_sum(plain.kl(analytic)), weights).mean()
        if plain.global_kl is not None:
            rate = rate + plain.global_kl.mean()
        return -distortion - rate, distortion, rate


def _particle_mean(matrix: Tensor | float, weights: Tensor | None) -> Tensor:
    matrix = torch.as_tensor(matrix)
    if weights is None:
        return matrix.mean(0) if matrix.dim() else matrix
    return torch.where(weights > 0, weights * matrix, 0.0).sum(0)


def _sum(rates: dict[str, Tensor]) -> Tensor | float:
    return sum(rates.values()) if rates else 0.0


def _refuse_globals(layout: Layout) -> None:
    if layout.global_latents:
        raise PairError(
            f"site {layout.global_latents[0]!r}: a per-datum bound needs every latent inside the data plate; use ELBO()"
        )


def _check_particles(num_particles: int) -> None:
    if num_particles < 1:
        raise ValueError(f"num_particles: expected at least 1, found {num_particles}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
