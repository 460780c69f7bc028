"""What pair and which data the options of a command ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ppl_vae.rundir import Binarization, DataSpec, PairSpec

__all__ = ["data_spec_of", "pair_spec_of"]


def pair_spec_of(name: str, latent_dim: int | None, hidden: str | None, seed: int) -> PairSpec:
    """The pair that the options of a command name, with the sizes of a recipe."""
    from ppl_vae.cli.pairs import is_recipe
    from ppl_vae.rundir import PairSpec

    spec = PairSpec(name, seed=seed)
    if not is_recipe(name):
        if latent_dim is not None or hidden is not None:
            raise typer.BadParameter(f"--latent-dim and --hidden size a recipe; {name} decides its own sizes")
        return PairSpec(name, None, None, seed)
    return PairSpec(name, latent_dim or spec.latent_dim, spec.hidden if hidden is None else _widths(hidden), seed)


def _widths(text: str) -> tuple[int, ...]:
    widths = text.split(",")
    if not all(width.strip().isdecimal() and int(width) > 0 for width in widths):
        raise typer.BadParameter(f"--hidden: expected positive widths such as 200,200, found {text!r}")
    return tuple(int(width) for width in widths)


def data_spec_of(
    name: str,
    data_dir: str | None,
    made: tuple[Binarization | None, int | None, int | None],
    arrays: str | None,
    pair: PairSpec,
) -> DataSpec:
    """The data that the options of a command name; `made` are --binarize, --dequantize and --quantize."""
    from ppl_vae.cli.pairs import is_binary
    from ppl_vae.rundir import DataSpec

    binarize, dequantize, quantize = made
    drawn = binarize or ("dynamic" if is_binary(pair) else "none")
    if dequantize is not None and drawn != "none":
        raise typer.BadParameter("--dequantize makes densities, binarised data have none: leave one of them out")
    if quantize is not None and (dequantize is not None or drawn != "none"):
        raise typer.BadParameter("--quantize makes levels: leave out --dequantize and --binarize")
    names = () if arrays is None else tuple(part.strip() for part in arrays.split(","))
    if not all(names):
        raise typer.BadParameter(f"--arrays: expected names such as x,y, found {arrays!r}")
    return DataSpec(name, drawn, data_dir, names, dequantize, quantize)
