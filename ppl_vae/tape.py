"""Runs a program and records its sample statements: the only place where a program of a pair is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import VonMises
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae.errors import PairError, first_line, is_lack_of_memory
from ppl_vae.pair import Pair, Program

__all__ = ["DATA", "Batch", "Layout", "Site", "Tape", "UndrawnError", "run_program"]

DATA = "data"
_PARTICLES = "_particles"

Batch = Sequence[Tensor]
Site = Mapping[str, Any]


class Layout(NamedTuple):
    """How a pair uses tensor dimensions; found by `ppl_vae.check`, the same for every batch."""

    data_dim: int
    """Dimension of the plate "data", counted from the right (-1 where it is the innermost)."""
    particle_dim: int
    """Dimension of the outer particle plate, left of every plate of the pair."""
    vectorized: bool
    """Whether K particles run at once; otherwise they run one after another."""
    local_latents: tuple[str, ...]
    """Latent sites inside the data plate, in the order of the guide."""
    global_latents: tuple[str, ...]
    """Latent sites outside the data plate."""
    analytic: frozenset[str]
    """Local latent sites whose KL(guide, model) has a closed form that may be used."""
    cardinalities: Mapping[str, int]
    """Number of values of each discrete local latent site that can be enumerated."""
    points: tuple[str, ...]
    """Latent sites that the guide gives as a point (with a density of its own, as automatic guides do)."""
    not_reparametrised: tuple[str, ...]
    """Latent sites whose draws carry no pathwise gradient."""
    may_leave_support: frozenset[str]
    """Latent sites where the guide can draw values outside the model's support."""
    bounded: frozenset[str]
    """Observed sites whose support depends on latents."""
    reconstructed: tuple[str, ...]
    """Observed sites whose distribution reads what they observe, marked `infer={"is_reconstruction": True}`."""
    rescaled: bool
    """Whether a program scales sites by a handler of its own (`poutine.scale`, `scale_latents`)."""
    subsampled: bool
    """Whether a plate nested inside "data" is subsampled."""
    full_size: int | None
    """Number of rows of the whole data set where the data plate states it; None where it states those of the batch."""
    num_dimensions: int
    """How many numbers of a datum the model observes, masked ones left out; 0 where that differs among data."""

    def largest_batch(self, num_rows: int) -> int:
        """`num_rows`, or fewer where the data plate states a smaller data set."""
        return num_rows if self.full_size is None else min(num_rows, self.full_size)

    def check_likelihood(self) -> None:
        """There is a log p(x) to estimate.

        Raises:
            PairError: An observed site is marked as a reconstruction.
        """
        if self.reconstructed:
            raise PairError(
                f"site {self.reconstructed[0]!r}: expected a distribution that does not know the datum, found a "
                "reconstruction, which reads the datum that it scores: its probabilities sum to no 1 over data, so "
                "there is no log p(x); train by ELBO(), and take a VAE of the same networks for a likelihood"
            )

    @property
    def not_enumerable(self) -> tuple[str, ...]:
        """Local latent sites that are neither reparametrised nor finitely many-valued."""
        return tuple(n for n in self.local_latents if n in self.not_reparametrised and n not in self.cardinalities)


class UndrawnError(ValueError):
    """A draw fails, since its parameters are NaN.

    Args:
        site: Where.
    """

    def __init__(self, site: Any) -> None:
        super().__init__(f"site {site['name']!r}: expected parameters to draw from, found NaN")
        self.site = site


