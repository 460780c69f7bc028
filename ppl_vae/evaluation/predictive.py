"""Data that a pair makes anew of latents inferred from data: does the model say what the data look like?"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import as_numpy
from ppl_vae.coordinates import data_second
from ppl_vae.errors import PairError
from ppl_vae.evaluation.draws import LOG_LIK, DrawPlan, pick, put_in, resample, taken_out
from ppl_vae.evaluation.edges import REASON
from ppl_vae.evaluation.probing import Prober, probes_enough
from ppl_vae.evaluation.proposal import Proposal, check_weights, first_draw, propose
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.subject import Subject, evaluating
from ppl_vae.evaluation.tally import Frailty, Tally, size_of_terms
from ppl_vae.evaluation.trust import JUDGED, trust
from ppl_vae.evaluation.verdict import NOISY, RELIABLE, UNRELIABLE
from ppl_vae.options import seed_number, whole_number
from ppl_vae.pair import Pair
from ppl_vae.pareto import FEW
from ppl_vae.rng import generator_of, key, seeded
from ppl_vae.tape import Batch, Layout, Tape, run_program
from ppl_vae.terms import outer_plates

__all__ = ["PosteriorPredictive", "posterior_predictive"]

_ROWS = 64
_LATENTS, _CHOICE, _DATA, _LOOK, _ROUNDING = range(5)
_PARTS = _LATENT, _MADE, _GIVEN = ("z ", "x ", "observed ")


@dataclass(frozen=True, eq=False)
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
    ess: np.ndarray | None
    """Effective number of those draws by their weights (N,), as `LogLikelihood.ess`; None where none were resampled.

    Of a datum with few, the latents are few values again and again.
    """
    khat: np.ndarray | None
    """Pareto k-hat of those weights (N,), as `LogLikelihood.khat`; None where draws were not resampled."""
    verdict: np.ndarray | None
    """`reliable`, `noisy` or `unreliable` by the rule of `LogLikelihood.verdict` (N,): whether the latents are those of
    the posterior; None where draws of the guide were not resampled, about which `calibrate` says more."""
    rounded: np.ndarray | None
    """Whether they round to the edge of a support, so that their weights are wrong, as `LogLikelihood.rounded` (N,)."""
    seconds: float
    """Wall time."""

    def __str__(self) -> str:
        num_draws, num_data = self.log_lik.shape
        text = f"{num_draws} draws for each of {num_data} data"
        if self.verdict is None or self.ess is None or self.rounded is None:
            return f"{text}, of the guide as it is"
        counts = ", ".join(f"{int((self.verdict == word).sum())} {word}" for word in (RELIABLE, NOISY, UNRELIABLE))
        text += f", resampled from {self.num_samples} of the guide (median ESS {np.median(self.ess):.0f}): {counts}"
        return f"{text}; {said}" if (said := _doubt_in_words(self.verdict, self.rounded, self.num_samples)) else text

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

    Draws that are resampled by weight are draws of the posterior only where the guide reaches it: `verdict` says of
    which data, `print` of how many, and a warning that there are others.

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
    seed_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        layout = subject.layout
        if not layout.local_latents:
            raise PairError("expected latents to draw data anew from, found a pair without; draw from the model itself")
        plan = DrawPlan.of(num_draws, num_samples, corrected, seed)
        maker = _Maker.of(subject, plan, memory)

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            block, said = _of_block(maker, batch, first)
            parts = [put_in({name: as_numpy(z) for name, z in of.items()}, part) for part, of in block.items()]
            return said | {name: array for part in parts for name, array in part.items()}

        swept = subject.sweep(layout.largest_batch(_ROWS), "posterior predictive", progress, work)
    found = swept.gathered()
    posterior, predictive, observed = (taken_out(found, part) for part in _PARTS)
    log_lik = posterior.pop(LOG_LIK)
    counts = np.full(log_lik.shape[1], plan.num_proposed)
    words, rounded = trust(found, counts) if corrected else (None, None)
    if words is not None and rounded is not None and (said := _doubt_in_words(words, rounded, plan.num_proposed)):
        doubtful = int((words == UNRELIABLE).sum())
        warnings.warn(f"draws of {doubtful} of {len(words)} data are unreliable: {said}", UserWarning, stacklevel=2)
    return PosteriorPredictive(
        posterior,
        predictive,
        {name: x[0] for name, x in observed.items()},
        log_lik,
        num_samples=plan.num_proposed,
        ess=found.get("ess"),
        khat=found.get("khat"),
        verdict=words,
        rounded=rounded,
        seconds=time.monotonic() - start,
    )


def _doubt_in_words(words: np.ndarray, rounded: np.ndarray, num_samples: int) -> str:
    """What to do about data that are unreliable; nothing where none is."""
    by_weights = _doubt_of_weights(num_samples) if ((words == UNRELIABLE) & ~rounded).any() else ""
    by_rounding = f"of {int(rounded.sum())} data {REASON}" if rounded.any() else ""
    return "; ".join(filter(None, (by_weights, by_rounding)))


def _doubt_of_weights(num_samples: int) -> str:
    if num_samples <= FEW:
        return f"{num_samples} samples are too few to tell how far to trust what is resampled from them"
    return (
        "the draws of the unreliable are nearer to the guide than to the posterior, and a few values again and again; "
        "take more samples (num_samples), a better guide, or corrected=False for draws of the guide itself"
    )


class _Maker(NamedTuple):
    """What draws and judges latents, and makes new data of them."""

    pair: Pair
    """The pair, in evaluation mode."""
    layout: Layout
    """Layout of the pair."""
    plan: DrawPlan
    """What is drawn for each datum."""
    score: Scorer
    """What scores latents."""
    probe: Prober
    """What looks for latents that no draw of the guide can have been."""
    device: torch.device
    """Where."""
    frailty: Frailty
    """What weights may suffer from."""

    @classmethod
    def of(cls, subject: Subject, plan: DrawPlan, memory: int) -> _Maker:
        """What does so for a subject."""
        pair, rows, layout, device, _ = subject
        score = Scorer(pair, layout, memory, False, len(rows) * plan.num_proposed)
        looks = plan.corrected and plan.num_proposed > FEW
        num_probes = probes_enough(len(rows), plan.num_proposed, plan.num_proposed) if looks else 0
        probe = Prober(pair, layout, score, num_probes, plan.num_proposed, device)
        one = rows.take(slice(0, 1), device)
        frailty = Frailty.of(pair, one, layout, first_draw(pair, one, layout))
        return cls(pair, layout, plan, score, probe, device, frailty)

    def judged(
        self, batch: Batch, proposal: Proposal, log_weight: Tensor, size: Tensor, first: int
    ) -> dict[str, np.ndarray]:
        """What trust goes by, of weights (K, N) and the size of their terms, of a block whose first row is `first`.

        Raises:
            EstimateError: All weights of a datum are zero.
        """
        tally = Tally(self.pair, batch, self.layout, self.frailty, self.plan.num_proposed, first)
        tally.add(log_weight, size, proposal)
        said = tally.summary(key(self.plan.seed, first, _ROUNDING))
        counts = np.full(len(batch[0]), self.plan.num_proposed)
        unseen = self.probe(batch, said, counts, key(self.plan.seed, first, _LOOK))
        found = said._asdict() | {"unseen": unseen.share, "unseen_stderr": unseen.stderr} | tally.at_edge(said.value)
        return {name: found[name] for name in JUDGED}


def _of_block(maker: _Maker, batch: Batch, first: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, np.ndarray]]:
    """Latents with log p(x given z), new data, and the data themselves, of a block whose first row is `first`.

    And what a verdict on each datum goes by, where its draws are resampled.
    """
    pair, layout, plan, score, _, device, _ = maker
    with seeded(key(plan.seed, first, _LATENTS), device):
        proposal = propose(pair, batch, plan.num_proposed, layout)
    log_lik, log_prior = score(batch, proposal, plan.num_proposed)
    log_weight = log_lik + log_prior - proposal.log_guide
    check_weights(pair, batch, proposal, log_weight, layout, first)
    choice, said = torch.arange(plan.num_proposed).unsqueeze(-1).expand(-1, len(batch[0])), {}
    if plan.corrected:
        said = maker.judged(batch, proposal, log_weight, size_of_terms(log_lik, log_prior, proposal), first)
        choice = resample(log_weight, plan.num_draws, generator_of(key(plan.seed, first, _CHOICE)))
    latents = _chosen(proposal, choice, layout)
    with seeded(key(plan.seed, first, _DATA), device):
        runs = [_run(pair, batch, n, values, layout) for n, values in _by_run(latents, plan.num_draws, layout)]
    given = run_program(pair, pair.model, batch, None, layout, next(_by_run(latents, 1, layout))[1])
    drawn = {name: pick(z, choice) for name, z in proposal.particles_first(layout).items()}
    made = {
        _LATENT: drawn | {LOG_LIK: pick(log_lik, choice)},
        _MADE: {name: torch.cat([_value(tape, name, layout) for tape in runs]) for name in runs[0].simulated},
        _GIVEN: {name: _value(given, name, layout) for name in runs[0].simulated},
    }
    return made, said


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
