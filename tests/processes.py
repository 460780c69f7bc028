"""What each process of tests/test_distributed.py does, `processes.py FOLDER TASK TIMEOUT`; each leaves a file."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import distributed
from ppl_vae.rng import seeded
from ppl_vae.storage import steps
from ppl_vae.svi.order import Order
from tests.nonfinite import Overflowing, overflowing_at
from tests.pairs import (
    DiscreteVAE,
    ModuleVAE,
    binary_rows,
    closure_pair,
    exponential_and_normal,
    of_two_kinds,
    small_ppca,
)
from tests.training import fresh, state, train

ROWS, BATCH = 13, 4  # the last batch has one row: fewer than there are processes


@dataclass
class Watched:
    """An objective that notes which rows a process sees in each step, and what it would draw next."""

    objective: pv.ELBO = field(default_factory=pv.ELBO)
    rows: list = field(default_factory=list)
    noise: list = field(default_factory=list)
    num_particles, beta = 1, 1.0

    def evaluate(self, pair, batch, layout, beta):
        self.rows.append([int(i) for i in batch[0] @ 2.0 ** torch.arange(5)])
        values = self.objective.evaluate(pair, batch, layout, beta)
        self.noise.append(float(torch.rand(())))
        return values

    def judge(self):
        return self.objective.judge()


def counted(n):
    """Binary rows that spell the numbers from 0."""
    return torch.tensor([[float(i >> bit & 1) for bit in range(5)] for i in range(n)])


class Alternating(ModuleVAE):
    """Every second step writes to a buffer, from the rows of its process; what each step has met is noted."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("runs", torch.zeros((), dtype=torch.int16))
        self.met = []

    def guide(self, x):
        self.met.append(self.mean.tolist())
        self.runs += 1
        if self.runs % 2 == 0:
            self.mean.lerp_(x.mean(0), 0.5)
        return super().guide(x)


def normalised():
    module = ModuleVAE()
    module.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return module


def without_noise(dtype=torch.float64, seed=0):
    """A fit in which nothing is random but the order of the rows: sums over the values of its latent."""
    pair = fresh(seed, DiscreteVAE).to(dtype)
    objective = pv.ELBO(discrete="enumerate")
    options = {"objective": objective, "batch_size": BATCH, "epochs": 3, "learning_rate": 0.5, "clip_norm": 0.2}
    result = train(
        pair, binary_rows(ROWS).to(dtype), **options, optimizer=torch.optim.SGD, validation=binary_rows(700, 1)
    )
    numbers = [{**record._asdict(), "seconds": 0.0} for record in result.history]
    return state(pair), np.array([[row[name] for name in row if name != "validation_kl"] for row in numbers])


def estimates(n):
    with seeded(0):
        pair = ModuleVAE().double()
    x = binary_rows(n, 3).double()
    return pv.log_likelihood(pair, x, num_samples=30, num_draws=3, progress=False)


