"""The training loop: optima, order, noise, schedules, stopping, faults."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ModuleVAE, binary_rows, closure_pair, small_ppca
from torch import nn

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, permutation, seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi import FitSettings, loop


def state(pair):
    return {name: value.detach().clone() for name, value in as_pair(pair).state_dict().items()}


def fresh(seed=0, make=ModuleVAE):
    with seeded(seed):
        return make()


def train(pair, x, **options):
    return pv.fit(pair, x, **{"epochs": 2, "batch_size": 4, "progress": False, **options})


@pytest.mark.usefixtures("float64")
def test_a_linear_vae_reaches_the_ppca_optimum():
    """S2 (Lucas et al. 2019): gap to the closed-form maximum likelihood of at most 0.01 nat per datum."""
    x = small_ppca(dim=5, latent=2).sample(400, seed=1)
    best = pv.PPCA.fit(x, 2)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(2, 5), nn.Linear(5, 2)
            self.log_noise, self.log_width = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))

        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.log_noise.exp()).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(self.encoder(x), self.log_width.exp()).to_event(1))

    pair = Linear()
    steps = 3000
    pv.fit(
        pair,
        x,
        steps=steps,
        batch_size=400,
        learning_rate=2e-2,
        objective=pv.ELBO(num_particles=4),
        schedule=schedules.Cosine(1.0, 0.0, steps),
        progress=False,
    )
    ll = pv.log_likelihood(pair, x, 1000, progress=False)
    optimum = float(best.log_prob(x).mean())
    assert optimum - 0.01 <= ll.mean <= optimum + 1e-3


def test_the_same_seed_gives_the_same_run():
    x = torch.rand(10, 5)
    runs = []
    for seed in (0, 0, 1):
        pair = fresh()
        result = train(pair, x, binarize="dynamic", seed=seed)
        runs.append((state(pair), result.history["elbo"]))
    assert all(torch.equal(runs[0][0][k], runs[1][0][k]) for k in runs[0][0])
    assert (runs[0][1] == runs[1][1]).all()
    assert any(not torch.equal(runs[0][0][k], runs[2][0][k]) for k in runs[0][0])


def test_fit_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    train(ModuleVAE(), binary_rows(8))
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    ModuleVAE()
    assert torch.equal(torch.random.get_rng_state(), after)


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_every_row_once_an_epoch(n, batch_size):
    """F7: N = 1, N < batch and a partial last batch included."""
    seen = []

    class Spy(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            seen.extend(batch[0][:, 0].tolist())
            return super().evaluate(pair, batch, layout, beta)

    x = torch.arange(n, dtype=torch.float32).unsqueeze(1).repeat(1, 3)
    result = train(closure_pair(), x, objective=Spy(), epochs=2, batch_size=batch_size, learning_rate=1e-5)
    assert result.steps == 2 * math.ceil(n / batch_size)
    assert sorted(seen[:n]) == sorted(seen[n:]) == list(range(n))


def test_the_order_is_a_function_of_seed_and_epoch():
    assert permutation(50, 0, 3).tolist() == permutation(50, 0, 3).tolist()
    assert permutation(50, 0, 3).tolist() != permutation(50, 0, 4).tolist()
    assert permutation(50, 1, 3).tolist() != permutation(50, 0, 3).tolist()
    assert len({key(a, b) for a in range(40) for b in range(40)}) == 1600


def test_epoch_means_are_weighted_by_data():
    """R2: with 5 rows in batches of 4 the last row weighs a fifth, not a half."""
    x = torch.cat([torch.zeros(4, 3), torch.full((1, 3), 10.0)])
    pair = closure_pair()
    result = train(pair, x, epochs=1, batch_size=4, learning_rate=1e-12, objective=pv.ELBO(num_particles=200))
    whole = train(pair, x, epochs=1, batch_size=5, learning_rate=1e-12, objective=pv.ELBO(num_particles=200))
    assert result.history[0].elbo == pytest.approx(whole.history[0].elbo, rel=0.02)


def test_history_keeps_the_trained_objective_and_the_true_elbo_apart():
    result = train(ModuleVAE(), binary_rows(8), objective=pv.ELBO(beta=schedules.Linear(0.0, 3.0, 10)), epochs=5)
    h = result.history
    np.testing.assert_allclose(h["elbo"], -h["distortion"] - h["rate"], rtol=1e-5)
    assert h["beta"][-1] == pytest.approx(3.0 * 9 / 10)
    assert abs(h[0].objective - h[0].elbo) > 1e-3
    assert len(h[1:]) == 4


def test_a_schedule_keeps_the_rates_of_parameter_groups_apart():
    def grouped(parameters, lr):
        return torch.optim.SGD([{"params": parameters[:1], "lr": 10 * lr}, {"params": parameters[1:]}], lr=lr)

    x, moves = binary_rows(8), []
    for optimizer in (grouped, torch.optim.SGD):
        pair = fresh()
        first = next(as_pair(pair).parameters())
        before = first.detach().clone()
        train(pair, x, steps=1, batch_size=8, optimizer=optimizer, learning_rate=1e-3, schedule=schedules.Constant(0.5))
        moves.append(float((first.detach() - before).norm()))
    assert moves[0] == pytest.approx(10 * moves[1], rel=1e-3)


def test_a_learning_rate_schedule_is_followed():
    result = train(ModuleVAE(), binary_rows(8), epochs=3, schedule=schedules.Step((2, 4), 0.1), learning_rate=0.5)
    np.testing.assert_allclose(result.history["learning_rate"], [0.5, 0.05, 0.005])


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    """T10: one SGD step of length learning_rate * clip_norm, in the direction of the plain one."""
    x = binary_rows(8)
    moves = []
    for clip in (None, 0.01):
        pair = fresh()
        before = torch.cat([p.detach().flatten().clone() for p in pair.parameters()])
        train(pair, x, steps=1, batch_size=8, optimizer=torch.optim.SGD, learning_rate=1.0, clip_norm=clip)
        moves.append(torch.cat([p.detach().flatten() for p in pair.parameters()]) - before)
    assert float(moves[1].norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(nn.functional.cosine_similarity(*moves, dim=0)) == pytest.approx(1.0, abs=1e-4)


def test_validation_keeps_the_best_parameters_and_stops():
    """Training on eight rows overfits; the parameters kept are those of the best epoch."""
    torch.manual_seed(0)
    x, held_out = binary_rows(8, seed=1), binary_rows(100, seed=2)
    pair = fresh()
    result = train(pair, x, validation=held_out, patience=5, epochs=500, learning_rate=3e-2)
    best = int(np.argmax(result.history["validation_elbo"]))
    assert result.stopped_early
    assert len(result.history) == best + 1 + 5
    assert result.best_step == result.history[best].step
    again = fresh()
    train(again, x, epochs=best + 1, learning_rate=3e-2)
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), again.parameters(), strict=True))


def test_a_validation_that_is_not_finite_is_an_error():
    x, held_out = torch.randn(8, 3), torch.full((2, 3), 3e38)
    with pytest.raises(pv.EstimateError, match="validation data is not finite"):
        train(closure_pair(), x, validation=held_out)


def test_the_number_of_data_is_read_off_the_plate_whatever_the_batch():
    """A plate that states the data set's size does so also when the first batch is all of it."""

    def programs():
        def model(x):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 20, subsample=torch.arange(x.shape[0])):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        return pv.Pair(model, lambda x: pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.3)))

    assert pv.check(programs(), torch.randn(20)).layout.full_size == 20
    assert pv.check(programs(), torch.randn(7)).layout.full_size == 20


