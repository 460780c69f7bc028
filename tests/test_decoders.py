"""Decoders: densities against scipy, shapes with particles, where training starts, supports, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import ppl_vae as pv
from ppl_vae.decoders import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    NegativeBinomial,
    Poisson,
)
from ppl_vae.errors import DataError, PairError
from ppl_vae.networks import MLP, ConvDecoder
from tests.statistical import assert_close, assert_within

L, M = 4, 3


def softplus(raw):
    return np.log1p(np.exp(raw))


def bernoulli(x, f):
    return stats.bernoulli(special.expit(f[..., 0, :])).logpmf(x)


def continuous_bernoulli(x, f):
    a = f[..., 0, :]
    return a * x + np.log(a / np.expm1(a))


def categorical(x, f):
    return np.take_along_axis(special.log_softmax(f, -2), x[..., None, :].astype(int), -2)[..., 0, :]


def logistic_bin(x, loc, raw_scale):
    """Difference of distribution functions, in units in which the levels are -1 to 1."""
    s, step = 1e-3 + softplus(raw_scale), 1 / (L - 1)
    x = 2 * x / (L - 1) - 1
    below = np.where(x < -1 + step, 0.0, special.expit((x - step - loc) / s))
    return np.where(x > 1 - step, 1.0, special.expit((x + step - loc) / s)) - below


def discretized_logistic(x, f):
    return np.log(logistic_bin(x, f[..., 0, :], f[..., 1, :]))


def mixture(x, f):
    weights, loc, raw_scale = np.split(f, 3, -2)
    centres = np.array([-2 / 3, 0.0, 2 / 3])[:, None]
    return np.log((special.softmax(weights, -2) * logistic_bin(x[..., None, :], loc + centres, raw_scale)).sum(-2))


def poisson(x, f):
    return stats.poisson(softplus(f[..., 0, :]) + 1e-6).logpmf(x)


def exponential_poisson(x, f):
    return stats.poisson(np.exp(f[..., 0, :]) + 1e-6).logpmf(x)


def negative_binomial(x, f):
    mean, dispersion = softplus(f[..., 0, :]) + 1e-6, softplus(-2.0) + 1e-6
    return stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)).logpmf(x)


# name -> (decoder of (network, shape), features for an entry, independent density of x and features, mlp of a shape)
DECODERS = {
    "Bernoulli": (Bernoulli, 1, bernoulli, lambda s: Bernoulli.mlp(2, [3], s)),
    "continuous Bernoulli": (
        ContinuousBernoulli,
        1,
        continuous_bernoulli,
        lambda s: ContinuousBernoulli.mlp(2, [3], s),
    ),
    "categorical": (lambda n, s: Categorical(n, s, L), L, categorical, lambda s: Categorical.mlp(2, [3], s, L)),
    "discretised logistic": (
        lambda n, s: DiscretizedLogistic(n, s, L),
        2,
        discretized_logistic,
        lambda s: DiscretizedLogistic.mlp(2, [3], s, L),
    ),
    "mixture": (
        lambda n, s: DiscretizedLogisticMixture(n, s, L, M),
        3 * M,
        mixture,
        lambda s: DiscretizedLogisticMixture.mlp(2, [3], s, L, M),
    ),
    "Poisson": (Poisson, 1, poisson, lambda s: Poisson.mlp(2, [3], s)),
    "Poisson, exp": (
        lambda n, s: Poisson(n, s, "exp"),
        1,
        exponential_poisson,
        lambda s: Poisson.mlp(2, [3], s, "exp"),
    ),
    "negative binomial": (NegativeBinomial, 1, negative_binomial, lambda s: NegativeBinomial.mlp(2, [3], s)),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("shape", [6, (6,), (1, 2, 3)])
def test_the_density_is_that_of_the_features(name, shape, generator, float64):
    """Features of all entries come one after the other, as the channels of a convolutional network do."""
    make, count, expected, _ = DECODERS[name]
    features = torch.randn(4, 5, count, 6, generator=generator)
    decoder = make(nn.Identity(), shape)
    p = decoder(features.flatten(-2))
    x = p.sample()
    assert x.shape == (4, 5, *decoder.event_shape)
    assert_close(p.log_prob(x).detach(), expected(x.reshape(4, 5, 6).numpy(), features.numpy()).sum(-1), scale=1.0)


@pytest.mark.parametrize("name", DECODERS)
def test_particles_come_first_and_means_are_those_of_draws(name):
    decoder = DECODERS[name][3]((1, 2, 3))
    p = decoder(torch.randn(4, 5, 2))
    assert (p.batch_shape, p.event_shape) == ((4, 5), (1, 2, 3))
    draws = p.sample((4000,))
    assert p.mean.dtype == draws.dtype
    sd = draws.std(0).clamp_min(1e-3)
    assert_within((draws.mean(0) - p.mean).detach() / sd, torch.zeros(4, 5, 1, 2, 3), absolute=0.1, reason="6.3 sigma")


@pytest.mark.parametrize("name", DECODERS)
def test_a_vae_samples_and_reconstructs(name):
    vae = pv.VAE(pv.priors.StandardNormal(2), DECODERS[name][3](6), pv.encoders.DiagonalNormal.mlp(6, [3], 2))
    for x in (vae.sample(7), vae.sample(7, mean=True), vae.reconstruct(vae.sample(7))[0]):
        assert x.shape == (7, 6)
        assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Bernoulli", 0.5),
        ("continuous Bernoulli", 1.5),
        ("categorical", L),
        ("categorical", 0.5),
        ("discretised logistic", L),
        ("discretised logistic", 0.5),
        ("mixture", L),
        ("mixture", 0.5),
        ("Poisson", 0.5),
        ("Poisson", -1.0),
        ("negative binomial", 0.5),
        ("negative binomial", -1.0),
    ],
)
def test_data_outside_the_support_are_named_by_their_row(name, value):
    vae = pv.VAE(pv.priors.StandardNormal(2), DECODERS[name][3](6), pv.encoders.DiagonalNormal.mlp(6, [3], 2))
    x = torch.zeros(300, 6)
    x[271, 3] = value
    with pytest.raises(DataError, match=f"row 271: expected values in the support .* found {value:g}"):
        pv.fit(vae, x, steps=1, progress=False)
    with pytest.raises(DataError, match="row 271"):
        pv.log_likelihood(vae, x, 2, progress=False)


@pytest.mark.parametrize("name", DECODERS)
def test_fit_and_log_likelihood_take_the_decoder(name):
    torch.manual_seed(0)
    vae = pv.VAE(pv.priors.StandardNormal(2), DECODERS[name][3](6), pv.encoders.DiagonalNormal.mlp(6, [3], 2))
    x = vae.sample(4).repeat(50, 1)
    before = pv.log_likelihood(vae, x, 20, progress=False).mean
    pv.fit(vae, x, steps=60, learning_rate=0.03, progress=False, compile=False)
    assert pv.log_likelihood(vae, x, 20, progress=False).mean > before + 0.05


def test_convolutions_decode_particles_to_images_or_flat_data():
    network = ConvDecoder(2, [3, 2], (1, 8, 8))
    z = torch.zeros(4, 5, 2)
    assert Bernoulli(network, (1, 8, 8))(z).event_shape == (1, 8, 8)
    assert Bernoulli(network, 64)(z).event_shape == (64,)
    assert Bernoulli(network, 64)(z).batch_shape == (4, 5)


def test_channels_of_a_convolution_are_the_features_of_a_pixel():
    """Channel j of the network holds the logits of level j."""
    network = ConvDecoder(2, [3], (L, 8, 8))
    z = torch.randn(4, 5, 2)
    p = Categorical(network, (1, 8, 8), L)(z)
    assert p.event_shape == (1, 8, 8)
    assert_close(p.base_dist.probs[..., 0, :, :, :].movedim(-1, -3), network(z).softmax(-3))


# Where training starts


def test_start_at_gives_the_smoothed_pixel_means(generator):
    x = torch.bernoulli(torch.full((9, 1, 2, 2), 0.3), generator=generator)
    x[:, 0, 0, 0], x[:, 0, 1, 1] = 0, 1
    decoder = Bernoulli.mlp(2, [3], (1, 2, 2))
    decoder.start_at(x)
    nn.init.zeros_(decoder.network.layers[-1].weight)
    assert_close(decoder(torch.randn(7, 2)).mean[3], (x.sum(0) + 0.5) / 10)


@pytest.mark.parametrize("decoder", [Poisson, NegativeBinomial])
@pytest.mark.parametrize("link", ["softplus", "exp"])
def test_start_at_gives_the_smoothed_means_of_counts(decoder, link, generator):
    x = torch.poisson(torch.tensor([[0.1, 3.0], [20.0, 500.0]]).expand(9, 1, 2, 2), generator=generator)
    x[:, 0, 0, 0] = 0
    made = decoder.mlp(2, [3], (1, 2, 2), link)
    made.start_at(x)
    nn.init.zeros_(made.network.layers[-1].weight)
    mean = made(torch.randn(7, 2)).mean[3]
    assert_within(mean.detach(), (x.sum(0) + 0.5) / 10, relative=1e-4, reason="the least mean, 1e-6")


def test_start_at_gives_the_smoothed_frequencies_of_levels(generator):
    x = torch.randint(L, (9, 1, 2, 2), generator=generator).float()
    decoder = Categorical.mlp(2, [3], (1, 2, 2), L)
    decoder.start_at(x)
    nn.init.zeros_(decoder.network.layers[-1].weight)
    probs = decoder(torch.randn(7, 2)).base_dist.probs[3]
    for level in range(L):
        assert_close(probs[..., level], ((x == level).sum(0) + 0.5) / (9 + 0.5 * L))


@pytest.mark.parametrize("network", [ConvDecoder(2, [3], (1, 2, 2)), nn.Identity(), MLP(2, [], 5)])
@pytest.mark.parametrize("decoder", [Bernoulli, Poisson, NegativeBinomial])
def test_start_at_refuses_a_network_without_one_bias_per_pixel(network, decoder):
    with pytest.raises(PairError, match="4 biases"):
        decoder(network, 4).start_at(torch.zeros(9, 4))


# Refusals


def test_bernoulli_scores_binary_data_only():
    p = Bernoulli.mlp(2, [], 3)(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((1, 3), 0.5))


BYTES = torch.tensor([[0.0, 1.0], [3.0, 255.0]])
HALVES = torch.tensor([[0.0, 1.0], [0.5, -1.0]])


@pytest.mark.parametrize(
    ("decoder", "x", "message"),
    [
        (Bernoulli.mlp(2, [], 2), BYTES, "row 1: .*found 3"),
        (Poisson.mlp(2, [], 2), HALVES, "row 1: .*found 0.5"),
        (NegativeBinomial.mlp(2, [], 2), HALVES, "row 1: .*found 0.5"),
        (Categorical.mlp(2, [], 2, L), BYTES, "row 1: .*found 255"),
        (Gaussian.mlp(2, [], 2), torch.tensor([[0.0, 1.0], [np.nan, 1.0]]), "row 1: expected finite"),
        (Gaussian.mlp(2, [], 2), torch.zeros(0, 2), "at least one row"),
        (Gaussian.mlp(2, [], 2), torch.zeros(5, 3), r"event shape \(2,\), found rows of shape \(3,\)"),
        (Poisson.mlp(2, [], 2), [[1, 2]], "found list"),
    ],
)
def test_start_at_refuses_data_that_it_would_make_no_finite_bias_of(decoder, x, message):
    before = [parameter.clone() for parameter in decoder.parameters()]
    with pytest.raises(DataError, match=message):
        decoder.start_at(x)
    assert all(torch.equal(p, b) for p, b in zip(decoder.parameters(), before, strict=True))


@pytest.mark.parametrize("decoder", [Bernoulli, Poisson, Gaussian], ids=lambda d: d.__name__)
def test_start_at_takes_whole_numbers_and_arrays(decoder):
    x, made = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]), decoder.mlp(2, [], 2)
    made.start_at(x)
    expected = made.network.layers[-1].bias.clone()
    for same in (x.to(torch.uint8), x.long(), x.numpy(), x.double(), x.half()):
        nn.init.zeros_(made.network.layers[-1].bias)
        made.start_at(same)
        assert_close(made.network.layers[-1].bias, expected)


@pytest.mark.parametrize("shape", [0, (), (1, -2), 64.0, (8.0, 8), "64", True, None])
def test_other_events_are_refused(shape):
    with pytest.raises(PairError, match="event_shape"):
        Bernoulli(nn.Identity(), shape)


def test_sizes_of_numpy_are_sizes():
    assert Bernoulli.mlp(2, [], np.prod((4, 4))).event_shape == (16,)
    assert pv.HierarchicalVAE.burda(np.prod((2, 2)), ((3,), (3,)), (2, 2)).sample(1).shape == (1, 4)
    assert pv.autoregressive.PixelCNN(np.array([1, 4, 4]), 4, 1, context_shape=np.int64(2)).context_shape == (2,)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (Bernoulli, "6"),
        (ContinuousBernoulli, "6"),
        (Gaussian, "6"),
        (lambda n, s: Gaussian(n, s, "per_latent"), "7 or 12"),
        (lambda n, s: Categorical(n, s, L), "24"),
        (lambda n, s: DiscretizedLogistic(n, s, L), "12"),
        (lambda n, s: DiscretizedLogisticMixture(n, s, L, M), "54"),
        (Poisson, "6"),
        (NegativeBinomial, "6"),
    ],
)
def test_other_numbers_of_features_are_refused(decoder, expected):
    with pytest.raises(PairError, match=f"expected {expected} features .*found 8"):
        decoder(MLP(2, [], 8), 6)(torch.zeros(3, 2))


@pytest.mark.parametrize("decoder", [Categorical, DiscretizedLogistic, DiscretizedLogisticMixture])
@pytest.mark.parametrize("num_levels", [1, 2.5])
def test_numbers_of_levels_are_checked(decoder, num_levels):
    with pytest.raises(ValueError, match="num_levels: expected"):
        decoder(nn.Identity(), 6, num_levels)


@pytest.mark.parametrize("decoder", [Poisson, NegativeBinomial])
def test_other_links_are_refused(decoder):
    with pytest.raises(PairError, match='link expected "softplus" or "exp", found \'log\''):
        decoder(nn.Identity(), 6, "log")
