"""The path of densities that annealing follows, from a start that can be drawn from to the joint density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import PairError
from ppl_vae.evaluation.hamiltonian import Density
from ppl_vae.evaluation.unconstrained import Unconstrained
from ppl_vae.pair import Pair, Program
from ppl_vae.tape import Batch, Layout, Tape, run_program
from ppl_vae.terms import Terms

__all__ = ["Ends", "Path"]


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
        return torch.lerp(self.start, self.joint, temperature)


class Path:
    """Densities between p(z), or q(z given x), and p(x, z), for the K chains of each datum of a block.

    Args:
        pair: The pair, in evaluation mode.
        batch: A block of data.
        layout: Layout of the pair.
        num_chains: K.
        start: Where the path starts.

    Raises:
        PairError: A latent is discrete or its support moves; or the guide cannot be the start, having draws of its own
            beside the model's latents.
    """

    def __init__(
        self, pair: Pair, batch: Batch, layout: Layout, num_chains: int, start: Literal["prior", "guide"]
    ) -> None:
        self._pair, self._batch, self._layout, self._start = pair, batch, layout, start
        self._size = num_chains if num_chains > 1 else None
        guide = self._run(pair.guide)
        if start == "guide" and (extra := [name for name in guide.latents if name not in layout.local_latents]):
            raise PairError(
                f"site {extra[0]!r}: expected a guide whose density can be evaluated at any latent, found a draw of "
                "its own beside the model's latents; start='prior' does not need it"
            )
        self.space = Unconstrained(self._run(pair.model, guide.latents), layout)

    def draw(self) -> dict[str, Tensor]:
        """Points of the start, one for each chain and datum."""
        return self.space.points(self._run(self._pair.guide if self._start == "guide" else self._pair.model).latents)

    def at(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Points where every chain of a datum has its latents (N, *event)."""
        if self._size is not None:
            latents = {name: self.space.repeated(z, name, self._size) for name, z in latents.items()}
        return self.space.points(latents)

    def ends(self, points: Mapping[str, Tensor]) -> Ends:
        """Log-densities of both ends."""
        values, log_det = self.space.values(points)
        model = self._run(self._pair.model, values)
        guide = self._run(self._pair.guide, values) if self._start == "guide" else model
        terms = Terms([(guide, model)], self._batch, self._layout, scaled=False)
        start = terms.log_guide if self._start == "guide" else terms.log_prior
        return Ends(start + log_det, terms.log_lik + terms.log_prior + log_det)

    def density(self, temperature: float) -> Density:
        """log f_t with its gradient."""

        def evaluate(points: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.enable_grad():
                leaves = {name: u.detach().requires_grad_() for name, u in points.items()}
                log_f = self.ends(leaves).between(temperature)
                gradients = torch.autograd.grad(log_f.sum(), list(leaves.values()))
            return log_f.detach(), dict(zip(leaves, gradients, strict=True))

        return evaluate

    def _run(self, program: Program, values: Mapping[str, Tensor] | None = None) -> Tape:
        return run_program(self._pair, program, self._batch, self._size, self._layout, values)
