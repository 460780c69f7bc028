"""A process that trains the VAE of the benchmark with NumPyro, and answers one JSON line on each one that it reads.

It is started by `benchmarks.peer` with the Python of the peers' environment, and imports nothing of this project. Its
first line says what it is and how many seconds it took to make the programs; afterwards it understands

    {"train": n}             n more steps of SVI             -> {"seconds", "compiling", "loss": of each step's mean}
    {"evaluate": "x.npy"}    ELBO of held-out binary data    -> {"seconds", "compiling", "elbo"}

with losses and ELBOs in nats per datum. The steps are one `lax.scan` under `jit`, with the order of the rows, the
gather of the batch and the binarisation inside it, on data that stay on the device; the state is donated. Compiling is
timed apart, once for each n.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, TraceMeanField_ELBO

HIDDEN, LATENT, LEARNING_RATE = (200, 200), 50, 1e-3
ELBO = TraceMeanField_ELBO()  # as fast as Trace_ELBO or faster, and of lower variance

jax.config.update("jax_default_prng_impl", "rbg")  # no slower than the default, threefry, here


def network(sizes: tuple[int, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (init, apply) of a tanh network, drawn as torch draws its own: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def uniform(fan_in: int, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        return random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    layers: list[Any] = []
    for fan_in, fan_out in pairwise(sizes):
        draw = partial(uniform, fan_in)
        layers += [stax.Dense(fan_out, W_init=draw, b_init=draw), stax.Tanh]
    return stax.serial(*layers[:-1])


def make_svi(size: int) -> SVI:
    """Return SVI of the 784-200-200-50 VAE with Bernoulli pixels."""
    encode, decode = network((size, *HIDDEN, 2 * LATENT)), network((LATENT, *HIDDEN[::-1], size))

    def model(x: Any) -> None:
        decoder = numpyro.module("decoder", decode, (LATENT,))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.module("encoder", encode, (size,))
        loc, raw_scale = jnp.split(encoder(x), 2, -1)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw_scale)).to_event(1))

    return SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), ELBO)


class Worker:
    """The state of the fit, and the programs compiled so far."""

    def __init__(self, path: str, batch_size: int, binarize: bool) -> None:
        self.x = jnp.asarray(np.load(path, allow_pickle=False))
        self.batch_size, self.binarize = batch_size, binarize
        start = time.perf_counter()
        self.svi = make_svi(self.x.shape[1])
        self.state = self.svi.init(random.key(0), self.x[:batch_size])
        self.key = random.key(1)
        self.compiled: dict[Any, Any] = {}
        jax.block_until_ready(self.state)
        self.starting = time.perf_counter() - start

    def train(self, steps: int) -> dict[str, Any]:
        """Take more steps, each on the next batch of the shuffled rows."""
        start = time.perf_counter()
        run = self._program(steps, jax.jit(partial(self._steps, steps), donate_argnums=0), self.state, self.key, self.x)
        compiled = time.perf_counter()
        self.state, self.key, losses = jax.block_until_ready(run(self.state, self.key, self.x))
        end = time.perf_counter()
        loss = (np.asarray(losses) / self.batch_size).tolist()
        return {"seconds": end - compiled, "compiling": compiled - start, "loss": loss}

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the ELBO of held-out data at the parameters of the moment."""
        x = jnp.asarray(np.load(path, allow_pickle=False))
        start = time.perf_counter()
        run = self._program(path, jax.jit(self._bound), self.state, x)
        compiled = time.perf_counter()
        elbo = float(run(self.state, x))
        return {"seconds": time.perf_counter() - compiled, "compiling": compiled - start, "elbo": elbo}

    def _program(self, name: Any, function: Any, *arguments: Any) -> Any:
        if name not in self.compiled:
            self.compiled[name] = function.lower(*arguments).compile()
        return self.compiled[name]

    def _steps(self, steps: int, state: Any, key: Any, x: Any) -> tuple[Any, Any, Any]:
        key, shuffling, drawing = random.split(key, 3)
        an_epoch = len(x) // self.batch_size
        epochs = random.split(shuffling, -(-steps // an_epoch))
        order = lax.map(lambda k: random.permutation(k, len(x))[: an_epoch * self.batch_size], epochs)
        batches = order.reshape(-1, self.batch_size)[:steps]

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            rows, noise = batch
            images = x[rows]
            if self.binarize:
                images = random.bernoulli(noise, images).astype(jnp.float32)
            return self.svi.update(state, images)

        state, losses = lax.scan(step, state, (batches, random.split(drawing, steps)))
        return state, key, losses

    def _bound(self, state: Any, x: Any) -> Any:
        return -self.svi.evaluate(state, x) / len(x)


def main() -> None:
    """Answer until the input ends."""
    worker = Worker(**json.loads(sys.argv[1]))
    versions = {"jax": jax.__version__, "numpyro": numpyro.__version__}
    ready = {"versions": versions, "threads": os.environ.get("NPROC"), "starting": worker.starting}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        ((request, argument),) = json.loads(line).items()
        answer = worker.train(argument) if request == "train" else worker.evaluate(argument)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
