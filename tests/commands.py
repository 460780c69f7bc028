"""The command run in this process, and a file with pairs of a user's own."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from ppl_vae.cli import app
from ppl_vae.storage import plain

TINY = ["--epochs", "1", "--eval-samples", "20", "--eval-limit", "30"]
SMALL_VAE = ["vae", "--latent-dim", "2", "--hidden", "8"]

USERS_PAIR = """
import torch, pyro, pyro.distributions as dist
import ppl_vae as pv

def own(size):
    encoder, decoder = torch.nn.Linear(size, 4), torch.nn.Linear(2, size)
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)
    def guide(x):
        loc, raw = encoder(x).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
    return pv.Pair(model, guide)

def fixed():
    return own(64)

def typo():
    pair = own(64)
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("zz", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return pv.Pair(pair.model, guide)

def fails():
    raise RuntimeError("no such network")

def leaves():
    raise SystemExit(3)

def nothing():
    return None

def many(a, b):
    return own(a)

def with_default(latent_dim=5):
    assert latent_dim == 5
    return own(64)

def keyword(*, size):
    return own(size)

def of_labels(size, classes):
    encoder, decoder = torch.nn.Linear(size + 3, 4), torch.nn.Linear(2 + 3, size)
    def model(x, y):
        label = torch.nn.functional.one_hot(y, 3).to(x.dtype)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            label = label.expand(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(decoder(torch.cat([z, label], -1)), 0.5).to_event(1), obs=x)
    def guide(x, y):
        loc, raw = encoder(torch.cat([x, torch.nn.functional.one_hot(y, 3).to(x.dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
    assert classes == 1
    return pv.Pair(model, guide)

def wrong_size():
    return own(7)

def deep():
    return torch.nn.Linear(-1, 2)

def shouts():
    raise ValueError(f"first line\\n{torch.zeros(40, 40)}\\nlast line")

number = 3
"""


def call(*arguments: str | Path) -> Result:
    """What the command answers."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments: str | Path) -> str:
    """What the command prints when all goes well, on one line."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def read(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def rewritten(path: Path, target: Path, **changes: object) -> None:
    """A record of a run that says something else, under an intact hash."""
    fields = {name: value for name, value in read(path).items() if name != "sha256"}
    target.write_bytes(plain.seal(fields | changes, indent=2))