def test_validating_does_not_change_the_training():
    x = binary_rows(8)
    plain, watched = (train(fresh(), x, epochs=4, **more).history["elbo"] for more in ({}, {"validation": x}))
    assert (plain == watched).all()


@pytest.mark.parametrize("binarize", ["dynamic", "fixed"])
def test_binarisation_draws_from_the_grey_values(binarize):
    seen = []

    class Spy(pv.ELBO):
        def evaluate(self, pair, batch, layout, beta):
            seen.append(batch[0].clone())
            return super().evaluate(pair, batch, layout, beta)

    x = torch.full((40, 5), 0.3)
    train(ModuleVAE(), x, binarize=binarize, objective=Spy(), epochs=20, batch_size=40)
    epochs = torch.stack([batch.sort(0).values for batch in seen])
    assert set(torch.cat(seen).unique().tolist()) == {0.0, 1.0}
    assert float(torch.cat(seen).mean()) == pytest.approx(0.3, abs=0.12 if binarize == "fixed" else 0.03)
    same = bool((epochs == epochs[0]).all())
    assert same == (binarize == "fixed")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((4, 5), 1.5), "row 0.*binarize"),
        (torch.full((4, 5), 3, dtype=torch.uint8), "divide by 255"),
    ],
)
def test_binarisation_needs_probabilities(data, message):
    with pytest.raises(pv.DataError, match=f"(?s){message}|binarize.*divide"):
        train(ModuleVAE(), data, binarize="dynamic")


