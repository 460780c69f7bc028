"""How the importance-weighted bound rises with K, where it goes, and whether it goes there as theory says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vae.evaluation.likelihood import planned
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.evaluation.weighing import all_weights
from ppl_vae.options import compile_choice, seed_number, whole_number
from ppl_vae.pareto import FEW, fit_tails, tail_size
from ppl_vae.tape import Batch
from ppl_vae.weights import log_mean_exp

__all__ = ["KCurve", "k_curve"]

_STANDARD_ERRORS, _TOLERANCE = 3.0, 0.15
_FINITE_VARIANCE = 0.5  # of weights whose tail has a smaller Pareto shape
_ROUNDING = 1e-6  # nats: a rise below it is that of a perfect guide


@dataclass(frozen=True, eq=False)
class KCurve:
    """Bounds L_k = E log 1/k sum w for k = 1, 2, 4, ..., K, all from the same K samples of each datum, in nats."""

    num_samples: np.ndarray
    """k, powers of two, (L,)."""
    bounds: np.ndarray
    """Unbiased estimates of L_k for each datum, (L, N): means over the K / k blocks of k samples."""
    chi_square: np.ndarray
    """Variance of a weight in units of its mean, K / ESS - 1, for each datum (N,)."""
    khat: float
    """Pareto k-hat of the weights of all data together, each in units of the mean of its datum; -inf where too few
    differ to tell. It is that of the largest of each datum: rough where very few data hold all of the tail."""
    seconds: float
    """Wall time."""

    @property
    def mean(self) -> np.ndarray:
        """L_k, means over data, (L,), in nats per datum; they never fall (Jensen, on the same samples)."""
        return self.bounds.mean(1)

    @property
    def rise(self) -> np.ndarray:
        """L_2k - L_k, means over data, (L - 1,)."""
        return self._rises.mean(1)

    @property
    def rise_stderr(self) -> np.ndarray:
        """Standard error of `rise` over data, (L - 1,)."""
        rises = self._rises
        if rises.shape[1] < 2:
            return np.full(len(rises), np.nan)
        with np.errstate(invalid="ignore"):  # of rises that are infinite
            return rises.std(1, ddof=1) / np.sqrt(rises.shape[1])

    @property
    def law(self) -> np.ndarray:
        """What `rise` is for large k, chi2 / 4k, (L - 1,): the gap log p - L_k tends to chi2 / 2k where chi2 exists."""
        return self.chi_square.mean() / (4 * self.num_samples[:-1])

    @property
    def follows_law(self) -> bool:
        """Whether the last rise is that of the law, within three standard errors and 15 %: then so is what is left.

        And whether there is a law: chi2 is infinite where k-hat is 1/2 or more, and the samples then give some number
        that the rise may agree with. A heavy tail of which too few samples were drawn is not seen.

        Of few data the errors may be larger than the law itself, with which any rise would agree: see `can_tell`. A
        rise of less than a millionth of a nat, as of a perfect guide, follows any law.
        """
        allowed = self._error + _TOLERANCE * self.law[-1] + _ROUNDING
        return self.can_tell and self.has_law and bool(abs(self.rise[-1] - self.law[-1]) <= allowed)

    @property
    def can_tell(self) -> bool:
        """Whether three standard errors of the last rise are no more than the law: else any rise agrees."""
        return bool(self._error <= self.law[-1] + _ROUNDING)

    @property
    def has_law(self) -> bool:
        """Whether weights look as if they had a variance; those of a perfect guide differ by rounding alone."""
        return self.khat < _FINITE_VARIANCE or bool(abs(self.rise[-1]) <= _ROUNDING)

    @property
    def _error(self) -> float:
        """Three standard errors of the last rise; of one datum nothing is known, but where it does not rise at all."""
        flat = abs(self.rise[-1]) <= _ROUNDING
        return float(np.nan_to_num(_STANDARD_ERRORS * self.rise_stderr[-1], nan=0.0 if flat else np.inf))

    @property
    def extrapolated(self) -> np.ndarray:
        """L at K = infinity for each datum, (N,): L_K + (L_K - L_{K / 2}), without the bias of order 1 / K.

        NaN where the last rise is surely not that of the law (`can_tell`, and not `follows_law`): what is left is then
        some other number, less where the first bounds lie far down, as under guides too wide, and more where tails are
        heavy. Where the law is followed it may be off by as much as `follows_law` lets the rise and the law differ, to
        either side; of weights whose tail few samples have seen, or with k-hat near 1/2, it is rather too low.
        """
        if self.can_tell and not self.follows_law:
            return np.full_like(self.bounds[-1], np.nan)
        return self.bounds[-1] + np.where(np.isfinite(self._rises[-1]), self._rises[-1], 0.0)

    @property
    def _rises(self) -> np.ndarray:
        """L_2k - L_k of each datum, (L - 1, N); infinite from minus infinity, where weights are zero, and 0 between."""
        low, high = self.bounds[:-1], self.bounds[1:]
        return np.subtract(high, low, out=np.zeros_like(low), where=~np.isneginf(high))

    def __str__(self) -> str:
        verdict = "follows chi2 / 2K" if self.follows_law else "does not yet follow chi2 / 2K: still rising"
        if not self.has_law:
            verdict = f"has no law chi2 / 2K to follow: k-hat {self.khat:.2f}, chi2 looks infinite"
        if not self.can_tell:
            verdict = "cannot be told to follow chi2 / 2K or not: more data would tell"
        limit = self.extrapolated.mean()
        if np.isnan(limit):
            limited, verdict = "nats per datum, not extrapolated", f"{verdict}; take more samples"
        else:
            limited = f"{limit:.3f} nats per datum extrapolated"
        return (
            f"bound {self.mean[-1]:.3f} at K = {self.num_samples[-1]}, {limited} ({self.bounds.shape[1]} data); it "
            f"{verdict}"
        )


def k_curve(
    pair: Any,
    data: Any,
    num_samples: int = 4096,
    seed: int = 0,
    *,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> KCurve:
    r"""The bound against the number of samples, from one set of samples of each datum.

    .. math:: \log p(x) - \mathcal{L}_k = \frac{\chi^2}{2 k} + O(k^{-2}), \quad
              \hat{\mathcal{L}}_k = \frac{k}{K} \sum_{b=1}^{K / k} \log \frac1k \sum_{i \in b} w_i

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`, with latents.
        data: Data (N, *event) or a tuple of arrays.
        num_samples: K, a power of two.
        seed: Of the samples: those of `log_likelihood` with the same K and seed.
        memory: Bytes that the decoder may use at once, about; see `log_likelihood`.
        device: Where to evaluate; "auto" is where the parameters are.
        compile: Whether to compile guide and model, as for `log_likelihood`.
        progress: Show a progress bar where there is a terminal.

    Raises:
        ValueError: K is no power of two.
        PairError: The pair is not valid.
        DataError: A datum lies outside the support of its site.
        EstimateError: A weight is NaN or infinite, or all weights of a datum are zero.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders; Domke and Sheldon (2018), Importance
        Weighting and Variational Inference: the law.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(3)
        >>> curve = k_curve(ppca, x, num_samples=4, progress=False)
        >>> curve.num_samples.tolist(), bool(abs(curve.extrapolated - ppca.log_prob(x).numpy()).max() < 1e-6)
        ([1, 2, 4], True)
    """
    whole_number("num_samples", num_samples, least=2)
    seed_number("seed", seed)
    compile_choice(compile)
    if num_samples & (num_samples - 1):
        raise ValueError(f"num_samples: expected a power of two, such as 4096, found {num_samples}")
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        plan, weigher = planned(subject, num_samples, seed, memory, compile)

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            log_weight = all_weights(batch, first, plan, weigher).double().cpu().expand(num_samples, len(batch[0]))
            return {
                "bounds": _bounds(log_weight).T.numpy(),
                "chi_square": _chi_square(log_weight).numpy(),
                "largest": _largest(log_weight).numpy(),
            }

        swept = subject.sweep(plan.num_rows, "bound against K", progress, work)
    found = swept.gathered()
    bounds = np.ascontiguousarray(found["bounds"].T)
    khat = _khat(found["largest"], num_samples)
    return KCurve(2 ** np.arange(len(bounds)), bounds, found["chi_square"], khat, time.monotonic() - start)


def _bounds(log_weight: Tensor) -> Tensor:
    """Mean log-mean-exp over blocks of 1, 2, 4, ..., K samples, (L, N): two neighbours make a block of the next."""
    level, bounds = log_weight, [log_weight.mean(0)]
    while len(level) > 1:
        level = torch.logaddexp(level[::2], level[1::2]) - np.log(2)
        bounds.append(level.mean(0))
    return torch.stack(bounds)


def _chi_square(log_weight: Tensor) -> Tensor:
    squares = (2 * log_weight).logsumexp(0) - 2 * log_weight.logsumexp(0)
    return (len(log_weight) * squares.exp() - 1).clamp_min(0)


def _largest(log_weight: Tensor) -> Tensor:
    """As many of the log-weights of each datum as a tail takes, in units of their mean weight, (N, M + 1)."""
    count = min(len(log_weight), tail_size(len(log_weight)) + 1)
    return (log_weight.topk(count, dim=0).values - log_mean_exp(log_weight)).T


def _khat(largest: np.ndarray, num_samples: int) -> float:
    """k-hat of all weights as one sample, of which the largest of each datum are given, (N, M + 1)."""
    total = num_samples * len(largest)
    tail = -np.sort(-largest.ravel())[: tail_size(total) + 1]
    if len(np.unique(tail)) <= FEW:
        return -np.inf
    return float(fit_tails(tail[None], total).khat[0])