class Tape(Messenger):
    """Records the sample statements of a program and puts given values in the place of draws (trace and replay)."""

    def __init__(
        self,
        values: Mapping[str, Tensor] | None = None,
        *,
        detach: bool = False,
        redraw: bool = False,
        simulate: bool = False,
    ) -> None:
        super().__init__()
        self.values = values or {}
        self._detach = detach
        self._redraw = redraw
        self._simulate = simulate
        self.simulated: dict[str, Tensor] = {}
        self.sites: dict[str, Any] = {}
        self.subsamples: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            if self._redraw and not msg["done"]:  # thrown away: it moves the noise on as the run that is replayed did
                msg["fn"](*msg["args"], **msg["kwargs"])
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
        elif self._simulate and not isinstance(msg["fn"], _Subsample):
            if msg["is_observed"]:
                self.simulated[msg["name"]], msg["is_observed"] = torch.empty(0), False
            msg["value"], msg["done"] = _drawn(msg), True
        elif not (msg["done"] or msg["is_observed"]):
            _refuse_endless(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if isinstance(msg["fn"], _Subsample):
            self.subsamples[name] = msg["value"]
        elif name in self.sites:
            raise PairError(f"site {name!r}: expected one sample statement of that name, found two: rename one")
        elif not (msg["infer"] or {}).get("_deterministic"):
            if self._detach:
                msg["value"] = msg["value"].detach()
            self.sites[name] = msg
            if name in self.simulated:
                self.simulated[name], msg["is_observed"] = msg["value"], True

    @property
    def latents(self) -> dict[str, Tensor]:
        """Values of the latent sites, by name."""
        return {name: site["value"] for name, site in self.sites.items() if not site["is_observed"]}

    @property
    def replay(self) -> dict[str, Tensor]:
        """What another run needs to repeat this one: values of latent sites and indices of subsampled plates."""
        return {**self.latents, **self.subsamples}


def _refuse_endless(msg: Any) -> None:
    """Refuses NaN as parameter of what torch draws by rejection, which would never end."""
    fn = msg["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, VonMises) and bool((fn.loc + fn.concentration).isnan().any()):
        raise UndrawnError(msg)


def _drawn(msg: Any) -> Tensor:
    """A draw of a site.

    Raises:
        PairError: Its distribution cannot be sampled.
    """
    try:
        return msg["fn"](*msg["args"], **msg["kwargs"])
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        raise PairError(
            f"site {msg['name']!r}: expected a distribution that can be sampled, to simulate data, found "
            f"{type(msg['fn']).__name__} failing with {type(error).__name__}: {first_line(error)}; log_likelihood and "
            "annealed_importance_sampling need no simulated data"
        ) from error


def run_program(
    pair: Pair,
    program: Program,
    batch: Batch,
    num_particles: int | None,
    layout: Layout | None,
    values: Mapping[str, Tensor] | None = None,
    enumerated: Mapping[str, int] | None = None,
    detach: bool = False,
    redraw: bool = False,
    simulate: bool = False,
) -> Tape:
    """Runs one program under a `Tape`, inside an outer plate of `num_particles` unless that is None."""
    tape = Tape(values, detach=detach, redraw=redraw, simulate=simulate)
    with pair.scope(*batch), tape:
        if num_particles is None or layout is None:
            program(*batch)
        else:
            with _Enumerate(enumerated or {}), pyro.plate(_PARTICLES, num_particles, dim=layout.particle_dim):
                program(*batch)
    return tape


class _Enumerate(Messenger):
    """Gives the discrete sites of a guide every joint value, one assignment a particle."""

    def __init__(self, cardinalities: Mapping[str, int]) -> None:
        super().__init__()
        self._sizes, self._strides = cardinalities, dict[str, int]()
        stride = 1
        for name, size in cardinalities.items():
            self._strides[name] = stride
            stride *= size

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self._strides:
            return
        fn = msg["fn"]
        support = _values(msg["name"], fn, self._sizes[msg["name"]])
        assignment = torch.arange(fn.batch_shape[0], device=support.device) // self._strides[msg["name"]] % len(support)
        inner = (1,) * (len(fn.batch_shape) - 1)
        msg["value"] = support[assignment].reshape(-1, *inner, *fn.event_shape).expand(fn.shape())
        msg["done"] = True


def _values(name: str, fn: Any, size: int) -> Tensor:
    """The values of a discrete site, (size, *event).

    Raises:
        PairError: They are more or fewer than was found when the pair was checked, or not as many at every row.
    """
    try:
        support = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
    except NotImplementedError as error:
        raise PairError(_not_so_many(name, size, "numbers that differ among rows")) from error
    if len(support) != size:
        raise PairError(_not_so_many(name, size, str(len(support))))
    return support


def _not_so_many(name: str, size: int, found: str) -> str:
    return (
        f"site {name!r}: expected {size} values to go through, as at the first rows, found {found}; give every row as "
        "many, with probability zero for those that it lacks, or draw them instead (discrete='score')"
    )
