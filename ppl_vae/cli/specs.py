"""What pair and which data the options of a command ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import typer

from ppl_vae.options import positive_number

if TYPE_CHECKING:
    from ppl_vae.evaluation import Annealing
    from ppl_vae.rundir import Binarization, DataSpec, PairSpec, TrainingSpec

__all__ = ["annealing_of", "check_option", "check_served", "data_spec_of", "pair_spec_of", "training_spec_of"]

_OF_CHAINS = {
    "--chains": "num_chains",
    "--temperatures": "num_temperatures",
    "--leapfrog": "num_leapfrog",
    "--spacing": "schedule",
    "--start": "start",
}
# The methods of an evaluation that have a use for an option.
_SERVED = {
    "--num-samples": ("is",),
    "--target-stderr": ("is",),
    "--escalate": ("is",),
    "--against-exact": ("is", "ais"),
    **dict.fromkeys(_OF_CHAINS, ("ais", "bdmc")),
}
_IWAE_PARTICLES = 5
_GRADIENTS = {"elbo": ("pathwise", "stl", "score"), "iwae": ("pathwise", "dreg", "score", "vimco")}


def check_option(check: Callable[[str, object], None], option: str, value: object) -> None:
    """Refuses on the command line what the library refuses, by a function of `ppl_vae.options`; None is no value."""
    if value is None:
        return
    try:
        check(option, value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def pair_spec_of(name: str, latent_dim: int | None, hidden: str | None, seed: int) -> PairSpec:
    """The pair that the options of a command name, with the sizes of a recipe."""
    from ppl_vae.cli.pairs import is_recipe
    from ppl_vae.rundir import PairSpec

    spec = PairSpec(name, seed=seed)
    if not is_recipe(name):
        if latent_dim is not None or hidden is not None:
            raise typer.BadParameter(f"--latent-dim and --hidden size a recipe; {name} decides its own sizes")
        return PairSpec(name, None, None, seed)
    return PairSpec(name, latent_dim or spec.latent_dim, spec.hidden if hidden is None else _widths(hidden), seed)


def _widths(text: str) -> tuple[int, ...]:
    widths = text.split(",")
    if not all(width.strip().isdecimal() and int(width) > 0 for width in widths):
        raise typer.BadParameter(f"--hidden: expected positive widths such as 200,200, found {text!r}")
    return tuple(int(width) for width in widths)


def data_spec_of(
    name: str,
    data_dir: str | None,
    made: tuple[Binarization | None, int | None, int | None],
    arrays: str | None,
    pair: PairSpec,
) -> DataSpec:
    """The data that the options of a command name; `made` are --binarize, --dequantize and --quantize."""
    from ppl_vae.cli.pairs import is_binary
    from ppl_vae.rundir import DataSpec

    binarize, dequantize, quantize = made
    drawn = binarize or ("dynamic" if is_binary(pair) else "none")
    if dequantize is not None and drawn != "none":
        raise typer.BadParameter("--dequantize makes densities, binarised data have none: leave one of them out")
    if quantize is not None and (dequantize is not None or drawn != "none"):
        raise typer.BadParameter("--quantize makes levels: leave out --dequantize and --binarize")
    names = () if arrays is None else tuple(part.strip() for part in arrays.split(","))
    if not all(names):
        raise typer.BadParameter(f"--arrays: expected names such as x,y, found {arrays!r}")
    return DataSpec(name, drawn, data_dir, names, dequantize, quantize)


def training_spec_of(
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    schedule: Literal["constant", "cosine"],
    objective: Literal["auto", "elbo", "iwae"],
    num_particles: int | None,
    beta: float,
    beta_warmup: int,
    gradient: Literal["pathwise", "stl", "score", "dreg", "vimco"],
    discrete: Literal["score", "enumerate"],
    validation: bool,
    patience: int | None,
    seed: int,
    device: str,
    compile: Literal["auto", "yes", "no"],
    on_nonfinite: Literal["stop", "skip", "rollback"],
) -> TrainingSpec:
    """The training that the options of a command ask for."""
    from ppl_vae.rundir import TrainingSpec

    if objective == "iwae" and (beta != 1.0 or beta_warmup):
        raise typer.BadParameter("--objective iwae bounds log p(x) with beta = 1: leave out --beta and --beta-warmup")
    _check_estimator(objective, num_particles, gradient, discrete)
    if patience is not None and not validation:
        raise typer.BadParameter("--patience watches the validation ELBO: leave out --no-validation")
    check_option(positive_number, "--learning-rate", learning_rate)
    return TrainingSpec(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        objective=objective,
        num_particles=num_particles or (_IWAE_PARTICLES if objective == "iwae" else 1),
        beta=beta,
        beta_warmup=beta_warmup,
        gradient=gradient,
        discrete=discrete,
        validation=validation,
        patience=patience,
        seed=seed,
        device=device,
        compile="auto" if compile == "auto" else compile == "yes",
        on_nonfinite=on_nonfinite,
    )


def _check_estimator(objective: str, num_particles: int | None, gradient: str, discrete: str) -> None:
    """Refuse combinations that no objective has."""
    own = "iwae" if objective == "iwae" else "elbo"
    if gradient not in _GRADIENTS[own]:
        other = next(name for name, choices in _GRADIENTS.items() if gradient in choices)
        raise typer.BadParameter(f"--gradient {gradient} is of --objective {other}")
    if gradient == "vimco" and num_particles == 1:
        raise typer.BadParameter("--gradient vimco compares draws: --num-particles 2 or more")
    if discrete == "enumerate" and (own == "iwae" or gradient == "score"):
        what = "--objective iwae" if own == "iwae" else "--gradient score"
        raise typer.BadParameter(f"--discrete enumerate sums over what {what} draws: leave one of them out")


def check_served(method: str, given: Mapping[str, Any]) -> None:
    """Refuse an option that the method of an evaluation has no use for; None where it was not given."""
    for option, value in given.items():
        if value is not None and method not in _SERVED[option]:
            taken = ", ".join(name for name, methods in _SERVED.items() if method in methods) or "none of these options"
            raise typer.BadParameter(
                f"{option} is of --method {' and '.join(_SERVED[option])}, found {method}, which takes {taken}"
            )


def annealing_of(given: Mapping[str, Any]) -> Annealing:
    """The chains that the options of a command ask for; those that are None are as ever."""
    from ppl_vae.evaluation import Annealing

    return Annealing(**{name: given[option] for option, name in _OF_CHAINS.items() if given[option] is not None})
