"""Every kind of pair that compiles, in one list: name -> (pair, objective, data). A new pair is added here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.conditional import Classifier, ConditionalVAE, SemiSupervisedVAE
from ppl_vae.exact.trainable import TrainableGMM
from tests.pairs import DiscreteVAE, HierarchicalVAE, ModuleVAE, binary_rows


class Case(NamedTuple):
    """A pair that compiles."""

    make: Callable[[], Any]
    """Makes the pair anew."""
    objective: Any
    """What it trains by, or a function of the pair that makes it."""
    data: Tensor | tuple[Tensor, ...]
    """What it trains on: the arguments of its programs."""


class Plain(nn.Module):
    """A pair with a linear decoder, a Gaussian likelihood and any encoder of 2 x 2 moments."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, nn.Linear(2, 6)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Flow(Plain):
    """The same with Pyro's inverse autoregressive flow, conditioned on nothing."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 4))
        self.flow = dist.transforms.affine_autoregressive(2, hidden_dims=[8])

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


class Held(Plain):
    """Distributions that are given parameters as they are: a root of the covariance, and a shift of its draws."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 2))
        self.root, self.shift = nn.Parameter(torch.tensor([[0.8, 0.0], [0.3, 0.6]])), nn.Parameter(torch.ones(2))

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            base = dist.MultivariateNormal(self.encoder(x), scale_tril=self.root)
            shift = dist.transforms.AffineTransform(self.shift, 1.0, event_dim=1)
            pyro.sample("z", dist.TransformedDistribution(base, [shift]))


def batch_norm() -> Plain:
    """Buffers that move, and dropout."""
    return Plain(
        nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
    )


def positive_parameters() -> pv.Pair:
    """Parameters of `pyro.param` with constraints, and a latent of gamma distribution."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(torch.ones(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, 6), scale).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.zeros(6))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Gamma(1 + (x @ slope).exp(), 1.0))

    return pv.Pair(model, guide)


def mixture() -> TrainableGMM:
    """Three components with full covariances."""
    means = torch.linspace(-1.0, 1.0, 18, dtype=torch.float64).reshape(3, 6)
    return TrainableGMM(pv.GMM(torch.ones(3) / 3, means, torch.eye(6).expand(3, 6, 6)))


def vae(decoder: nn.Module, encoder: nn.Module) -> pv.VAE:
    """A VAE with two latent dimensions."""
    return pv.VAE(pv.priors.StandardNormal(2), decoder, encoder)


def shaken(module: nn.Module) -> nn.Module:
    """The module away from where it starts, where a flow does nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def guided(encoder: Any, **options: Any) -> pv.VAE:
    """A Gaussian VAE with an encoder of another family."""
    return vae(pv.decoders.Gaussian.mlp(2, [8], 6), shaken(encoder.mlp(6, [8], 2, **options)))


def with_prior(make: Callable[[nn.Module], nn.Module]) -> pv.VAE:
    """A Gaussian VAE whose prior is made from its encoder."""
    encoder = _ENCODER(6, [8], 2)
    return pv.VAE(shaken(make(encoder)), pv.decoders.Gaussian.mlp(2, [8], 6), encoder)


def convolutional() -> pv.VAE:
    """Convolutions both ways, on images of 8 x 8."""
    decoder = pv.decoders.Bernoulli(pv.networks.ConvDecoder(2, [4], (1, 8, 8)), (1, 8, 8))
    return vae(decoder, pv.encoders.DiagonalNormal(pv.networks.ConvEncoder((1, 8, 8), [4], 4), 2))


def conditional() -> ConditionalVAE:
    """Classes that are given."""
    return ConditionalVAE(
        pv.priors.StandardNormal(2), pv.decoders.Bernoulli.mlp(2 + 3, [8], 5), _ENCODER(5 + 3, [8], 2), 3
    )


def semi_supervised() -> SemiSupervisedVAE:
    """Classes that are latent where no label is known."""
    parts = conditional()
    return SemiSupervisedVAE(parts.prior, parts.decoder, parts.encoder, Classifier.mlp(5, [8], 3), 3)


def labelled_flows() -> SemiSupervisedVAE:
    """Classes latent in part, beside a flow encoder and a MADE that sees features of z and class."""
    decoder = nn.Sequential(pv.networks.MLP(2 + 3, [8], 3), pv.autoregressive.MADE(5, [8], context_dim=3))
    encoder = shaken(pv.encoders.InverseAutoregressive.mlp(5 + 3, [8], 2, **_SMALL))
    return SemiSupervisedVAE(pv.priors.StandardNormal(2), decoder, encoder, Classifier.mlp(5, [8], 3), 3)