def evaluations(n):
    """What goes through data in blocks, but `log_likelihood`."""
    ppca = small_ppca()
    pair, x = of_two_kinds(ppca, 0.4), ppca.sample(n, seed=1)
    chains, quiet = pv.Annealing(2, 3, 1), {"progress": False}
    ll = pv.log_likelihood(pair, x, 100, num_draws=0, compile=False, **quiet)
    better = pv.escalate(ll, pair, x, annealing=chains, compile=False, **quiet)
    positive, y = exponential_and_normal(0.4, -0.5), 6 * torch.rand(n, generator=torch.Generator().manual_seed(0))
    few = pv.log_likelihood(positive, y, 30, num_draws=0, compile=False, **quiet)
    kept = pv.escalate(few, positive, y, annealing=chains, compile=False, **quiet)
    both = pv.bidirectional_monte_carlo(pair, x, chains, **quiet)
    entries = pv.ledger(pair, x, 2, num_aggregate=8, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the guide is bad for some data, and is to be
        made = pv.posterior_predictive(pair, x, 2, **quiet)
    found = {
        "evidence": pv.log_evidence(pair, x[:20], **quiet),
        "lower": both.lower,
        "upper": both.upper,
        "x": both.x[0],
    }
    found |= {"annealed": pv.annealed_importance_sampling(pair, x, chains, **quiet).value, "escalated": better.value}
    found |= {"elbo": entries.elbo.value, "kl": entries.latents[0].kl, "form": np.array(entries.latents[0].form)}
    found |= {"information": np.array(entries.surgery.mutual_information), "z": made.posterior["z"]}
    found |= {"made": made.predictive["x"], "given": made.observed["x"], "log_lik": made.log_lik}
    found |= pv.calibrate(pair, x[:3], 100, 9, **quiet).ranks
    found |= {"bounds": pv.k_curve(pair, x, 4, **quiet).bounds}
    return found | {"kept": kept.value, "why": np.array(json.dumps(kept.failures))}


def message(kind, act):
    try:
        act()
    except kind as error:
        return str(error)
    return ""


def work(group):
    found = {}
    params, history = without_noise(seed=group.rank)
    found |= {f"deterministic {name}": value for name, value in params.items()} | {"deterministic history": history}
    watched = Watched()
    train(fresh(), counted(ROWS), batch_size=BATCH, epochs=1, objective=watched, compile=False)
    found["rows"] = np.array(json.dumps(watched.rows))
    found["noise"] = np.array(watched.noise)
    for again in ("first", "second"):
        pair = fresh(make=normalised)
        train(pair, binary_rows(16), batch_size=8)
        found |= {f"{again} {name}": value for name, value in state(pair).items()}
    for n in (600, 5):
        ll = estimates(n)
        found |= {f"{n} value": ll.value, f"{n} khat": ll.khat, f"{n} zeros": ll.zero_weights}
        found |= {f"{n} drawn z": ll.posterior["z"], f"{n} drawn log_lik": ll.posterior_log_lik}
        found |= {f"{n} {name}": array for name, array in evaluations(min(n, 100)).items()}
    with distributed.alone():
        found["alone"] = estimates(5).value if group.leads else np.zeros(0)
    x = torch.zeros(8, 3)
    x[Order(8, 8, seed=0).at(0)[-1]] = 3e38  # a row of process 1
    found["not finite"] = message(pv.EstimateError, lambda: train(closure_pair(), x, batch_size=8))
    found["other batches"] = message(pv.GroupError, lambda: train(fresh(), binary_rows(8), batch_size=4 + group.rank))
    x = binary_rows(8) * (float("nan") if group.rank else 1.0)
    found["bad data"] = message(pv.DataError, lambda: train(fresh(), x))
    x = small_ppca().sample(600).float()
    found["bad evaluation"] = message(pv.EstimateError, lambda: overflowing(x))
    return found | late() | {f"straight {name}": value for name, value in survive(group).items()}


def overflowing(x):
    x[-1] = 3e38
    return pv.log_likelihood(closure_pair(), x[:, :3], num_samples=10, progress=False)


def hang(group):
    """Process 1 stops answering; process 0 says so."""
    if group.rank:
        time.sleep(100)
    return {"error": message(pv.GroupError, lambda: train(fresh(), binary_rows(8)))}


def late():
    """Buffers that begin to move late, and updates that overflow in mid-epoch while process 0 keeps every step."""
    pair, folder = fresh(make=Alternating), Path(sys.argv[1])
    train(pair, counted(16), batch_size=2, epochs=1)
    found = {"late met": np.array(pair.met[-8:]), "late runs": pair.runs}
    for name, optimizer in {"update": overflowing_at(2), "moments": Overflowing}.items():
        options = {"batch_size": 2, "optimizer": optimizer, "run_dir": folder / name, "checkpoint_every": 1}
        said = message(pv.EstimateError, lambda: train(fresh(), binary_rows(ROWS), **options))  # noqa: B023
        found |= {f"late {name}": said, f"late {name} kept": steps(folder / name / "checkpoints")[-1]}
    return found


def leave(group):
    """The compiler is imported while the group exists; process 1 then fails."""
    import torch._dynamo

    assert group.sum(torch.ones(1)) == 2
    assert threads_of_the_group()
    if group.rank:
        raise SystemExit
    return {}


def striking(step):
    """A constant schedule that does what FAULT says."""
    fault = [int(number) for number in os.environ.get("FAULT", "-1:0:0").split(":")]
    if [int(os.environ["RANK"]), step] == fault[:2]:
        os.kill(os.getpid(), fault[2])
    return 1.0


def survive(group):
    """A fit into a run directory that goes on from where it was; FAULT=RANK:STEP:SIGNAL strikes a process."""
    pair, folder = fresh(), Path(sys.argv[1])
    options = {"batch_size": BATCH, "epochs": 4, "schedule": striking, "checkpoint_every": 2}
    result = train(pair, binary_rows(ROWS), **options, run_dir=folder / "run", resume="auto")
    records = [[row.step, row.objective, row.grad_norm] for row in result.history]
    return state(pair) | {"history": np.array(records)}


def threads_of_the_group():
    return [name for path in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := path.read_text())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, act = Path(sys.argv[1]), globals()[sys.argv[2]]
    with suppress(*[SystemExit] * (act is leave)), distributed.started(timeout=float(sys.argv[3])) as group:
        found = act(group)
        np.savez(folder / f"{group.rank}.npz", **{k: np.asarray(v) for k, v in found.items()})
        if act is hang:
            os._exit(0)
    if act is leave:
        (folder / f"{os.environ['RANK']}.txt").write_text(str(threads_of_the_group()))
