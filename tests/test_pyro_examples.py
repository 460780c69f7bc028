"""Programs in the form of Pyro's own examples train and are evaluated as they are written."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

import ppl_vae as pv
from ppl_vae.pair import as_pair
from tests.pairs import binary_rows
from tests.pyro_programs import VAE, SemiSupervised

BETTER = {"epochs": 40, "batch_size": 16, "learning_rate": 1e-2, "progress": False}


def improves(pair, data, **options):
    """Trains, and returns the report of the fit after checking that the ELBO rose and an evaluation works."""
    result = pv.fit(pair, data, **{**BETTER, **options})
    assert result.history[-1].elbo > result.history[0].elbo
    assert len(pyro.get_param_store()) == 0
    return result.report


def test_the_variational_autoencoder():
    images = torch.bernoulli(torch.full((64, 1, 2, 3), 0.3))
    vae = VAE()
    report = improves(vae, images)
    assert report.layout.vectorized
    assert report.layout.analytic == {"latent"}
    assert pv.log_likelihood(vae, images, 30, progress=False).value.shape == (64,)


class CVAE(nn.Module):
    """The conditional one: a plate without a size, a boolean mask that cannot broadcast, a frozen baseline."""

    def __init__(self, pixels=6):
        super().__init__()
        self.pixels = pixels
        self.baseline_net = nn.Linear(pixels, pixels).requires_grad_(False)
        self.prior_net = nn.Linear(2 * pixels, 4)
        self.generation_net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, pixels), nn.Sigmoid())
        self.recognition_net = nn.Linear(2 * pixels, 4)

    @staticmethod
    def normal(features):
        loc, raw = features.chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            with torch.no_grad():
                y_hat = self.baseline_net(xs).view(xs.shape)
            zs = pyro.sample("z", self.normal(self.prior_net(torch.cat([xs, y_hat], -1))))
            loc = self.generation_net(zs)
            if ys is not None:
                mask_loc = loc[(xs == -1).view(-1, self.pixels)].view(batch_size, -1)
                mask_ys = ys[xs == -1].view(batch_size, -1)
                pyro.sample("y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys)
            else:
                pyro.deterministic("y", loc.detach())

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            features = self.prior_net if ys is None else self.recognition_net
            pyro.sample("z", self.normal(features(torch.cat([xs, xs if ys is None else ys], -1))))


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # Pyro's remark on frozen parameters
def test_the_conditional_variational_autoencoder():
    ys = torch.bernoulli(torch.full((48, 6), 0.4))
    xs = ys.clone()
    xs[:, 3:] = -1
    cvae = CVAE()
    frozen = cvae.baseline_net.weight.clone()
    report = improves(cvae, (xs, ys))
    assert not report.layout.vectorized
    assert torch.equal(frozen, cvae.baseline_net.weight)
    ll = pv.log_likelihood(cvae, (xs, ys), 40, progress=False)
    assert ll.mean > -3.0  # three pixels of one bit each


class Counts(nn.Module):
    """Counts of genes: a library size beside the latent, negative binomial with a shared dispersion."""

    def __init__(self, genes=5):
        super().__init__()
        self.encoder, self.decoder, self.genes = nn.Linear(genes, 6), nn.Linear(2, genes), genes

    def model(self, x):
        pyro.module("counts", self)
        theta = pyro.param("inverse_dispersion", 10.0 * x.new_ones(self.genes), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0, x.new_ones(2)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(2.0 * x.new_ones(1), 1.0).to_event(1))
            rate = size * self.decoder(z).softmax(-1)
            logits = (rate + 1e-6).log() - (theta + 1e-6).log()
            pyro.sample("x", dist.NegativeBinomial(total_count=theta, logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z_loc, z_raw, l_loc, l_raw = self.encoder((1 + x).log()).split([2, 2, 1, 1], -1)
            pyro.sample("z", dist.Normal(z_loc, nn.functional.softplus(z_raw)).to_event(1))
            pyro.sample("l", dist.LogNormal(l_loc, nn.functional.softplus(l_raw)).to_event(1))


def test_counts_under_a_negative_binomial():
    x = torch.poisson(torch.full((60, 5), 4.0))
    pair = Counts()
    report = improves(pair, x)
    assert {site.name for site in report.sites} == {"z", "l", "x"}
    assert "store.param:inverse_dispersion" in as_pair(pair).state_dict()
    assert pv.log_likelihood(pair, x, 100, progress=False).trusted.mean() > 0.5


def test_counts_under_a_poisson_with_a_gamma_latent():
    x = torch.poisson(torch.full((60, 4), 3.0))
    network = nn.Linear(4, 2)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(2.0, 0.5).expand([1]).to_event(1))
            pyro.sample("x", dist.Poisson(rate.expand(*rate.shape[:-1], 4)).to_event(1), obs=x)

    def guide(x):
        a, b = nn.functional.softplus(network(x)).clamp_min(1e-3).split(1, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("rate", dist.Gamma(a, b).to_event(1))

    pair = pv.Pair(model, guide)
    assert improves(pair, x, epochs=80).layout.analytic == {"rate"}
    exact = _gamma_poisson(x)
    ll = pv.log_likelihood(pair, x, 4000, progress=False)
    assert (abs(ll.value - exact.numpy()) < 5.91 * ll.stderr + 1e-3)[ll.trusted].all()


def _gamma_poisson(x, a=2.0, b=0.5):
    n, total = x.shape[1], x.sum(1)
    a = torch.tensor(a)
    return (
        torch.lgamma(a + total)
        - torch.lgamma(a)
        + a * torch.log(torch.tensor(b))
        - (a + total) * torch.log(torch.tensor(b + n))
        - torch.lgamma(x + 1).sum(1)
    )


def test_the_semi_supervised_one_with_and_without_labels():
    xs = binary_rows(40)
    ys = nn.functional.one_hot(torch.arange(40) % 3, 3).float()
    pair = SemiSupervised()
    improves(pair, (xs, ys))
    improves(pair, xs, objective=pv.ELBO(discrete="enumerate"))
    improves(pair, xs, objective=pv.ELBO(num_particles=4))
    assert pv.log_likelihood(pair, xs, 50, progress=False).value.shape == (40,)


def test_an_automatic_guide_for_global_latents():
    """AutoNormal draws an auxiliary site and a point at each latent: a change of variables, and no mismatch."""
    x = torch.randn(100) + 1.0

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    for guide in (AutoNormal(model), AutoDelta(model)):
        pair = pv.Pair(model, guide)
        pv.fit(pair, x, epochs=300, batch_size=100, learning_rate=2e-2, progress=False)
        assert len(list(pair.parameters())) >= 2
        with pyro.get_param_store().scope():
            median = guide.median(x)
        assert abs(float(median["loc"]) - float(x.mean())) < 0.1
