"""Parameters that programs make on their first run: their first values, their device, their names."""

from __future__ import annotations

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import first_line
from ppl_vae.tape import run_program


def random_start():
    """A fresh pair whose parameter `pyro.param` draws on first use."""

    def model(x):
        loc = pyro.param("loc", lambda: torch.randn(3))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return pv.Pair(model, guide)


FIRST_USES = {
    "fit": lambda pair, x: pv.fit(pair, x, epochs=1, learning_rate=1e-6, progress=False, device="cpu"),
    "check": lambda pair, x: pv.check(pair, x),
    "log_likelihood": lambda pair, x: pv.log_likelihood(pair, x, 5, progress=False),
    "prepare": lambda pair, x: pair.prepare(x),
}


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES.keys())
def test_parameters_made_on_first_use_draw_from_the_users_random_state(use):
    """As they would in a module that is constructed there: drawn from it, and by no more than that moved on."""

    def start():
        pair = random_start()
        use(pair, torch.zeros(8, 3))
        return pair.param("loc").detach()

    torch.manual_seed(5)
    expected, after = torch.randn(3), torch.rand(())
    torch.manual_seed(5)
    first = start()
    torch.testing.assert_close(first, expected, rtol=0.0, atol=1e-4)
    assert torch.equal(torch.rand(()), after)
    assert not torch.allclose(first, start(), atol=1e-2)


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES.keys())
def test_the_random_state_stays_where_no_parameter_is_made(use):
    pair = random_start()
    pair.prepare(torch.zeros(8, 3))
    before = torch.random.get_rng_state()
    use(pair, torch.zeros(8, 3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("trained", [True, False])
def test_tensors_that_programs_make_are_made_beside_the_pair_or_its_batch(trained: bool):
    """`torch.zeros(2)` in a program does not stop a fit on a GPU; "meta" stands for one, and has no numbers."""
    seen = []

    def program(x):
        if trained:
            pyro.param("p", torch.zeros(2))
        seen.extend((torch.zeros(2).device.type, dist.Normal(0.0, 1.0, validate_args=False).loc.device.type))

    pair = pv.Pair(program, program)
    pair.prepare(torch.zeros(1))
    pair.to("meta")
    run_program(pair, program, (torch.zeros(1, device="meta"),), None, None)
    pair(program, torch.zeros(1, device="meta"))
    assert seen == ["cpu"] * 4 + ["meta"] * 4
    assert torch.zeros(2).device.type == "cpu"


def test_a_tensor_that_stays_behind_is_named_with_what_helps():
    error = RuntimeError("Expected all tensors to be on the same device, but found at least two devices\nmore")
    assert re.search(r"two devices \(what programs keep .*register_buffer", first_line(error))


def test_names_of_pyro_that_differ_in_a_dot_and_a_slash_are_two_parameters():
    def model(x):
        return [pyro.param(name, torch.tensor(float(value))) for value, name in enumerate(names, 1)]

    names = ("a.b", "a/b", "a/b.c", "a/b/c", "a/b%2Ec", "a..b", "a//b")
    pair = pv.Pair(model, lambda x: None)
    assert [float(v.detach()) for v in pair(model, torch.zeros(2))] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    again = pv.Pair(model, lambda x: None)
    again.load_state_dict(pair.state_dict())
    assert [float(again.param(name).detach()) for name in names] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert "store.param:a/b" in pair.state_dict()