def spline_vamp() -> pv.VAE:
    """A VampPrior of a spline flow."""
    encoder = shaken(pv.encoders.NeuralSpline.mlp(6, [8], 2, **_SMALL))
    return pv.VAE(pv.priors.VampPrior(encoder, _REAL[:3]), pv.decoders.Gaussian.mlp(2, [8], 6), encoder)


def three_layers() -> pv.HierarchicalVAE:
    """Latents of three, two and two dimensions."""
    conditionals = [pv.encoders.DiagonalNormal.mlp(2, [6], 3), pv.encoders.FullCovarianceNormal.mlp(2, [6], 2)]
    encoders = [_ENCODER(5, [8], 3), _ENCODER(3, [6], 2), pv.encoders.LowRankNormal.mlp(2, [6], 2, rank=1)]
    decoder = pv.decoders.Bernoulli.mlp(3, [8], 5)
    return pv.HierarchicalVAE(pv.priors.StandardNormal(2), conditionals, decoder, encoders)


def autoencoder() -> pv.Autoencoder:
    """The deterministic one."""
    return pv.Autoencoder(encoder=pv.networks.MLP(6, [8], 2), decoder=pv.decoders.Gaussian.mlp(2, [8], 6))


def made_decoder() -> pv.VAE:
    """A MADE that sees features of z."""
    made = pv.autoregressive.MADE(5, [8], context_dim=3)
    return vae(nn.Sequential(pv.networks.MLP(2, [8], 3), made), _ENCODER(5, [8], 2))


def pixelcnn_decoder() -> pv.VAE:
    """A PixelCNN that sees an image of features of z."""
    network = pv.networks.ConvDecoder(2, [4], (3, 8, 8))
    pixelcnn = pv.autoregressive.PixelCNN((1, 8, 8), 4, 2, context_shape=(3, 8, 8))
    return vae(nn.Sequential(network, pixelcnn), pv.encoders.DiagonalNormal.mlp(64, [8], 2))


torch.manual_seed(0)
_BINARY, _REAL = binary_rows(20), torch.randn(20, 6)
_LEVELS = torch.randint(4, (20, 6)).float()
_IMAGES = (torch.rand(20, 1, 8, 8) < 0.5).float()
_GREY = torch.randint(3, (20, 1, 8, 8)).float()
_SMALL = {"context_dim": 3, "flow_hidden": [8], "num_flows": 1}
_LABELS = torch.arange(20) % 4 - 1
_ENCODER = pv.encoders.DiagonalNormal.mlp

