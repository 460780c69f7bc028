"""Pairs compared on the same data: which is better, by how much, and where that cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ppl_vae.arrays import Rows, as_rows
from ppl_vae.checking import check, first_run, kind_of_density
from ppl_vae.checking.probes import quiet, trace
from ppl_vae.errors import PairError, PplVaeError
from ppl_vae.evaluation.likelihood import log_likelihood
from ppl_vae.evaluation.ranking import Comparison
from ppl_vae.evaluation.result import LogLikelihood
from ppl_vae.options import compile_choice, probability, seed_number, whole_number
from ppl_vae.pair import Pair, as_pair
from ppl_vae.tape import Batch

__all__ = ["compare"]

_PROBE_ROWS = 16
_SAME = "let all of them observe the same"


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
        PairError: There are no pairs, or a name is no text; one is not valid, and is named; or their numbers do not
            compare: a probability with a density, or pairs that observe different numbers or arguments of a datum.
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
    seed_number("seed", seed)
    compile_choice(compile)
    probability("level", level)
    rows = as_rows(data)
    facts: dict[str, _Facts] = {}
    for name, pair in pairs.items():
        with _naming(name):
            facts[name] = _facts(as_pair(pair), rows)
    _check_comparable(facts)
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
    _check_sizes({name: result.num_dimensions for name, result in results.items()})
    return Comparison(results, level, max(found.rounding for found in facts.values()))


class _Facts(NamedTuple):
    """What the first rows tell of a pair."""

    kind: str
    """Probability or density."""
    size: int
    """How many numbers of a datum are observed; 0 where that differs among data."""
    observed: str
    """Which arguments are observed, in words, or nothing."""
    rounding: float
    """Relative rounding of what is computed."""


def _facts(pair: Pair, rows: Rows) -> _Facts:
    """Checks a pair on the first rows, and says what has to be the same of all pairs."""
    probe = slice(0, _PROBE_ROWS)
    first_run(pair, rows.with_dtype(pair.dtype).take(probe, pair.device))
    first = rows.with_dtype(pair.dtype).take(probe, pair.device)
    layout = check(pair, first, proposes_outside=True).layout
    return _Facts(kind_of_density(pair, first), layout.num_dimensions, _observed(pair, first), _rounding(pair, first))


def _check_comparable(facts: Mapping[str, _Facts]) -> None:
    """The log-likelihoods of all pairs are numbers of one kind, of the same part of a datum."""
    kinds = {name: found.kind for name, found in facts.items()}
    _check_alike(kinds, "kind of number", "a probability and a density have no common measure")
    _check_sizes({name: found.size for name, found in facts.items()})
    _check_alike({name: f.observed for name, f in facts.items() if f.observed}, "observed part of a datum", _SAME)


def _check_sizes(sizes: Mapping[str, int]) -> None:
    found = {name: f"log p of {size} numbers" for name, size in sizes.items()}
    _check_alike(found, "observed part of a datum", _SAME)


def _observed(pair: Pair, batch: Batch) -> str:
    """Which arguments the model observes, in words; empty where a site observes something made of them."""
    with quiet(pair):
        model = trace(pair, "model", batch)
    found = set()
    for site in model.sites.values():
        if site["is_observed"]:
            same = [i for i, array in enumerate(batch) if _is_of(site["value"], array)]
            if len(same) != 1:
                return ""
            found.update(same)
    words = ", ".join(map(str, sorted(found)))
    return f"log p of argument{'s' * (len(found) > 1)} {words}"


def _is_of(observed: Tensor, array: Tensor) -> bool:
    """Whether what a site observes is an argument, or has the numbers of one."""
    return observed is array or (
        observed.numel() == array.numel() and torch.equal(observed.reshape(array.shape), array)
    )


def _rounding(pair: Pair, batch: Batch) -> float:
    """Relative rounding of what a pair computes."""
    kinds = {array.dtype for array in batch if array.is_floating_point()} | ({pair.dtype} if pair.dtype else set())
    return max(torch.finfo(kind).eps for kind in kinds or {torch.get_default_dtype()})


def _check_pairs(pairs: Any) -> None:
    if not isinstance(pairs, Mapping) or not pairs:
        raise PairError(f"pairs: expected a dictionary, name -> pair, of at least one, found {pairs!r:.60}")
    for name in pairs:
        if not isinstance(name, str):
            raise PairError(f"pairs: expected names that are texts, found {name!r:.60}: write it as one")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Context in which an error says which pair it is of."""
    try:
        yield
    except PplVaeError as error:
        raise type(error)(f"pair {name!r}: {error}") from error


def _check_alike(found: Mapping[str, str], what: str, mend: str) -> None:
    first, one = next(iter(found.items()), ("", ""))
    for name, other in found.items():
        if other != one:
            raise PairError(
                f"expected pairs with the same {what}, found {one} ({first!r}) and {other} ({name!r}): {mend}"
            )
