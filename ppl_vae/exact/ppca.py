"""Probabilistic principal component analysis: the linear VAE whose posterior and likelihood are known."""

from __future__ import annotations

import math

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor, nn

from ppl_vae.errors import DataError
from ppl_vae.exact.arrays import Array, as_float64, as_rows
from ppl_vae.options import whole_number
from ppl_vae.rng import generator_of

__all__ = ["PPCA"]


class PPCA(nn.Module):
    r"""The model z ~ N(0, I_L), x given z ~ N(W z + b, s^2 I_D), with its exact posterior.

    It is a pair: `guide` is the exact posterior of `model`, so that every log-weight equals log p(x). With
    M = W^T W + s^2 I, p(z given x) = N(M^-1 W^T (x - b), s^2 M^-1) and p(x) = N(b, W W^T + s^2 I). All numbers are
    float64, whatever the dtype of the data.

    Args:
        loading: W, shape (D, L) with L < D.
        bias: b, shape (D,).
        scale: s, positive, in units of x.

    Raises:
        DataError: Shapes do not agree, L >= D, an entry is not finite, or the scale is not positive.

    Reference:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis.

    Example:
        >>> ppca = PPCA([[2.0], [0.0]], [0.0, 0.0], 1.0)
        >>> x = torch.tensor([[5.0, 1.0]])
        >>> ppca.posterior(x).mean
        tensor([[2.]], dtype=torch.float64)
        >>> ppca.log_prob(x)
        tensor([-5.6426], dtype=torch.float64)
    """

    loading: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, loading: object, bias: object, scale: object) -> None:
        super().__init__()
        self.register_buffer("loading", as_rows(as_float64(loading, "loading")).detach().clone())
        D, L = self.loading.shape
        _check_latent_dim(L, D)
        self.register_buffer("bias", _finite(bias, "bias", (D,)))
        self.register_buffer("scale", _finite(scale, "scale", ()))
        if self.scale <= 0:
            raise DataError(f"scale is {self.scale.item()}, expected a positive number")

    @classmethod
    @torch.no_grad()
    def fit(cls, x: Array, latent_dim: int) -> PPCA:
        r"""Return the maximum-likelihood model of data (N, D), in closed form.

        With eigenvalues l_1 >= ... >= l_D and eigenvectors U of the sample covariance, s^2 = mean(l_{L+1}, ..., l_D)
        and W = U_L (diag(l_1, ..., l_L) - s^2 I)^(1/2).

        Raises:
            ValueError: `latent_dim` is no whole number.
            DataError: The data are not a finite matrix (the row is named), or too large to be squared, `latent_dim` is
                not in [1, D), or the data span no more than `latent_dim` dimensions, so that s = 0 and the likelihood
                is unbounded.

        Reference:
            Tipping and Bishop (1999), equations 7 and 8.

        Example:
            >>> x = PPCA([[3.0], [0.0], [4.0]], [1.0, 2.0, 3.0], 0.5).sample(5000)
            >>> ppca = PPCA.fit(x, 1)
            >>> round(float(ppca.scale), 2), round(float(ppca.loading.norm()), 1)
            (0.51, 5.0)
        """
        rows = as_rows(x)
        _check_latent_dim(latent_dim, rows.shape[1])
        bias = rows.mean(0)
        centred = rows - bias
        covariance = centred.mT @ centred / len(rows)
        if not covariance.isfinite().all():
            raise DataError(f"x has numbers of up to {rows.abs().max():.3g}, whose squares overflow: rescale it")
        values, vectors = torch.linalg.eigh(covariance)
        kept, discarded = values[-latent_dim:].flip(0), values[:-latent_dim]
        variance = discarded.clamp(min=0).mean()
        if variance <= rows.shape[1] * torch.finfo(torch.float64).eps * values[-1]:
            raise DataError(
                f"x ({len(rows)} rows) varies in at most {latent_dim} dimensions, expected more than latent_dim: the "
                "maximum-likelihood scale would be 0; take more rows or a smaller latent_dim"
            )
        loading = vectors[:, -latent_dim:].flip(1) * (kept - variance).clamp(min=0).sqrt()
        return cls(loading, bias, variance.sqrt())

    @property
    def num_parameters(self) -> int:
        """Number of free parameters; a rotation of the latent space is not free."""
        D, L = self.loading.shape
        return D * L - L * (L - 1) // 2 + D + 1

    @property
    def covariance(self) -> Tensor:
        """Covariance W W^T + s^2 I of x, shape (D, D)."""
        return self.loading @ self.loading.mT + self.scale**2 * torch.eye(len(self.bias)).to(self.bias)

    def log_prob(self, x: Array) -> Tensor:
        r"""Return log p(x) of data (N, D): float64 (N,), in nats, without a D x D matrix.

        By Woodbury's identity, with m = E[z given x], log p(x) = -1/2 [D log 2 pi + (D - L) log s^2 + log det M +
        |x - b - W m|^2 / s^2 + |m|^2]. Both squares are positive: nothing cancels.
        """
        D, L = self.loading.shape
        deviation = self._rows(x) - self.bias
        mean = self._posterior_mean(deviation)
        residual = (deviation - mean @ self.loading.mT) / self.scale
        log_det = 2 * ((D - L) * self.scale.log() + self._precision_root().diagonal().log().sum())
        return -0.5 * (D * math.log(2 * math.pi) + log_det + residual.square().sum(-1) + mean.square().sum(-1))

    def posterior(self, x: Array) -> MultivariateNormal:
        """Return p(z given x) of data (N, D): batch shape (N,), event shape (L,)."""
        return self._posterior(self._rows(x))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n data (n, D), the same on every device; the global generators stay as they are.

        Raises:
            ValueError: n or the seed is no whole number, or n negative.
        """
        whole_number("n", n, least=0)
        D, L = self.loading.shape
        generator = generator_of(seed)
        noise = torch.randn(n, L + D, dtype=torch.float64, generator=generator).to(self.bias)
        return self.bias + noise[:, :L] @ self.loading.mT + self.scale * noise[:, L:]

    def model(self, x: Tensor) -> None:
        """Pyro program of p(x, z): latent "z" (L,), observed "x" (D,), plate "data" over the rows of x."""
        zeros = self.loading.new_zeros(self.loading.shape[1])
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", Normal(z @ self.loading.mT + self.bias, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Pyro program of the exact posterior p(z given x)."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self._posterior(x.to(self.bias)))

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        D, L = self.loading.shape
        return f"dim={D}, latent_dim={L}"

    def _rows(self, x: Array) -> Tensor:
        return as_rows(x, len(self.bias), self.bias.device)

    def _posterior(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self._posterior_mean(x - self.bias), precision_matrix=self._M() / self.scale**2)

    def _posterior_mean(self, deviation: Tensor) -> Tensor:
        return torch.cholesky_solve((deviation @ self.loading).mT, self._precision_root()).mT

    def _precision_root(self) -> Tensor:
        return torch.linalg.cholesky(self._M())

    def _M(self) -> Tensor:
        return self.loading.mT @ self.loading + self.scale**2 * torch.eye(self.loading.shape[1]).to(self.bias)


def _finite(value: object, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = as_float64(value, name).detach().clone()
    if tuple(tensor.shape) != shape or not tensor.isfinite().all():
        raise DataError(f"{name} is {tensor.tolist()}, expected finite numbers of shape {shape}")
    return tensor


def _check_latent_dim(latent_dim: int, dim: int) -> None:
    if not 1 <= whole_number("latent_dim", latent_dim) < dim:
        raise DataError(f"latent_dim is {latent_dim}, expected 1 <= latent_dim < {dim}, the dimension of the data")
