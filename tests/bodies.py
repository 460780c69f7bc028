"""Pairs of a few lines, from the bodies of their programs."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import ppl_vae as pv

X = torch.linspace(-1, 1, 18).reshape(6, 3)


def pair_of(model_body, guide_body, plate=lambda x: pyro.plate("data", x.shape[0])):
    """A pair whose programs run the bodies inside the data plate."""

    def model(x):
        with plate(x):
            model_body(x)

    def guide(x):
        with plate(x):
            guide_body(x)

    return pv.Pair(model, guide)


def z_normal(x, name="z", size=2):
    return pyro.sample(name, dist.Normal(x.new_zeros(size), 1.0).to_event(1))


def x_normal(x, loc=0.0):
    return pyro.sample("x", dist.Normal(x.new_zeros(3) + loc, 1.0).to_event(1), obs=x)


def good_model(x):
    z_normal(x)
    x_normal(x)
