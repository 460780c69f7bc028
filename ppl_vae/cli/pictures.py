"""The figures of a run directory."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae import figures
from ppl_vae.cli.inputs import Splits, random_rows
from ppl_vae.drawing import Drawing
from ppl_vae.errors import DataError, EstimateError
from ppl_vae.history import History
from ppl_vae.rundir import EVALUATION_FIGURE, FIGURES
from ppl_vae.storage.calls import failing
from ppl_vae.storage.files import make_folder, refuse_link, replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_evaluation", "draw_fit", "has_mean", "save_images"]

_NUM_SAMPLES, _NUM_RECONSTRUCTIONS, _COLUMNS = 60, 12, 10


def draw_fit(root: Path, pair: Any, splits: Splits, history: History, objective: str) -> None:
    """Draw learning curves; of a VAE of images, of any number of layers, also samples and reconstructions."""
    title = f"{root.name}: training on {splits.title}"
    _save(figures.learning_curves(history, title, f"{objective}, training"), root, "learning-curves")
    if not isinstance(pair, Drawing) or splits.image_shape is None:
        return
    x = random_rows(splits.test, _NUM_RECONSTRUCTIONS)[0]
    mean = has_mean(pair)
    shown, kind = ("E[x | z]", "means, smoother than data") if mean else ("x ~ p(x | z)", "draws")
    again = pair.reconstruct(x.to(next(pair.parameters())), mean=mean)[0]
    rows = {f"{shown}, z ~ q(z | x)": _images(again, splits)}
    title = f"Test data and their reconstructions: {kind}"
    _save(figures.reconstructions(_images(x, splits), rows, title, splits.value_range), root, "reconstructions")
    drawn, title = _images(pair.sample(_NUM_SAMPLES, mean=mean), splits), f"Samples: {shown}, z ~ p(z)"
    _save(figures.image_grid(drawn, _COLUMNS, title, splits.value_range), root, "samples")


def has_mean(vae: Drawing) -> bool:
    """Whether p(x given z) has a mean in closed form, which autoregressive and transformed distributions have not."""
    try:
        vae.sample(1, mean=True)
    except (EstimateError, NotImplementedError):  # the latter is how torch says so
        return False
    return True


def draw_evaluation(root: Path, value: np.ndarray, trusted: np.ndarray | None, title: str) -> None:
    """Draw the distribution of the log-likelihood over the data, exact where nothing is said of trust."""
    _save(figures.log_likelihood_histogram(value, trusted, title), root, EVALUATION_FIGURE)


def save_images(x: Tensor, splits: Splits, out: Path, title: str) -> None:
    """Write data as a grid of images (.png) or as an array (.npy).

    Raises:
        DataError: The suffix is another one, or the data are no images.
        StorageError: The disk refuses.
    """
    if out.suffix not in (".npy", ".png"):
        raise DataError(f"{out}: expected a name that ends in .png or .npy, found {out.suffix!r}")
    if out.suffix == ".png" and splits.image_shape is None:
        raise DataError(
            f"{splits.title}: data of shape {tuple(x.shape[1:])} are no images: write an array, --out NAME.npy"
        )
    with failing("cannot be written", out):
        if out.suffix == ".npy":
            np.save(out, x.cpu().numpy())
        else:
            columns = next((count for count in (_COLUMNS, 9, 8, 12, 11) if len(x) % count == 0), _COLUMNS)
            figures.save(figures.image_grid(_images(x, splits), columns, title, splits.value_range), out)


def _save(figure: Figure, root: Path, name: str) -> None:
    """Writes a figure of a run; where a link leads, nothing is written."""
    refuse_link(folder := root / FIGURES)
    make_folder(folder)
    content = BytesIO()
    figures.save(figure, content)
    replace(folder / f"{name}.png", [content.getvalue()])


def _images(x: Tensor, splits: Splits) -> np.ndarray:
    assert splits.image_shape is not None
    with torch.no_grad():
        return x.cpu().reshape(-1, *splits.image_shape).numpy()
