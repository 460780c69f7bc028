"""The generated images and their factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_vae.data import FactorImages, sprites
from tests.statistical import assert_within


@pytest.fixture(scope="module")
def data() -> FactorImages:
    return sprites()


def test_every_combination_is_there_once(data: FactorImages):
    assert len(data.images) == len(data.factors) == np.prod(data.sizes) == 3840
    assert data.images.shape[1] == np.prod(data.event_shape)
    strides = [int(np.prod(data.sizes[i + 1 :])) for i in range(5)]
    assert torch.equal(data.factors @ torch.tensor(strides), torch.arange(3840))
    assert len(np.unique(data.images.numpy(), axis=0)) == 3840, "two combinations look alike"
    assert torch.equal(data.images, sprites().images)


def test_grey_levels_are_shares_of_sixteen_points(data: FactorImages):
    assert data.images.dtype == torch.float32
    assert data.images.min() == 0
    assert data.images.max() == 1
    assert torch.equal(data.images * 16, (data.images * 16).round())


def test_area_and_centre_are_those_of_the_geometry(data: FactorImages):
    """Area 2 s^2, pi s^2 / 2 and s^2 for half lengths s; means over orientations and places, to the raster."""
    images = data.images.double().reshape(*data.sizes, 16, 16)
    half = torch.linspace(2.5, 4.5, 4, dtype=torch.float64)
    area = images.sum((-1, -2)).mean((2, 3, 4))
    expected = torch.tensor([[2.0], [np.pi / 2], [1.0]]) * half.square()
    assert_within(area, expected, relative=0.03, reason="a raster of 4 x 4 points a pixel")
    place = torch.arange(16) + 0.5
    symmetric = images[:2]  # the centre of a triangle is not its centre of mass
    mass = symmetric.sum((-1, -2))
    centres = torch.linspace(5.1, 10.9, 8, dtype=torch.float64)
    for axis, moved in ((-2, centres[:, None]), (-1, centres)):
        found = (symmetric.sum(axis) * place).sum(-1) / mass
        assert_within(found, moved.expand_as(found), absolute=0.13, reason="half a point of the raster")


def test_orientation_turns_the_long_side(data: FactorImages):
    images = data.images.reshape(*data.sizes, 16, 16)[:, :, :, 3, 3]
    wide, high = ((images.sum(axis) > 0).sum(-1) for axis in (-2, -1))
    assert (wide[:, :, 0] > high[:, :, 0]).all()
    assert (wide[:, :, -1] < high[:, :, -1]).all()
