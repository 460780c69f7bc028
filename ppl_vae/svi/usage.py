"""Which latent scalars a pair uses, on held-out data in mid-training."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.arrays import Rows
from ppl_vae.coordinates import scalar_kl
from ppl_vae.pair import Pair
from ppl_vae.rng import key
from ppl_vae.svi.dividing import Divided
from ppl_vae.tape import Batch, Layout, run_program

__all__ = ["kl_of_scalars"]


def kl_of_scalars(
    pair: Pair, rows: Rows, divided: Divided, layout: Layout, size: int, seed: int, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """KL(q, p) of each scalar of each latent site inside the data plate, mean over data, in nats per datum.

    Args:
        pair: The pair, in evaluation mode.
        rows: The data.
        divided: Divides a block where memory runs out.
        layout: Layout of the pair.
        size: Rows of a block.
        seed: Of the one draw of each datum that stands in where there is no closed form.
        device: Where to evaluate.
    """
    names, widths = layout.local_latents, dict[str, int]()

    def of_block(batch: Batch) -> Tensor:
        guide = run_program(pair, pair.guide, batch, None, layout)
        model = run_program(pair, pair.model, batch, None, layout, guide.replay)
        each = [scalar_kl(guide.sites[n], model.sites[n], layout).values.double().mean((0, 1)) for n in names]
        widths.update(zip(names, map(len, each), strict=True))
        return torch.cat(each)

    if not names:
        return {}
    blocks = rows.blocks(size, device)
    means = sum(len(batch[0]) / len(rows) * divided(of_block, batch, key(seed, first)) for first, batch in blocks)
    parts = torch.as_tensor(means).split([*widths.values()])
    return {name: tuple(part.tolist()) for name, part in zip(widths, parts, strict=True)}
