"""Pairs compared on the same data: which is better, by how much, and where that cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import in_kind_of, kind_of_density
from ppl_vae.errors import PairError, PplVaeError
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.ranking import Comparison
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.options import probability, whole_number
from ppl_vae.pair import Pair, as_pair
from ppl_vae.tape import Batch

__all__ = ["compare"]


def compare(
    pairs: Mapping[str, Any],
    data: Any,
    num_samples: int = 5000,
    seed: int = 0,
    *,
    level: float = 0.95,
    memory: int = 256 << 20,
    device: str | torch.device = "auto",
    compile: Literal["auto"] | bool = "auto",
    progress: bool = True,
) -> Comparison:
    r"""Evaluates pairs on the same data with the same noise, and ranks them as far as that can be done.

    .. math:: d_n = \log \hat p_a(x_n) - \log \hat p_b(x_n)

    Differences are taken datum by datum: what makes a datum hard is common to all pairs, so that their error is far
    smaller than that of either mean. Noise belongs to the seed and to blocks of data and samples: pairs whose latents
    have the same size share it, and much of their Monte Carlo error.

    Args:
        pairs: Name -> pair, each as for `log_likelihood`.
        data: Data (N, *event) or a tuple of arrays: the same arguments for the programs of all pairs.
        num_samples: K, samples for each datum and pair.
        seed: Of the samples, one for all.
        level: Probability, at least, that no two pairs are told apart in the wrong order, as long as no guide misses a
            mode of its own: such estimates look well and are too low.
        memory: As for `log_likelihood`.
        device: Where to evaluate; "auto" is where the parameters are.
        compile: As for `log_likelihood`.
        progress: Show a progress bar where there is a terminal.

    Returns:
        A `Comparison`; `print` gives the table. It holds the `LogLikelihood` of each pair, without posterior draws.

    Raises:
        PairError: There are no pairs; one is not valid, and is named; or their numbers do not compare: a probability
            with a density, or pairs that observe different numbers of a datum.
        DataError: A datum lies outside the support of a pair's site.
        EstimateError: A weight is NaN or infinite; pair and row are named.

    Example:
        >>> import torch
        >>> import ppl_vae as pv
        >>> right = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.zeros(2), 0.5)
        >>> wrong = pv.PPCA(torch.tensor([[1.0], [0.5]]), torch.ones(2), 0.5)
        >>> found = compare({"wrong": wrong, "right": right}, right.sample(200), num_samples=10, progress=False)
        >>> found.ranks
        {'right': (1, 1), 'wrong': (2, 2)}
    """
    _check_pairs(pairs)
    whole_number("num_samples", num_samples, least=1)
    whole_number("seed", seed)
    probability("level", level)
    rows = as_rows(data)
    kinds, rounding = {}, 0.0
    results: dict[str, LogLikelihood] = {}
    for name, pair in pairs.items():
        with _naming(name):
            results[name] = log_likelihood(
                pair,
                rows,
                num_samples,
                seed,
                num_draws=0,
                memory=memory,
                device=device,
                compile=compile,
                progress=progress,
            )
            valid = as_pair(pair)
            first = in_kind_of(valid, Rows(rows.take(slice(0, 2)))).take(slice(0, 2))
            kinds[name] = kind_of_density(valid, first)
            rounding = max(rounding, _rounding(valid, first))
    _check_alike(kinds, "kind of number", "a probability and a density have no common measure")
    sizes = {name: f"log p of {result.num_dimensions} numbers" for name, result in results.items()}
    _check_alike(sizes, "observed part of a datum", "let all of them observe the same")
    return Comparison(results, level, rounding)


def _rounding(pair: Pair, batch: Batch) -> float:
    """Relative rounding of what a pair computes."""
    kinds = {array.dtype for array in batch if array.is_floating_point()} | ({pair.dtype} if pair.dtype else set())
    return max(torch.finfo(kind).eps for kind in kinds or {torch.get_default_dtype()})


def _check_pairs(pairs: Any) -> None:
    if not isinstance(pairs, Mapping) or not pairs:
        raise PairError(f"pairs: expected a dictionary, name -> pair, of at least one, found {pairs!r:.60}")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Context in which an error says which pair it is of."""
    try:
        yield
    except PplVaeError as error:
        raise type(error)(f"pair {name!r}: {error}") from error


def _check_alike(found: Mapping[str, str], what: str, mend: str) -> None:
    (first, one), *others = found.items()
    for name, other in others:
        if other != one:
            raise PairError(
                f"expected pairs with the same {what}, found {one} ({first!r}) and {other} ({name!r}): {mend}"
            )