def bad_rows():
    x = binary_rows(20)
    x[13, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_rows, "row 13.*NaN"),
        (lambda: torch.zeros(0, 5), "empty"),
        (lambda: (torch.zeros(4, 5), torch.zeros(3)), r"equal numbers of rows.*\[4, 3\]"),
        (lambda: torch.tensor(3.0), "scalar"),
        (lambda: [["a"]], "list|numpy"),
        (lambda: np.array([["a", "b"]]), "dtype <U1"),
        (lambda: np.array([object()]), "dtype object"),
        (lambda: (), "empty tuple"),
        (lambda: torch.zeros(4, 5, dtype=torch.complex64), "real dense"),
        (lambda: torch.full((4, 5), 2.0), "row 0.*boolean"),
        (lambda: torch.zeros(4, 5, dtype=torch.uint8), "dtype"),
        (lambda: torch.zeros(4, 7), "failed on a batch"),
    ],
)
def test_bad_data_is_an_error_with_the_row(data, message):
    """F7."""
    with pytest.raises(pv.PplVaeError, match=f"(?s){message}"):
        train(ModuleVAE(), data())


def test_data_in_every_form_give_the_same_run(tmp_path):
    x = binary_rows(10)
    np.save(tmp_path / "x.npy", x.numpy())
    forms = {
        "tensor": x,
        "numpy": x.numpy(),
        "double": x.numpy().astype(np.float64),
        "tuple": (x,),
        "strided": torch.stack([x, x], -1)[..., 0],
        "memory-mapped": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "Dataset": torch.utils.data.TensorDataset(x),
        "big-endian": x.numpy().astype(">f4"),
    }
    states = []
    for form in forms.values():
        pair = fresh()
        train(pair, form)
        states.append(state(pair))
    for other in states[1:]:
        assert all(torch.equal(states[0][k], other[k]) for k in other)


class Exploding(ModuleVAE):
    """log of a difference that becomes negative when the third parameter moves far enough."""

    def __init__(self):
        super().__init__()
        self.edge = nn.Parameter(torch.tensor(0.05))

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, _ = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, self.edge.log() + 3.5).to_event(1))


def test_a_number_that_is_not_finite_stops_the_fit_before_the_step():
    """F6: the first bad site is named, and no parameter is NaN."""
    pair = Exploding()
    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'z' of the guide.*rows"):
        train(pair, binary_rows(8), epochs=400, optimizer=torch.optim.SGD, learning_rate=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())


def test_the_site_is_named_for_many_particles():
    """The diagnosis repeats the noise of the step: a site that fails for one draw in a hundred is found."""

    class Rare(ModuleVAE):
        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                edge = torch.where(z[..., :1] > 3.0, torch.nan, 0.0)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + edge).to_event(1), obs=x)

    with pytest.raises(pv.EstimateError, match=r"step \d+.*site 'x' of the model.*rows \[\d"):
        train(Rare(), binary_rows(8), objective=pv.ELBO(num_particles=100), epochs=50)


