"""Flows of zuko as guides, through Pyro's own adapter."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro

import ppl_vae as pv

zuko = pytest.importorskip("zuko", reason="zuko is in the extra 'flows'")
LATENT, DATA = 2, 3


class FlowVAE(torch.nn.Module):
    """A linear decoder and a flow as guide."""

    def __init__(self, flow):
        super().__init__()
        self.decoder, self.flow = torch.nn.Linear(LATENT, DATA), flow

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", ZukoToPyro(self.flow(x)))


FLOWS = {
    "MAF": lambda: zuko.flows.MAF(LATENT, DATA, transforms=1, hidden_features=[8]),
    "NSF": lambda: zuko.flows.NSF(LATENT, DATA, transforms=1, hidden_features=[8]),
    "NAF": lambda: zuko.flows.NAF(LATENT, DATA, transforms=1),
    "CNF": lambda: zuko.flows.CNF(LATENT, DATA, hidden_features=[8]),
    "GF": lambda: zuko.flows.GF(LATENT, DATA, transforms=1, hidden_features=[8]),
}


def exact_evidence(vae, x):
    """log p(x) of the linear-Gaussian model."""
    weight, bias = vae.decoder.weight.detach(), vae.decoder.bias.detach()
    covariance = weight @ weight.T + 0.25 * torch.eye(DATA)
    return dist.MultivariateNormal(bias, covariance).log_prob(x)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_train_by_every_gradient_and_evaluate_right(name):
    torch.manual_seed(0)
    vae, x = FlowVAE(FLOWS[name]()), torch.randn(12, DATA)
    layout = pv.check(vae, x).layout
    assert layout.vectorized
    for objective in (pv.ELBO(), pv.ELBO(gradient="stl"), pv.IWAE(3, gradient="dreg")):
        before = [p.detach().clone() for p in vae.flow.parameters()]
        pv.fit(vae, x, objective=objective, epochs=1, progress=False)
        assert any(bool((p != b).any()) for p, b in zip(vae.flow.parameters(), before, strict=True))
    ll = pv.log_likelihood(vae, x, 1000, progress=False)
    assert ll.trusted.sum() >= 6
    error = abs(ll.value - exact_evidence(vae, x).numpy())
    assert (error <= 5.91 * ll.stderr + 1e-3)[ll.trusted].all()
