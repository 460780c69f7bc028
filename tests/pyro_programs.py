"""Programs as Pyro's own examples write them, in small."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, out):
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(z_dim, hidden_dim), nn.Linear(hidden_dim, out)

    def forward(self, z):
        return torch.sigmoid(self.fc21(nn.functional.softplus(self.fc1(z))))


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, inputs):
        super().__init__()
        self.inputs = inputs
        self.fc1 = nn.Linear(inputs, hidden_dim)
        self.fc21, self.fc22 = nn.Linear(hidden_dim, z_dim), nn.Linear(hidden_dim, z_dim)

    def forward(self, x):
        hidden = nn.functional.softplus(self.fc1(x.reshape(-1, self.inputs)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class VAE(nn.Module):
    """The variational autoencoder: images in, flattened inside, module names registered in the programs."""

    def __init__(self, z_dim=3, hidden_dim=8, pixels=6):
        super().__init__()
        self.encoder, self.decoder = Encoder(z_dim, hidden_dim, pixels), Decoder(z_dim, hidden_dim, pixels)
        self.z_dim, self.pixels = z_dim, pixels

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, self.pixels))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class SemiSupervised(nn.Module):
    """Labels observed for some batches, a latent for others: the structure follows the arguments."""

    def __init__(self):
        super().__init__()
        self.label, self.encoder, self.decoder = nn.Linear(5, 3), nn.Linear(8, 4), nn.Linear(5, 5)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(2), 1.0).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(3) / 3), obs=ys)
            both = torch.cat(
                [t.expand(*torch.broadcast_shapes(zs.shape[:-1], ys.shape[:-1]), t.shape[-1]) for t in (zs, ys)], -1
            )
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.size(0)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.label(xs)))
            xs = xs.expand(*ys.shape[:-1], 5)
            loc, raw = self.encoder(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
