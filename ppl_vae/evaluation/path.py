"""The path of densities that annealing follows, from a start that can be drawn from to the joint density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily

from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.edges import beyond_numbers, reason, tied
from ppl_vae.evaluation.hamiltonian import Density
from ppl_vae.evaluation.proposal import Proposal, site_at_fault, site_where
from ppl_vae.evaluation.unconstrained import OTHER_DRAWS, Unconstrained, refuse_masks
from ppl_vae.pair import Pair, Program
from ppl_vae.tape import Batch, Layout, Site, Tape, run_program
from ppl_vae.terms import Terms
from ppl_vae.weights import not_a_weight

__all__ = ["Ends", "Path", "num_values"]

_MOST_VALUES = 256
_MOST_TIED, _FEW = 0.1, 2  # of the draws of a datum
_SHOWN = 4  # numbers of a point in a message


class Ends(NamedTuple):
    """Log-densities of the ends of the path at the same points, each (K, N), in nats."""

    start: Tensor
    """log f_0, normalised: the prior, or the guide."""
    joint: Tensor
    """log f_1 = log p(x, z) + log |dz / du|; its integral is p(x)."""

    def between(self, temperature: float) -> Tensor:
        """log f_t = (1 - t) log f_0 + t log f_1."""
        # A term without weight is left out: it may be infinite.
        if temperature in (0.0, 1.0):
            return self.joint if temperature else self.start
        # torch.lerp of minus infinity is NaN from 1/2 on.
        return (1 - temperature) * self.start + temperature * self.joint


class Path:
    r"""Densities between p(z), or q(z given x), and p(x, z), for the K chains of each datum of a block.

    Latents c of finitely many values are summed out at every point, of both ends, so that chains move the others alone:

    .. math:: f_1(u) = \sum_c p(x, z(u), c) \, |dz / du|

    Args:
        pair: The pair, in evaluation mode.
        batch: A block of data.
        layout: Layout of the pair.
        num_chains: K.
        start: Where the path starts.
        first_row: Row of the first datum, for messages.

    Raises:
        PairError: A latent has infinitely many discrete values, or too many, or a mask, or has to be summed out in
            programs that run their chains one after another; its support moves; or the guide cannot be the start, since
            it leaves the model's support, or has draws of its own beside the model's latents.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        layout: Layout,
        num_chains: int,
        start: Literal["prior", "guide"],
        first_row: int = 0,
    ) -> None:
        self._pair, self._batch, self._layout, self._start = pair, batch, layout, start
        self._first_row = first_row
        self._num_chains = num_chains
        self._size = num_chains if num_chains > 1 and layout.vectorized else None
        self._num_values = num_values(layout)
        if start == "guide" and layout.may_leave_support:
            raise PairError(
                f"site {min(layout.may_leave_support)!r}: expected a guide that stays in the model's support, where "
                "densities on the way from it to the posterior are known, found one that may leave it; annealing from "
                "start='prior' does not need it"
            )
        guide = self._run_once(pair.guide)
        if start == "guide" and (extra := [name for name in guide.latents if name not in layout.local_latents]):
            raise PairError(
                f"site {extra[0]!r}: expected a guide whose density can be evaluated at any latent, found a draw of "
                "its own beside the model's latents; annealing from start='prior' does not need it"
            )
        # Draws outside the model's support have no point in R^n; its sites are known without them.
        model = self._run_once(pair.model, None if layout.may_leave_support else guide.latents)
        refuse_masks([guide, model], layout.local_latents, "move it or sum over it", "use log_likelihood")
        self._model = model
        others = (self._run_once(pair.model) for _ in range(OTHER_DRAWS))
        self.space = Unconstrained(model, layout, layout.cardinalities, others)

    def draw(self) -> dict[str, Tensor]:
        """Points of the start, one for each chain and datum."""
        return self._drawn(self._pair.guide if self._start == "guide" else self._pair.model)

    def draw_of_guide(self) -> dict[str, Tensor]:
        """Points of the guide, whatever the start; not finite where it leaves the model's support."""
        return self._drawn(self._pair.guide)

    def draw_at_every_value(self) -> dict[str, Tensor]:
        """Points of the prior given each joint value of discrete latents, as many for each, however rare it is."""
        return self.space.points(self._run_once(self._pair.model, summed=True).latents)

    def draw_of_components(self) -> dict[str, Tensor]:
        """Points of the prior given components of a mixture, each as likely as any other, however rare it is."""
        tapes = self._run(self._pair.model)
        each = [_of_components(tape.sites[name] for name in self._layout.local_latents) for tape in tapes]
        if any(each):
            tapes = [self._run_once(self._pair.model, own) for own in each]
        return self.space.points(self._chains_first([tape.latents for tape in tapes]))

    def at(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Points where every chain of a datum has its latents (N, *event)."""
        if self._num_chains > 1:
            latents = self._repeated(latents, self._num_chains)
        return self.space.points(latents)

    def ends(self, points: Mapping[str, Tensor]) -> Ends:
        """Log-densities of both ends, whatever they are."""
        return self._ends(*self._terms(points))

    def sized_ends(self, points: Mapping[str, Tensor]) -> tuple[Ends, Tensor]:
        """Log-densities of both ends, and the size of the largest term that they are made of (K, N)."""
        terms, log_det = self._terms(points)
        sizes = torch.broadcast_tensors(*(t.abs() for t in (self._start_of(terms), terms.log_lik, terms.log_prior)))
        size = self._most_probable(torch.stack(sizes).amax(0), terms.log_lik + terms.log_prior)
        return self._ends(terms, log_det), torch.maximum(size, log_det.abs())

    def proposal(self, points: Mapping[str, Tensor], log_density: Tensor) -> Proposal:
        """Draws of some density (K, N) at given points, as an evaluation has them."""
        values, _ = self.space.values(points)
        event_dims = {name: self._model.sites[name]["fn"].event_dim for name in values}
        return Proposal([values], event_dims, True, log_density, [{}])

    def sure_ends(self, points: Mapping[str, Tensor]) -> Ends:
        """Log-densities of both ends, which are densities.

        Raises:
            EstimateError: One of them is NaN or plus infinity.
        """
        ends = self.ends(points)
        for log_density in ends:
            self.check(log_density, points)
        return ends

    def check(self, log_density: Tensor, points: Mapping[str, Tensor], counts: Tensor | None = None) -> None:
        """A log-density (K, N) of points is a number, or minus infinity, where it `counts`.

        Raises:
            EstimateError: Naming the row, and the first site that has none.
        """
        wrong = not_a_weight(log_density)
        wrong = wrong if counts is None else wrong & counts
        if not bool(wrong.any()):
            return
        k, n = (int(i) for i in wrong.nonzero()[0])
        numbers = self.space.numbers(points, k, n)
        at = ", ".join(f"{u:.4g}" for u in numbers[:_SHOWN]) + " and more" * (len(numbers) > _SHOWN)
        runs, _ = self._runs(points)
        guide, model = runs[k] if len(runs) > 1 else runs[0]
        tapes = [("guide", guide)] * (self._start == "guide") + [("model", model)]
        mend = "mend the density there, or use log_likelihood, which asks for it at draws of the guide alone"
        if bool(self.space.rounded(points).expand(log_density.shape)[k, n]):
            mend = f"latents there {beyond_numbers(log_density.dtype)}"
        raise EstimateError(
            f"row {self._first_row + n}: expected a log-density at all latents, or -inf where the model excludes them, "
            f"found {float(log_density[k, n])} at {at} (in unconstrained coordinates): "
            f"{site_at_fault(tapes, self._layout, n)}; {mend}"
        )

    def check_start(self, points: Mapping[str, Tensor]) -> None:
        """Draws of the start (K, N) do not round to the edge of a support, where they would be equal.

        Raises:
            EstimateError: Many do, of a datum; row and site are named.
        """
        if self._num_chains == 1:
            return
        for name, numbers in self.space.by_site(points).items():
            num_tied = tied(numbers).sum(0)
            if bool((wrong := num_tied > max(_FEW, _MOST_TIED * self._num_chains)).any()):
                n = int(wrong.nonzero()[0])
                raise EstimateError(
                    f"row {self._first_row + n}, site {name!r}: expected draws of the {self._start} that differ, found "
                    f"{int(num_tied[n])} of {self._num_chains} at the same lowest or highest value: "
                    f"{reason(numbers.dtype)}"
                )

    def excluding(self, column: int) -> str:
        """The first site of the model that is impossible at draws of the start, for a datum, or an empty text."""
        runs, _ = self._runs(self.draw())
        sites = (site_where(model, self._layout, torch.isneginf, column) for _, model in runs)
        return next(filter(None, sites), "")

    def density(self, temperature: float) -> Density:
        """log f_t with its gradient."""
        return _Tempered(self, temperature)

    def _terms(self, points: Mapping[str, Tensor]) -> tuple[Terms, Tensor]:
        """Terms of all chains at points, for every value of discrete latents, and log |dz / du|."""
        runs, log_det = self._runs(points)
        return Terms(runs, self._batch, self._layout, scaled=False), log_det

    def _ends(self, terms: Terms, log_det: Tensor) -> Ends:
        joint = terms.log_lik + terms.log_prior
        return Ends(self._summed(self._start_of(terms)) + log_det, self._summed(joint) + log_det)

    def _start_of(self, terms: Terms) -> Tensor:
        return terms.log_guide if self._start == "guide" else terms.log_prior

    def _runs(self, points: Mapping[str, Tensor]) -> tuple[list[tuple[Tape, Tape]], Tensor]:
        """Runs of guide and model at points, and log |dz / du|; from the prior the guide need not be run."""
        values, log_det = self.space.values(points)
        if self._num_values > 1:
            values = self._for_every_value(values)
        models = self._run(self._pair.model, values, summed=True)
        guides = self._run(self._pair.guide, values, summed=True) if self._start == "guide" else models
        return list(zip(guides, models, strict=True)), log_det

    def _for_every_value(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of continuous latents, each chain as often as the others have joint values."""
        if self._size is None:
            return self._repeated(values, self._num_values)
        return {name: z.repeat_interleave(self._num_values, 0) for name, z in values.items()}

    def _repeated(self, values: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
        return {n: self.space.repeated(z, n, times) for n, z in values.items() if n not in self._layout.cardinalities}

    def _summed(self, log_density: Tensor) -> Tensor:
        """Log of the sum over the values of discrete latents, (K, N)."""
        if self._num_values == 1:
            return log_density
        return self._by_value(log_density).logsumexp(1)

    def _most_probable(self, of_each: Tensor, log_joint: Tensor) -> Tensor:
        """What is said of each value of discrete latents, of that with the largest density, (K, N)."""
        if self._num_values == 1:
            return of_each
        largest = self._by_value(log_joint).argmax(1, keepdim=True)
        return self._by_value(of_each).gather(1, largest)[:, 0]

    def _by_value(self, of_each: Tensor) -> Tensor:
        """(K, values of discrete latents, N)."""
        every = of_each.expand(self._num_chains * self._num_values, -1)
        return every.unflatten(0, (self._num_chains, self._num_values))

    def _run(
        self, program: Program, values: Mapping[str, Tensor] | None = None, summed: bool = False
    ) -> Sequence[Tape]:
        """Runs of all chains: one, or one of each chain where a program cannot broadcast."""
        if self._num_chains > 1 and not self._layout.vectorized:
            each = [None if values is None else self._of_chain(values, k) for k in range(self._num_chains)]
            return [self._run_once(program, own) for own in each]
        return [self._run_once(program, values, summed)]

    def _run_once(self, program: Program, values: Mapping[str, Tensor] | None = None, summed: bool = False) -> Tape:
        if not summed or self._num_values == 1:
            return run_program(self._pair, program, self._batch, self._size, self._layout, values)
        size, every = self._num_chains * self._num_values, self._layout.cardinalities
        return run_program(self._pair, program, self._batch, size, self._layout, values, enumerated=every)

    def _drawn(self, program: Program) -> dict[str, Tensor]:
        return self.space.points(self._chains_first([tape.latents for tape in self._run(program)]))

    def _chains_first(self, latents: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Latents of the runs of all chains as those of one run."""
        if len(latents) == 1:
            return latents[0]
        return {
            n: torch.cat([self.space.repeated(own[n], n, 1) for own in latents]) for n in self._layout.local_latents
        }

    def _of_chain(self, values: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
        """Values of one chain, in the shape that a run without chains gives them."""
        return {name: z[k].reshape(self._model.sites[name]["value"].shape) for name, z in values.items()}


class _Tempered:
    """A density on the path."""

    def __init__(self, path: Path, temperature: float) -> None:
        self._path, self._temperature = path, temperature
        self.check = path.check

    def __call__(self, points: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """log f_t, (K, N), and its gradient by site."""
        with torch.enable_grad():
            leaves = {name: u.detach().requires_grad_() for name, u in points.items()}
            log_f = self._path.ends(leaves).between(self._temperature)
            gradients = torch.autograd.grad(log_f.sum(), list(leaves.values()))
        return log_f.detach(), dict(zip(leaves, gradients, strict=True))


def num_values(layout: Layout) -> int:
    """Joint values of the latents that a path sums out.

    Raises:
        PairError: They are too many, or the programs cannot run all of them at once.
    """
    found = math.prod(layout.cardinalities.values())
    if found > _MOST_VALUES:
        raise PairError(
            f"site {next(iter(layout.cardinalities))!r}: expected at most {_MOST_VALUES} joint values of discrete "
            f"latents to sum over beside the continuous ones, found {found}: use log_likelihood"
        )
    if found > 1 and not layout.vectorized:
        raise PairError(
            f"site {next(iter(layout.cardinalities))!r}: expected programs that take a leading dimension, to sum over "
            "the values of discrete latents, found ones whose particles run one after another: use log_likelihood"
        )
    return found


def _of_components(sites: Iterable[Site]) -> dict[str, Tensor]:
    """Values of the sites whose distribution is a mixture: those of components taken at random."""
    found = {}
    for site in sites:
        value, mixture = site["value"], site["fn"]
        while isinstance(mixture, Independent | MaskedDistribution):
            mixture = mixture.base_dist
        if isinstance(mixture, MixtureSameFamily):
            drawn = mixture.component_distribution.sample()
            drawn = drawn.movedim(drawn.dim() - 1 - len(mixture.event_shape), 0).expand(-1, *value.shape)
            batch = value.shape[: value.dim() - len(mixture.event_shape)]
            which = torch.randint(len(drawn), batch, device=value.device)
            which = which.reshape(*batch, *[1] * len(mixture.event_shape)).expand(value.shape)
            found[site["name"]] = drawn.gather(0, which[None])[0]
    return found
