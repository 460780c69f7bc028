"""Programs of Gaussian mixtures under Pyro's own handlers, and mixtures trained by gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.errors import DataError
from ppl_vae.exact import GMM, AmortisedCategorical, TrainableGMM
from ppl_vae.exact.mixture import Component
from tests.mixtures import KINDS, C, D, dense, random_gmm
from tests.running import log_weights
from tests.statistical import assert_close, assert_mean, assert_within


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_log_weight_of_the_exact_guide_is_log_p(kind, dtype):
    gmm = random_gmm(kind)
    x = gmm.sample(13).to(dtype)
    found = log_weights(gmm.model, gmm.guide, x, num_particles=5)
    assert_close(found, gmm.log_prob(x).expand(5, 13), torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_looks_up_what_indexing_would_compute(kind):
    gmm = random_gmm(kind)
    means, covariances = gmm.means, torch.as_tensor(dense(gmm).copy())
    x = gmm.sample(6)
    for z_shape, x_shape in itertools.product([(), (6,), (3, 1), (2, 3, 6)], [(), (6,), (3, 6), (1, 6), (3, 1)]):
        z = torch.randint(C, z_shape)
        value = x[torch.randint(6, x_shape)]
        judge = torch.distributions.MultivariateNormal(means[z], covariances[z])
        found = Component(gmm.mixture(), z).log_prob(value)
        assert_close(found, judge.log_prob(value))


def test_the_unobserved_model_draws_from_the_mixture():
    gmm = random_gmm()
    z = torch.tensor([0, 1, 2]).repeat_interleave(3000)
    x = Component(gmm.mixture(), z).sample()
    for c, i in itertools.product(range(C), range(D)):
        sigma = np.sqrt(gmm.covariances[c, i, i].item())
        assert_mean(x[z == c, i].numpy(), gmm.means[c, i].item(), sigma, effect=0.7)
    drawn = poutine.trace(poutine.uncondition(gmm.model)).get_trace(torch.zeros(7, D)).nodes["x"]["value"]
    assert drawn.shape == (7, D)


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_a_thousand_particles_cost_no_covariance_each():
    gmm = random_gmm("full", num_components=8, dim=64)
    x = gmm.sample(50)
    with LargestTensor() as memory:
        log_weights(gmm.model, gmm.guide, x, num_particles=1000)
    # The probabilities from which Pyro draws the (K, N) latents are the largest; (K, N, D, D) would be 512 times it.
    assert memory.bytes <= 1000 * 50 * 8 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_enumerated_elbo_is_the_log_likelihood(kind):
    start = random_gmm(kind)
    x = start.sample(20)
    trainable = TrainableGMM(start)
    expected = -start.log_prob(x).sum()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for guide in (lambda x: None, trainable.guide):
        assert_close(elbo.differentiable_loss(trainable.model, guide, x), expected)
    assert_close(trainable.to_gmm().log_prob(x), start.log_prob(x))


def test_gradients_of_the_log_likelihood_are_those_of_finite_differences():
    start = random_gmm(dim=2)
    x = start.sample(5)
    trainable = TrainableGMM(start)

    def log_likelihood(*parameters: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in trainable.named_parameters()]
        with torch.nn.utils.stateless._reparametrize_module(trainable, dict(zip(names, parameters, strict=True))):
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            return elbo.differentiable_loss(trainable.model, lambda x: None, x)

    assert torch.autograd.gradcheck(log_likelihood, tuple(trainable.parameters()), check_undefined_grad=False)


@pytest.mark.parametrize(
    ("objective", "empty_guide"),
    [(pv.ELBO(discrete="enumerate"), False), (pv.from_pyro(TraceEnum_ELBO(max_plate_nesting=1)), True)],
    ids=["enumerated", "summed out by Pyro"],
)
def test_gradients_reach_the_optimum_of_em(objective, empty_guide):
    """The latent enumerated under the exact posterior, or summed out of the model alone, is maximum likelihood."""
    x = random_gmm(seed=6, num_components=2, dim=2).sample(120)
    start = GMM.fit(x, 2, max_iter=1)
    em = GMM.fit(x, 2, init=start, tol=1e-10, max_iter=1000)
    trainable = TrainableGMM(start)
    pair = pv.Pair(trainable.model, lambda x: None) if empty_guide else trainable
    result = pv.fit(
        pair,
        x,
        objective=objective,
        steps=400,
        batch_size=120,
        learning_rate=0.05,
        schedule=schedules.Cosine(1.0, 0.0, 400),
        progress=False,
    )
    reached = trainable.to_gmm().log_prob(x).mean()
    assert em.history[-1] - start.history[-1] > 0.01
    assert_within(reached, em.history[-1], absolute=1e-3, reason="400 steps of Adam against EM to convergence")
    assert_within(result.history[-1].elbo, reached, absolute=1e-4, reason="the rate of the last steps is nearly zero")


def test_the_exact_guide_of_a_trainable_mixture_has_constant_weights():
    trainable = TrainableGMM(random_gmm())
    x = trainable.to_gmm().sample(9).float()
    found = log_weights(trainable.model, trainable.guide, x, num_particles=4)
    assert_close(found, trainable.to_gmm().log_prob(x).expand(4, 9), torch.float64)


def test_a_mixture_in_single_precision_takes_data_in_double():
    start = random_gmm()
    x = start.sample(9)
    single = TrainableGMM(start).float()
    found = log_weights(single.model, single.guide, x, num_particles=2)
    assert found.dtype == torch.float32
    assert_close(found, start.log_prob(x).expand(2, 9))


def test_a_weight_of_zero_cannot_be_trained():
    with pytest.raises(DataError, match="positive"):
        TrainableGMM(GMM([0.0, 1.0], [[0.0], [1.0]], [1.0, 1.0]))


def test_an_amortised_guide_learns_the_posterior():
    gmm = random_gmm(dim=2, spread=1.0)
    x = gmm.sample(200)
    torch.manual_seed(0)
    amortised = AmortisedCategorical(2, C, hidden=[16])
    optimiser = torch.optim.Adam(amortised.parameters(), lr=0.02)

    def gap() -> torch.Tensor:
        """KL(q, posterior) in nats per datum: log p - ELBO, the latent summed exactly."""
        weights = gmm.mixture().log_joint(x) - amortised(x).logits
        return (gmm.log_prob(x) - (amortised(x).probs * weights).sum(-1)).mean()

    untrained = gap().item()
    for _ in range(200):
        optimiser.zero_grad()
        gap().backward()
        optimiser.step()
    assert 0 <= gap().item() < 0.1 * untrained
    assert log_weights(gmm.model, amortised.guide, x.float(), num_particles=3).shape == (3, 200)
