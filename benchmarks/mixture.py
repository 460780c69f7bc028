"""Time of an EM iteration of a Gaussian mixture with full covariances, beside scikit-learn's, both in float64.

As for a training step, it is the difference of two fits with different numbers of iterations from the same start.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

import ppl_vae as pv
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, Unavailable, elapsed, marginal

__all__ = ["Problem", "mixture_case", "ours", "scikit_learn"]


class Problem:
    """Overlapping clusters, on which EM climbs for long, and the mixture to start from."""

    def __init__(self, num_data: int, dim: int, num_components: int) -> None:
        draws = np.random.default_rng(0)
        means = draws.normal(size=(num_components, dim))
        root = draws.normal(size=(num_components, dim, dim)) / np.sqrt(dim)
        self.covariances = root @ root.swapaxes(1, 2) + 0.1 * np.eye(dim)
        self.weights = np.full(num_components, 1 / num_components)
        self.x = pv.GMM(self.weights, means, self.covariances).sample(num_data).numpy()
        self.means = self.x[draws.choice(num_data, num_components, replace=False)]
        self.start = pv.GMM(self.weights, self.means, self.covariances)


OURS, SCIKIT_LEARN, PRODUCTS = "ppl_vae GMM", "scikit-learn", "matrix products"
LIMITS = {"gmm": (Limit(OURS, SCIKIT_LEARN, 0.12),), "gmm-wide": (Limit(OURS, SCIKIT_LEARN, 0.5),)}


SIZES = {"gmm": (200_000, 16, 32, 1, 6), "gmm-wide": (20_000, 64, 16, 2, 12)}
TINY = (400, 3, 2, 1, 3)


def mixture_case(name: str, setting: Setting) -> Case:
    """Time of an EM iteration on data (N, D) with C components."""
    if setting.device.type != "cpu":
        raise Unavailable("mixtures are fitted on the CPU")
    num_data, dim, num_components, few, many = TINY if setting.quick else SIZES[name]
    problem = Problem(num_data, dim, num_components)
    sides = {
        OURS: partial(marginal, partial(ours, problem), few, many),
        SCIKIT_LEARN: partial(marginal, partial(scikit_learn, problem), few, many),
        PRODUCTS: partial(_products, torch.from_numpy(problem.x), num_components, many),
    }
    title = f"EM iteration, {num_data:,} x {dim} data, {num_components} full components"
    return Case(name, title, "iteration", sides, reference=SCIKIT_LEARN, floor=PRODUCTS, limits=LIMITS[name])


def ours(problem: Problem, iterations: int) -> float:
    """Return the mean log-likelihood before the last maximisation, in nats per datum."""
    num_components = len(problem.weights)
    gmm = pv.GMM.fit(problem.x, num_components, init=problem.start, max_iter=iterations, tol=0.0)
    if len(gmm.history) != iterations + 1:
        raise RuntimeError(f"EM stopped after {len(gmm.history) - 1} of {iterations} iterations: enlarge the problem")
    return gmm.history[-2]


def scikit_learn(problem: Problem, iterations: int) -> float:
    """Return the mean log-likelihood before the last maximisation, in nats per datum."""
    gmm = GaussianMixture(
        len(problem.weights),
        tol=0.0,
        reg_covar=0.0,
        max_iter=iterations,
        weights_init=problem.weights,
        means_init=problem.means,
        precisions_init=np.linalg.inv(problem.covariances),
        init_params="random",
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the point
        gmm.fit(problem.x)
    if gmm.n_iter_ != iterations:
        raise RuntimeError(f"scikit-learn stopped after {gmm.n_iter_} of {iterations} iterations: enlarge the problem")
    return float(gmm.lower_bound_)


@torch.no_grad()
def _products(x: Tensor, num_components: int, iterations: int) -> float:
    """Time of the products of an iteration: coefficients times features [x x^T, x, 1], and the moments of those."""
    num_features, rows = x.shape[1] * (x.shape[1] + 1) // 2 + x.shape[1] + 1, 1024
    features = torch.ones(num_features, rows, dtype=x.dtype)
    coefficients = torch.ones(num_components, num_features, dtype=x.dtype)

    def work() -> None:
        for _ in range(iterations * max(1, len(x) // rows)):
            responsibilities = coefficients @ features
            responsibilities @ features.T

    return elapsed(work) / iterations
