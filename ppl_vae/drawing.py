"""What pairs of modules share: parts that return distributions, data drawn from them, reconstructions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from ppl_vae.arrays import as_rows
from ppl_vae.errors import DataError, PairError, is_lack_of_memory, located
from ppl_vae.options import whole_number
from ppl_vae.rng import seeded

__all__ = [
    "Drawing",
    "as_event",
    "check_latent_dim",
    "check_parts",
    "distribution",
    "evaluating",
    "given",
    "mean_or_draw",
    "reading",
]


class Drawing(nn.Module):
    """A pair whose data are decoded from latents z (..., latent_dim) of their own."""

    decoder: nn.Module

    @abstractmethod
    def _from_prior(self, n: int) -> Tensor:
        """Draws of what is decoded, from the model: (n, latent_dim)."""

    @abstractmethod
    def _from_guide(self, x: Tensor, num_samples: int) -> Tensor:
        """Draws of what is decoded, from the guide: (num_samples, N, latent_dim)."""

    def sample(self, n: int, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw z from p(z), then x from p(x given z), or its mean.

        Args:
            n: Number of draws.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x given z] instead of a draw of x.

        Returns:
            Draws (n, *event_shape) on the device of the module.

        Raises:
            ValueError: n is no whole number, or negative.
        """
        whole_number("n", n, least=0)
        with evaluating(self, seed):
            return mean_or_draw(given("decoder", self.decoder, self._from_prior(n)), mean)

    def reconstruct(self, x: Tensor, num_samples: int = 1, seed: int = 0, mean: bool = True) -> Tensor:
        """Draw z from q(z given x), then x' from p(x' given z), or its mean.

        Args:
            x: Data (N, *event).
            num_samples: Draws of z per datum.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x' given z] instead of a draw of x'.

        Returns:
            Reconstructions (num_samples, N, *event_shape): a dimension of draws comes first, even for one.

        Raises:
            ValueError: `num_samples` is no whole number, or negative.
            DataError: x is no tensor or array of finite numbers, or has no row.
            PairError: A part fails on x.
        """
        whole_number("num_samples", num_samples, least=0)
        with evaluating(self, seed), reading(self, x) as x:
            return mean_or_draw(given("decoder", self.decoder, self._from_guide(x, num_samples)), mean)


@contextmanager
def evaluating(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Seeded draws without gradients in evaluation mode; generators and each module's mode are restored."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    modes = {part: part.training for part in module.modules()}
    with torch.no_grad(), seeded(seed, None if tensor is None else tensor.device):
        try:
            module.eval()
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode


@contextmanager
def reading(module: nn.Module, x: Any) -> Iterator[Tensor]:
    """The data x (N, *event) as a fit gives them to its programs, in a context where what fails on them is typed.

    Floating numbers get the dtype of the module; everything its device.

    Raises:
        DataError: x is no tensor or array of finite numbers, or has no row.
        PairError: The module fails on x.
    """
    tensors = chain(module.parameters(), module.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    rows = as_rows([x]).with_dtype(like.dtype).take(slice(None), like.device)[0]
    with located(f"{type(module).__name__}, on data of shape {tuple(rows.shape)} and {rows.dtype}"):
        yield rows


def distribution(role: str, found: Any) -> Distribution:
    """What a part returned, which has to be a distribution of Pyro.

    Raises:
        PairError: It is not.
    """
    if not isinstance(found, Distribution):
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        mend = "return one of pyro.distributions, such as Normal(loc, scale).to_event(1)"
        raise PairError(f"the {role}: expected its forward to return a distribution, found {kind}: {mend}")
    return found


def given(role: str, part: nn.Module, z: Tensor) -> Distribution:
    """The distribution that a part gives for latents z (..., latent_dim).

    Raises:
        PairError: It fails on one latent a row, or returns no distribution.
    """
    try:
        return distribution(role, part(z))
    except (RuntimeError, DataError) as error:
        # With particles in front a part may fail by right: its pair then runs particle by particle.
        if z.dim() > 2 or is_lack_of_memory(error):
            raise
        raise PairError(
            f"the {role} failed on z of shape {tuple(z.shape)}: {error}; "
            f"build it for latents of shape {tuple(z.shape[1:])}"
        ) from error


def mean_or_draw(of: Distribution, mean: bool) -> Tensor:
    """The mean of a distribution, or a draw."""
    return of.mean if mean else of.sample()


def as_event(x: Tensor, likelihood: Distribution) -> Tensor:
    """View the rows of x in the event shape of p(x given z).

    Raises:
        DataError: They have another number of entries.
    """
    shape = likelihood.event_shape
    if x.shape[1:].numel() != shape.numel():
        raise DataError(
            f"the decoder expected data of event shape {tuple(shape)}, found rows of shape {tuple(x.shape[1:])}: "
            "build the decoder for these data"
        )
    return x.reshape(x.shape[0], *shape)


def check_parts(**parts: Any) -> None:
    """Every part, by its role, is a module.

    Raises:
        PairError: One is not.
    """
    for role, part in parts.items():
        if not isinstance(part, nn.Module):
            raise PairError(f"{role}: expected a module, found {type(part).__name__}: see ppl_vae.{role}s")


def check_latent_dim(of_model: nn.Module, of_guide: nn.Module, where: str = "encoder, as in the prior") -> None:
    """Compare the dimensions of z as far as the modules tell theirs.

    Raises:
        PairError: They differ.
    """
    expected, found = (getattr(module, "latent_dim", None) for module in (of_model, of_guide))
    if isinstance(expected, int) and isinstance(found, int) and expected != found:
        raise PairError(f"latent_dim: expected {expected} in the {where}, found {found}")
