"""The commands of `ppl-vae`; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ppl_vae.cli.options import (
    BinarizeOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    HiddenOption,
    LatentDimOption,
    PairAgainOption,
    PairArgument,
    RunArgument,
)
from ppl_vae.cli.shell import Shell

if TYPE_CHECKING:
    from ppl_vae.cli.inputs import Binarization, DataSpec
    from ppl_vae.cli.pairs import PairSpec

__all__ = ["app"]

_FILE_WIDTH = 118
_TRAINING, _EVALUATION, _RUN = "Training", "Evaluation", "The run"

app = typer.Typer(cls=Shell, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ppl_vae import __version__

        typer.echo(f"ppl-vae {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Variational autoencoders written as Pyro model/guide pairs, with log-likelihoods one can trust."""


@app.command()
def fit(
    pair: PairArgument,
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    binarize: BinarizeOption = None,
    latent_dim: LatentDimOption = None,
    hidden: HiddenOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.", rich_help_panel=_TRAINING)] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.", rich_help_panel=_TRAINING)] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.", rich_help_panel=_TRAINING)] = 1e-3,
    schedule: Annotated[
        Literal["constant", "cosine"],
        typer.Option(help="Learning rate: as it is, or to 0 along half a cosine.", rich_help_panel=_TRAINING),
    ] = "constant",
    objective: Annotated[
        Literal["elbo", "iwae"],
        typer.Option(help="ELBO, or the importance-weighted bound.", rich_help_panel=_TRAINING),
    ] = "elbo",
    num_particles: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draws of z for each datum and step.",
            show_default="1 for elbo, 5 for iwae",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    beta: Annotated[
        float, typer.Option(min=0.0, help="Weight of the rate in the ELBO.", rich_help_panel=_TRAINING)
    ] = 1.0,
    beta_warmup: Annotated[
        int, typer.Option(min=0, help="Epochs in which beta rises from 0 in a line.", rich_help_panel=_TRAINING)
    ] = 0,
    validation: Annotated[
        bool,
        typer.Option(
            help="Keep the parameters of the best validation ELBO. Without it, the validation data train too.",
            rich_help_panel=_TRAINING,
        ),
    ] = True,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after this many epochs without a better validation ELBO.",
            show_default="never",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of initial parameters, order of the data and noise.", rich_help_panel=_RUN)
    ] = 0,
    device: DeviceOption = "auto",
    run_dir: Annotated[
        Path | None,
        typer.Option(help="New directory for all results.", show_default="runs/PAIR-DATA-NUMBER", rich_help_panel=_RUN),
    ] = None,
    eval_samples: Annotated[
        int,
        typer.Option(min=0, help="K of the evaluation at the end; 0 leaves it out.", rich_help_panel=_EVALUATION),
    ] = 500,
    eval_limit: Annotated[
        int, typer.Option(min=1, help="Evaluate the first test data only.", rich_help_panel=_EVALUATION)
    ] = 1000,
) -> None:
    """Train a pair; leave configuration, history, parameters, evaluation and figures in a directory."""
    if objective == "iwae" and (beta != 1.0 or beta_warmup):
        raise typer.BadParameter("--objective iwae bounds log p(x) with beta = 1: leave out --beta and --beta-warmup")
    if patience is not None and not validation:
        raise typer.BadParameter("--patience watches the validation ELBO: leave out --no-validation")
    if not learning_rate > 0:
        raise typer.BadParameter(f"--learning-rate: expected a positive number, found {learning_rate}")
    from ppl_vae.cli.work import EvaluationSettings, Training, free_directory, train

    pair_spec = _pair_spec(pair, latent_dim, hidden, seed)
    data_spec = _data_spec(data, data_dir, binarize, pair_spec)
    particles = num_particles or (5 if objective == "iwae" else 1)
    training = Training(
        epochs,
        batch_size,
        learning_rate,
        schedule,
        objective,
        particles,
        beta,
        beta_warmup,
        validation,
        patience,
        seed,
        device,
    )
    evaluation = EvaluationSettings(eval_samples, eval_limit, seed, device) if eval_samples else None
    train(pair_spec, data_spec, training, evaluation, run_dir or free_directory(pair, data))


@app.command()
def evaluate(
    run: RunArgument,
    pair: PairAgainOption = None,
    data_dir: DataDirOption = None,
    num_samples: Annotated[int, typer.Option(min=1, help="K, importance samples for each datum.")] = 5000,
    limit: Annotated[int | None, typer.Option(min=1, help="First test data only.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Estimate the log-likelihood of a run's test data, with its error; write evaluation.json and evaluation.npz."""
    from ppl_vae.cli.work import EvaluationSettings
    from ppl_vae.cli.work import evaluate as work

    work(run, pair, data_dir, EvaluationSettings(num_samples, limit, seed, device))


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help="NAME.png for a grid of images, NAME.npy for an array.")] = Path(
        "samples.png"
    ),
    draws: Annotated[bool, typer.Option("--draws", help="Draw x from p(x | z) rather than show its mean.")] = False,
    pair: PairAgainOption = None,
    data_dir: DataDirOption = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Draw data from the model of a run."""
    from ppl_vae.cli.work import sample as work

    work(run, pair, data_dir, n, seed, draws, out)


@app.command()
def check(
    pair: PairArgument,
    data: DataOption = "digits",
    data_dir: DataDirOption = None,
    binarize: BinarizeOption = None,
    latent_dim: LatentDimOption = None,
    hidden: HiddenOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the training data to check on.")] = 64,
) -> None:
    """Check that model and guide fit together and to the data; show sites, supports and parameters."""
    from rich.console import Console

    from ppl_vae.cli.work import check_pair

    pair_spec = _pair_spec(pair, latent_dim, hidden, 0)
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    console.print(check_pair(pair_spec, _data_spec(data, data_dir, binarize, pair_spec), rows))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of evaluated runs.")],
    form: Annotated[Literal["table", "markdown", "json"], typer.Option("--format", help="How to print it.")] = "table",
) -> None:
    """Compare runs evaluated on the same test data, the best first."""
    from ppl_vae.cli.comparison import compare as work

    work(runs, form)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the results; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train VAEs, mixtures and PPCA on digits: two tables and a sheet of figures, in less than two minutes."""
    from ppl_vae.demo import DemoSettings, run_demo

    run_demo(out, DemoSettings(seed=seed))


def _pair_spec(name: str, latent_dim: int | None, hidden: str | None, seed: int) -> PairSpec:
    from ppl_vae.cli.pairs import PairSpec

    spec = PairSpec(name, seed=seed)
    if not spec.is_recipe and (latent_dim is not None or hidden is not None):
        raise typer.BadParameter(f"--latent-dim and --hidden size a recipe; {name} decides its own sizes")
    return PairSpec(name, latent_dim or spec.latent_dim, spec.hidden if hidden is None else _widths(hidden), seed)


def _widths(text: str) -> tuple[int, ...]:
    widths = text.split(",")
    if not all(width.strip().isdecimal() and int(width) > 0 for width in widths):
        raise typer.BadParameter(f"--hidden: expected positive widths such as 200,200, found {text!r}")
    return tuple(int(width) for width in widths)


def _data_spec(name: str, data_dir: str | None, binarize: Binarization | None, pair: PairSpec) -> DataSpec:
    from ppl_vae.cli.inputs import DataSpec
    from ppl_vae.cli.pairs import is_binary

    return DataSpec(name, binarize or ("dynamic" if is_binary(pair) else "none"), data_dir)