ZOO: dict[str, Case] = {
    "Bernoulli": Case(ModuleVAE, pv.ELBO(), _BINARY),
    "sampled KL": Case(ModuleVAE, pv.ELBO(3, kl="sampled"), _BINARY),
    "free bits": Case(ModuleVAE, pv.ELBO(free_bits=0.1), _BINARY),
    "path gradients": Case(ModuleVAE, pv.ELBO(2, gradient="stl"), _BINARY),
    "score function": Case(ModuleVAE, pv.ELBO(3, gradient="score"), _BINARY),
    "IWAE": Case(ModuleVAE, pv.IWAE(4), _BINARY),
    "DReG": Case(ModuleVAE, pv.IWAE(4, gradient="dreg"), _BINARY),
    "DReG, parameters held by distributions": Case(Held, pv.IWAE(4, gradient="dreg"), _REAL),
    "path gradients, parameters held by distributions": Case(Held, pv.ELBO(2, gradient="stl"), _REAL),
    "VIMCO": Case(DiscreteVAE, pv.IWAE(4, gradient="vimco"), _BINARY),
    "Renyi": Case(ModuleVAE, pv.Renyi(0.5, 3), _BINARY),
    "hierarchy": Case(HierarchicalVAE, pv.ELBO(), _BINARY),
    "discrete, score function": Case(DiscreteVAE, pv.ELBO(3), _BINARY),
    "discrete, running baseline": Case(DiscreteVAE, pv.ELBO(baseline="running"), _BINARY),
    "discrete, enumerated": Case(DiscreteVAE, pv.ELBO(discrete="enumerate"), _BINARY),
    "mixture, enumerated": Case(mixture, pv.ELBO(discrete="enumerate"), _REAL.double()),
    "layers": Case(lambda: pv.HierarchicalVAE.burda(5, ((8,), (6,)), (3, 2)), pv.IWAE(3), _BINARY),
    "three layers": Case(three_layers, pv.ELBO(2), _BINARY),
    "classes given": Case(conditional, pv.ELBO(), (_BINARY, _LABELS.clamp_min(0))),
    "classes given in part": Case(
        semi_supervised,
        lambda pair: pv.Supervised(pv.ELBO(discrete="enumerate"), pair.log_label, weight=2.0),
        (_BINARY, _LABELS),
    ),
    "classes given in part, flow and MADE": Case(
        labelled_flows,
        lambda pair: pv.Supervised(pv.ELBO(discrete="enumerate", gradient="stl"), pair.log_label, weight=2.0),
        (_BINARY, _LABELS),
    ),
    "full covariance": Case(
        lambda: guided(pv.encoders.FullCovarianceNormal),
        pv.ELBO(),
        _REAL,
    ),
    "low-rank covariance": Case(lambda: guided(pv.encoders.LowRankNormal, rank=1), pv.ELBO(), _REAL),
    "inverse autoregressive flow": Case(lambda: guided(pv.encoders.InverseAutoregressive, **_SMALL), pv.ELBO(), _REAL),
    "masked autoregressive flow": Case(lambda: guided(pv.encoders.MaskedAutoregressive, **_SMALL), pv.ELBO(), _REAL),
    "neural spline flow, DReG": Case(
        lambda: guided(pv.encoders.NeuralSpline, **_SMALL), pv.IWAE(2, gradient="dreg"), _REAL
    ),
    "mixture as prior": Case(lambda: with_prior(lambda _: pv.priors.MixtureOfNormals(2, 3)), pv.ELBO(), _REAL),
    "VampPrior": Case(lambda: with_prior(lambda e: pv.priors.VampPrior(e, _REAL[:3])), pv.IWAE(3), _REAL),
    "flow as prior": Case(lambda: with_prior(lambda _: pv.priors.FlowPrior(2, "affine", [8], 1)), pv.ELBO(), _REAL),
    "spline flow as prior": Case(
        lambda: with_prior(lambda _: pv.priors.FlowPrior(2, "spline", [8], 1)), pv.IWAE(2), _REAL
    ),
    "learned scale": Case(
        lambda: vae(pv.decoders.Gaussian.mlp(2, [8], 6, scale="learned"), _ENCODER(6, [8], 2)), pv.ELBO(), _REAL
    ),
    "scale of the latent": Case(
        lambda: vae(pv.decoders.Gaussian.mlp(2, [8], 6, scale="per_latent"), _ENCODER(6, [8], 2)), pv.ELBO(), _REAL
    ),
    **{
        f"decoder {name}": Case(lambda decoder=decoder: vae(decoder(), _ENCODER(6, [8], 2)), pv.ELBO(), data)
        for name, (decoder, data) in {
            "continuous Bernoulli": (lambda: pv.decoders.ContinuousBernoulli.mlp(2, [8], 6), _REAL.sigmoid()),
            "categorical": (lambda: pv.decoders.Categorical.mlp(2, [8], 6, num_levels=4), _LEVELS),
            "discretised logistic": (lambda: pv.decoders.DiscretizedLogistic.mlp(2, [8], 6, num_levels=4), _LEVELS),
            "mixture": (lambda: pv.decoders.DiscretizedLogisticMixture.mlp(2, [8], 6, num_levels=4), _LEVELS),
            "Poisson": (lambda: pv.decoders.Poisson.mlp(2, [8], 6), _LEVELS),
            "negative binomial": (lambda: pv.decoders.NegativeBinomial.mlp(2, [8], 6), _LEVELS),
        }.items()
    },
    "convolutional": Case(convolutional, pv.ELBO(), _IMAGES),
    "autoencoder": Case(autoencoder, pv.ELBO(), _REAL),
    "MADE": Case(lambda: pv.autoregressive.MADE(5, [8]), pv.ELBO(), _BINARY),
    "MADE of levels": Case(lambda: pv.autoregressive.MADE(6, [8], levels=4), pv.ELBO(), _LEVELS),
    "MADE as decoder": Case(made_decoder, pv.ELBO(), _BINARY),
    "PixelCNN of levels": Case(lambda: pv.autoregressive.PixelCNN((1, 8, 8), 4, 2, levels=3), pv.ELBO(), _GREY),
    "PixelCNN": Case(lambda: pv.autoregressive.PixelCNN((1, 8, 8), 4, 2), pv.ELBO(), _IMAGES),
    "PixelCNN as decoder": Case(pixelcnn_decoder, pv.ELBO(), _IMAGES),
    "batch normalisation and dropout": Case(batch_norm, pv.ELBO(), _REAL),
    "flow": Case(Flow, pv.ELBO(), _REAL),
    "constrained": Case(positive_parameters, pv.ELBO(2), _REAL),
}
