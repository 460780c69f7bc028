"""One thread at a time runs programs: Pyro's handlers are those of the process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributions import Distribution

import ppl_vae as pv
from tests.pairs import ModuleVAE, binary_rows
from tests.training import state, train

WORK = {
    "check": lambda pair: pv.check(pair, binary_rows(8)),
    "fit": lambda pair: train(pair, binary_rows(8), epochs=1),
    "log_likelihood": lambda pair: pv.log_likelihood(pair, binary_rows(8), 10, progress=False),
}


class Waiting(ModuleVAE):
    """Waits, in the middle of a fit, until others have tried."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.tried = threading.Event(), threading.Event()

    def guide(self, x: torch.Tensor) -> None:
        if self.training and torch.is_grad_enabled() and not self.begun.is_set():
            self.begun.set()
            assert self.tried.wait(60)
        super().guide(x)


def test_another_thread_is_refused_and_changes_nothing():
    torch.manual_seed(0)
    alone, pair, other = ModuleVAE(), Waiting(), ModuleVAE()
    pair.load_state_dict(alone.state_dict())
    train(alone, binary_rows(8), epochs=2)
    checks = Distribution._validate_args
    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        first = pool.submit(train, pair, binary_rows(8), epochs=2)
        assert pair.begun.wait(60)
        try:
            for work in WORK.values():
                with pytest.raises(pv.PplVaeError, match=r"another one at work, 'first_0'.* use processes"):
                    work(other)
        finally:
            pair.tried.set()
        first.result()
    found, expected = state(pair), state(alone)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert Distribution._validate_args == checks
    WORK["check"](other)
