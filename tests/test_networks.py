"""Networks: leading dimensions, input forms, bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ppl_vae.errors import DataError, PairError
from ppl_vae.networks import MLP, ConvDecoder, ConvEncoder, Standardize, positive
from tests.statistical import assert_close

NETWORKS = {
    "mlp": (lambda: MLP(5, [7, 6], 4), (5,), (4,)),
    "affine": (lambda: MLP(5, [], 4), (5,), (4,)),
    "conv encoder 28": (lambda: ConvEncoder((1, 28, 28), [3, 4], 6), (1, 28, 28), (6,)),
    "conv encoder 8": (lambda: ConvEncoder((2, 8, 8), [3, 4, 5], 6, nn.Tanh), (2, 8, 8), (6,)),
    "conv decoder 28": (lambda: ConvDecoder(5, [4, 3], (1, 28, 28)), (5,), (1, 28, 28)),
    "conv decoder 8": (lambda: ConvDecoder(5, [4, 3, 2], (2, 8, 8), nn.Tanh), (5,), (2, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 3)])
def test_any_leading_dimensions_equal_a_loop(name, batch, generator):
    make, in_shape, out_shape = NETWORKS[name]
    network = make().double()
    x = torch.randn(*batch, *in_shape, generator=generator, dtype=torch.float64)
    out = network(x)
    assert out.shape == (*batch, *out_shape)
    looped = torch.stack([network(row) for row in x.reshape(-1, *in_shape)])
    assert_close(out, looped.reshape(out.shape), scale=1.0)


@pytest.mark.parametrize("network", [MLP(64, [5], 3), ConvEncoder((1, 8, 8), [2], 3)])
def test_flat_data_and_images_are_the_same(network, generator):
    x = torch.rand(4, 64, generator=generator)
    assert_close(network(x), network(x.reshape(4, 1, 8, 8)), scale=1.0)


def test_conv_encoder_takes_flat_particles(generator):
    network = ConvEncoder((1, 8, 8), [2], 3)
    x = torch.rand(5, 4, 64, generator=generator)
    assert_close(network(x), network(x.reshape(5, 4, 1, 8, 8)), scale=1.0)


def test_mlp_is_its_formula(generator):
    network = MLP(3, [4], 2, nn.ReLU).double()
    first, _, last = network.layers
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    assert_close(network(x), expected, scale=1.0)


@pytest.mark.parametrize("network", [MLP(64, [], 3), ConvEncoder((1, 8, 8), [2], 3), ConvDecoder(64, [2], (1, 8, 8))])
@pytest.mark.parametrize("shape", [(4, 63), (4, 1, 8, 7), (65,), ()])
def test_other_inputs_are_refused(network, shape):
    with pytest.raises(DataError, match="expected inputs"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("build", [lambda s, c: ConvEncoder(s, c, 3), lambda s, c: ConvDecoder(3, c, s)])
@pytest.mark.parametrize(("shape", "channels"), [((1, 28, 28), [2, 2, 2]), ((1, 28, 28), []), ((28, 28), [2])])
def test_images_that_cannot_be_halved_are_refused(build, shape, channels):
    with pytest.raises(PairError, match="expected"):
        build(shape, channels)


def test_positive_is_bounded_below_and_never_overflows():
    raw = torch.tensor([-1e4, 0.0, 1e4])
    assert_close(positive(raw, 0.5), [0.5, 0.5 + math.log(2), 10000.5])


def test_standardised_numbers_have_mean_zero_and_variance_one_and_nothing_trains():
    x = 7 + 3 * torch.randn(4, 5, 6)
    layer = Standardize(x.mean(0), x.std(0, correction=0))
    assert_close(layer(x).mean(0), torch.zeros(5, 6), scale=1.0)
    assert_close(layer(x).square().mean(0), torch.ones(5, 6))
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"loc", "scale"}
