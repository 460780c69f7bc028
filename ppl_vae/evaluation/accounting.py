"""The ledger of a pair: what its bound is made of, and which latents carry it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.coordinates import Form, by_datum, scalar_kl
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.coarseness import warn_of_rounding
from ppl_vae.evaluation.entries import Entry, LatentUse, Ledger
from ppl_vae.evaluation.subject import Subject, evaluating
from ppl_vae.evaluation.surgery import Surgery, aggregate_draws
from ppl_vae.options import seed_number, whole_number
from ppl_vae.pair import Pair
from ppl_vae.pareto import has_no_error, largest_deviations
from ppl_vae.progress import Progress
from ppl_vae.reductions import has_mask
from ppl_vae.rng import key, permutation, seeded
from ppl_vae.supports import support_of
from ppl_vae.tape import Batch, Layout, Site, Tape, run_program
from ppl_vae.terms import Terms, outer_plates

__all__ = ["ledger"]

_ROWS, _PARTICLES = 64, 16
_KL, _MEAN, _TAIL, _APART = "kl of ", "mean of ", "tail of ", "apart of "
_PARTNERS = 0x9A27  # what noise is for
_ENTRIES = ("distortion", "rate", "elbo")


def ledger(
    pair: Any,
    data: Any,
    num_samples: int = 16,
    seed: int = 0,
    *,
    num_aggregate: int = 1024,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Ledger:
    r"""Takes the bound of a pair apart: distortion, rate, the KL of each scalar, what latents say of the data.

    .. math:: \mathrm{ELBO} = E_q \log p(x \mid z) - [I(n; z) + KL(q(z), p(z))]

    with the aggregate posterior q(z) = 1/N sum_m q(z given x_m). Divergences are in closed form where there is
    one, else means over the K samples of each datum. The aggregate posterior costs `num_aggregate` x N densities of the
    guide.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`.
        data: Data (N, *event) or a tuple of arrays.
        num_samples: K, at least 2, so that errors can be told.
        seed: Of the samples.
        num_aggregate: Draws of the aggregate posterior; 0 leaves it out.
        device: Where to evaluate; "auto" is where the parameters are.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: The pair is not valid, or draws latents outside the model's support, where the rate is infinite.
        DataError: A datum lies outside the support of its site.
        EstimateError: A term is not finite; row, term and site are named.

    Reference:
        Hoffman and Johnson (2016), ELBO Surgery. Burda, Grosse and Salakhutdinov (2016), Importance Weighted
        Autoencoders. Alemi et al. (2018), Fixing a Broken ELBO.

    Example:
        >>> import torch, ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> x = ppca.sample(100)
        >>> found = pv.ledger(ppca, x, progress=False)
        >>> bool(abs(found.elbo.mean - ppca.log_prob(x).mean()) < 0.1), found.latents[0].active, found.alarms
        (True, array([ True]), ())
    """
    whole_number("num_samples", num_samples, least=2)
    whole_number("num_aggregate", num_aggregate, least=0)
    seed_number("seed", seed)
    start = time.monotonic()
    with evaluating(pair, data, device) as subject:
        _check(subject.layout)

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            if not first:
                warn_of_rounding(subject.pair, batch, subject.layout, "ledger")
            block = _Block(num_samples, first)
            others = subject.rows.take(partners[first:][: len(batch[0])], subject.device)
            for j, drawn in enumerate(range(0, num_samples, _PARTICLES)):
                with seeded(key(seed, first, j), subject.device):
                    block.add(subject.pair, batch, others, min(_PARTICLES, num_samples - drawn), subject.layout)
            return block.arrays()

        forms, partners = _forms(subject), _partners(len(subject.rows), seed)
        swept = subject.sweep(subject.layout.largest_batch(_ROWS), "ledger", progress, work)
        draws = _aggregate(subject, num_aggregate, seed, progress)
    values = swept.gathered()
    distortion, rate, elbo = (_entry(values, name, num_samples, subject.layout) for name in _ENTRIES)
    return Ledger(
        elbo=elbo,
        distortion=distortion,
        rate=rate,
        latents=tuple(_latent(name, *form, values) for name, form in forms.items()),
        surgery=None if draws is None else _surgery(draws, rate),
        num_samples=num_samples,
        num_dimensions=subject.layout.num_dimensions,
        seconds=time.monotonic() - start,
    )


def _check(layout: Layout) -> None:
    for name in layout.local_latents:
        if name in layout.may_leave_support:
            raise PairError(
                f"site {name!r}: expected a guide that draws inside the model's support, found one that may leave it: "
                "its KL from the prior is infinite; log_likelihood counts such draws as zero"
            )


class _Block:
    """Means over K samples of all that is said of the data of a block, with the variance of the means."""

    def __init__(self, num_samples: int, first_row: int) -> None:
        self._num_samples, self._first_row = num_samples, first_row
        self._origins: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._draws: dict[str, list[Tensor]] = {name: [] for name in _ENTRIES}

    def add(self, pair: Pair, batch: Batch, others: Batch, count: int, layout: Layout) -> None:
        """Draws so many samples of each datum, and of as many others for the guide to be compared with."""
        runs = [_run(pair, batch, size, layout) for size in outer_plates(count, layout)]
        terms = Terms(runs, batch, layout, scaled=False)
        rates = terms.kl(layout.analytic)
        rate = sum(rates.values(), torch.zeros_like(terms.log_lik))
        observed = ", ".join(repr(name) for name, site in runs[0][1].sites.items() if site["is_observed"])
        self._check(f"log p(x given z) of site {observed}", terms.log_lik)
        for name, matrix in rates.items():
            self._check(f"KL at site {name!r}", matrix)
        found: dict[str, Tensor] = {"distortion": -terms.log_lik, "rate": rate, "elbo": terms.log_lik - rate}
        of_others = [run_program(pair, pair.guide, others, size, layout) for size in outer_plates(count, layout)]
        for name in layout.local_latents:
            pairs = [(guide.sites[name], other.sites[name]) for (guide, _), other in zip(runs, of_others, strict=True)]
            found[_APART + name] = torch.cat([scalar_kl(*sites, layout).values for sites in pairs])
            of_runs = [scalar_kl(guide.sites[name], model.sites[name], layout).values for guide, model in runs]
            found[_KL + name] = torch.cat(of_runs)
            means = [_mean(guide.sites[name], layout) for guide, _ in runs]
            if means[0] is not None:
                found[_MEAN + name] = torch.cat(means)  # type: ignore[arg-type]
        for name, values in found.items():
            values = values.double().expand(count, *values.shape[1:])
            if name in self._draws:
                self._draws[name].append(values)
            apart = values - self._origins.setdefault(name, values[0])  # what does not vary has no error at all
            self._sums[name] = self._sums.get(name, 0) + apart.sum(0)
            self._squares[name] = self._squares.get(name, 0) + apart.square().sum(0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Mean of each, and under its name with a prime the variance of that mean; tails of the entries."""
        k, arrays = self._num_samples, {}
        for name, total in self._sums.items():
            variance = (self._squares[name] - total.square() / k).clamp_min(0) / (k - 1)
            mean = self._origins[name] + total / k
            arrays[name], arrays[f"{name}'"] = mean.cpu().numpy(), (variance / k).cpu().numpy()
        tails = {name: largest_deviations(torch.cat(draws).cpu().numpy()) for name, draws in self._draws.items()}
        return arrays | {_TAIL + name: tail for name, tail in tails.items()}

    def _check(self, name: str, matrix: Tensor) -> None:
        if (bad := ~matrix.isfinite().all(0)).any():
            row = int(bad.nonzero()[0])
            value = float(matrix[:, row][~matrix[:, row].isfinite()][0])
            raise EstimateError(
                f"row {self._first_row + row}: expected a finite {name}, found {value}: give scales a lower bound, or "
                "use log_likelihood, which counts impossible draws as zero"
            )


def _run(pair: Pair, batch: Batch, size: int | None, layout: Layout) -> tuple[Tape, Tape]:
    guide = run_program(pair, pair.guide, batch, size, layout)
    return guide, run_program(pair, pair.model, batch, size, layout, guide.replay)


def _mean(site: Site, layout: Layout) -> Tensor | None:
    """E[z given x and the latents above] of each scalar, or a draw where the distribution does not tell, (K, N, D)."""
    if support_of(site["fn"]).is_discrete or has_mask(site):
        return None
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        mean = site["value"]
    return by_datum(mean, site["fn"].event_dim, layout)


def _partners(num_data: int, seed: int) -> Tensor:
    """Another datum for each, (N,): the next one of a random order."""
    order = permutation(num_data, seed, _PARTNERS)
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def _forms(subject: Subject) -> dict[str, tuple[Form, int]]:
    """How the latents of the first datum are taken apart, and their size, by site; those of others are alike."""
    with seeded(0, subject.device):
        guide, model = _run(subject.pair, subject.rows.take(slice(0, 1), subject.device), None, subject.layout)
    names = subject.layout.local_latents
    return {name: _form(guide.sites[name], model.sites[name], subject.layout) for name in names}


def _form(guide: Site, model: Site, layout: Layout) -> tuple[Form, int]:
    size = by_datum(guide["value"], guide["fn"].event_dim, layout).shape[-1]
    return scalar_kl(guide, model, layout).form, size


def _aggregate(subject: Subject, num_draws: int, seed: int, progress: bool) -> tuple[Tensor, Tensor] | None:
    """What draws of the aggregate posterior say; every process makes all of them."""
    if not (num_draws and subject.layout.local_latents):
        return None
    with Progress("aggregate posterior", num_draws, progress and subject.group.leads, "draws") as bar:
        return aggregate_draws(subject.pair, subject.rows, subject.layout, num_draws, seed, subject.device, bar)


def _surgery(draws: tuple[Tensor, Tensor], rate: Entry) -> Surgery:
    of_all, of_others = draws
    return Surgery(
        *_with_error(of_all), *_with_error(of_others), rate.mean, rate.mean_stderr, len(rate.value), len(of_all)
    )


def _with_error(draws: Tensor) -> tuple[float, float]:
    stderr = float(draws.std() / len(draws) ** 0.5) if len(draws) > 1 else float("nan")
    return float(draws.mean()), stderr


def _entry(values: dict[str, np.ndarray], name: str, num_samples: int, layout: Layout) -> Entry:
    stderr = np.sqrt(values[f"{name}'"])
    finitely_many = set(layout.local_latents) == set(layout.cardinalities)  # whose variance is finite
    if not finitely_many and has_no_error(values[_TAIL + name], num_samples):
        stderr = np.full_like(stderr, np.inf)
    return Entry(values[name], stderr)


def _latent(name: str, form: Form, size: int, values: dict[str, np.ndarray]) -> LatentUse:
    means, noise = values.get(_MEAN + name), values.get(f"{_MEAN}{name}'")
    if means is not None and not np.isfinite(means).all():  # of a Cauchy distribution, say
        means = noise = None
    return LatentUse(name, values[_KL + name], form, means, noise, values[_APART + name], size)
