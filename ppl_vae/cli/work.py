"""What the commands do with a pair or a run: sample, check, and find a free directory."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from ppl_vae.checking import CheckReport, check
from ppl_vae.cli.inputs import Batch, load_splits
from ppl_vae.cli.pairs import make_pair, naming_the_line
from ppl_vae.cli.pictures import has_mean, save_images
from ppl_vae.cli.reopening import reopen
from ppl_vae.data import binarize
from ppl_vae.drawing import Drawing
from ppl_vae.errors import PairError
from ppl_vae.rundir import DataSpec, PairSpec
from ppl_vae.storage import as_name

__all__ = ["binary_batch", "check_pair", "free_directory", "sample"]

_CHECKED_ROWS = 64


def free_directory(pair_name: str, data_name: str) -> Path:
    """Return the first directory runs/PAIR-DATA-NUMBER that does not exist."""
    name = as_name(f"{pair_name.rpartition(':')[2]}-{Path(data_name).stem}")
    return next(path for number in count(1) if not (path := Path("runs", f"{name}-{number}")).exists())


def sample(root: Path, pair_name: str | None, data_dir: str | None, n: int, seed: int, draws: bool, out: Path) -> None:
    """Draw data from the model of a run into an image or an array file."""
    pair, splits = reopen(root, pair_name, data_dir)
    means = isinstance(pair, Drawing) and not draws and has_mean(pair)
    title = "E[x | z], z ~ p(z)" if means else "draws of x"
    with naming_the_line("pair.sample failed", of_user=not isinstance(pair, Drawing)):
        drawn = _samples(pair, n, seed, means)
    save_images(_checked(drawn, n), splits, out, f"{root.name}: {title}")
    typer.echo(str(out))


def check_pair(pair_spec: PairSpec, data_spec: DataSpec, num_rows: int) -> CheckReport:
    """Check a pair on the first rows of the training data."""
    splits = load_splits(data_spec)
    pair = make_pair(pair_spec, splits.train)
    with naming_the_line(f"pair {pair_spec.name!r} failed"):
        return check(pair, binary_batch(data_spec, splits.train, num_rows))


def _samples(pair: Any, n: int, seed: int, means: bool) -> Tensor:
    if not hasattr(pair, "sample"):
        mend = (
            "it draws data of given classes: let the factory choose them, such as vae.sample = lambda n, seed: "
            "vae.sample_given(torch.arange(n) % vae.num_classes, seed)"
            if hasattr(pair, "sample_given")
            else "let the factory return an object that has it beside .model and .guide, such as a VAE, or set "
            "pair.sample to a function"
        )
        raise PairError(
            f"expected a pair with a method sample(n, seed), found {type(pair).__name__} without one: {mend}"
        )
    return pair.sample(n, seed=seed, mean=True) if means else pair.sample(n, seed=seed)


def _checked(drawn: Any, n: int) -> Tensor:
    """What a pair has drawn, as a tensor without a gradient.

    Raises:
        PairError: It is no array of n data.
    """
    if isinstance(drawn, np.ndarray):
        drawn = torch.from_numpy(drawn)
    if not isinstance(drawn, Tensor) or drawn.dim() < 2 or len(drawn) != n:
        found = f"shape {tuple(drawn.shape)}" if isinstance(drawn, Tensor) else type(drawn).__name__
        raise PairError(
            f"pair.sample({n}, seed): expected {n} data in one tensor or array ({n}, *event), found {found}: of "
            "several arguments let it return the one to look at"
        )
    return drawn.detach()


def binary_batch(spec: DataSpec, batch: Batch, num_rows: int = _CHECKED_ROWS) -> Batch:
    """The first rows of a batch as the programs take them: binary where training draws binary data."""
    first, *others = (x[:num_rows] for x in batch)
    return (binarize(first) if spec.binarize == "dynamic" else first, *others)
