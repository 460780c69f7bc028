"""Linear Gaussian models as pairs of modules whose guide is exact: every log-weight is the evidence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppl_vae.conditional import Classifier, ConditionalVAE, SemiSupervisedVAE
from ppl_vae.decoders import Gaussian
from ppl_vae.encoders import DiagonalNormal, FullCovarianceNormal
from ppl_vae.hierarchical import HierarchicalVAE
from ppl_vae.networks import MLP
from ppl_vae.priors import StandardNormal

DIM, LATENT, CLASSES, SIGMA = 3, 2, 4, 0.7


def set_affine(network: MLP, weight: Tensor, bias: Tensor) -> None:
    """Make the first outputs of a network without hidden layers `weight x + bias`, and the others constant."""
    affine = network.layers[0]
    assert isinstance(affine, nn.Linear)
    with torch.no_grad():
        affine.weight.zero_()[: len(weight)] = weight
        affine.bias.copy_(bias)


def raw(scale: Tensor | float) -> Tensor:
    """What the softplus maps to a scale."""
    return torch.as_tensor(scale).expm1().log()


class ByClass:
    """x = W z + b_y + sigma e: p(x given y) = N(b_y, W W^T + sigma^2 I)."""

    def __init__(self) -> None:
        self.weight, self.means = torch.randn(DIM, LATENT), torch.randn(CLASSES, DIM)
        self.probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
        posterior = torch.linalg.inv(torch.eye(LATENT) + self.weight.T @ self.weight / SIGMA**2)
        to_mean = posterior @ self.weight.T / SIGMA**2
        factor = torch.linalg.cholesky(posterior)
        self.decoder = Gaussian(MLP(LATENT + CLASSES, [], DIM), DIM, SIGMA)
        set_affine(self.decoder.network, torch.cat([self.weight, self.means.T], 1), torch.zeros(DIM))
        self.encoder = FullCovarianceNormal(MLP(DIM + CLASSES, [], LATENT * (LATENT + 3) // 2), LATENT)
        fixed = torch.cat([torch.zeros(LATENT), raw(factor.diagonal()), factor[1, :1]])
        set_affine(self.encoder.network, torch.cat([to_mean, -to_mean @ self.means.T], 1), fixed)

    def conditional(self) -> ConditionalVAE:
        return ConditionalVAE(StandardNormal(LATENT), self.decoder, self.encoder, CLASSES).double()

    def semi_supervised(self) -> SemiSupervisedVAE:
        classifier = Classifier.mlp(DIM, [5], CLASSES)
        return SemiSupervisedVAE(StandardNormal(LATENT), self.decoder, self.encoder, classifier, self.probs).double()

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x given y) for every y, (N, C)."""
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(DIM)
        return torch.distributions.MultivariateNormal(self.means, covariance).log_prob(x.unsqueeze(1))


def chain() -> tuple[HierarchicalVAE, float]:
    """z2 ~ N(0, 1), z1 = 1.5 z2 + 0.3 + 0.8 e, x = -2 z1 + 0.5 + 0.7 e with the exact guide; the variance of z1."""
    above, decoder = DiagonalNormal(MLP(1, [], 2), 1), Gaussian(MLP(1, [], 1), 1, SIGMA)
    first, second = DiagonalNormal(MLP(1, [], 2), 1), DiagonalNormal(MLP(1, [], 2), 1)
    set_affine(above.network, torch.tensor([[1.5]]), torch.stack([torch.tensor(0.3), raw(0.8)]))
    set_affine(decoder.network, torch.tensor([[-2.0]]), torch.tensor([0.5]))
    variance = 1.5**2 + 0.8**2
    gain = -2 * variance / (4 * variance + SIGMA**2)
    spread = (variance * SIGMA**2 / (4 * variance + SIGMA**2)) ** 0.5
    offset = 0.3 - gain * (0.5 - 2 * 0.3)
    set_affine(first.network, torch.tensor([[gain]]), torch.stack([torch.tensor(offset), raw(spread)]))
    gain, spread = 1.5 / variance, (0.8**2 / variance) ** 0.5
    set_affine(second.network, torch.tensor([[gain]]), torch.stack([torch.tensor(-0.3 * gain), raw(spread)]))
    return HierarchicalVAE(StandardNormal(1), [above], decoder, [first, second]).double(), variance
