"""Where log p(x) - ELBO comes from: the family of q, or the encoder that serves all data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.arrays import as_numpy
from ppl_vae.errors import EstimateError, PairError
from ppl_vae.evaluation.coarseness import warn_of_rounding
from ppl_vae.evaluation.decomposition import GapDecomposition
from ppl_vae.evaluation.evidence import enumerate_latents, log_evidence, site_of_values
from ppl_vae.evaluation.families import AffineFamily, GuideFamily, LocalFamily, is_enumerable
from ppl_vae.evaluation.local import Found, LocalSearch, Searcher
from ppl_vae.evaluation.parts import exact_parts, known_evidence, sampled_parts, trusted_parts
from ppl_vae.evaluation.probing import Prober, Unseen, looked, unseen_shares, widening
from ppl_vae.evaluation.proposal import check_finite, first_draw
from ppl_vae.evaluation.scoring import Scorer
from ppl_vae.evaluation.subject import Subject, evaluating
from ppl_vae.evaluation.tally import Frailty, Tally, size_of_terms
from ppl_vae.options import compile_choice, of_kind, seed_number, whole_number
from ppl_vae.rng import key, reseed, seeded
from ppl_vae.tape import Batch
from ppl_vae.weights import Summary

__all__ = ["gap_decomposition"]

_ROWS, _PARTICLES, _CONTEXT_DRAWS, _PROBE_ROWS, _PROBES = 256, 128, 256, 2, 64
_SCALARS, _ROOT_SCALARS = 1 << 22, 1 << 22  # of a block: in the draws of a family, in its affine maps
_SEARCH, _RICHER, _CONTEXT, _EVALUATION, _LOOK, _ROUNDING = range(6)


def gap_decomposition(
    pair: Any,
    data: Any,
    num_samples: int = 2000,
    seed: int = 0,
    *,
    search: LocalSearch = LocalSearch(),
    richer: bool = True,
    exact: bool = False,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> GapDecomposition:
    r"""Splits log p(x) - ELBO of every datum into what the family of q costs, and what amortising it costs.

    .. math:: \log p(x_n) - \mathcal{L}(q_\phi) =
              \underbrace{\log p(x_n) - \mathcal{L}(q_n^*)}_{\text{approximation gap}} +
              \underbrace{\mathcal{L}(q_n^*) - \mathcal{L}(q_\phi)}_{\text{amortisation gap}}

    q_n* is the best q of the guide's own family for this datum alone: parameters of each latent's distribution are
    optimised datum by datum, from where the encoder puts them. Where latents are continuous, a richer local family is
    tried too: q_n* pushed through an affine map of all latents, which for a normal guide gives the normals of full
    covariance. log p(x) is estimated by importance sampling with the best q that was found, on draws that no search
    has seen, and is trusted as by `log_likelihood`: all data are judged together, probes spread wider than that q look
    for what its draws cannot have seen, rounding is in errors, and where draws round to the edge of a support nothing
    is trusted; of latents with finitely many values it is their sum. The guide, q_n* and the richer q are compared on
    the same noise. Nothing of the pair is changed.

    Args:
        pair: A `Pair`, or any object with `.model` and `.guide`; latents are reparametrised, or of finitely many
            values.
        data: Data (N, *event) or a tuple of arrays, as for `fit`.
        num_samples: K, draws for each datum that ELBO and log p(x) are estimated by.
        seed: Of all noise.
        search: How each datum's best q is searched for.
        richer: Whether to try the richer family.
        exact: Take log p(x) from `log_evidence`: at most two continuous latent numbers.
        memory: Bytes that the decoder may use at once in evaluation, about; see `log_likelihood`.
        device: Where to evaluate; "auto" is where the parameters are.
        compile: Whether to compile, as for `log_likelihood`.
        progress: Show a progress bar where there is a terminal.

    Raises:
        PairError: There are no latents; or one whose parameters cannot be free, which has no density, or no gradient;
            or, with `richer`, a continuous one that is masked; or the pair is not valid. With `exact`, also if there is
            no exact log p(x).
        DataError: A datum lies outside the support of its site.
        EstimateError: An ELBO is not finite; the row and the site are named.

    Reference:
        Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> ppca = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> gaps = gap_decomposition(ppca, ppca.sample(3), 100, search=LocalSearch(num_steps=5), progress=False)
        >>> bool(abs(gaps.gap).max() < 1e-6)  # the guide is the posterior
        True
    """
    whole_number("num_samples", num_samples, least=2)
    seed_number("seed", seed)
    of_kind("search", search, LocalSearch)
    compile_choice(compile)
    start = time.monotonic()
    known = log_evidence(pair, data, device=device, progress=progress) if exact else None
    with evaluating(pair, data, device) as subject, seeded(key(seed), subject.device):
        splitter = _Splitter(subject, num_samples, seed, search, richer, memory, compile)

        def work(batch: Batch, first: int) -> dict[str, np.ndarray]:
            return splitter(batch, first, None if known is None else known[first : first + len(batch[0])])

        swept = subject.sweep(splitter.num_rows, "gap decomposition", progress, work)
    return GapDecomposition(
        **trusted_parts(swept.gathered(), num_samples),
        family=splitter.family.names,
        is_supremum=splitter.family.is_supremum,
        no_richer=splitter.no_richer,
        num_samples=num_samples,
        seconds=time.monotonic() - start,
    )


class _Weights(NamedTuple):
    """Log-weights of a q for a block of data."""

    log_weight: np.ndarray
    """log p(x, z) - log q(z) of K draws for each datum (K, N), in nats."""
    tally: Tally
    """The same, counted."""


class _Splitter:
    """Searches and compares, block by block."""

    def __init__(
        self,
        subject: Subject,
        num_samples: int,
        seed: int,
        search: LocalSearch,
        richer: bool,
        memory: int,
        compile: Literal["auto"] | bool,
    ) -> None:
        pair, rows, layout = subject.pair, subject.rows, subject.layout
        self._pair, self._layout, self._device = pair, layout, subject.device
        self._num_samples, self._seed = num_samples, seed
        self._enumerable = is_enumerable(layout)
        probe, one = (rows.take(slice(0, size), subject.device) for size in (_PROBE_ROWS, 1))
        self._frailty = Frailty.of(pair, one, layout, first_draw(pair, one, layout))
        self.family = GuideFamily(pair, probe, layout)
        self._affine, self.no_richer = self._try_affine(probe) if richer else (None, "not asked for")
        most = _ROWS if self._affine is None else min(_ROWS, max(1, _ROOT_SCALARS // self._affine.size))
        self.num_rows = min(layout.largest_batch(most), len(rows))
        num_blocks = len(subject.blocks(self.num_rows)[0])
        self._best = Searcher(self.family, pair, search, compile, num_blocks)
        self._richer = None if self._affine is None else Searcher(self._affine, pair, search, compile, num_blocks)
        scores = (2 + (self._affine is not None)) * len(rows) * num_samples
        self._score = Scorer(pair, layout, memory, compile, scores)

    def _try_affine(self, probe: Batch) -> tuple[AffineFamily | None, str]:
        try:
            return AffineFamily(self.family, self._pair, probe, self._layout), ""
        except PairError as error:
            return None, str(error)

    def __call__(self, batch: Batch, first: int, known: np.ndarray | None) -> dict[str, np.ndarray]:
        """Everything about the data of a block whose first datum is `first`."""
        seed = key(self._seed, first)
        found = self._best((), batch, key(seed, _SEARCH))
        start, late = torch.zeros_like(found.free), _about(found) | _about_none(len(batch[0]))
        if self._enumerable:
            if not first:
                warn_of_rounding(self._pair, batch, self._layout, "gap decomposition")
            elbos = [self._summed_elbo(free, batch, first) for free in (start, found.free)]
            return late | exact_parts(enumerate_latents(self._pair, batch, self._layout), *elbos)
        guide, best = (self._weights(self.family, free, (), batch, first) for free in (start, found.free))
        richer = None
        if self._affine is not None and self._richer is not None:
            reseed(key(seed, _CONTEXT), self._device)
            context = self._affine.context(found.free, batch, _CONTEXT_DRAWS)
            moved = self._richer(context, batch, key(seed, _RICHER))
            moved = self._richer.better_than_start(moved, context, batch, key(seed, _RICHER, -1))
            richer = self._weights(self._affine, moved.free, context, batch, first)
            late |= {f"richer_{name}": value for name, value in _about(moved).items()}
            look = partial(self._unseen_by_richer, moved.free, context, batch, seed)
        else:
            look = partial(self._unseen_by_best, found.free, batch, seed)
        evidence = self._evidence(richer or best, known, look, seed)
        return late | sampled_parts(
            guide.log_weight,
            best.log_weight,
            None if richer is None else richer.log_weight,
            evidence,
            known is not None,
            {"elbo": guide.tally.drawn_at_edge, "best_elbo": best.tally.drawn_at_edge},
        )

    def _summed_elbo(self, free: Tensor, batch: Batch, first: int) -> Tensor:
        """ELBO of each datum (N,), summed over all values of the latents."""
        elbo = self.family.elbo(free, (), batch, 1)
        if bool((bad := ~elbo.isfinite()).any()):
            n = int(bad.nonzero()[0])
            row, own = tuple(array[n : n + 1] for array in batch), self.family.freed(free[n : n + 1])
            raise EstimateError(
                f"row {first + n}: expected a finite ELBO, summed over all values of the latents, found "
                f"{float(elbo[n])}: {site_of_values(own, row, self._layout, lambda t: ~t.isfinite())}; give the guide "
                "no value that the model excludes, or use log_likelihood, which counts such as zero"
            )
        return elbo

    def _evidence(
        self, proposal: _Weights, known: np.ndarray | None, look: Callable[[Summary], Unseen], seed: int
    ) -> dict[str, np.ndarray]:
        """log p(x) of each datum as `value`, with what it is judged by."""
        summary = proposal.tally.summary(key(seed, _ROUNDING))
        if known is not None:
            return known_evidence(known) | {"rounding": summary.rounding}
        unseen = look(summary)
        looked_at = {"unseen": unseen.share, "unseen_stderr": unseen.stderr}
        return summary._asdict() | looked_at | proposal.tally.at_edge(summary.value)

    def _unseen_by_best(self, free: Tensor, batch: Batch, seed: int, summary: Summary) -> Unseen:
        """Share of p(x) that draws of the best q of the guide's family cannot have seen (N,)."""
        best, size = self.family.freed(free), self._num_samples
        probe = Prober(best, self._layout, self._score, _PROBES, size, self._device)
        return probe(batch, summary, np.full(len(summary.value), size), key(seed, _LOOK))

    def _unseen_by_richer(
        self, free: Tensor, context: tuple[Tensor, ...], batch: Batch, seed: int, summary: Summary
    ) -> Unseen:
        """The same of the best q of the richer family, whose draws spread out are those of a wider affine map."""
        affine = self._affine
        assert affine is not None
        if not self.family.has_density:
            return Unseen.unknown(len(batch[0]))

        def look() -> Unseen:
            reseed(key(seed, _LOOK), self._device)
            probes = affine.propose(free, context, batch, _PROBES, widening(affine.dim))
            log_lik, log_prior = self._score(batch, probes, _PROBES)
            log_q = affine.log_density(free, context, batch, probes.latents[0], _PROBES)
            shares = unseen_shares(log_lik + log_prior, probes.log_guide, log_q, summary.value, self._num_samples)
            return Unseen.of(shares)

        return looked(look, Unseen.unknown(len(batch[0])))

    def _weights(
        self, family: LocalFamily, free: Tensor, context: tuple[Tensor, ...], batch: Batch, first: int
    ) -> _Weights:
        """Weights of K draws for each datum of a block, all finite; every family gets the same noise."""
        seed = key(self._seed, first)
        largest = self.family.size if self._affine is None else max(self.family.size, self._affine.size)
        num_chunks = math.ceil(self._num_samples / max(2, min(_PARTICLES, _SCALARS // (len(batch[0]) * largest))))
        own = self.family.freed(context[0] if context else free)
        parts, tally = [], Tally(own, batch, self._layout, self._frailty, self._num_samples, first)
        for i, draws in enumerate(np.array_split(np.arange(self._num_samples), num_chunks)):
            reseed(key(seed, _EVALUATION, i), self._device)
            proposal = family.propose(free, context, batch, len(draws))
            log_lik, log_prior = self._score(batch, proposal, len(draws))
            log_weight = log_lik + log_prior - proposal.log_guide
            check_finite(self._pair, batch, proposal, log_weight, self._layout, first)
            tally.add(log_weight, size_of_terms(log_lik, log_prior, proposal), proposal)
            parts.append(log_weight.double().cpu().numpy())
        return _Weights(np.concatenate(parts), tally)


def _about(found: Found) -> dict[str, np.ndarray]:
    """What is said of a search."""
    late = {"late_gain": found.gain, "late_gain_stderr": found.gain_stderr, "converged": found.converged}
    return {name: as_numpy(value) for name, value in late.items()}


def _about_none(num_data: int) -> dict[str, np.ndarray]:
    """The same of a richer search, where there is none."""
    nothing = np.zeros(num_data)
    return {"richer_late_gain": nothing, "richer_late_gain_stderr": nothing, "richer_converged": nothing == 0}
