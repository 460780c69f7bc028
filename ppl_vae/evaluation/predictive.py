"""Data that a pair makes anew of latents inferred from data: does the model say what the data look like?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.coordinates import data_second
from ppl_vae.errors import PairError
from ppl_vae.evaluation.draws import LOG_LIK, DrawPlan, pick, put_in, resample, taken_out
from ppl_vae.evaluation.proposal import Proposal, check_weights, propose
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.subject import evaluating
from ppl_vae.options import whole_number
from ppl_vae.pair import Pair
from ppl_vae.rng import generator_of, key, seeded
from ppl_vae.tape import Batch, Layout, Tape, run_program
from ppl_vae.terms import outer_plates
from ppl_vae.weights import check_possible

__all__ = ["PosteriorPredictive", "posterior_predictive"]

_ROWS = 64
_LATENTS, _CHOICE, _DATA = range(3)
_PARTS = _LATENT, _MADE, _GIVEN = ("z ", "x ", "observed ")


@dataclass(frozen=True)
class PosteriorPredictive:
    """Latents inferred from data, and data made anew of them: S draws for each of N data."""

    posterior: Mapping[str, np.ndarray]
    """Latent values by site, (S, N, *event)."""
    predictive: Mapping[str, np.ndarray]
    """Data drawn from p(x given z), by observed site, (S, N, *event); given the real data that the site reads, too."""
    observed: Mapping[str, np.ndarray]
    """The data themselves, by observed site, (N, *event)."""
    log_lik: np.ndarray
    """log p(x given z) of the data at the latents, over all observed sites, (S, N), in nats."""
    num_samples: int
    """How many draws of the guide there were for each datum; more than S where they were resampled by weight."""
    seconds: float
    """Wall time."""

    def to_arviz(self) -> Any:
        """The draws for ArviZ, as `LogLikelihood.to_arviz` has them, for `plot_ppc`, `plot_bpv` and the like.

        Groups: `posterior`, `posterior_predictive`, `observed_data`, and `log_likelihood`, under the name of the
        observed site if there is one and its values are single numbers, as `loo_pit` needs them, else as "log_lik".
        """
        from ppl_vae.evaluation.arviz_export import predictive_to_arviz

        return predictive_to_arviz(self)


def posterior_predictive(
    pair: Any,
    data: Any,
    num_draws: int = 16,
    seed: int = 0,
    *,
    corrected: bool = True,
    num_samples: int = 500,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> PosteriorPredictive:
    r"""Draws z from p(z given x), then new data from p(x given z), for every datum.

    Where a distribution reads observed arguments (the pixels before its own, or what another site observes), it reads
    the real ones: new data are then one step ahead, p(x_t given z and the real x before t), not whole data of the
    model. `calibrate` judges by whole ones.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Data (N, *event) or a tuple of arrays; arguments that the model does not observe are used as they are.
        num_draws: S.
        seed: Of the draws.
        corrected: Resample draws of the guide by their importance weights, as latents of the posterior; False takes the
            guide as it is. (`calibrate`, which judges the guide, does not resample unless it is told to.)
        num_samples: How many draws of the guide they are then resampled from, for each datum.
        memory: Bytes that the decoder may use at once, about, where it scores samples; see `log_likelihood`.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: The pair is not valid, or has no latents.
        DataError: A datum lies outside the support of its site.
        EstimateError: A weight is NaN or infinite, or all weights of a datum whose draws are resampled are zero.

    Reference:
        Gelman, Meng and Stern (1996), Posterior Predictive Assessment of Model Fitness via Realized Discrepancies.

    Example:
        >>> import torch, ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> found = pv.posterior_predictive(ppca, ppca.sample(5), num_draws=3, progress=False)
        >>> found.posterior["z"].shape, found.predictive["x"].shape, found.observed["x"].shape
        ((3, 5, 1), (3, 5, 2), (5, 2))
    """
    for name, value in (("num_draws", num_draws), ("num_samples", num_samples)):
        whole_number(name, value, least=1)
    whole_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        pair, rows, layout, target, _ = subject
        if not layout.local_latents:
            raise PairError("expected latents to draw data anew from, found a pair without; draw from the model itself")
        plan = DrawPlan.of(num_draws, num_samples, corrected, seed)
        score = Scorer(pair, layout, memory, False, len(rows) * plan.num_proposed)

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            block = _of_block(pair, batch, first, plan, layout, score, target)
            parts = [put_in({name: z.cpu().numpy() for name, z in of.items()}, part) for part, of in block.items()]
            return {name: array for part in parts for name, array in part.items()}

        swept = subject.sweep(layout.largest_batch(_ROWS), "posterior predictive", progress, work)
    found = swept.gathered()
    posterior, predictive, observed = (taken_out(found, part) for part in _PARTS)
    log_lik = posterior.pop(LOG_LIK)
    return PosteriorPredictive(
        posterior,
        predictive,
        {name: x[0] for name, x in observed.items()},
        log_lik,
        num_samples=plan.num_proposed,
        seconds=time.monotonic() - start,
    )


def _of_block(
    pair: Pair, batch: Batch, first: int, plan: DrawPlan, layout: Layout, score: Scorer, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Latents with log p(x given z), new data, and the data themselves, of a block whose first row is `first`."""
    with seeded(key(plan.seed, first, _LATENTS), device):
        proposal = propose(pair, batch, plan.num_proposed, layout)
    log_lik, log_prior = score(batch, proposal, plan.num_proposed)
    log_weight = log_lik + log_prior - proposal.log_guide
    check_weights(pair, batch, proposal, log_weight, layout, first)
    choice = torch.arange(plan.num_proposed).unsqueeze(-1).expand(-1, len(batch[0]))
    if plan.corrected:
        generator = generator_of(key(plan.seed, first, _CHOICE))
        check_possible(log_weight.logsumexp(0), torch.tensor(plan.num_proposed).expand(len(batch[0])), first)
        choice = resample(log_weight, plan.num_draws, generator)
    latents = _chosen(proposal, choice, layout)
    with seeded(key(plan.seed, first, _DATA), device):
        runs = [_run(pair, batch, n, values, layout) for n, values in _by_run(latents, plan.num_draws, layout)]
    given = run_program(pair, pair.model, batch, None, layout, next(_by_run(latents, 1, layout))[1])
    drawn = {name: pick(z, choice) for name, z in proposal.particles_first(layout).items()}
    return {
        _LATENT: drawn | {LOG_LIK: pick(log_lik, choice)},
        _MADE: {name: torch.cat([_value(tape, name, layout) for tape in runs]) for name in runs[0].simulated},
        _GIVEN: {name: _value(given, name, layout) for name in runs[0].simulated},
    }


