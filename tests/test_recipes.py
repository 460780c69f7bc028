"""Recipes of whole numbers: their sizes, where they start, what they refuse. The command's tests run all recipes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.recipes import counts_vae, levels_vae
from tests.statistical import assert_within


def test_levels_are_as_many_as_the_data_have():
    x = torch.randint(5, (50, 6)).float()
    x[3, 2] = 4
    vae = levels_vae(x, latent_dim=2, hidden=[8])
    assert vae.decoder.num_levels == 5
    with pytest.raises(pv.DataError, match=r"row 7: expected values in the support .* found 5; "):
        pv.log_likelihood(vae, torch.where(torch.arange(50)[:, None] == 7, 5.0, x), 2, progress=False)


def test_counts_start_at_their_means():
    x = torch.poisson(torch.tensor([0.5, 3.0, 40.0]).expand(500, 3))
    vae = counts_vae(x, latent_dim=2, hidden=[8])
    nn.init.zeros_(vae.decoder.network.layers[-1].weight)
    assert_within(vae.sample(3, mean=True)[0], x.mean(0), relative=0.01, reason="half a count in 500")


@pytest.mark.parametrize("recipe", [levels_vae, counts_vae])
def test_encoders_see_standardised_numbers(recipe):
    x = torch.poisson(torch.full((500, 6), 30.0))
    seen = recipe(x, latent_dim=2, hidden=[8]).encoder.network[0](x)
    assert_within(seen.mean(), 0.0, absolute=1e-4, reason="float32")
    assert_within(seen.std(), 1.0, absolute=1e-3, reason="N - 1")


@pytest.mark.parametrize("recipe", [levels_vae, counts_vae])
def test_constant_data_are_no_division_by_zero(recipe):
    vae = recipe(torch.ones(20, 3), latent_dim=2, hidden=[8])
    assert torch.isfinite(vae.reconstruct(torch.ones(2, 3))).all()


@pytest.mark.parametrize("recipe", [levels_vae, counts_vae])
@pytest.mark.parametrize("value", [0.5, -1.0])
def test_other_numbers_are_refused_by_their_row(recipe, value):
    x = torch.zeros(20, 3)
    x[11, 1] = value
    with pytest.raises(pv.DataError, match=f"row 11: .*whole numbers .*found {value:g}"):
        recipe(x)
