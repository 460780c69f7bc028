"""Memory that runs out in an evaluation: the same numbers from smaller pieces, or an error that says what was tried."""

from __future__ import annotations

import dataclasses
import re
import warnings
import weakref
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import shrinking
from ppl_vae.arrays import Rows
from ppl_vae.errors import is_lack_of_memory, located
from ppl_vae.evaluation import likelihood, scoring, subject, weighing
from ppl_vae.evaluation.local import LocalSearch
from ppl_vae.shrinking import Shrinking
from tests.faults import forked
from tests.pairs import DiscreteVAE, ModuleVAE, binary_rows
from tests.running import estimate
from tests.statistical import assert_close

_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1073741824 bytes. Error code 12 (Cannot allocate memory)"
)
LACKS = {
    "python": MemoryError,
    "numpy": partial(np._core._exceptions._ArrayMemoryError, (1 << 40,), np.dtype(float)),
    "cuda": partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": partial(RuntimeError, _CPU),
    "windows": partial(RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."),
    "compiled": partial(
        RuntimeError, "aoti_torch_empty_strided(2, int_array_0, &buf0_handle) API call failed at m.cpp"
    ),
    "import": partial(ImportError, "_cdflib.so: failed to map segment from shared object"),
}
STATUS = Path("/proc/self/status")
ESTIMATES = ("value", "stderr", "ess", "elbo", "num_drawn", "unseen")


class Short:
    """A hook of a network that fails where `fails` says so, given how many vectors it gets and which call it is."""

    def __init__(self, fails, error=LACKS["cpu"]) -> None:
        self.fails, self.error = fails, error
        self.armed, self.calls, self.failed = False, [], []

    def __call__(self, module, inputs) -> None:
        if not self.armed:
            return
        size = inputs[0].shape[:-1].numel()
        self.calls.append(size)
        if self.fails(size, len(self.calls) - 1):
            self.failed.append(size)
            raise self.error()


def short_of(network, fails, error=LACKS["cpu"]) -> Short:
    short = Short(fails, error)
    network.register_forward_pre_hook(short)
    return short


@pytest.fixture
def armed(monkeypatch):
    """Has hooks fail from the end of the first check on, or from the first block that is weighed on."""

    # Going through all that pytest holds takes longer than any of these estimates.
    monkeypatch.setattr(shrinking, "gc", SimpleNamespace(collect=lambda: None))

    def arm(short, late=False, vectorized=True):
        check, weigh = pv.check, weighing.weigh

        def checked(*args, **options):
            report = check(*args, **options)
            short.armed = not late
            return dataclasses.replace(report, layout=report.layout._replace(vectorized=vectorized))

        def weighed(*args):
            short.armed = True
            return weigh(*args)

        monkeypatch.setattr(subject, "check", checked)
        monkeypatch.setattr(likelihood, "weigh", weighed)
        return short

    return arm


@contextmanager
def remarks():
    """The warnings of the library about memory; any other is an error."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield seen
    assert all("memory ran out" in str(w.message) and w.category is UserWarning for w in seen)


def same(found, expected, names=ESTIMATES):
    for name in names:
        # `unseen` is a sum that may be of nothing but rounding
        assert_close(getattr(found, name), getattr(expected, name), scale=1.0 if name in ("unseen", "stderr") else 0.0)
    if hasattr(expected, "posterior"):
        for name, draws in expected.posterior.items():
            assert_close(found.posterior[name], draws)


def more_than(n):
    return lambda size, call: size > n


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("looped", [False, True], ids=["at once", "looped"])
@pytest.mark.parametrize(("most", "late"), [(16, False), (2, True), (1, True)])
def test_too_many_draws_at_once_are_scored_in_pieces(armed, most, late, looped):
    """F11: whatever fits, down to a single draw, the estimate is the same; one warning, and it is not tried in vain."""
    x, pair, num_probes = binary_rows(19), ModuleVAE(), 0 if looped or most == 1 else 9
    short = armed(short_of(pair.decoder, more_than(10**9)), late, vectorized=not looped)
    whole = estimate(pair, x, 20, num_probes=num_probes)
    short.fails, short.armed = more_than(most), False
    with remarks() as seen:
        cut = estimate(pair, x, 20, num_probes=num_probes)
    same(cut, whole, ESTIMATES if num_probes else ESTIMATES[:-1])
    assert len(seen) == 1
    assert 0 < len(short.failed) < 30  # each kind of work meets it once for every halving


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LACKS)
def test_every_lack_of_memory_is_known(armed, name):
    x, pair = binary_rows(12), ModuleVAE()
    whole = estimate(pair, x, 30)
    armed(short_of(pair.decoder, more_than(100), LACKS[name]))
    with remarks() as seen:
        same(estimate(pair, x, 30), whole)
    assert len(seen) == 1


@pytest.mark.usefixtures("float64")
def test_a_piece_that_fails_once_is_done_again(armed):
    """Each run of the decoder fails in turn, once: those of the weights, then those of the probes."""
    x, pair = binary_rows(9), ModuleVAE()
    short = armed(short_of(pair.decoder, lambda size, call: False), late=True)
    whole = estimate(pair, x, 30, memory=20_000, num_probes=20)
    calls, told = list(short.calls), 0
    for i, size in enumerate(calls):
        if size <= 2:
            continue  # what takes the measure, or finds the support of a latent, has no half
        short.fails, short.calls, short.failed = (lambda size, call, i=i: call == i), [], []
        short.armed = False
        with remarks() as seen:
            same(estimate(pair, x, 30, memory=20_000, num_probes=20), whole)
        assert short.failed == [size]
        told += len(seen)
    assert told >= 4


@pytest.mark.usefixtures("float64")
def test_the_density_of_probes_is_done_again(armed):
    """The last that the guide does for a block; nothing is said of it, as there is nothing to do about it."""
    x, pair = binary_rows(9), ModuleVAE()
    short = armed(short_of(pair.encoder, lambda size, call: False), late=True)
    whole = estimate(pair, x, 30)
    last = len(short.calls) - 1
    short.fails, short.calls, short.armed = (lambda size, call: call == last), [], False
    same(estimate(pair, x, 30), whole)
    assert short.failed == [9]


@pytest.mark.usefixtures("float64")
def test_what_was_too_much_is_not_tried_again(armed, monkeypatch):
    """Over many blocks, and where a datum gets as many draws as it needs; compiled code is made for what fits."""
    made = []

    class Noted(scoring.Lazy):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(likelihood, "_MAX_ROWS", 4)
    monkeypatch.setattr(scoring, "Lazy", Noted)
    x, pair = binary_rows(30), ModuleVAE()
    whole = estimate(pair, x, 1200, target_stderr=0.05, num_probes=0)
    short = armed(short_of(pair.decoder, more_than(30)), late=True)
    made.clear()
    with remarks() as seen:
        cut = estimate(pair, x, 1200, target_stderr=0.05, num_probes=0)
    same(cut, whole, ESTIMATES[:-1])
    assert len(seen) == 1
    assert short.failed == sorted(set(short.failed), reverse=True)
    assert len(made) == 2


@pytest.mark.usefixtures("float64")
def test_the_advice_is_true(armed):
    """With the `memory` that the warning names nothing fails, and the numbers are the same."""
    x, pair = binary_rows(12), ModuleVAE()
    short = armed(short_of(pair.decoder, more_than(50)), late=True)
    with remarks() as seen:
        first = estimate(pair, x, 60, num_probes=0)
    text = str(seen[0].message)
    assert "at most 48" in text
    short.failed.clear()
    short.armed = False
    with remarks() as seen:
        again = estimate(pair, x, 60, num_probes=0, memory=int(re.search(r"memory=(\d+)", text)[1]))
    same(again, first, ESTIMATES[:-1])
    assert not seen
    assert not short.failed


OTHERS = {
    "calibrate": (lambda pair, x: pv.calibrate(pair, x, 70, 19, corrected=True, num_samples=50, progress=False)),
    "posterior_predictive": (lambda pair, x: pv.posterior_predictive(pair, x, 5, num_samples=50, progress=False)),
    "k_curve": (lambda pair, x: pv.k_curve(pair, x, 64, compile=False, progress=False)),
    "gap_decomposition": (
        lambda pair, x: pv.gap_decomposition(
            pair, x, 128, search=LocalSearch(num_steps=2, max_rounds=1), compile=False, progress=False
        )
    ),
}
NUMBERS = {
    "calibrate": lambda found: found.ranks.values(),
    "posterior_predictive": lambda found: (*found.posterior.values(), *found.predictive.values()),
    "k_curve": lambda found: (found.bounds, found.chi_square),
    "gap_decomposition": lambda found: (found.elbo, found.approximation, found.amortisation),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OTHERS)
def test_all_that_score_draws_shrink(armed, name):
    x, pair = binary_rows(8), ModuleVAE()
    whole = OTHERS[name](pair, x)
    short = armed(short_of(pair.decoder, more_than(200)))
    with remarks() as seen:
        cut = OTHERS[name](pair, x)
    for found, expected in zip(NUMBERS[name](cut), NUMBERS[name](whole), strict=True):
        assert_close(found, expected, scale=1.0)
    assert len(seen) == 1
    assert short.failed


@pytest.mark.usefixtures("float64")
def test_the_sum_over_latents_shrinks(armed):
    """Three values of 40 data: their sum is the estimate."""
    x, pair = binary_rows(40), DiscreteVAE()
    whole = estimate(pair, x, 30)
    short = armed(short_of(pair.decoder, more_than(60)))
    with remarks():
        cut = estimate(pair, x, 30)
    same(cut, whole, ("value", "stderr", "khat"))
    assert short.failed


def test_memory_for_nothing_is_an_error_that_says_what_was_tried(armed):
    pair = ModuleVAE()
    armed(short_of(pair.decoder, lambda size, call: call > 0), late=True)
    with pytest.raises(pv.EstimateError, match=r"scoring draws.*for one .*from 720 .*down to 1: .*Default.*free mem"):
        estimate(pair, binary_rows(12), 60)


def test_draws_of_the_guide_are_not_divided(armed):
    """Their noise belongs to the block: an error that says how large it is, and what makes it smaller."""
    pair = ModuleVAE()
    armed(short_of(pair.encoder, more_than(11)), late=True)
    with pytest.raises(pv.EstimateError, match=r"60 draws of the guide for each of 12 data.*fewer data in a call"):
        estimate(pair, binary_rows(12), 60)
    assert estimate(pair, binary_rows(11), 60).num_samples == 60


def test_what_has_no_smaller_pieces_is_an_estimate_error():
    """Annealing moves all chains of a block at once."""
    pair = ModuleVAE()
    annealing = pv.Annealing(num_chains=40, num_temperatures=2)
    short = short_of(pair.decoder, more_than(100))
    short.armed = True
    with pytest.raises(pv.EstimateError, match=r"this evaluation: expected memory.*DefaultCPUAllocator"):
        pv.annealed_importance_sampling(pair, binary_rows(12), annealing, progress=False)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("out of memory")]
)
def test_other_errors_are_not_swallowed(armed, error):
    pair = ModuleVAE()
    short = armed(short_of(pair.decoder, lambda size, call: True, lambda: error), late=True)
    with pytest.raises(pv.PairError, match="rows 0 to 11, failed") as caught:
        estimate(pair, binary_rows(12), 60)
    assert caught.value.__cause__ is error
    assert len(short.calls) == 1


def test_a_lack_of_memory_that_a_program_wraps():
    with pytest.raises(ValueError, match="the decoder failed") as caught:
        raise ValueError("the decoder failed") from LACKS["cpu"]()
    assert is_lack_of_memory(caught.value)
    assert not is_lack_of_memory(ValueError("the decoder failed"))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), located("rows 0 to 1"):
        raise LACKS["cpu"]()


@pytest.mark.parametrize("check", [pv.check, partial(pv.fit, epochs=1, progress=False)], ids=["check", "fit"])
def test_a_check_without_memory_blames_no_program(check):
    pair = ModuleVAE()
    short_of(pair.decoder, more_than(4)).armed = True
    with pytest.raises(
        pv.EstimateError, match=r"the model: expected memory for a batch of \(8, 5\).* fewer rows at once"
    ):
        check(pair, binary_rows(8))


def test_what_was_half_made_is_given_back():
    """The tensors of a failed piece are gone before its halves are tried."""
    alive, left = [], []

    class Held(torch.Tensor):
        pass

    def work(data, particles):
        left.append(sum(ref() is not None for ref in alive))
        half_made = torch.zeros(len(particles), len(data)).as_subclass(Held)
        half_made.itself = half_made
        alive.append(weakref.ref(half_made))
        if half_made.numel() > 2:
            raise MemoryError
        alive.clear()
        return (torch.ones(len(particles), len(data)),)

    (found,) = Shrinking("work")(work, torch.arange(5), range(3))
    assert found.shape == (3, 5)
    assert max(left) == 0


class WideVAE(ModuleVAE):
    """A decoder of 20,000 units: 1024 draws take 80 MB for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 20_000), nn.Tanh(), nn.Linear(20_000, 5))


