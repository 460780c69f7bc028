r"""Functions of the log-weight matrix log w (K, N): what an evaluation says about a datum and how far to trust it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EstimateError
from ppl_vae.pareto import fit_tails, khat_threshold, tail_size

__all__ = [
    "Stream",
    "Summary",
    "check_possible",
    "is_hidden",
    "khat_threshold",
    "leave_one_out",
    "log_mean_exp",
    "not_a_weight",
    "tail_size",
]


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


def not_a_weight(log_weight: Tensor) -> Tensor:
    """Where log-weights are NaN or plus infinity."""
    return torch.isnan(log_weight) | (log_weight == torch.inf)


def check_possible(log_sum: Tensor, num_samples: Tensor, first_row: int) -> None:
    """The sum of the weights of no datum is zero: `log_sum` (N,) of `num_samples` (N,) weights.

    Raises:
        EstimateError: Naming the row, whose first is `first_row`.
    """
    if (empty := log_sum == -torch.inf).any():
        column = int(empty.nonzero()[0])
        raise EstimateError(
            f"row {first_row + column}: all {int(num_samples[column])} weights are zero: the guide proposes only what "
            "the model excludes; draw more samples, mend the guide, or use annealed_importance_sampling from the "
            "prior; if the model excludes the datum, as log_evidence can tell, leave it out"
        )


# Weights that differ by no more than the rounding of their own sums, or by a millionth, are equal: a perfect guide. Of
# large sums nothing is called equal that their numbers can tell apart.
_ROUNDING, _LARGEST_ROUNDING, _OF_LARGE, _ALIKE = 200.0, 1e-3, 8.0, 1e-6
# Where the largest of a hundred and more differs from the smallest by less than a tenth, the tail of what was drawn
# holds no more than that, whatever its shape; where ten draws have the largest, as of discrete latents, what was drawn
# has a bound. What was not drawn is for probes to find.
_NO_TAIL, _OF_MANY, _BOUND = 0.1, 100, 10
_READ = 1e-4  # nats; rounding below it changes no digit that anybody reads
# Where rounding is a nat, weights differ by a factor that it has put there: those of any guide may come out equal.
_HIDES = 1.0
_SMALLEST_VARIANCE = 1e-10  # of a weight in units of its mean: third moments below it are rounding


class Summary(NamedTuple):
    """Per-datum summary of K log-weights; each an array (N,)."""

    value: np.ndarray
    """log-mean-exp: the estimate of log p(x), in nats; -inf where all weights are zero."""
    stderr: np.ndarray
    """Standard error of `value` by the delta method, in nats, rounding of large log-densities included (`Stream`)."""
    ess: np.ndarray
    """Effective sample size (sum w)^2 / sum w^2, between 1 and K; 0 where all weights are zero."""
    elbo: np.ndarray
    """Mean of the log-weights, in nats."""
    khat: np.ndarray
    """Pareto shape of the largest weights; -inf where all weights are equal, +inf where there are too few to tell; at
    most 0 where a hundred and more lie within a tenth of each other, or ten draws share the largest; and +inf where
    rounding hides how they differ, from 1 nat on."""
    zero_weights: np.ndarray
    """Number of draws outside the support of the model; they count in K."""
    skewness: np.ndarray
    """Skewness of the mean of K weights: that of one weight over sqrt(K)."""
    smoothed: np.ndarray
    """`value` of the Pareto-smoothed weights, in nats; NaN where k-hat is above its threshold."""
    rounding: np.ndarray
    """The part of `stderr` that is rounding, in nats."""

    def with_rounding(self, rounding: np.ndarray) -> Summary:
        """The same where log-weights are rounded by so many nats (N,): what anybody would read is part of `stderr`.

        Of weights that rounding hides there is no k-hat: +inf.
        """
        counted = np.where(rounding > _READ, rounding, 0.0)
        total = np.hypot(self.rounding, counted)
        hidden = is_hidden(total)
        return self._replace(
            stderr=np.hypot(self.stderr, counted),
            rounding=total,
            khat=np.where(hidden, np.inf, self.khat),
            smoothed=np.where(hidden, np.nan, self.smoothed),
        )


def is_hidden(rounding: np.ndarray) -> np.ndarray:
    """Whether log-weights are rounded by so many nats (N,) that they tell nothing of the guide."""
    return rounding >= _HIDES


class Stream:
    r"""Accumulates log-weights (k, N) block by block in float64, keeping no more than the largest of them.

    With S_j = sum_k w_k^j over exactly K draws: value = log S1 - log K, ESS = S1^2 / S2 and
    stderr^2 = (K S2 / S1^2 - 1) / (K - 1), the delta method for the log of a mean.

    Log-densities of size s are rounded to about eps s: in single precision, of 300 dimensions 100 standard deviations
    away, log p = -1.5e6, to 0.2 nats. Where that is more than 1e-4 it is added to stderr in quadrature.

    Args:
        num_data: N.
        num_samples: K, the number of draws that will be added in all; a tensor (N,) where it differs among data.
        first_row: Row of the data set the first column belongs to, for messages.

    Raises:
        EstimateError: From `add`, for weights that are NaN or infinite; from `check_possible`, where all are zero.

    Example:
        >>> import torch
        >>> stream = Stream(num_data=1, num_samples=12)
        >>> stream.add(torch.full((12, 1), -3.0))
        >>> found = stream.summary()
        >>> round(float(found.value[0]), 12), float(found.stderr[0]), float(found.ess[0]), float(found.khat[0])
        (-3.0, 0.0, 12.0, -inf)
    """

    def __init__(self, num_data: int, num_samples: int | Tensor, first_row: int = 0) -> None:
        self.num_samples = torch.as_tensor(num_samples).expand(num_data)
        self.first_row = first_row
        self._epsilon = 0.0
        self._size = torch.zeros(num_data, dtype=torch.float64)
        self._count = torch.zeros(num_data, dtype=torch.int64)
        self._log_sums = torch.full((3, num_data), -torch.inf, dtype=torch.float64)
        self._smallest = torch.full((num_data,), torch.inf, dtype=torch.float64)
        self._zeros = torch.zeros(num_data, dtype=torch.int64)
        self._sum_logs = torch.zeros(num_data, dtype=torch.float64)
        self._largest = torch.empty(0, num_data, dtype=torch.float64)
        self._num_largest = tail_size(int(self.num_samples.max())) + 1

    def add(
        self,
        log_weight: Tensor,
        wanted: Tensor | None = None,
        size: Tensor | None = None,
        epsilon: float | None = None,
    ) -> None:
        """Adds a block of log-weights.

        Args:
            log_weight: The block (k, N).
            wanted: Columns (N,) to add; None adds all.
            size: Size of the terms of each weight (k, N), where they may cancel; that of the weight if None.
            epsilon: Rounding of the numbers they were computed in; that of `log_weight` if None.
        """
        block = log_weight.detach().to("cpu", torch.float64)
        if wanted is not None:
            block = torch.where(wanted, block, -torch.inf)
        self._check(block)
        counted = torch.ones(block.shape[1], dtype=torch.bool) if wanted is None else wanted
        self._epsilon = max(self._epsilon, epsilon or torch.finfo(log_weight.dtype).eps)
        # That of the weight which counts most: draws without weight may have terms of any size.
        most = block.argmax(0, keepdim=True)
        sizes = block.abs() if size is None else size.detach().to("cpu", torch.float64)
        higher = block.amax(0) > (self._largest[0] if len(self._largest) else -torch.inf)
        self._size = torch.where(higher, sizes.gather(0, most)[0], self._size)
        self._count += len(block) * counted
        powers = torch.stack([(j * block).logsumexp(0) for j in (1, 2, 3)])
        self._log_sums = torch.logaddexp(self._log_sums, powers)
        self._smallest = torch.where(counted, torch.minimum(self._smallest, block.amin(0)), self._smallest)
        self._sum_logs += torch.where(counted, block.sum(0), 0.0)
        self._zeros += (block == -torch.inf).sum(0) * counted
        candidates = torch.cat([self._largest, block])
        self._largest = candidates.topk(min(len(candidates), self._num_largest), dim=0).values

    def check_possible(self) -> None:
        """No datum has nothing but weights of zero.

        Raises:
            EstimateError: One has: from weights alone nothing is known of it.
        """
        check_possible(self._log_sums[0], self.num_samples, self.first_row)

    def summary(self) -> Summary:
        """The summary of all K draws.

        A datum whose weights are all zero has value -inf without an error, ESS 0 and k-hat +inf: `check_possible`.
        """
        if (wrong := self._count != self.num_samples).any():
            column = int(wrong.nonzero()[0])
            expected, found = int(self.num_samples[column]), int(self._count[column])
            raise EstimateError(f"expected {expected} draws per datum, found {found}")
        log_sum = self._log_sums[0]
        k = self.num_samples.double()
        largest = self._largest[0]
        rounding = self._epsilon * self._size
        alike = (_ROUNDING * rounding.clamp_min(self._epsilon)).clamp(_ALIKE, _LARGEST_ROUNDING)
        equal = ((largest - self._smallest <= torch.maximum(alike, _OF_LARGE * rounding)) & (k > 1)).numpy()
        ess = torch.minimum(torch.exp(2 * log_sum - self._log_sums[1]).clamp_min(1.0), k)
        variance = ((k / ess - 1) / (k - 1).clamp_min(1)).clamp_min(0)
        value = log_sum - k.log()
        tails = fit_tails(self._largest.numpy().T, self.num_samples.numpy())
        close, shared = largest - self._smallest <= _NO_TAIL, (largest - self._largest <= _ALIKE).sum(0) >= _BOUND
        has_no_tail = ((close | shared) & (self.num_samples >= _OF_MANY)).numpy()
        khat = np.where(equal, -np.inf, np.where(has_no_tail, np.minimum(tails.khat, 0.0), tails.khat))
        change = torch.from_numpy(np.where(equal, 0.0, tails.change)) * torch.exp(largest - log_sum)
        limit = np.array([khat_threshold(n) for n in self.num_samples.tolist()])
        said = Summary(
            value=value.numpy(),
            stderr=np.where(equal, 0.0, torch.where(k > 1, variance.sqrt(), torch.nan).numpy()),
            ess=np.where(equal, k.numpy(), ess.nan_to_num(0.0).numpy()),  # none of zeros
            elbo=(self._sum_logs / k).numpy(),
            khat=khat,
            zero_weights=self._zeros.numpy(),
            skewness=np.where(equal, 0.0, self._skewness(k).numpy()),
            smoothed=np.where(equal | (khat < limit), (value + change.log1p()).numpy(), np.nan),
            rounding=np.zeros(len(k)),
        )
        return said.with_rounding(rounding.numpy())

    def _skewness(self, k: Tensor) -> Tensor:
        """Third central moment of a weight over its standard deviation cubed and sqrt(K)."""
        first, second, third = self._log_sums
        second, third = (k.log() + second - 2 * first).exp(), (2 * k.log() + third - 3 * first).exp()
        variance, centred = second - 1, third - 3 * second + 2
        skewness = centred / variance.clamp_min(_SMALLEST_VARIANCE) ** 1.5 / k.sqrt()
        return torch.where(variance > _SMALLEST_VARIANCE, skewness, 0.0)

    def _check(self, block: Tensor) -> None:
        if (bad := not_a_weight(block)).any():
            k, column = (int(i) for i in bad.nonzero()[0])
            raise EstimateError(
                f"row {self.first_row + column}: expected finite log-weights, found {float(block[k, column])}; "
                "ppl_vae.check(pair, batch) and a look at the densities of that row will tell which site"
            )
