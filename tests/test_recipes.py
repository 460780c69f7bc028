"""Recipes: their sizes and units, where they start, what they refuse. The command's tests run them all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.recipes import counts_vae, gaussian_vae, levels_vae, scaled_vae
from ppl_vae.rng import seeded
from tests.statistical import assert_close, assert_within


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


@pytest.mark.parametrize("recipe", [levels_vae, counts_vae])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_are_of_any_dtype(recipe, dtype):
    x = torch.arange(60).reshape(20, 3) % 7
    found, same = made(recipe, x.to(dtype)), made(recipe, x.float())
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), same.parameters(), strict=True))
    assert pv.log_likelihood(found, x.to(dtype), 5, progress=False).value.shape == (20,)


# Densities: x in units of its own

UNITS = torch.tensor([1e-4, 1.0, 300.0])


def made(recipe, x):
    """The same weights whatever the data."""
    with seeded(0):
        return recipe(x, latent_dim=2, hidden=[8])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("recipe", "unit"), [(scaled_vae, UNITS), (gaussian_vae, torch.tensor(300.0))])
def test_densities_are_the_same_in_any_unit(recipe, unit, generator):
    x, z = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    plain, changed = made(recipe, x), made(recipe, unit * (x + 5.0))
    assert_close(changed.encoder(unit * (x + 5.0)).mean, plain.encoder(x).mean)
    jacobian = unit.double().log().expand(3).sum()
    assert_close(changed.decoder(z).log_prob(unit * (x + 5.0)) + jacobian, plain.decoder(z).log_prob(x))


@pytest.mark.parametrize("recipe", [scaled_vae, gaussian_vae])
def test_densities_start_at_means_and_deviations(recipe, generator):
    x = torch.randn(500, 3, generator=generator) * UNITS + 2.0
    vae = recipe(x, latent_dim=2, hidden=[8])
    nn.init.zeros_(vae.decoder.decoder.network.layers[-1].weight)
    start = vae.decoder(torch.zeros(2)).base_dist
    spread = x.std(0, correction=0)
    expected = spread if recipe is scaled_vae else spread.square().mean().sqrt().expand(3)
    assert_within(start.loc, x.mean(0), relative=1e-5, reason="float32")
    assert_within(start.scale, expected, relative=1e-3, reason="float32 of numbers of 1e-4 around 2")


def test_no_standardised_number_is_beyond_ten_and_no_scale_below_a_hundredth_of_its_unit():
    x = torch.zeros(5000, 2)
    x[7, 0], x[:, 1] = 1.0, torch.arange(5000.0)
    vae = scaled_vae(x, latent_dim=2, hidden=[8])
    seen = vae.encoder.network[0](x)
    assert_within(seen.abs().amax(0)[0], 10.0, absolute=1e-4, reason="float32")
    assert_within(seen[:, 1].std(), 1.0, absolute=1e-3, reason="N - 1")
    nn.init.constant_(vae.decoder.decoder.network.layers[-1].bias, -100.0)
    scale = vae.decoder(torch.zeros(2)).base_dist.scale
    assert_within(scale, 0.01 * vae.decoder.unit, relative=1e-4, reason="float32")


@pytest.mark.parametrize("recipe", [scaled_vae, gaussian_vae])
@pytest.mark.parametrize("constant", [slice(1), slice(3)])
def test_entries_that_never_change_have_the_unit_of_the_rest(recipe, constant, generator):
    x = 0.1 + 50 * torch.randn(1257, 3, generator=generator)
    x[:, constant] = 0.1
    vae = recipe(x, latent_dim=2, hidden=[8])
    spread = (x - x.mean(0)).square().mean().sqrt() if constant == slice(1) else 1.0
    assert_within(vae.decoder.unit[0] / spread, 1.0, absolute=1e-5, reason="float32")
    assert torch.isfinite(vae.reconstruct(x[:2])).all()


@pytest.mark.parametrize("recipe", [scaled_vae, gaussian_vae])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_without_a_square_are_refused(recipe, size):
    with pytest.raises(pv.DataError, match=r"squares are of torch.float32, .*at most .*e[-+]2\d away .*another unit"):
        recipe(torch.randn(50, 3) * size, latent_dim=2, hidden=[8])


@pytest.mark.parametrize("recipe", [scaled_vae, gaussian_vae])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_have_no_density(recipe, dtype):
    with pytest.raises(pv.DataError, match=rf"-vae expects real numbers, found {str(dtype)[6:]}: dequantise"):
        recipe(torch.zeros(5, 3, dtype=dtype), latent_dim=2, hidden=[8])


@pytest.mark.parametrize("recipe", [scaled_vae, gaussian_vae])
def test_densities_of_doubles_have_the_parameters_of_the_default(recipe):
    vae = recipe(torch.randn(20, 3).double(), latent_dim=2, hidden=[8])
    assert {tensor.dtype for tensor in vae.state_dict().values()} == {torch.float32}
    assert vae.sample(2).dtype == torch.float32
