"""The Gaussian mixture: exact density, exact posterior, and maximum likelihood by EM."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from pyro.distributions import Categorical
from torch import Tensor

from ppl_vae.errors import DataError
from ppl_vae.exact.arrays import Array, as_float64, as_rows, as_sample_rows, row_blocks
from ppl_vae.exact.covariance import CovarianceType, collapse, expand, infer_type, num_covariances, root
from ppl_vae.exact.em import Limits, Parameters, ascend, sample_of, start
from ppl_vae.exact.mixture import Mixture, MixturePair
from ppl_vae.exact.sample import Sample
from ppl_vae.options import finite_number, whole_number
from ppl_vae.rng import generator_of
from ppl_vae.threads import one_thread

__all__ = ["GMM"]


class GMM(MixturePair):
    r"""The mixture p(x) = sum_c pi_c N(x; mu_c, Sigma_c), with its exact posterior p(z given x).

    It is a pair: `guide` is the exact posterior of `model`, so that every log-weight equals log p(x). All numbers are
    float64, whatever the dtype of the data.

    Args:
        weights: pi, shape (C,), non-negative, sum 1.
        means: mu, shape (C, D).
        covariances: Sigma: full (C, D, D), diagonal (C, D), tied (D, D) or spherical (C,); variances, not scales.
        covariance_type: Which of the four, needed only where the shape does not tell (C = D).

    Attributes:
        history: Of a fit: log-likelihood of the start and after every iteration, nats per datum. Empty otherwise.
        converged: Of a fit: whether the last iteration gained less than `tol`.

    Raises:
        DataError: Shapes do not agree, the weights are no probabilities, a covariance is not symmetric, or an entry is
            not finite.
        EstimateError: A covariance is not positive definite.

    Reference:
        Bishop (2006), Pattern Recognition and Machine Learning, section 9.2.

    Example:
        >>> gmm = GMM([0.3, 0.7], [[0.0], [4.0]], [1.0, 1.0])
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> gmm.posterior(x).probs[1]
        tensor([0.3000, 0.7000], dtype=torch.float64)
        >>> gmm.log_prob(x)
        tensor([-2.1221, -2.9189], dtype=torch.float64)
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(
        self, weights: object, means: object, covariances: object, covariance_type: CovarianceType | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("means", as_rows(as_float64(means, "means")).detach().clone())
        self.register_buffer("weights", _checked_weights(as_float64(weights, "weights"), len(self.means)))
        given = as_float64(covariances, "covariances").detach()
        self.covariance_type = infer_type(given.shape, self.means.shape, covariance_type)
        self.register_buffer("covariances", _symmetrised(given, self.covariance_type))
        self.history: tuple[float, ...] = ()
        self.converged = False
        root(expand(self.covariances, self.covariance_type))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        x: Array,
        num_components: int,
        *,
        covariance_type: CovarianceType = "full",
        max_iter: int = 200,
        tol: float = 1e-6,
        num_restarts: int = 1,
        seed: int = 0,
        covariance_floor: float = 1e-6,
        init: GMM | None = None,
        progress: bool = False,
    ) -> GMM:
        r"""Return the mixture of (locally) maximum likelihood, by EM from a k-means++ start.

        The likelihood of a mixture has no maximum, since a component may shrink onto one datum. What is maximised is
        the likelihood over mixtures whose covariances have eigenvalues >= `covariance_floor`; it increases at every
        iteration. A component left without data moves to the datum explained worst if that raises the likelihood.

        Args:
            x: Data, shape (N, D), N >= `num_components`. A memory-mapped array stays on disk and is read in blocks,
                once an iteration: memory does not grow with N.
            num_components: C.
            covariance_type: "full", "diag", "tied" or "spherical".
            max_iter: Iterations at most.
            tol: Stop when an iteration gains less, nats per datum.
            num_restarts: Starts; the one with the highest likelihood is returned.
            seed: Seed of the starts.
            covariance_floor: Smallest eigenvalue of a covariance, in squared units of x, positive.
            init: Start from this mixture instead of k-means++.
            progress: Show a bar with the log-likelihood, where standard error is a terminal.

        Raises:
            DataError: The data are not a finite matrix (the row is named), N < C, or `init` has another shape.
            EstimateError: A covariance is singular in float64 in spite of the floor.
            ValueError: An option is out of its range.

        Reference:
            Dempster, Laird and Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm.

        Example:
            >>> x = GMM([0.5, 0.5], [[-4.0, 0.0], [4.0, 0.0]], [1.0, 2.0], "spherical").sample(500)
            >>> gmm = GMM.fit(x, 2, covariance_type="spherical")
            >>> sorted(round(float(v), 1) for v in gmm.covariances), gmm.converged
            ([1.0, 1.8], True)
        """
        for name, count in {
            "num_components": num_components,
            "max_iter": max_iter,
            "num_restarts": num_restarts,
        }.items():
            whole_number(name, count, least=1)
        whole_number("seed", seed, least=0)
        finite_number("tol", tol, least=0)
        finite_number("covariance_floor", covariance_floor)
        if covariance_floor <= 0:
            raise ValueError(f"covariance_floor: expected a positive number, found {covariance_floor}")
        if init is not None and num_restarts > 1:
            raise ValueError("init is one start: leave num_restarts at 1, or init at None")
        rows = as_sample_rows(x)
        if len(rows) < num_components:
            raise DataError(f"x has {len(rows)} rows, expected at least one for each of {num_components} components")
        sample = sample_of(rows, covariance_type, num_components)
        if init is None:
            seeds = np.random.SeedSequence(seed).generate_state(num_restarts).tolist()
            starts = [start(sample, num_components, covariance_type, covariance_floor, s) for s in seeds]
        else:
            starts = [init._as_start(sample, num_components, covariance_type)]
        limits = Limits(max_iter, tol, covariance_floor)
        with one_thread():  # each has blocks of its own
            courses = [ascend(sample, parameters, covariance_type, limits, progress) for parameters in starts]
        best = max(courses, key=lambda course: course.history[-1])
        weights, means, covariances = best.parameters
        gmm = cls(weights, means, collapse(covariances, covariance_type), covariance_type)
        gmm.history, gmm.converged = best.history, best.converged
        return gmm

    @property
    def num_parameters(self) -> int:
        """Number of free parameters."""
        C, D = self.means.shape
        return C - 1 + C * D + num_covariances(self.covariance_type, C, D)

    def log_prob(self, x: Array) -> Tensor:
        """Return log p(x) of data (N, D): float64 (N,), in nats. A memory-mapped array is read in blocks."""
        mixture = self.mixture()
        return torch.cat([mixture.log_joint(block).logsumexp(-1) for block in self._blocks(x)])

    def posterior(self, x: Array) -> Categorical:
        """Return p(z given x), the responsibilities of data (N, D): batch shape (N,), C values."""
        mixture = self.mixture()
        return Categorical(logits=torch.cat([mixture.log_joint(block) for block in self._blocks(x)]))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n data (n, D), the same on every device; the global generators stay as they are.

        Raises:
            ValueError: n or the seed is no whole number, or n negative.
        """
        whole_number("n", n, least=0)
        generator = generator_of(seed)
        z = torch.multinomial(self.weights.cpu(), max(n, 1), replacement=True, generator=generator)[:n]  # takes no 0
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.mixture().colour(z.to(self.means.device), noise.to(self.means.device))

    def mixture(self) -> Mixture:
        """Return the mixture in the form in which it is evaluated."""
        return self._parameters_of_em().mixture()

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        C, D = self.means.shape
        return f"components={C}, dim={D}, covariance_type={self.covariance_type!r}"

    def _blocks(self, x: Array) -> Iterator[Tensor]:
        return row_blocks(x, self.means.shape[1], self.means.device)

    def _parameters_of_em(self) -> Parameters:
        return Parameters(self.weights, self.means, expand(self.covariances, self.covariance_type))

    def _as_start(self, sample: Sample, num_components: int, covariance_type: CovarianceType) -> Parameters:
        expected = (num_components, sample.dim, covariance_type)
        found = (*self.means.shape, self.covariance_type)
        if found != expected:
            raise DataError(f"init has (C, D, covariance_type) {found}, expected {expected}")
        return Parameters(*(p.to(sample.centre) for p in self._parameters_of_em()))


def _checked_weights(weights: Tensor, num_components: int) -> Tensor:
    if tuple(weights.shape) != (num_components,):
        raise DataError(f"weights have shape {tuple(weights.shape)}, expected ({num_components},): one for each mean")
    total = weights.sum().item()
    if not (bool((weights >= 0).all()) and abs(total - 1) < 1e-6):
        raise DataError(f"weights are {weights.tolist()} with sum {total}, expected probabilities with sum 1")
    return (weights / total).detach()


def _symmetrised(covariances: Tensor, kind: CovarianceType) -> Tensor:
    if not covariances.isfinite().all():
        raise DataError("covariances have a NaN or infinite entry, expected finite numbers")
    if kind in ("diag", "spherical"):
        return covariances.clone()
    symmetric = 0.5 * (covariances + covariances.mT)
    error = (covariances - symmetric).abs().max().item()
    if error > 1e-6 * covariances.abs().max().item():
        raise DataError(f"covariances differ from their transposes by {2 * error:.3g}, expected symmetric matrices")
    return symmetric
