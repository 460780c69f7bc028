"""What the user of the command asked for: which pair, which data, how to train and how to evaluate."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from ppl_vae.errors import DataError, PairError

__all__ = ["Binarization", "DataSpec", "EvaluationSpec", "PairSpec", "TrainingSpec", "check_range"]

Binarization = Literal["dynamic", "fixed", "none"]

# Far beyond any recipe that trains on one machine; a file that asks for more asks for its memory.
_MAX_LAYERS, _MAX_WIDTH, _MAX_WEIGHTS, _MAX_LEVELS, _MAX_PARTICLES = 100, 2**20, 2**30, 2**16, 2**20
_MAX_COUNT = 2**40
_SMALLEST, _LARGEST = math.ulp(0.0), sys.float_info.max


def check_range(spec: object, names: Sequence[str], least: float, most: float = _MAX_COUNT) -> None:
    """Refuses numbers that nobody means, before anything is computed with them; None passes.

    Raises:
        DataError: Of a number by its name.
    """
    for name in names:
        value = getattr(spec, name)
        if value is not None and not least <= value <= most:
            raise DataError(f"{name}: expected a number from {least:g} to {most:g}, found {value}")


@dataclass(frozen=True)
class PairSpec:
    """Which pair, as the user named it.

    Raises:
        PairError: The sizes of a recipe are not positive, or such that nobody means them.
    """

    name: str
    """A recipe, `path/to/file.py:factory` or `package.module:factory`."""
    latent_dim: int | None = 50
    """Dimension of z of a recipe; None for a pair of the user's own, which decides its sizes."""
    hidden: tuple[int, ...] | None = (200, 200)
    """Hidden layers of a recipe; None for a pair of the user's own."""
    seed: int = 0
    """Of the initial parameters."""

    def __post_init__(self) -> None:
        """Looks at the sizes before anything is made of them."""
        widths = (*(self.hidden or ()), *(() if self.latent_dim is None else (self.latent_dim,)))
        if len(widths) > _MAX_LAYERS + 1 or not all(0 < width <= _MAX_WIDTH for width in widths):
            raise PairError(
                f"pair {self.name[:100]!r}: expected at most {_MAX_LAYERS} hidden layers, and latents, of 1 to "
                f"{_MAX_WIDTH} numbers each, found {len(widths) - 1} and {', '.join(map(str, widths[:3]))}, ..."
            )
        if (weights := sum(a * b for a, b in pairwise(widths))) > _MAX_WEIGHTS:
            raise PairError(
                f"pair {self.name[:100]!r}: expected at most {_MAX_WEIGHTS} weights between layers, found {weights}"
            )


@dataclass(frozen=True)
class DataSpec:
    """Which data, as the user named them.

    Raises:
        DataError: There are more levels than 16 bits hold.
    """

    name: str
    """A data set of `ppl_vae.data.load`, or a `.npy` or `.npz` file."""
    binarize: Binarization = "none"
    """What becomes of grey levels: training draws them anew in each step, or once, or takes them as they are."""
    data_dir: str | None = None
    """Folder of the data sets."""
    arrays: tuple[str, ...] = ()
    """Arrays of a `.npz`, in the order in which the programs take them."""
    dequantize: int | None = None
    """Number of grey levels to spread over their share of [0, 1]; None takes the data as they are."""
    quantize: int | None = None
    """Number of integer levels to turn grey images into; None takes the data as they are."""

    def __post_init__(self) -> None:
        """Looks at the number of levels before anything is made of it."""
        for name, levels in (("dequantize", self.dequantize), ("quantize", self.quantize)):
            if levels is not None and levels > _MAX_LEVELS:
                raise DataError(f"{name}: expected at most {_MAX_LEVELS} levels, found {levels}")

    @property
    def is_file(self) -> bool:
        """Whether the name is that of a file."""
        return Path(self.name).suffix != ""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Options of `ppl-vae fit` that decide the training.

    Raises:
        DataError: One of them is out of its range.
    """

    epochs: int
    """Passes over the data."""
    batch_size: int
    """Rows a step."""
    learning_rate: float
    """Of Adam."""
    schedule: Literal["constant", "cosine"]
    """Of the learning rate."""
    objective: Literal["auto", "elbo", "iwae", "own"]
    """What is maximised; `own` is what the pair brings, `auto` that where there is one, else `elbo`."""
    num_particles: int
    """K of it."""
    beta: float
    """Weight of the rate."""
    beta_warmup: int
    """Epochs over which beta rises from 0."""
    gradient: Literal["pathwise", "stl", "score", "dreg", "vimco"]
    """Its estimator."""
    discrete: Literal["score", "enumerate"]
    """Whether the ELBO draws discrete latents, or sums over them."""
    validation: bool
    """Whether the validation data are held out."""
    patience: int | None
    """Epochs without a better validation after which the training stops."""
    seed: int
    """Of the order of the data and of all noise."""
    device: str
    """Where it was asked to run."""
    compile: Literal["auto", True, False]
    """Whether to compile the step."""
    on_nonfinite: Literal["stop", "skip", "rollback"]
    """What becomes of a step whose loss or gradient is not finite."""

    def __post_init__(self) -> None:
        """Looks at the numbers."""
        check_range(self, ("epochs", "batch_size", "patience"), least=1)
        check_range(self, ("num_particles",), least=1, most=_MAX_PARTICLES)
        check_range(self, ("beta_warmup",), least=0)
        check_range(self, ("beta",), least=0.0, most=_LARGEST)
        check_range(self, ("learning_rate",), least=_SMALLEST, most=_LARGEST)

    def total_steps(self, num_data: int) -> int:
        """Number of steps on a data set."""
        return self.epochs * math.ceil(num_data / self.batch_size)


@dataclass(frozen=True)
class EvaluationSpec:
    """The evaluation at the end of `ppl-vae fit`.

    Raises:
        DataError: There are no samples, or no data.
    """

    num_samples: int
    """K."""
    limit: int
    """Number of test data, at most."""

    def __post_init__(self) -> None:
        """Looks at the numbers."""
        check_range(self, ("num_samples", "limit"), least=1)