def _chosen(proposal: Proposal, choice: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Values of draw choice[s, n] for datum n, in the shape of S particles at once."""
    found = {}
    for name, event_dim in proposal.event_dims.items():
        values = [latents[name] for latents in proposal.latents]
        missing = 0 if proposal.outer else -layout.particle_dim - 1 - (values[0].dim() - event_dim)
        z = values[0] if proposal.outer else torch.stack([v.reshape((1,) * missing + v.shape) for v in values])
        axis = z.dim() - event_dim + layout.data_dim
        found[name] = pick(z.movedim(axis, 1), choice).movedim(1, axis)
    return found


def _by_run(
    latents: Mapping[str, Tensor], num_draws: int, layout: Layout
) -> Iterator[tuple[int | None, dict[str, Tensor]]]:
    """The values of each run of the model, and the plate that it needs."""
    for i, size in enumerate(outer_plates(num_draws, layout)):
        yield size, {name: z[i] if size is None else z for name, z in latents.items()}


def _run(pair: Pair, batch: Batch, size: int | None, values: dict[str, Tensor], layout: Layout) -> Tape:
    return run_program(pair, pair.model, batch, size, layout, values, simulate=True)


def _value(tape: Tape, name: str, layout: Layout) -> Tensor:
    site = tape.sites[name]
    return data_second(site["value"], site["fn"].event_dim, layout)
