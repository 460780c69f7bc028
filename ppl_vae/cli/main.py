"""The commands of `ppl-vae`; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ppl_vae.cli import experiments
from ppl_vae.cli import options as o
from ppl_vae.cli.shell import Shell
from ppl_vae.cli.specs import annealing_of, check_option, check_served, data_spec_of, pair_spec_of, training_spec_of
from ppl_vae.options import positive_number, probability
from ppl_vae.progress import is_watched

__all__ = ["app"]

_FILE_WIDTH = 118
_ANNEALED_DATA = 100  # seconds each, for a network of some size

app = typer.Typer(cls=Shell, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(experiments.app, name="experiment")


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
    """Variational autoencoders written as Pyro model/guide pairs, with log-likelihoods one can trust.

    The commands cover the usual path; ppl_vae in Python has more objectives, models and options.
    """


@app.command()
def fit(
    pair: o.PairArgument,
    data: o.DataOption = "digits",
    arrays: o.ArraysOption = None,
    data_dir: o.DataDirOption = None,
    binarize: o.BinarizeOption = None,
    dequantize: o.DequantizeOption = None,
    quantize: o.QuantizeOption = None,
    latent_dim: o.LatentDimOption = None,
    hidden: o.HiddenOption = None,
    epochs: o.EpochsOption = 20,
    batch_size: o.BatchSizeOption = 128,
    learning_rate: o.LearningRateOption = 1e-3,
    schedule: o.ScheduleOption = "constant",
    objective: o.ObjectiveOption = "auto",
    num_particles: o.NumParticlesOption = None,
    beta: o.BetaOption = 1.0,
    beta_warmup: o.BetaWarmupOption = 0,
    gradient: o.GradientOption = "pathwise",
    discrete: o.DiscreteOption = "score",
    validation: o.ValidationOption = True,
    patience: o.PatienceOption = None,
    on_nonfinite: o.OnNonfiniteOption = "stop",
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
    compile: o.CompileOption = "auto",
    run_dir: o.RunDirOption = None,
    eval_samples: o.EvalSamplesOption = 500,
    eval_limit: o.EvalLimitOption = 1000,
) -> None:
    """Train a pair; leave configuration, history, parameters, evaluation and figures in a directory.

    Started by torchrun, its processes share every batch.
    """
    from ppl_vae.cli.processes import processes
    from ppl_vae.cli.training import train
    from ppl_vae.cli.work import free_directory
    from ppl_vae.rundir import EvaluationSpec

    training = training_spec_of(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        objective=objective,
        num_particles=num_particles,
        beta=beta,
        beta_warmup=beta_warmup,
        gradient=gradient,
        discrete=discrete,
        validation=validation,
        patience=patience,
        seed=seed,
        device=device,
        compile=compile,
        on_nonfinite=on_nonfinite,
    )
    pair_spec = pair_spec_of(pair, latent_dim, hidden, seed)
    data_spec = data_spec_of(data, data_dir, (binarize, dequantize, quantize), arrays, pair_spec)
    evaluation = EvaluationSpec(eval_samples, eval_limit) if eval_samples else None
    with processes() as group:
        train(pair_spec, data_spec, training, evaluation, run_dir or free_directory(pair, data), group)


@app.command()
def resume(
    run: o.RunArgument,
    pair: o.PairAgainOption = None,
    data_dir: o.DataDirOption = None,
    on_nonfinite: o.OnNonfiniteAgainOption = None,
) -> None:
    """Go on with a run of `fit` that was interrupted, killed or failed, from its newest checkpoint, and finish it.

    The numbers are, bit by bit, those of a run that was never interrupted, on the same build of torch, device and
    number of threads.
    """
    from ppl_vae.cli.processes import processes
    from ppl_vae.cli.training import resume as work

    with processes() as group:
        work(run, pair, data_dir, on_nonfinite, group)


@app.command()
def replay(
    run: o.RunArgument,
    step: o.BadStepOption = None,
    pair: o.PairAgainOption = None,
    data_dir: o.DataDirOption = None,
    device: o.DeviceOption = "auto",
) -> None:
    """Do a step again that was not finite, with its parameters, rows and noise; show what each site drew."""
    from ppl_vae.cli.training import replay as work

    work(run, step, pair, data_dir, device)


@app.command()
def evaluate(
    run: o.RunArgument,
    method: o.MethodOption = "is",
    pair: o.PairAgainOption = None,
    data_dir: o.DataDirOption = None,
    num_samples: o.NumSamplesOption = None,
    target_stderr: o.TargetStderrOption = None,
    escalate: o.EscalateOption = False,
    chains: o.ChainsOption = None,
    temperatures: o.TemperaturesOption = None,
    leapfrog: o.LeapfrogOption = None,
    spacing: o.SpacingOption = None,
    start: o.StartOption = None,
    against_exact: o.AgainstExactOption = False,
    limit: o.LimitOption = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
) -> None:
    """Estimate the log-likelihood of a run's test data, with its error; write evaluation.json and evaluation.npz.

    An earlier evaluation by another method, or with another K, seed or number of data, is kept beside it, under a name
    that says so. Started by torchrun, its processes share the data.
    """
    given = {
        "--num-samples": num_samples,
        "--target-stderr": target_stderr,
        "--escalate": escalate or None,
        "--against-exact": against_exact or None,
        "--chains": chains,
        "--temperatures": temperatures,
        "--leapfrog": leapfrog,
        "--spacing": spacing,
        "--start": start,
    }
    check_served(method, given)
    check_option(positive_number, "--target-stderr", target_stderr)
    from ppl_vae.cli.evaluating import EvaluationSettings
    from ppl_vae.cli.evaluating import evaluate as work
    from ppl_vae.cli.processes import processes

    settings = EvaluationSettings(
        num_samples=num_samples or 5000,
        limit=limit or (_ANNEALED_DATA if method in ("ais", "bdmc") else None),
        seed=seed,
        device=device,
        method=method,
        annealing=annealing_of(given),
        against_exact=against_exact,
        target_stderr=target_stderr,
        escalate=escalate,
    )
    with processes() as group:
        work(run, pair, data_dir, settings, group)


@app.command()
def sample(
    run: o.RunArgument,
    n: o.NumberOption = 64,
    out: o.OutOption = Path("samples.png"),
    draws: o.DrawsOption = False,
    pair: o.PairAgainOption = None,
    data_dir: o.DataDirOption = None,
    seed: o.SeedOption = 0,
) -> None:
    """Draw data from the model of a run."""
    from ppl_vae.cli.work import sample as work

    work(run, pair, data_dir, n, seed, draws, out)


@app.command()
def check(
    pair: o.PairArgument,
    data: o.DataOption = "digits",
    arrays: o.ArraysOption = None,
    data_dir: o.DataDirOption = None,
    binarize: o.BinarizeOption = None,
    dequantize: o.DequantizeOption = None,
    quantize: o.QuantizeOption = None,
    latent_dim: o.LatentDimOption = None,
    hidden: o.HiddenOption = None,
    rows: o.CheckedRowsOption = 64,
) -> None:
    """Check that model and guide fit together and to the data; show sites, supports and parameters."""
    from rich.console import Console

    from ppl_vae.cli.work import check_pair

    pair_spec = pair_spec_of(pair, latent_dim, hidden, 0)
    console = Console() if is_watched(sys.stdout) else Console(width=_FILE_WIDTH)
    data_spec = data_spec_of(data, data_dir, (binarize, dequantize, quantize), arrays, pair_spec)
    console.print(check_pair(pair_spec, data_spec, rows))


@app.command()
def compare(
    runs: o.RunsArgument,
    form: o.FormatOption = "table",
    level: o.LevelOption = 0.95,
    figure: o.FigureOption = None,
    num_samples: o.AnewSamplesOption = None,
    limit: o.AnewLimitOption = None,
    pair: o.AnewPairsOption = None,
    data_dir: o.DataDirOption = None,
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
) -> None:
    """Compare runs on the same test data, the best first, and say which cannot be told apart.

    Takes the evaluations that the runs have; with --num-samples it evaluates all of them itself, with the same noise.
    """
    check_option(probability, "--level", level)
    if num_samples is None and (limit is not None or pair):
        raise typer.BadParameter("--limit and --pair are for evaluating anew: add --num-samples K")
    from ppl_vae.cli.comparison import Anew, compare_anew, compare_records

    if num_samples is None:
        compare_records(runs, form, level, figure)
    else:
        compare_anew(runs, form, level, figure, Anew(num_samples, limit, seed, device, tuple(pair or ()), data_dir))


@app.command()
def selftest(device: o.TestDeviceOption = "auto", only: o.OnlyOption = None, seed: o.SeedAloneOption = 0) -> None:
    """Hold estimates, errors and bounds against exact answers on this machine; status 1 if one is off."""
    from ppl_vae.selftesting import selftest as work
    from ppl_vae.selftesting.run import CASES

    names = None if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names or () if name not in CASES]:
        raise typer.BadParameter(f"--only: expected cases among {', '.join(CASES)}, found {unknown[0]!r}")
    result = work(device, only=names, seed=seed)
    typer.echo(str(result))
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the results; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    seed: o.SeedAloneOption = 0,
) -> None:
    """Train VAEs, mixtures and PPCA on digits: two tables and two sheets of figures, in less than two minutes."""
    from ppl_vae.demo import DemoSettings, run_demo

    run_demo(out, DemoSettings(seed=seed))
