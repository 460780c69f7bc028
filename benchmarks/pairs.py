"""Time of a training step of pairs that nobody writes by hand: as written, compiled, and in Pyro's SVI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.others import svi
from benchmarks.setting import Setting
from benchmarks.timing import Case, Limit, marginal
from benchmarks.training import COMPILED, SVI, WRITTEN, Task, fit_time
from benchmarks.workload import HIDDEN, IMAGE, LATENT, images
from ppl_vae.objectives import Objective

__all__ = ["PAIRS", "AutoregressiveFlow", "pair_case"]

BATCH_SIZE, PARTICLES = 128, 50
LIMIT = Limit(COMPILED, WRITTEN, 0.75)


class AutoregressiveFlow(nn.Module):
    """An encoder q(z given x): a diagonal normal whose draw goes through inverse autoregressive flows.

    Reference:
        Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow.
    """

    def __init__(self, num_flows: int) -> None:
        super().__init__()
        self.base = pv.encoders.DiagonalNormal.mlp(IMAGE, HIDDEN, LATENT)
        flows = [dist.transforms.affine_autoregressive(LATENT, hidden_dims=[HIDDEN[0]]) for _ in range(num_flows)]
        self.flows = nn.ModuleList(flows)

    def forward(self, x: Tensor) -> dist.TransformedDistribution:
        """Return q(z given x): batch shape (N,), event shape (50,)."""
        return dist.TransformedDistribution(self.base(x), list(self.flows))


class Subject(NamedTuple):
    """A pair, what is maximised, and what has to hold."""

    title: str
    """What it is."""
    parts: Callable[[], tuple[nn.Module, nn.Module]]
    """Makes decoder and encoder."""
    objective: Objective = pv.ELBO()
    """What `fit` maximises."""
    elbo: Callable[[], pyro.infer.ELBO] = Trace_ELBO
    """Makes what SVI maximises."""
    few: int = 10
    """Steps of the short run."""
    many: int = 50
    """Steps of the long run."""
    limits: tuple[Limit, ...] = (LIMIT,)
    """What has to hold."""


def _convolutional() -> tuple[nn.Module, nn.Module]:
    decoder = pv.decoders.Bernoulli(pv.networks.ConvDecoder(LATENT, [32, 16], (1, 28, 28)), IMAGE)
    return decoder, pv.encoders.DiagonalNormal(pv.networks.ConvEncoder((1, 28, 28), [16, 32], 2 * LATENT), LATENT)


def _usual_decoder() -> nn.Module:
    return pv.decoders.Bernoulli.mlp(LATENT, HIDDEN, IMAGE)


def _usual_encoder() -> nn.Module:
    return pv.encoders.DiagonalNormal.mlp(IMAGE, HIDDEN, LATENT)


def _sigma_of_z() -> nn.Module:
    return pv.decoders.Gaussian.mlp(LATENT, HIDDEN, IMAGE, scale="per_latent", min_scale=0.01)


PAIRS = {
    "fit-conv": Subject("a convolutional Bernoulli VAE, 16 and 32 channels", _convolutional, limits=()),
    "fit-full": Subject(
        "the VAE with a full-covariance guide",
        lambda: (_usual_decoder(), pv.encoders.FullCovarianceNormal.mlp(IMAGE, HIDDEN, LATENT)),
    ),
    "fit-sigma": Subject("the VAE with a Gaussian decoder, sigma(z)", lambda: (_sigma_of_z(), _usual_encoder())),
    "fit-iaf": Subject(
        "the VAE with two inverse autoregressive flows", lambda: (_usual_decoder(), AutoregressiveFlow(num_flows=2))
    ),
    "fit-iwae": Subject(
        f"the VAE, IWAE with K = {PARTICLES}",
        lambda: (_usual_decoder(), _usual_encoder()),
        pv.IWAE(PARTICLES),
        lambda: RenyiELBO(alpha=0.0, num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1),
        few=2,
        many=8,
    ),
}


def pair_case(name: str, setting: Setting) -> Case:
    """Time of a training step of one of `PAIRS`, batch 128."""
    subject = PAIRS[name]
    batch_size = setting.choose(BATCH_SIZE, 8)
    few, many = setting.choose(subject.few, 1), setting.choose(subject.many, 3)
    task = Task(
        partial(_make, subject), images(many * batch_size, setting.device), batch_size, few, many, subject.objective
    )
    sides = {
        WRITTEN: partial(fit_time, task, False),
        COMPILED: partial(fit_time, task, True),
        SVI: partial(marginal, partial(_svi, task, subject), few, many),
    }
    title = f"Training step of {subject.title}, batch {batch_size}"
    return Case(name, title, "step", sides, reference=WRITTEN, limits=subject.limits)


def _make(subject: Subject, device: torch.device) -> pv.VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder, encoder = subject.parts()
        return pv.VAE(pv.priors.StandardNormal(LATENT), decoder, encoder).to(device)


def _svi(task: Task, subject: Subject, steps: int) -> None:
    vae = task.make(task.x.device)

    def model(x: Tensor) -> None:
        pyro.module("vae", vae)
        vae.model(x)

    svi(model, vae.guide, task.x, task.batch_size, steps, subject.elbo())
