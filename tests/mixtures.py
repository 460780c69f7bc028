"""Gaussian mixtures that the tests share, and what others say of them."""

from __future__ import annotations

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from ppl_vae.exact import GMM

KINDS = ["full", "diag", "tied", "spherical"]
C, D = 3, 4


def random_covariances(rng: np.random.Generator, kind: str, num_components: int = C, dim: int = D) -> np.ndarray:
    roots = rng.normal(size=(num_components, dim, dim))
    full = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(dim)
    diagonals = full.diagonal(axis1=1, axis2=2)
    return {"full": full, "diag": diagonals, "tied": full[0], "spherical": diagonals.mean(1)}[kind]


def random_gmm(kind: str = "full", seed: int = 0, num_components: int = C, dim: int = D, spread: float = 2.0) -> GMM:
    rng = np.random.default_rng(seed)
    weights, means = rng.dirichlet(np.full(num_components, 3.0)), spread * rng.normal(size=(num_components, dim))
    return GMM(weights, means, random_covariances(rng, kind, num_components, dim), covariance_type=kind)


def dense(gmm: GMM) -> np.ndarray:
    """The covariances as (C, D, D), by means independent of the library."""
    num_components, dim = gmm.means.shape
    covariances, identity = gmm.covariances.numpy(), np.eye(dim)
    return {
        "full": lambda: covariances,
        "diag": lambda: covariances[:, :, None] * identity,
        "tied": lambda: np.broadcast_to(covariances, (num_components, dim, dim)),
        "spherical": lambda: covariances[:, None, None] * identity,
    }[gmm.covariance_type]()


def scikit_learn(gmm: GMM) -> GaussianMixture:
    judge = GaussianMixture(len(gmm.weights), covariance_type=gmm.covariance_type)
    judge.weights_, judge.means_, judge.covariances_ = gmm.weights.numpy(), gmm.means.numpy(), gmm.covariances.numpy()
    judge.precisions_cholesky_ = _compute_precision_cholesky(judge.covariances_, gmm.covariance_type)
    return judge
