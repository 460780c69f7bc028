r"""Functions of the log-weight matrix log w (K, N): what an evaluation says about a datum and how far to trust it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError

__all__ = ["Stream", "Summary", "khat_threshold", "leave_one_out", "log_mean_exp", "pareto_khat", "tail_size"]


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    r"""log 1/K sum_k exp(log w_k), the importance-weighted bound of Burda et al. (2016).

    Example:
        >>> import torch
        >>> log_mean_exp(torch.log(torch.tensor([1.0, 2.0, 3.0]))).exp()
        tensor(2.)
    """
    return torch.logsumexp(log_weight, dim) - math.log(log_weight.shape[dim])


def leave_one_out(log_weight: Tensor) -> Tensor:
    r"""log 1/K (sum_{j != k} w_j + w-hat_k) for each k, with the geometric mean of the others as w-hat_k, (K, N).

    A bound that does not depend on draw k: the baseline of VIMCO (Mnih and Rezende 2016).

    Example:
        >>> import torch
        >>> leave_one_out(torch.log(torch.tensor([[1.0], [4.0], [9.0]]))).exp()[0]  # (4 + 9 + 6) / 3
        tensor([6.3333])
    """
    num = len(log_weight)
    nothing, zero = torch.full_like(log_weight[:1], -torch.inf), torch.zeros_like(log_weight[:1])
    # Sums of those before and after k: taking w_k away from the whole sum would cancel where it is the largest, and
    # would have no meaning where it is zero.
    before = torch.cat([nothing, log_weight[:-1].logcumsumexp(0)])
    after = torch.cat([log_weight.flip(0)[:-1].logcumsumexp(0).flip(0), nothing])
    logs_before = torch.cat([zero, log_weight[:-1].cumsum(0)])
    logs_after = torch.cat([log_weight.flip(0)[:-1].cumsum(0).flip(0), zero])
    geometric = (logs_before + logs_after) / (num - 1)
    return torch.logaddexp(torch.logaddexp(before, after), geometric) - math.log(num)


# Weights that differ by no more than the rounding of their own sums are equal: a perfect guide.
_ROUNDING, _LARGEST_ROUNDING = 200.0, 1e-3


class Summary(NamedTuple):
    """Per-datum summary of K log-weights; each an array (N,)."""

    value: np.ndarray
    """log-mean-exp: the estimate of log p(x), in nats."""
    stderr: np.ndarray
    """Standard error of `value` by the delta method, in nats."""
    ess: np.ndarray
    """Effective sample size (sum w)^2 / sum w^2, between 1 and K."""
    elbo: np.ndarray
    """Mean of the log-weights, in nats."""
    khat: np.ndarray
    """Pareto shape of the largest weights; -inf where all weights are equal, +inf where there are too few to tell."""
    zero_weights: np.ndarray
    """Number of draws outside the support of the model; they count in K."""


class Stream:
    r"""Accumulates log-weights (k, N) block by block in float64, keeping no more than the largest of them.

    With S1 = sum_k w_k and S2 = sum_k w_k^2 over exactly K draws: value = log S1 - log K, ESS = S1^2 / S2 and
    stderr^2 = (K S2 / S1^2 - 1) / (K - 1), the delta method for the log of a mean.

    Args:
        num_data: N.
        num_samples: K, the number of draws that will be added in all.
        first_row: Row of the data set the first column belongs to, for messages.

    Raises:
        EstimateError: From `add` and `summary`, for weights that are NaN or infinite, or all zero.

    Example:
        >>> import torch
        >>> stream = Stream(num_data=1, num_samples=12)
        >>> stream.add(torch.full((12, 1), -3.0))
        >>> value, stderr, ess, _, khat, _ = stream.summary()
        >>> round(float(value[0]), 12), float(stderr[0]), float(ess[0]), float(khat[0])
        (-3.0, 0.0, 12.0, -inf)
    """

    def __init__(self, num_data: int, num_samples: int, first_row: int = 0) -> None:
        self.num_samples = num_samples
        self.first_row = first_row
        self._count = 0
        self._epsilon = 0.0
        self._log_sum = torch.full((num_data,), -torch.inf, dtype=torch.float64)
        self._log_sum_squares = self._log_sum.clone()
        self._smallest = torch.full((num_data,), torch.inf, dtype=torch.float64)
        self._zeros = torch.zeros(num_data, dtype=torch.int64)
        self._sum_logs = torch.zeros(num_data, dtype=torch.float64)
        self._largest = torch.empty(0, num_data, dtype=torch.float64)

    def add(self, log_weight: Tensor) -> None:
        """Adds a block of log-weights (k, N)."""
        block = log_weight.detach().to("cpu", torch.float64)
        self._check(block)
        self._epsilon = max(self._epsilon, torch.finfo(log_weight.dtype).eps)
        self._count += len(block)
        self._log_sum = torch.logaddexp(self._log_sum, block.logsumexp(0))
        self._log_sum_squares = torch.logaddexp(self._log_sum_squares, (2 * block).logsumexp(0))
        self._smallest = torch.minimum(self._smallest, block.amin(0))
        self._sum_logs += block.sum(0)
        self._zeros += (block == -torch.inf).sum(0)
        candidates = torch.cat([self._largest, block])
        keep = min(len(candidates), tail_size(self.num_samples) + 1)
        self._largest = candidates.topk(keep, dim=0).values

    def summary(self) -> Summary:
        """The summary of all K draws."""
        if self._count != self.num_samples:
            raise EstimateError(f"expected {self.num_samples} draws per datum, found {self._count}")
        if (empty := self._log_sum == -torch.inf).any():
            row = self.first_row + int(empty.nonzero()[0])
            raise EstimateError(
                f"row {row}: all {self.num_samples} weights are zero: the guide proposes only what the model excludes"
            )
        k = float(self.num_samples)
        largest = self._largest[0]
        rounding = _ROUNDING * self._epsilon * largest.abs().clamp_min(1.0)
        rounding = rounding.clamp_max(_LARGEST_ROUNDING)
        equal = (largest - self._smallest <= rounding).numpy() & (k > 1)
        ess = torch.exp(2 * self._log_sum - self._log_sum_squares).clamp(1.0, k)
        variance = ((k / ess - 1) / max(k - 1, 1)).clamp_min(0)
        value = self._log_sum - math.log(k)
        stderr = variance.sqrt() if k > 1 else torch.full_like(value, torch.nan)
        return Summary(
            value=value.numpy(),
            stderr=np.where(equal, 0.0, stderr.numpy()),
            ess=np.where(equal, k, ess.numpy()),
            elbo=(self._sum_logs / k).numpy(),
            khat=np.where(equal, -np.inf, pareto_khat(self._largest.numpy().T, self.num_samples)),
            zero_weights=self._zeros.numpy(),
        )

    def _check(self, block: Tensor) -> None:
        bad = torch.isnan(block) | (block == torch.inf)
        if bad.any():
            k, column = (int(i) for i in bad.nonzero()[0])
            raise EstimateError(
                f"row {self.first_row + column}: expected finite log-weights, found {float(block[k, column])}; "
                "ppl_vae.check(pair, batch) and a look at the densities of that row will tell which site"
            )


def tail_size(num_samples: int) -> int:
    """Number of largest weights in the Pareto fit: ceil(min(K / 5, 3 sqrt(K))) (Vehtari et al. 2024)."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """Largest k-hat whose estimate can be trusted at K draws: min(1 - 1 / log10(K), 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 10 else -math.inf


def pareto_khat(largest: np.ndarray, num_samples: int) -> np.ndarray:
    """Pareto k-hat per datum of the M + 1 largest of K log-weights, (N, M + 1), each row in descending order.

    The tail is the weights above the (M + 1)-th largest; its shape is the empirical-Bayes estimate of Zhang and
    Stephens (2009) with the weak prior of Vehtari et al. (2024, "Pareto smoothed importance sampling"). The result
    is +inf where fewer than five distinct weights are in the tail.
    """
    if largest.shape[1] < tail_size(num_samples) + 1:
        return np.full(len(largest), np.inf)
    return np.array([_khat(row) for row in np.asarray(largest, dtype=np.float64)])


def _khat(largest: np.ndarray) -> float:
    log_weight = largest[::-1] - largest[0]
    cutoff = max(log_weight[0], math.log(np.finfo(float).tiny))
    tail = np.exp(log_weight[log_weight > cutoff]) - math.exp(cutoff)
    if len(tail) <= 4:
        return np.inf
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        khat = _fit_generalized_pareto(tail)
    return np.inf if np.isnan(khat) else khat  # a tail too extreme for the fit


def _fit_generalized_pareto(tail: np.ndarray) -> float:
    """Shape of a generalised Pareto distribution fitted to `tail`, ascending and positive."""
    n = len(tail)
    grid = 30 + int(math.sqrt(n))
    quartile = tail[int(n / 4 + 0.5) - 1]
    b = (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile) + 1 / tail[-1]
    shape = np.log1p(-b[:, None] * tail).mean(axis=1)
    profile = n * (np.log(-(b / shape)) - shape - 1)
    posterior = 1 / np.exp(profile - profile[:, None]).sum(axis=1)
    kept = posterior >= 10 * np.finfo(float).eps
    b_mean = (b[kept] * posterior[kept]).sum() / posterior[kept].sum()
    return float((n * np.log1p(-b_mean * tail).mean() + 5.0) / (n + 10.0))
