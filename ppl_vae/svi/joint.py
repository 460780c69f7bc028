"""One step of several processes: each has the gradient of its rows, all get the gradient of all rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.distributed import Group
from ppl_vae.errors import PairError
from ppl_vae.pair import Pair
from ppl_vae.svi.gradient import NORM, Metrics
from ppl_vae.svi.inputs import check_stated_size
from ppl_vae.svi.moving import Moving
from ppl_vae.svi.settings import FitSettings
from ppl_vae.svi.signals import Signals
from ppl_vae.svi.update import laid_out
from ppl_vae.tape import Layout

__all__ = ["Joint", "begin_together"]


def begin_together(
    group: Group,
    pair: Pair,
    layout: Layout,
    settings: FitSettings,
    data: tuple[Rows, Rows | None],
    device: torch.device,
) -> None:
    """Makes sure that the processes are about to do the same fit, and gives all the parameters of process 0.

    Raises:
        GroupError: The processes were given different things; the first is named.
        PairError: The objective on the rows of a process would not be the objective on all of them.
    """
    if group.size == 1:
        return
    rows, held_out = data
    shapes = {name: [str(p.dtype), list(p.shape), p.requires_grad] for name, p in pair.named_parameters()}
    facts = {
        "rows of training data": len(rows),
        "rows of validation data": 0 if held_out is None else len(held_out),
        "batch_size": settings.batch_size,
        "steps": settings.total_steps(len(rows)),
        "seed": settings.seed,
        "patience": settings.patience,
        "on_nonfinite": settings.on_nonfinite,
        "clip_norm": settings.clip_norm,
        "binarize": settings.binarize,
        "learning_rate": settings.learning_rate,
        "objective": type(settings.objective).__name__,
        "number of parameters": sum(p.numel() for p in pair.parameters()),
        "names and shapes of parameters (a hash)": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:12],
    }
    group.agree(facts, device)
    check_stated_size(layout)
    group.from_first([*pair.parameters(), *pair.buffers()])


_LOOK_STEPS = 20


class Joint:
    """Gradient and metrics of a step over all processes: means over rows, so each process counts by its rows.

    One message a step carries the gradient of every parameter, the metrics, which buffers have moved, and whether a
    signal was received. Buffers that some process has moved, such as the running means of a batch norm, follow those of
    process 0 after the step; on GPUs, where a look at the message waits for it, from the next look on.

    Args:
        group: The processes, at least two.
        parameters: What trains.
        moving: The buffers of the pair, as they were before the step.
        clip_norm: Largest norm of the joint gradient, or None.
    """

    def __init__(self, group: Group, parameters: Sequence[Tensor], moving: Moving, clip_norm: float | None) -> None:
        self._group, self._parameters, self._moving, self._clip_norm = group, parameters, moving, clip_norm
        self._following: list[bool] = []
        self.reached: list[Tensor] = []
        self.signals = Signals(alone=False)
        self._calls = 0

    def __call__(
        self, share: float, metrics: Tensor | None, reached: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Metrics of the step and the gradient of each of the parameters in `self.reached`, the same in every process.

        Args:
            share: This process's share of the rows of the step.
            metrics: Its metrics; None where it has no rows.
            reached: The parameters that its loss reaches.
            gradients: Their gradients.
        """
        if not self.reached:  # nor are any, in all processes, while all of them fail at a draw
            self._find_reached(reached)
        found = dict(zip(map(id, reached), gradients, strict=True))
        if found.keys() - set(map(id, self.reached)):
            raise PairError(
                "the loss reaches a parameter that it did not reach in the first step: with several processes it has "
                "to reach the same parameters in every step"
            )
        device = self._parameters[0].device
        parts = [found[id(p)].flatten() if id(p) in found else p.new_zeros(p.numel()) for p in self.reached]
        parts.append(torch.zeros(len(Metrics._fields), device=device) if metrics is None else metrics)
        looks = device.type == "cpu" or self._calls % _LOOK_STEPS == 0  # a look at a GPU waits for it
        self._calls += 1
        buffers = self._moving.tensors
        said = 1 + len(buffers)
        parts.append(torch.zeros(said, device=device))
        flat = _concatenated(parts).mul_(share)
        flat[-said] = self.signals.vote
        if looks:
            flat[len(flat) - len(buffers) :] = torch.tensor(self._moving.marks())
        joint, metrics, heard = self._group.sum(flat).tensor_split([-said - len(Metrics._fields), -said])
        if looks:
            votes, *marks = heard.tolist()
            self.signals.agree(votes)
            self._following = [mark > 0 for mark in marks]
        metrics[NORM] = norm = torch.linalg.vector_norm(joint)
        if self._clip_norm is not None:
            joint.mul_((self._clip_norm / (norm + 1e-6)).clamp_max(1.0))
        self._group.from_first(
            [b for b, follows in zip(buffers, self._following, strict=True) if follows and b is not None]
        )
        pieces = joint.split([p.numel() for p in self.reached])
        of_each = zip(pieces, self.reached, strict=True)
        return metrics, [laid_out(piece.view(p.shape).to(p.dtype), p) for piece, p in of_each]

    def vote(self) -> None:
        """Asks all processes what signals they have received, between two steps."""
        votes = torch.tensor([self.signals.vote], device=self._parameters[0].device)
        self.signals.agree(float(self._group.sum(votes)))

    def _find_reached(self, reached: Sequence[Tensor]) -> None:
        """Finds out which parameters the loss of some process reaches."""
        ids = set(map(id, reached))
        marks = torch.tensor([id(p) in ids for p in self._parameters], dtype=torch.int64)
        seen = self._group.sum(marks.to(self._parameters[0].device)).tolist()
        self.reached = [p for p, mark in zip(self._parameters, seen, strict=True) if mark]


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    """One vector, of no less precision than any part and no less than float32."""
    dtype = torch.float32
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.detach().to(dtype) for part in parts])