def test_an_infinite_gradient_is_seen_though_the_loss_is_finite():
    class Root(ModuleVAE):
        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                loc, raw = self.encoder(x).chunk(2, -1)
                scale = 1.0 + (raw * 0.0).sqrt()
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = Root()
    before = state(pair)
    with pytest.raises(pv.EstimateError, match=r"step 1.*gradient of parameter 'programs.self.encoder"):
        train(pair, binary_rows(8))
    assert all(torch.equal(before[k], v) for k, v in state(pair).items())


def test_the_guard_of_a_gpu_freezes_the_parameters_from_the_first_bad_step(monkeypatch):
    """The same on the CPU: the fused optimiser skips every update until the host looks."""

    class Lazy(loop.Guard):
        def __init__(self, optimizer, device):
            super().__init__(optimizer, device)
            self._lazy = True

    monkeypatch.setattr(loop, "Guard", Lazy)
    pair = Exploding()
    with pytest.raises(pv.EstimateError, match="site 'z'"):
        train(pair, binary_rows(8), epochs=400, learning_rate=0.2)
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())


def test_global_latents_train():
    """A site outside the data plate: its posterior is conjugate and known."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 2.0

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 200, subsample=torch.arange(x.shape[0])):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        width = pyro.param("width", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(mean, width))
        with pyro.plate("data", 200, subsample=torch.arange(x.shape[0])):
            pass

    pair = pv.Pair(model, guide)
    steps = 4000
    pv.fit(
        pair, x, steps=steps, batch_size=50, learning_rate=2e-2, schedule=schedules.Cosine(1, 0, steps), progress=False
    )
    values = pair.state_dict()
    assert float(values["store.param:mean"]) == pytest.approx(float(x.sum()) / 201, abs=0.02)
    assert float(values["store.param:width"].exp()) == pytest.approx(201**-0.5, rel=0.1)


def test_batch_norm_and_dropout_train_and_keep_their_modes():
    module = ModuleVAE()
    module.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    module.encoder[2].eval()
    train(module, binary_rows(12))
    assert int(module.encoder[1].num_batches_tracked) == 6
    assert module.encoder[1].training
    assert not module.encoder[2].training


def test_the_run_directory_explains_itself(tmp_path):
    pair, root = ModuleVAE(), tmp_path / "run"
    result = train(
        pair, binary_rows(8), run_dir=root, objective=pv.ELBO(beta=schedules.Linear(0, 1, 4)), validation=binary_rows(4)
    )
    assert {p.name for p in root.iterdir()} == {
        "config.json",
        "environment.json",
        "history.jsonl",
        "parameters.safetensors",
    }
    config = json.loads((root / "config.json").read_text())
    assert config["objective"]["beta"] == {"class": "Linear", "start": 0, "end": 1, "steps": 4}
    assert json.loads((root / "environment.json").read_text())["packages"]["torch"].startswith("2.")
    lines = [json.loads(line) for line in (root / "history.jsonl").read_text().splitlines()]
    assert [line["elbo"] for line in lines] == result.history["elbo"].tolist()
    again = ModuleVAE()
    RunDirectory(root).read_parameters(as_pair(again))
    assert all(torch.equal(state(pair)[k], v) for k, v in state(again).items())
    with pytest.raises(pv.PplVaeError, match="new or empty"):
        train(pair, binary_rows(8), run_dir=root)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"clip_norm": 0.0},
        {"binarize": "yes"},
        {"patience": 3},
        {"compile": True},
        {"objective": pyro.infer.Trace_ELBO()},
        {"optimizer": lambda parameters, lr: None},
    ],
    ids=str,
)
def test_wrong_options_say_what_is_right(options):
    with pytest.raises(ValueError, match=r"expected|compile"):
        train(ModuleVAE(), binary_rows(8), **options)


def test_a_pair_without_parameters_has_nothing_to_train():
    ppca = small_ppca()
    with pytest.raises(pv.PairError, match="parameters to train"):
        train(ppca, ppca.sample(8))


def test_limits_of_steps_and_epochs():
    x = binary_rows(10)
    assert train(ModuleVAE(), x, epochs=None, steps=7).steps == 7
    assert train(ModuleVAE(), x, epochs=1, steps=7).steps == 3
    assert FitSettings().total_steps(1000) == 50 * 8
    history = train(ModuleVAE(), x, epochs=None, steps=4).history
    assert [r.step for r in history] == [3, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_trains_and_evaluates_like_the_cpu():
    """CPU and GPU draw different noise: they agree within the error bars."""
    x = binary_rows(64)
    values = []
    for device in ("cpu", "cuda"):
        pair = fresh()
        pv.fit(pair, x, epochs=100, learning_rate=1e-2, device=device, progress=False)
        values.append(pv.log_likelihood(pair, x, 2000, device=device, progress=False))
    assert values[0].mean == pytest.approx(values[1].mean, abs=0.2)


def test_a_fit_is_the_loop_one_would_write_by_hand():
    """Order by epoch, noise by step, a partial last batch, the rate of the schedule, fresh gradients."""
    x = binary_rows(10)
    pair, by_hand = fresh(), fresh()
    options = {"optimizer": torch.optim.SGD, "learning_rate": 0.1, "schedule": schedules.Step((4,), 0.5)}
    train(pair, x, epochs=3, **options)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    layout, step = pv.check(by_hand, x).layout, 0
    for epoch in range(3):
        for rows in permutation(10, 0, epoch).split(4):
            with seeded(key(0, step)):
                loss = pv.ELBO().evaluate(as_pair(by_hand), (x[rows],), layout, 1.0).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = 0.1 if step < 4 else 0.05
            optimizer.step()
            step += 1
    assert step == 9
    for a, b in zip(pair.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class ExactPPCA(nn.Module):
    """PPCA with its posterior and one parameter that starts where it changes nothing: every weight is log p(x)."""

    def __init__(self):
        super().__init__()
        self.ppca, self.shift = small_ppca(), nn.Parameter(torch.zeros(4))

    def model(self, x):
        self.ppca.model(x)

    def guide(self, x):
        self.ppca.guide(x + self.shift)


@pytest.mark.usefixtures("float64")
def test_means_of_an_epoch_and_of_held_out_data_are_means_over_rows():
    """R2, to rounding: 5 rows in batches of 4, 700 held-out rows in blocks of 512."""
    pair = ExactPPCA()
    x, held_out = pair.ppca.sample(5, seed=1), pair.ppca.sample(700, seed=2)
    result = train(pair, x, epochs=1, objective=pv.IWAE(2), validation=held_out, learning_rate=1e-14)
    assert result.history[0].elbo == pytest.approx(float(pair.ppca.log_prob(x).mean()), rel=1e-10)
    assert result.history[0].validation_elbo == pytest.approx(float(pair.ppca.log_prob(held_out).mean()), rel=1e-10)


def test_held_out_data_have_noise_of_their_own_that_never_changes():
    result = train(ModuleVAE(), torch.rand(8, 5), validation=torch.rand(20, 5), binarize="dynamic", learning_rate=1e-12)
    first, second = result.history["validation_elbo"]
    assert first == pytest.approx(second, rel=1e-6)
    assert abs(result.history[0].elbo - result.history[1].elbo) > 1e-3


def test_the_best_buffers_are_kept_with_the_best_parameters():
    """Running means of a batch norm: those of the best epoch, and none of a held-out row in them."""

    def make():
        module = ModuleVAE()
        module.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        return module

    x, held_out = binary_rows(8, seed=1), binary_rows(100, seed=2)
    pair, again = fresh(make=make), fresh(make=make)
    result = train(pair, x, validation=held_out, epochs=60, learning_rate=3e-2)
    best = int(np.argmax(result.history["validation_elbo"]))
    assert best + 1 < 60
    train(again, x, epochs=best + 1, learning_rate=3e-2)
    assert all(torch.equal(value, state(again)[name]) for name, value in state(pair).items())


def test_the_row_of_bad_data_is_counted_from_the_first():
    x = torch.zeros(5000, 5)
    x[4500, 1] = torch.inf
    with pytest.raises(pv.DataError, match="row 4500"):
        train(ModuleVAE(), x)
