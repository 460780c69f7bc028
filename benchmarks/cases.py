"""All cases by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import memory, scaling
from benchmarks.evaluation import evaluation_case
from benchmarks.mixture import mixture_case
from benchmarks.pairs import PAIRS, pair_case
from benchmarks.saving import run_case, saving_case
from benchmarks.setting import Setting
from benchmarks.timing import Case
from benchmarks.training import training_case
from benchmarks.whole import digits_case, mnist_case

__all__ = ["CASES"]


def _step_of(batch_size: int) -> Callable[[str, Setting], Case]:
    return lambda name, setting: training_case(name, batch_size, setting)


CASES: Mapping[str, Callable[[str, Setting], Case]] = {
    **{f"fit-{batch_size}": _step_of(batch_size) for batch_size in (128, 20, 512)},
    **dict.fromkeys(PAIRS, pair_case),
    "mnist": mnist_case,
    "mnist-elbo": mnist_case,
    "digits-auto": digits_case,
    "evaluation": evaluation_case,
    "gmm": mixture_case,
    "gmm-wide": mixture_case,
    "memory-k": memory.samples_case,
    "memory-map": memory.mapped_case,
    "checkpoint": saving_case,
    "checkpoint-100": saving_case,
    "checkpoint-run": run_case,
    "cost-data": scaling.data_case,
    "cost-parameters": scaling.parameters_case,
    "cost-k": scaling.samples_case,
}
