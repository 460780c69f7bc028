"""The VAE: its programs against closed forms, its draws, and what they leave untouched."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import nn

import ppl_vae as pv
from ppl_vae.checking import check
from ppl_vae.decoders import Bernoulli, Gaussian
from ppl_vae.encoders import DiagonalNormal, FullCovarianceNormal
from ppl_vae.errors import DataError, PairError
from ppl_vae.networks import MLP, ConvDecoder, ConvEncoder
from ppl_vae.priors import StandardNormal
from ppl_vae.vae import VAE
from tests.statistical import assert_close, assert_mean


def mlp_vae(event_shape=(1, 8, 8)):
    return VAE(StandardNormal(3), Bernoulli.mlp(3, [5], event_shape), DiagonalNormal.mlp(64, [5], 3))


def conv_vae():
    decoder = Bernoulli(ConvDecoder(3, [4, 2], (1, 8, 8)), (1, 8, 8))
    return VAE(StandardNormal(3), decoder, DiagonalNormal(ConvEncoder((1, 8, 8), [2, 4], 6), 3))


def sites(vae, x, num_particles):
    """Traces of guide and replayed model inside an outer plate of particles."""
    with pyro.plate("particles", num_particles, dim=-2):
        guide = poutine.trace(vae.guide).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    return guide.nodes, model.nodes


def binary(*shape, generator):
    return torch.bernoulli(torch.full(shape, 0.5), generator=generator)


@pytest.mark.parametrize("make", [mlp_vae, conv_vae])
@pytest.mark.parametrize("shape", [(4, 64), (4, 1, 8, 8)])
def test_particles_broadcast_and_the_encoder_runs_once_per_datum(make, shape, generator):
    vae = make()
    rows = []
    vae.encoder.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    guide, model = sites(vae, binary(*shape, generator=generator), 7)
    assert rows == [4]
    assert model["z"]["value"].shape == (7, 4, 3)
    assert guide["z"]["log_prob"].shape == model["z"]["log_prob"].shape == model["x"]["log_prob"].shape == (7, 4)


def test_flat_data_and_images_have_the_same_terms(generator):
    vae, x = mlp_vae(64), binary(4, 64, generator=generator)
    z = torch.randn(4, 3, generator=generator)
    scores = [
        poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(data).log_prob_sum()
        for data in (x, x.reshape(4, 1, 8, 8))
    ]
    assert_close(*scores)


def test_the_exact_posterior_as_encoder_makes_every_weight_the_evidence(float64, generator):
    """x = W z + b + sigma e: p(x) = N(b, W W^T + sigma^2 I), the posterior has covariance (I + W^T W / sigma^2)^-1."""
    dim, latent, sigma = 4, 2, 0.7
    weight, bias = torch.randn(dim, latent, generator=generator), torch.randn(dim, generator=generator)
    covariance = torch.linalg.inv(torch.eye(latent) + weight.T @ weight / sigma**2)
    factor = torch.linalg.cholesky(covariance)

    decoder = Gaussian(MLP(latent, [], dim), dim, sigma)
    encoder = FullCovarianceNormal(MLP(dim, [], 5), latent)
    with torch.no_grad():
        decoder.network.layers[0].weight.copy_(weight)
        decoder.network.layers[0].bias.copy_(bias)
        to_mean = covariance @ weight.T / sigma**2
        encoder.network.layers[0].weight.zero_()[:latent] = to_mean
        fixed = torch.cat([factor.diagonal().expm1().log(), factor[1, :1]])
        encoder.network.layers[0].bias.copy_(torch.cat([-to_mean @ bias, fixed]))

    x = torch.randn(5, dim, generator=generator)
    guide, model = sites(VAE(StandardNormal(latent), decoder, encoder).double(), x, 3)
    log_weight = model["x"]["log_prob"] + model["z"]["log_prob"] - guide["z"]["log_prob"]
    marginal = stats.multivariate_normal(bias.numpy(), (weight @ weight.T + sigma**2 * torch.eye(dim)).numpy())
    expected = torch.from_numpy(marginal.logpdf(x.numpy())).expand(3, 5)
    assert_close(log_weight, expected, torch.float64)


@pytest.mark.parametrize("make", [mlp_vae, conv_vae])
def test_every_parameter_trains(make, generator):
    vae = make()
    guide, model = sites(vae, binary(4, 64, generator=generator), 2)
    (model["x"]["log_prob"] + model["z"]["log_prob"] - guide["z"]["log_prob"]).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in vae.parameters())


def test_the_prior_follows_the_module():
    vae = mlp_vae().double()
    assert vae.prior().sample().dtype == torch.float64
    assert not [name for name in vae.state_dict() if name.startswith("prior")]


def test_draws_are_a_function_of_the_seed(generator):
    vae, x = mlp_vae(), binary(4, 64, generator=generator)
    for draw in (vae.sample, lambda n, **options: vae.reconstruct(x, n, **options)):
        assert torch.equal(draw(5, seed=1), draw(5, seed=1))
        assert not torch.equal(draw(5, seed=1), draw(5, seed=2))
    assert vae.sample(5).shape == (5, 1, 8, 8)
    assert vae.reconstruct(x, 5).shape == (5, 4, 1, 8, 8)
    assert vae.reconstruct(x).shape == (1, 4, 1, 8, 8)


def test_means_are_probabilities_and_draws_are_binary(generator):
    vae, x = mlp_vae(), binary(4, 64, generator=generator)
    for draw in (vae.sample(4), vae.reconstruct(x, mean=False)):
        assert draw.unique().tolist() == [0, 1]
    for mean in (vae.sample(4, mean=True), vae.reconstruct(x)):
        assert ((mean > 0) & (mean < 1)).all()


def test_samples_have_the_moments_of_the_model(float64):
    """z ~ N(0, 1), x = 2 z + 1 + 0.5 e: mean 1, variance 4.25."""
    vae = VAE(StandardNormal(1), Gaussian(MLP(1, [], 1), 1, 0.5), DiagonalNormal.mlp(1, [], 1))
    nn.init.constant_(vae.decoder.network.layers[0].weight, 2.0)
    nn.init.constant_(vae.decoder.network.layers[0].bias, 1.0)
    x = vae.sample(100_000).flatten().numpy()
    assert_mean(x, 1.0, sigma=4.25**0.5, effect=0.1)
    assert_mean((x - 1) ** 2, 4.25, sigma=4.25 * 2**0.5, effect=0.25)
    means = vae.sample(100_000, mean=True).flatten().numpy()
    assert_mean((means - 1) ** 2, 4.0, sigma=4 * 2**0.5, effect=0.2)


def test_a_sure_encoder_reconstructs_its_mean(generator):
    vae, x = mlp_vae(), binary(4, 64, generator=generator)
    nn.init.constant_(vae.encoder.network.layers[-1].bias[3:], -30.0)
    nn.init.zeros_(vae.encoder.network.layers[-1].weight[3:])
    expected = vae.decoder(vae.encoder(x).mean).mean
    assert_close(vae.reconstruct(x)[0], expected)


def test_drawing_changes_no_generator_mode_buffer_or_gradient(generator):
    network = nn.Sequential(MLP(64, [5], 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 6))
    vae = VAE(StandardNormal(3), Bernoulli.mlp(3, [5], 64), DiagonalNormal(network, 3))
    network[2].eval()
    x = binary(4, 64, generator=generator)
    modes = [module.training for module in vae.modules()]
    buffers = [buffer.clone() for buffer in vae.buffers()]
    state = torch.get_rng_state()
    assert not vae.sample(3, mean=True).requires_grad
    first, second = vae.reconstruct(x), vae.reconstruct(x)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in vae.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, vae.buffers(), strict=True))


def test_modes_come_back_after_an_error():
    vae = mlp_vae()
    with pytest.raises(DataError):
        vae.reconstruct(torch.zeros(4, 63))
    assert vae.training
    assert vae.encoder.training


def test_data_of_another_size_are_refused():
    vae = VAE(StandardNormal(3), Bernoulli.mlp(3, [5], 64), DiagonalNormal.mlp(32, [5], 3))
    with pytest.raises(DataError, match=r"event shape \(64,\), found rows of shape \(32,\)"):
        vae.model(torch.zeros(4, 32))


def test_latents_of_another_dimension_are_refused_at_construction():
    with pytest.raises(PairError, match="latent_dim: expected 3 in the encoder, as in the prior, found 2"):
        VAE(StandardNormal(3), Bernoulli.mlp(3, [5], 64), DiagonalNormal.mlp(64, [5], 2))


@pytest.mark.parametrize("use", ["check", "sample"])
@pytest.mark.parametrize("decoder", [Bernoulli.mlp(4, [5], 64), Bernoulli(nn.Linear(4, 64), 64)], ids=["zoo", "torch"])
def test_a_decoder_for_other_latents_is_named(decoder, use):
    vae = VAE(StandardNormal(3), decoder, DiagonalNormal.mlp(64, [5], 3))
    with pytest.raises(PairError, match=r"the decoder failed on z of shape \(\d+, 3\).*latents of shape \(3,\)"):
        check(vae, torch.zeros(4, 64)) if use == "check" else vae.sample(2)


@pytest.mark.parametrize("count", [-1, 1.5])
def test_a_number_of_draws_is_a_whole_one(count):
    vae = VAE(StandardNormal(3), Bernoulli.mlp(3, [5], 64), DiagonalNormal.mlp(64, [5], 3))
    with pytest.raises(ValueError, match="n: expected"):
        vae.sample(count)
    with pytest.raises(ValueError, match="num_samples: expected"):
        vae.reconstruct(torch.zeros(2, 64), count)


def test_data_are_read_as_a_fit_reads_them(generator):
    x = torch.rand(5, 64, generator=generator)
    vae = VAE(StandardNormal(3), Bernoulli.mlp(3, [5], 64), DiagonalNormal.mlp(64, [5], 3))
    autoencoder = pv.Autoencoder(encoder=MLP(64, [5], 3), decoder=Bernoulli.mlp(3, [5], 64))
    for pair in (vae, autoencoder):
        expected = pair.reconstruct(x)
        for same in (x.numpy(), x.double(), x.double().numpy(), x.clone().requires_grad_()):
            assert torch.equal(pair.reconstruct(same), expected)
        with pytest.raises(DataError, match="data, row 1: expected finite numbers"):
            pair.reconstruct(torch.tensor([[0.0], [float("nan")]]).expand(2, 64))
        with pytest.raises(PairError, match=r"on data of shape \(5, 64\) and torch.int64, failed: .*dtype"):
            pair.reconstruct(x.long())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_that_a_network_does_not_take_are_named_with_the_mend(dtype):
    vae = VAE(StandardNormal(3), pv.decoders.Poisson.mlp(3, [5], 4), DiagonalNormal.mlp(4, [5], 3))
    with pytest.raises(PairError, match=r"x\.float\(\): levels and counts stay whole numbers"):
        check(vae, torch.ones(4, 4, dtype=dtype))


def test_a_part_that_is_no_module_is_refused():
    with pytest.raises(PairError, match=r"prior: expected a module, found int: see ppl_vae.priors"):
        VAE(3, Bernoulli.mlp(3, [5], 64), DiagonalNormal.mlp(64, [5], 3))


@pytest.mark.parametrize(
    ("role", "returned", "kind"),
    [
        ("encoder", lambda h: (h, h.exp()), "builtins.tuple"),
        ("encoder", lambda h: torch.distributions.Normal(h, 1.0), "torch.distributions.normal.Normal"),
        ("decoder", lambda h: h, "torch.Tensor"),
        ("prior", lambda h: h, "torch.Tensor"),
    ],
)
def test_a_part_that_returns_no_distribution_of_pyro_is_named(role, returned, kind):
    class Part(nn.Linear):
        def forward(self, x=None):
            return returned(torch.zeros(3) if x is None else super().forward(x))

    parts = {"prior": StandardNormal(3), "decoder": Bernoulli.mlp(3, [5], 64), "encoder": DiagonalNormal.mlp(64, [], 3)}
    parts[role] = Part(3, 64) if role == "decoder" else Part(64, 3)
    with pytest.raises(PairError, match=f"the {role}: expected its forward to return a distribution, found {kind}"):
        check(VAE(**parts), torch.zeros(4, 64))


def test_a_decoder_that_takes_no_particles_runs_one_by_one():
    class Rows(nn.Linear):
        def forward(self, z):
            if z.dim() > 2:
                raise RuntimeError("rows only")
            return super().forward(z)

    vae = VAE(StandardNormal(3), Bernoulli(Rows(3, 64), 64), DiagonalNormal.mlp(64, [5], 3))
    assert not check(vae, torch.zeros(4, 64)).layout.vectorized
