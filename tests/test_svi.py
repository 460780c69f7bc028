"""The training loop: order, noise, steps, schedules, what is recorded and what is left on disk."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from torch import nn

import ppl_vae as pv
from ppl_vae import schedules
from ppl_vae.pair import as_pair
from ppl_vae.rng import key, permutation, seeded
from ppl_vae.rundir import RunDirectory
from ppl_vae.svi import FitSettings
from ppl_vae.svi.update import Adam
from tests.pairs import ModuleVAE, binary_rows, closure_pair, small_ppca
from tests.statistical import assert_close, assert_within
from tests.training import fresh, state, train


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
        assert_close(a, b, scale=1.0)


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


def test_history_keeps_the_trained_objective_and_the_true_elbo_apart():
    result = train(ModuleVAE(), binary_rows(8), objective=pv.ELBO(beta=schedules.Linear(0.0, 3.0, 10)), epochs=5)
    h = result.history
    assert_close(h["elbo"], -h["distortion"] - h["rate"], torch.float32)
    assert_close(h["beta"][-1], 3.0 * 9 / 10, torch.float32)
    assert abs(h[0].objective - h[0].elbo) > 1e-3
    assert len(h[1:]) == 4


@pytest.mark.usefixtures("float64")
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
    assert_close(moves[0], 10 * moves[1])


def test_complex_parameters_train_as_under_the_adam_of_torch():
    class Waves(ModuleVAE):
        def __init__(self) -> None:
            super().__init__()
            self.waves = nn.Parameter(torch.ones(5, dtype=torch.complex64) * (1 + 1j))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                logits = self.decoder(z) * self.waves.abs()
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    pairs = [fresh(0, Waves), fresh(0, Waves)]
    for pair, optimizer in zip(pairs, (None, torch.optim.Adam), strict=True):
        train(pair, binary_rows(8), optimizer=optimizer)
    assert torch.equal(pairs[0].waves, pairs[1].waves)
    assert not torch.equal(pairs[0].waves, fresh(0, Waves).waves)


def test_a_learning_rate_schedule_is_followed():
    result = train(ModuleVAE(), binary_rows(8), epochs=3, schedule=schedules.Step((2, 4), 0.1), learning_rate=0.5)
    assert_close(result.history["learning_rate"], [0.5, 0.05, 0.005])


@pytest.mark.usefixtures("float64")
def test_clipping_is_by_the_norm_of_the_whole_gradient():
    """T10: one SGD step of length learning_rate * clip_norm, in the direction of the plain one."""
    x = binary_rows(8)
    moves = []
    for clip in (None, 0.01):
        pair = fresh()
        before = torch.cat([p.detach().flatten().clone() for p in pair.parameters()])
        train(pair, x, steps=1, batch_size=8, optimizer=torch.optim.SGD, learning_rate=1.0, clip_norm=clip)
        moves.append(torch.cat([p.detach().flatten() for p in pair.parameters()]) - before)
    assert_within(moves[1].norm(), 0.01, relative=1e-5, reason="torch divides by the norm plus 1e-6")
    assert_close(nn.functional.cosine_similarity(*moves, dim=0), 1.0)


def test_a_scalar_of_another_dtype_is_clipped_with_the_rest():
    """A number times the norm of tensors in double precision is double itself: the optimiser refused it."""
    pair, x = fresh().double(), binary_rows(8).double()
    pair.decoder.register_parameter("single", nn.Parameter(torch.tensor(1.0)))
    decode = pair.decoder.forward
    pair.decoder.forward = lambda z: decode(z) * pair.decoder.single
    train(pair, x, steps=2, clip_norm=0.01, compile=False)
    assert pair.decoder.single.dtype == torch.float32
    assert float(pair.decoder.single.detach()) != 1.0


def test_lazy_modules_take_their_shapes_at_the_first_look_and_no_statistics():
    module = ModuleVAE()
    module.encoder = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 4))
    train(module, binary_rows(12))
    assert int(module.encoder[1].num_batches_tracked) == 6


def test_batch_norm_and_dropout_train_and_keep_their_modes():
    module = ModuleVAE()
    module.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    module.encoder[2].eval()
    train(module, binary_rows(12))
    assert int(module.encoder[1].num_batches_tracked) == 6
    assert module.encoder[1].training
    assert not module.encoder[2].training


@pytest.mark.parametrize("compile", [False, True])
def test_a_path_gradient_moves_a_batch_norm_once_a_step(compile, interpreted):
    """It runs the guide twice; the statistics are those of the plain gradient."""
    means = []
    for gradient in ("pathwise", "stl"):
        pair = fresh()
        with seeded(1):
            pair.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        options = {"steps": 3, "batch_size": 8, "learning_rate": 1e-12, "compile": compile}
        train(pair, binary_rows(8), objective=pv.ELBO(gradient=gradient, kl="sampled"), **options)
        means.append(pair.encoder[1].running_mean)
    assert_close(*means)


def test_limits_of_steps_and_epochs():
    x = binary_rows(10)
    assert train(ModuleVAE(), x, epochs=None, steps=7).steps == 7
    assert train(ModuleVAE(), x, epochs=1, steps=7).steps == 3
    assert FitSettings().total_steps(1000) == 50 * 8
    history = train(ModuleVAE(), x, epochs=None, steps=4).history
    assert [r.step for r in history] == [3, 4]


def test_the_run_directory_explains_itself(tmp_path):
    pair, root = ModuleVAE(), tmp_path / "run"
    result = train(
        pair, binary_rows(8), run_dir=root, objective=pv.ELBO(beta=schedules.Linear(0, 1, 4)), validation=binary_rows(4)
    )
    assert {p.name for p in root.iterdir()} == {
        "checkpoints",
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
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs.*expected.*0"),
        ({"batch_size": 0}, "batch_size.*expected.*0"),
        ({"learning_rate": -1.0}, "learning_rate.*expected.*-1"),
        ({"clip_norm": 0.0}, "clip_norm.*expected.*0"),
        ({"binarize": "yes"}, "binarize.*expected.*'yes'"),
        ({"patience": 3}, "patience.*expected validation"),
        ({"objective": pyro.infer.Trace_ELBO()}, "objective.*expected.*Trace_ELBO"),
        ({"optimizer": lambda parameters, lr: None}, "optimizer.*expected.*None"),
        ({"epochs": 1.5}, "epochs: expected a whole number, found 1.5"),
        ({"batch_size": True}, "batch_size: expected a whole number, found True"),
        ({"seed": "a"}, "seed: expected a whole number, found 'a'"),
        ({"objective": pv.ELBO}, r"objective.*expected.*ELBO.*call it, as in ELBO\(\)"),
        ({"batch_size": None}, "batch_size: expected a whole number, found None"),
        ({"learning_rate": None}, "learning_rate: expected a finite number, found None"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number, found 2.5"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number, found nan"),
        ({"learning_rate": math.inf}, "learning_rate: expected a finite number, found inf"),
        ({"learning_rate": "a"}, "learning_rate: expected a finite number, found 'a'"),
        ({"clip_norm": math.nan}, "clip_norm: expected a finite number, found nan"),
        ({"binarize": math.nan}, "binarize: expected None, 'dynamic' or 'fixed', found nan"),
        ({"schedule": 0.5}, "schedule: expected a function"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, "optimizer: expected a class.*found SGD"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer: LBFGS.*closure"),
        ({"optimizer": lambda p, lr: AdagradRMSProp(p, eta=lr)}, "optimizer: .*learning rate.*found AdagradRMSProp"),
        ({"optimizer": lambda parameters: None}, "optimizer: expected a call.*'lr'"),
        ({"compile": "yes"}, "compile: expected 'auto', True or False, found 'yes'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else next(iter(value)),
)
def test_wrong_options_say_what_is_right(options, message):
    with pytest.raises(ValueError, match=message):
        train(ModuleVAE(), binary_rows(8), **options)


def test_a_pair_without_parameters_has_nothing_to_train():
    ppca = small_ppca()
    with pytest.raises(pv.PairError, match="parameters to train"):
        train(ppca, ppca.sample(8))


def test_beta_of_a_step_is_that_of_its_schedule():
    """With one batch an epoch, what is trained is -distortion - beta rate, with the beta that is recorded."""
    result = train(
        ModuleVAE(), binary_rows(8), epochs=4, batch_size=8, objective=pv.ELBO(beta=schedules.Linear(0.0, 1.0, 3))
    )
    history = result.history
    assert history["beta"].tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    expected = -history["distortion"] - history["beta"] * history["rate"]
    assert_within(history["objective"], expected, relative=1e-5, reason="sums in single precision")


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_parameters_that_do_not_lie_in_rows(optimizer):
    """A transposed start and a gradient of another layout: the fused kernel must not mix up their entries."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 5.0, -3.0])
    means = nn.Parameter(torch.zeros(3, 2).T)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(means.sum(0).expand(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + means[0] * torch.tensor([1.0, 2.0, 3.0]), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    start = torch.zeros(2, 3)
    train(pv.Pair(model, guide), x, epochs=5, batch_size=64, optimizer=optimizer, learning_rate=0.1)
    moved = means.detach() - start
    # Both rows feel the pull of the first term; Adam's steps have the sign of the gradient of each entry.
    reference = nn.Parameter(torch.zeros(2, 3))
    means_of_reference = reference

    def contiguous_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(means_of_reference.sum(0).expand(len(x), 3), 1.0).to_event(1))
            shift = means_of_reference[0] * torch.tensor([1.0, 2.0, 3.0])
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    train(pv.Pair(contiguous_model, guide), x, epochs=5, batch_size=64, learning_rate=0.1)
    assert_within(moved, reference.detach(), absolute=1e-5, reason="sums in single precision")


def test_gradients_left_by_others_move_nothing():
    """A parameter that the loss does not reach stays, even if somebody has left a gradient on it."""
    pair = ModuleVAE()
    pair.idle = nn.Parameter(torch.ones(3))
    pair.idle.grad = torch.ones(3)
    pair.decoder[0].bias.grad = torch.full_like(pair.decoder[0].bias, 1e6)
    before = pair.decoder[0].bias.detach().clone()
    train(pair, binary_rows(8), epochs=1, batch_size=8, optimizer=torch.optim.SGD, learning_rate=0.1)
    assert pair.idle.tolist() == [1.0, 1.0, 1.0]
    assert float((pair.decoder[0].bias.detach() - before).abs().max()) < 1.0


def test_a_parameter_that_gets_other_strides_during_a_fit():
    def final(transpose):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(3, 4))
        update = Adam([parameter], 0.1)
        for _ in range(3):
            update([parameter], [torch.randn(3, 4)], None)
            if transpose:
                parameter.data = parameter.data.t().contiguous().t()
        return parameter.detach()

    assert torch.equal(final(False), final(True))


@pytest.mark.parametrize(
    ("objective", "compile"),
    [
        (pv.ELBO(), False),
        (pv.ELBO(), True),
        (pv.ELBO(gradient="stl"), False),
        (pv.IWAE(2, gradient="dreg"), False),
    ],
    ids=["ELBO", "ELBO, compiled", "STL", "DReG"],
)
def test_a_frozen_model_stays_while_its_guide_trains(objective, compile, interpreted):
    """Neither gradient nor optimiser touches what has requires_grad=False, and it is frozen afterwards too."""
    decoder, encoder = pv.decoders.Bernoulli.mlp(2, [8], 5), pv.encoders.DiagonalNormal.mlp(5, [8], 2)
    pair = pv.VAE(pv.priors.StandardNormal(2), decoder.requires_grad_(False), encoder)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    train(pair, binary_rows(12), objective=objective, compile=compile)
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("decoder")
    assert not any(p.requires_grad or p.grad is not None for p in decoder.parameters())
    assert all(p.requires_grad for p in encoder.parameters())