@pytest.mark.skipif(
    not STATUS.exists() or torch.cuda.is_available(), reason="needs a fork, which CUDA forbids, and /proc"
)
def test_a_limit_of_the_system():
    """The allocator itself fails in a process that may take 60 MB: it finds the same numbers, and says so once."""
    import resource

    x, pair = binary_rows(64), WideVAE()
    whole = estimate(pair, x, 16, num_probes=0)

    def within_little():
        taken = int(re.search(r"VmSize:\s+(\d+)", STATUS.read_text())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (taken, resource.RLIM_INFINITY))
        held = []  # what tests before have freed, and the allocator has kept
        with suppress(RuntimeError):
            while True:
                held.append(torch.empty(1 << 18))
        resource.setrlimit(resource.RLIMIT_AS, (taken + (60 << 20), resource.RLIM_INFINITY))
        with remarks() as seen:
            same(estimate(pair, x, 16, num_probes=0, memory=1 << 32), whole, ("value", "elbo"))
        assert len(seen) == 1

    assert forked(within_little) == 0


def test_data_that_the_device_cannot_hold_are_told_to_stay_on_disk(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **options: (_ for _ in ()).throw(LACKS["cuda"]()))
    with pytest.raises(pv.DataError, match=r"memory of cpu holds, found 19 rows .*mmap_mode='r'"):
        Rows([binary_rows(19)]).to(torch.device("cpu"))
