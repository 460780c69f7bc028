"""Time and memory of the importance-sampled log-likelihood, beside the decoder's matrix products alone.

The time is that of one more image: set-up, checks and compiling cancel. `log_likelihood` also gives what the sampler by
hand does not: standard error, ESS, k-hat and posterior draws.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.timing import Case, Limit, marginal
from benchmarks.workload import images, make_vae, moments

__all__ = ["Memory", "by_hand_log_likelihood", "evaluation_case", "peak_memory"]

CHUNK = 2048  # decodes at once of the sides by hand: more run no faster and fall out of the cache


class Memory(NamedTuple):
    """Peak resident memory of a process, in bytes."""

    num_data: int
    """Number of images."""
    num_samples: int
    """K."""
    before: int
    """When libraries, network and data are loaded."""
    peak: int
    """After the evaluation."""


WRITTEN, COMPILED, PRODUCTS = "ppl_vae log_likelihood", "ppl_vae log_likelihood, compiled", "matrix products"
LIMITS = (Limit(COMPILED, PRODUCTS, 1.4),)


def evaluation_case(few: int, many: int, num_samples: int) -> Case:
    """Time of the log-likelihood of one more image with K = `num_samples`: set-up and compiling cancel."""
    vae, x = make_vae(), images(many)
    sides: dict[str, Callable[[], float]] = {
        WRITTEN: partial(marginal, partial(_ours, vae, x, num_samples, False), few, many),
        COMPILED: partial(marginal, partial(_ours, vae, x, num_samples, True), few, many),
        "PyTorch by hand": partial(marginal, lambda n: by_hand_log_likelihood(vae, x[:n], num_samples), few, many),
        PRODUCTS: partial(marginal, lambda n: _products(vae, n * num_samples), few, many),
    }
    title = f"Log-likelihood of an image at K = {num_samples:,}"
    return Case("evaluation", title, "image", sides, reference=PRODUCTS, floor=PRODUCTS, limits=LIMITS)


@torch.no_grad()
def by_hand_log_likelihood(vae: pv.VAE, x: Tensor, num_samples: int) -> Tensor:
    """Return log 1/K sum_k p(x, z_k) / q(z_k given x) of data (N, 784), in nats: (N,), with nothing but PyTorch."""
    posterior = torch.distributions.Normal(*moments(vae, x), validate_args=False)
    prior = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    particles = max(1, CHUNK // len(x))
    log_weights = []
    for drawn in range(0, num_samples, particles):
        z = posterior.sample((min(particles, num_samples - drawn),))
        logits = vae.decoder.get_submodule("network")(z)
        distortion = nn.functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_weights.append((prior.log_prob(z) - posterior.log_prob(z)).sum(-1) - distortion.sum(-1))
    return torch.cat(log_weights).logsumexp(0) - math.log(num_samples)


def peak_memory(num_data: int, num_samples: int) -> Memory:
    """Measure the memory of an evaluation in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.evaluation", str(num_data), str(num_samples)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(done.stdout))


def _ours(vae: pv.VAE, x: Tensor, num_samples: int, compile: bool, num_data: int) -> None:
    pv.log_likelihood(vae, x[:num_data], num_samples, device="cpu", compile=compile, progress=False)


@torch.no_grad()
def _products(vae: pv.VAE, decodes: int) -> None:
    weights = [module.weight.T for module in vae.decoder.modules() if isinstance(module, nn.Linear)]
    for start in range(0, decodes, CHUNK):
        features = torch.ones(min(CHUNK, decodes - start), len(weights[0]))
        for weight in weights:
            features = features @ weight


def _peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux carries the ru_maxrss of the parent over to the child; VmHWM belongs to this program alone.
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main(num_data: int, num_samples: int) -> None:
    vae, x = make_vae(), images(num_data)
    before = _peak()
    _ours(vae, x, num_samples, False, num_data)
    print(json.dumps(Memory(num_data, num_samples, before, _peak())._asdict()))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
