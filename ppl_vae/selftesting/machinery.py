"""What must not change a number: compiling, chunks of memory, and running again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from ppl_vae.evaluation import log_likelihood
from ppl_vae.selftesting.programs import LinearGaussian, Setting
from ppl_vae.selftesting.rows import Row, equal, left_out
from ppl_vae.svi import fit

__all__ = ["compiled_steps", "noise"]

_WHAT = "parameters after ten compiled steps"


def compiled_steps(setting: Setting) -> Iterator[Row]:
    """Ten steps, compiled and as written, and again."""
    plain, _, _ = _trained(setting, compile=False)
    again, _, _ = _trained(setting, compile=False)
    yield equal("parameters after ten steps, again", again, plain, 1e-12)
    found, compiled, why = _trained(setting, compile=True)
    yield equal(_WHAT, found, plain, 1e-8) if compiled else left_out(_WHAT, f"nothing can be compiled here: {why}")


def noise(setting: Setting) -> Iterator[Row]:
    """An estimate is a function of its seed, whatever the memory."""
    pair = LinearGaussian(5, 2, 1.4)
    x = pair.draw(100, setting.seed)
    first, again, small = (
        log_likelihood(pair, x, 300, setting.seed, memory=memory, device=setting.device, compile=False, progress=False)
        for memory in (256 << 20, 256 << 20, 1 << 16)
    )
    yield equal("estimate of the same seed, again", again.value, first.value, 1e-12)
    yield equal("estimate within little memory", small.value, first.value, 1e-10)


def _trained(setting: Setting, compile: bool) -> tuple[torch.Tensor, bool, str]:
    """Parameters after ten steps, whether they were compiled, and what was warned of."""
    pair = LinearGaussian(5, 2, 1.4)
    x = pair.draw(64, setting.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(
            pair,
            x,
            steps=10,
            batch_size=16,
            learning_rate=1e-2,
            seed=setting.seed,
            device=setting.device,
            compile=compile,
            progress=False,
        )
    parameters = torch.cat([p.detach().cpu().flatten() for p in pair.parameters()])
    return parameters, result.compiled, " ".join(str(w.message) for w in caught[-1:])
