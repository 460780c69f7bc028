"""Which latent scalars a pair uses, on held-out data in mid-training."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.coordinates import scalar_kl
from ppl_vae.pair import Pair
from ppl_vae.rng import key, reseed
from ppl_vae.tape import Layout, run_program

__all__ = ["kl_of_scalars"]


def kl_of_scalars(
    pair: Pair, rows: Rows, layout: Layout, size: int, seed: int, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """KL(q, p) of each scalar of each latent site inside the data plate, mean over data, in nats per datum.

    Args:
        pair: The pair, in evaluation mode.
        rows: The data.
        layout: Layout of the pair.
        size: Rows of a block.
        seed: Of the one draw of each datum that stands in where there is no closed form.
        device: Where to evaluate.
    """
    sums: dict[str, Tensor] = {}
    for first, batch in rows.blocks(size, device):
        reseed(key(seed, first), device)
        guide = run_program(pair, pair.guide, batch, None, layout)
        model = run_program(pair, pair.model, batch, None, layout, guide.replay)
        for name in layout.local_latents:
            found = scalar_kl(guide.sites[name], model.sites[name], layout).values.double()
            sums[name] = sums.get(name, 0.0) + found.mean(0).sum(0)
    return {name: tuple((total / len(rows)).tolist()) for name, total in sums.items()}
