"""Blocks of an evaluation: noise, memory and chunks, exactly K draws, one encoding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.evaluation import likelihood, scoring, subject, weighing
from ppl_vae.evaluation.proposal import evaluate_model
from ppl_vae.operations import Operations
from tests.pairs import HierarchicalVAE, ModuleVAE, binary_rows, scaled_guide, small_ppca
from tests.running import estimate


def test_memory_and_chunks_change_no_number(monkeypatch):
    """S14: noise belongs to fixed blocks; the decoder may be cut anywhere."""
    x, pair = binary_rows(20), HierarchicalVAE()
    whole = estimate(pair, x, 60)
    for chunk, memory in ((7, 1 << 28), (100_000, 1 << 28), (2048, 1), (2048, 20_000)):
        monkeypatch.setattr(scoring, "CHUNK_ROWS", chunk)
        cut = estimate(pair, x, 60, memory=memory)
        np.testing.assert_allclose(whole.value, cut.value, rtol=1e-5)
        np.testing.assert_allclose(whole.stderr, cut.stderr, rtol=1e-3)
        assert whole.posterior.keys() == cut.posterior.keys()


@pytest.mark.parametrize("looped", [False, True])
def test_memory_bounds_what_a_run_of_the_model_makes(monkeypatch, looped):
    """No run of the model makes tensors of more bytes than it was given, but for a single row and particle."""
    x, pair, made = binary_rows(64), ModuleVAE(), []

    def counting(*args):
        with Operations() as operations:
            result = evaluate_model(*args)
        made.append(operations.bytes)
        return result

    if looped:
        monkeypatch.setattr(subject, "check", lambda *args, **_: _looped(pair, x))
    monkeypatch.setattr(scoring, "evaluate_model", counting)
    estimate(pair, x, 50)
    free, one = max(made), made[0]
    made.clear()
    estimate(pair, x, 50, memory=10 * one)
    assert max(made) <= 10 * one < free


def _looped(pair, x):
    report = pv.check(pair, x)
    return dataclasses.replace(report, layout=report.layout._replace(vectorized=False))


def test_exactly_k_draws_and_one_encoding():
    """Whatever K and the blocks: K decodes for each datum, and the encoder sees each datum once."""
    seen = {"encoder": 0, "decoder": 0}
    pair = ModuleVAE()

    def count(name):
        return lambda module, inputs, output: seen.__setitem__(name, seen[name] + inputs[0].shape[:-1].numel())

    pair.encoder.register_forward_hook(count("encoder"))
    pair.decoder.register_forward_hook(count("decoder"))
    x = binary_rows(37)
    counts = []
    for k in (11, 300, 1300):
        seen.update(encoder=0, decoder=0)
        estimate(pair, x, k, num_probes=64)
        counts.append(dict(seen))
    # What the checks and the memory probe cost does not depend on K.
    decoded = [c["decoder"] for c in counts]
    assert decoded[2] - decoded[1] == 37 * 1000
    assert counts[0]["encoder"] == counts[1]["encoder"] == counts[2]["encoder"]


def test_k_is_divided_over_blocks(monkeypatch):
    """Blocks of particles of every size add up to K: the stream refuses any other number."""
    monkeypatch.setattr(likelihood, "_BLOCK_SCALARS", 100)
    x = binary_rows(20)
    for k in (1, 2, 3, 50, 121):
        assert estimate(ModuleVAE(), x, k).num_samples == k


@pytest.mark.usefixtures("float64")
def test_every_block_has_noise_of_its_own(monkeypatch):
    """Blocks of one draw for 256 equal rows: no draw is used twice, neither for another draw nor for other rows."""
    monkeypatch.setattr(likelihood, "_block_shape", lambda *_: (256, 1))
    ll = estimate(ModuleVAE(), binary_rows(1).repeat(512, 1), 2)
    assert (ll.ess < 2).all()
    assert (ll.value[:256] != ll.value[256:]).all()


@pytest.mark.usefixtures("float64")
def test_posterior_draws_do_not_depend_on_the_blocks(monkeypatch):
    """Draws kept from blocks of one sample are resampled over all of them: unit variance, not that of the guide."""
    monkeypatch.setattr(likelihood, "_block_shape", lambda *_: (200, 1))
    ppca = small_ppca()
    x = ppca.sample(200, seed=3)
    ll = estimate(scaled_guide(ppca, 1.4), x, 200, num_draws=50)
    posterior = ppca.posterior(x)
    centred = (torch.as_tensor(ll.posterior["z"]) - posterior.loc).unsqueeze(-1)
    z = torch.linalg.solve_triangular(posterior.scale_tril, centred, upper=False)
    assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.usefixtures("float64")
def test_a_stated_size_of_the_data_set_moves_no_evaluation():
    """R7: plate("data", 400) around the rows of a batch scales a training, never a weight."""
    ppca = small_ppca()

    def of_four_hundred(program):
        def scaled(x):
            with pyro.plate("data", 400, subsample=torch.arange(x.shape[0])):
                program(x)

        return scaled

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ ppca.loading.T + ppca.bias, ppca.scale).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", ppca.posterior(x))

    x = ppca.sample(9, seed=2)
    ll = estimate(pv.Pair(of_four_hundred(model), of_four_hundred(guide)), x, 20)
    np.testing.assert_allclose(ll.value, ppca.log_prob(x).numpy(), rtol=1e-10)


@pytest.mark.parametrize("compile", [False, True], ids=["as written", "compiled"])
def test_what_a_program_raises_in_an_evaluation_names_the_rows(monkeypatch, compile, interpreted):
    class Late(ModuleVAE):
        armed = False

        def guide(self, x):
            if self.armed and len(x) == 44:
                raise KeyError("late")
            super().guide(x)

    def armed_weigh(*arguments):
        pair.armed = True
        return weighing.weigh(*arguments)

    pair = Late()
    monkeypatch.setattr(likelihood, "weigh", armed_weigh)

    with pytest.raises(pv.PairError, match=r"rows 256 to 299, failed: KeyError: 'late'") as caught:
        pv.log_likelihood(pair, binary_rows(300), 10, compile=compile, progress=False)
    assert isinstance(caught.value.__cause__, KeyError)
