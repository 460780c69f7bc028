"""Cost against the size of the problem: the slope of its logarithm says with which power it grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.evaluation import evaluate
from benchmarks.setting import Setting
from benchmarks.timing import Case, marginal
from benchmarks.training import Task, fit_time
from benchmarks.workload import images, make_vae

__all__ = ["data_case", "parameters_case", "samples_case"]

BATCH_SIZE, MAX_ROUNDS = 128, 3


def data_case(name: str, setting: Setting) -> Case:
    """Time of an epoch of a compiled fit against N."""
    x = images(setting.choose(51_200, 512), setting.device)

    def epoch(size: int) -> float:
        steps = size // BATCH_SIZE
        return steps * fit_time(Task(make_vae, x[:size], BATCH_SIZE, steps, 2 * steps), True)

    sizes = [len(x) >> halvings for halvings in (4, 3, 2, 1, 0)] if not setting.quick else [256, 512]
    points = {f"N = {size:,}": (float(size), partial(epoch, size)) for size in sizes}
    return _scaling_case(name, "Epoch of a compiled fit, batch 128, against the number N of data", "epoch", points)


def parameters_case(name: str, setting: Setting) -> Case:
    """Time of a compiled step against the number of parameters."""
    few, many = setting.choose(10, 1), setting.choose(50, 3)
    x = images(few * BATCH_SIZE, setting.device)
    points: dict[str, tuple[float, Callable[[], float]]] = {}
    for width in (8, 16) if setting.quick else (100, 200, 400, 800, 1600):
        make = partial(make_vae, hidden=(width, width))
        size = sum(parameter.numel() for parameter in make().parameters())
        points[f"{size:,} parameters"] = (size, partial(fit_time, Task(make, x, BATCH_SIZE, few, many), True))
    return _scaling_case(name, "Compiled training step, batch 128, against the number of parameters", "step", points)


def samples_case(name: str, setting: Setting) -> Case:
    """Time of an evaluation of one more image against K."""
    few, many = setting.choose(4, 1), setting.choose(24, 3)
    vae, x = make_vae(setting.device), images(many, setting.device)

    def image(num_samples: int) -> float:
        return marginal(lambda n: evaluate(vae, x[:n], num_samples, False), few, many)

    sizes = (500, 1000) if setting.quick else (1000, 2000, 4000, 8000, 16_000)
    points = {f"K = {size:,}": (float(size), partial(image, size)) for size in sizes}
    return _scaling_case(name, "Log-likelihood of an image against the number K of samples", "image", points)


def _scaling_case(name: str, title: str, unit: str, points: dict[str, tuple[float, Callable[[], float]]]) -> Case:
    return Case(
        name,
        title,
        unit,
        {label: work for label, (_, work) in points.items()},
        reference=next(iter(points)),
        sizes={label: size for label, (size, _) in points.items()},
        max_rounds=MAX_ROUNDS,
    )
