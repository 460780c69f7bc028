"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BinarizeOption",
    "DataDirOption",
    "DataOption",
    "DeviceOption",
    "HiddenOption",
    "LatentDimOption",
    "PairAgainOption",
    "PairArgument",
    "RunArgument",
]

_PAIR, _DATA = "The pair", "The data"


PairArgument = Annotated[
    str,
    typer.Argument(
        metavar="PAIR", help="A recipe (vae, gaussian-vae), path/to/file.py:factory or package.module:factory."
    ),
]
LatentDimOption = Annotated[
    int | None,
    typer.Option(min=1, help="Dimension of z of a recipe.", show_default="50", rich_help_panel=_PAIR),
]
HiddenOption = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTH,...",
        help="Hidden layers of a recipe's encoder; its decoder mirrors them.",
        show_default="200,200",
        rich_help_panel=_PAIR,
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="digits, mnist, fashion-mnist, omniglot; or FILE.npy or FILE.npz with one array (N, ...), split at random "
        "by a fixed seed; or FILE.npz with the arrays train, validation and test.",
        rich_help_panel=_DATA,
    ),
]
DataDirOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the named data sets.",
        show_default="$PPL_VAE_DATA, else ~/.cache/ppl_vae",
        rich_help_panel=_DATA,
    ),
]
BinarizeOption = Annotated[
    Literal["dynamic", "fixed", "none"] | None,
    typer.Option(
        help="Read values in [0, 1] as probabilities: draw new training data in every step, or draw them once. "
        "Test data are drawn once, by a fixed seed.",
        show_default="dynamic for the recipe vae, none for other pairs",
        rich_help_panel=_DATA,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
PairAgainOption = Annotated[
    str | None,
    typer.Option(
        "--pair", metavar="FILE.py:FACTORY", help="The pair, where it is code of your own.", rich_help_panel=_PAIR
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to compute; auto takes CUDA where there is one.", rich_help_panel="The run"),
]
