"""Whether distributions check their arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from torch.distributions import Distribution

__all__ = ["validating"]


@contextmanager
def validating(enabled: bool) -> Iterator[None]:
    """Context in which torch and Pyro check arguments and values, or do not; both are then as they were.

    `pyro.validation_enabled` leaves torch as Pyro believes it to be, which is wrong where somebody else has set it, as
    the import of zuko does.

    Example:
        >>> import pyro.distributions as dist
        >>> with validating(False):
        ...     dist.Normal(0.0, -1.0).scale
        tensor(-1.)
    """
    of_torch = Distribution._validate_args
    try:
        with pyro.validation_enabled(enabled):
            yield
    finally:
        Distribution.set_default_validate_args(of_torch)
