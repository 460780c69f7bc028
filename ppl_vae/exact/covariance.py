"""The four shapes of a mixture's covariances, seen as two: matrices (C or 1, D, D) and diagonals (C, D or 1).

A leading or trailing axis of length 1 is shared by all components or dimensions, so that broadcasting treats a tied
covariance as a full one and a spherical covariance as a diagonal one. Only the functions below know the four.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ppl_vae.errors import DataError, EstimateError

__all__ = ["CovarianceType", "average", "collapse", "expand", "floored", "infer_type", "num_covariances", "root"]

CovarianceType = Literal["full", "diag", "tied", "spherical"]


def infer_type(shape: torch.Size, means: torch.Size, given: CovarianceType | None) -> CovarianceType:
    """Return the type of covariances of this shape that goes with means of shape (C, D).

    Raises:
        DataError: No type, or not the given one, has the shape; or two have it (C = D) and none is given.
    """
    num_components, dim = means
    shapes: dict[CovarianceType, tuple[int, ...]] = {
        "full": (num_components, dim, dim),
        "diag": (num_components, dim),
        "tied": (dim, dim),
        "spherical": (num_components,),
    }
    if given is not None and given not in shapes:
        raise DataError(f"covariance_type is {given!r}, expected one of {', '.join(get_args(CovarianceType))}")
    fitting = [name for name, expected in shapes.items() if expected == tuple(shape) and given in (None, name)]
    if not fitting:
        expected = shapes[given] if given else ", ".join(f"{name} {size}" for name, size in shapes.items())
        raise DataError(f"covariances have shape {tuple(shape)}, expected {expected} for C components in D dimensions")
    if len(fitting) > 1:
        raise DataError(
            f"covariances have shape {tuple(shape)}, which is both {' and '.join(fitting)} where C = D: "
            "pass covariance_type"
        )
    return fitting[0]


def expand(covariances: Tensor, kind: CovarianceType) -> Tensor:
    """View covariances of the public shape as matrices (C or 1, D, D) or diagonals (C, D or 1)."""
    return covariances.unsqueeze({"tied": 0, "spherical": -1}[kind]) if kind in ("tied", "spherical") else covariances


def collapse(covariances: Tensor, kind: CovarianceType) -> Tensor:
    """Undo `expand`."""
    return covariances.squeeze({"tied": 0, "spherical": -1}[kind]) if kind in ("tied", "spherical") else covariances


def root(covariances: Tensor) -> Tensor:
    """Return lower Cholesky factors of matrices, standard deviations of diagonals (same shape).

    Raises:
        EstimateError: A covariance is not numerically positive definite (the component is named).
    """
    if covariances.ndim == 2:
        factor, failed = covariances.sqrt(), ~(covariances > 0).all(dim=1)
    else:
        factor, info = torch.linalg.cholesky_ex(covariances)
        failed = info != 0
    if failed.any():
        component = int(failed.nonzero()[0, 0])
        raise EstimateError(
            f"covariance {component} is not positive definite in float64: raise covariance_floor, or rescale the data"
        )
    return factor


def average(scatter: Tensor, counts: Tensor, kind: CovarianceType) -> Tensor:
    """Return the covariances that maximise the expected log-likelihood of soft assignments.

    Args:
        scatter: Sum over data of r_nc (x_n - mu_c)(x_n - mu_c)^T, shape (C, D, D), or its diagonal (C, D).
        counts: Expected number of data of each component, shape (C,), positive.
        kind: Whether to share them across components (tied) or dimensions (spherical).

    Returns:
        Matrices (C or 1, D, D) or diagonals (C, D or 1).
    """
    if kind == "tied":
        return scatter.sum(0, keepdim=True) / counts.sum()
    own = scatter / counts.reshape(-1, *[1] * (scatter.ndim - 1))
    return own.mean(-1, keepdim=True) if kind == "spherical" else own


def floored(covariances: Tensor, floor: float) -> Tensor:
    """Raise the eigenvalues below `floor` to it.

    Among all covariances whose eigenvalues are at least `floor`, the result maximises the Gaussian likelihood
    -log det S - tr(S^-1 C) of a sample covariance C, which adding `floor` to the diagonal does not.
    """
    if covariances.ndim == 2:
        return covariances.clamp(min=floor)
    above = covariances - floor * torch.eye(covariances.shape[-1]).to(covariances)
    if not torch.linalg.cholesky_ex(above).info.any():
        return covariances  # and the eigenvalues, which cost more, are not needed
    values, vectors = torch.linalg.eigh(covariances)
    return (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT


def num_covariances(kind: CovarianceType, num_components: int, dim: int) -> int:
    """Return the number of free entries of the covariances."""
    triangle = dim * (dim + 1) // 2
    return {"full": num_components * triangle, "diag": num_components * dim, "tied": triangle}.get(kind, num_components)
