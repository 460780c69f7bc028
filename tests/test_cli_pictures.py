"""What the pictures of a run show: levels from black to white, draws where there is something to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import figures
from ppl_vae.cli.inputs import load_splits
from ppl_vae.cli.pictures import draw_fit, save_images
from ppl_vae.recipes import levels_vae
from ppl_vae.rundir import DataSpec


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The greys of every picture, from 0 (black) to 1 (white), which is then not written."""
    greys: list[np.ndarray] = []

    def look(figure, to):
        for picture in figure.axes[0].images:
            pixels = np.asarray(picture.get_array())
            greys.append(np.unique(pixels[(pixels == pixels[..., :1]).all(-1)]))  # lines between images have a colour

    monkeypatch.setattr(figures, "save", look)
    return greys


def splits_of(x: torch.Tensor, tmp_path: Path):
    np.save(tmp_path / "x.npy", x.numpy())
    return load_splits(DataSpec(str(tmp_path / "x.npy")))


def test_levels_of_a_file_are_drawn_from_black_to_white(shown, tmp_path: Path):
    x = torch.arange(17).repeat(20)[:320].reshape(20, 4, 4)
    splits = splits_of(x, tmp_path)
    assert splits.value_range == (0.0, 16.0)
    save_images(splits.train[0], splits, Path("x.png"), "")
    pair = levels_vae(splits.train[0], latent_dim=1, hidden=[4])
    history = pv.fit(pair, splits.train, steps=1, batch_size=16, progress=False).history
    draw_fit(tmp_path, pair, splits, history, "ELBO")
    rows, reconstructions, samples = shown
    np.testing.assert_allclose(rows, np.arange(17) / 16)
    assert len(reconstructions) > 17
    assert samples.max() < 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.9, (0, 1)), (0, 1, (0, 1)), (-1, 1, (-1, 1)), (0, 255, (0, 255)), (-3, -2, (-3, 0)), (3, 5, (0, 5))],
)
def test_black_and_white_are_the_extremes_of_data_outside_the_unit_interval(low, high, expected, tmp_path: Path):
    x = torch.linspace(low, high, 2).reshape(2, 1, 1).expand(2, 2, 2).repeat(20, 1, 1)
    assert splits_of(x, tmp_path).value_range == pytest.approx(expected)
