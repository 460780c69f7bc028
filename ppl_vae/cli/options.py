"""The options of the commands, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ppl_vae.options import seed_number

__all__ = [
    "AgainstExactOption",
    "AnewLimitOption",
    "AnewPairsOption",
    "AnewSamplesOption",
    "ArraysOption",
    "BadStepOption",
    "BatchSizeOption",
    "BetaOption",
    "BetaWarmupOption",
    "BinarizeOption",
    "ChainsOption",
    "CheckedRowsOption",
    "CompileOption",
    "DataDirOption",
    "DataOption",
    "DequantizeOption",
    "DeviceOption",
    "DiscreteOption",
    "DrawsOption",
    "EpochsOption",
    "EscalateOption",
    "EvalLimitOption",
    "EvalSamplesOption",
    "FigureOption",
    "FormatOption",
    "GradientOption",
    "HiddenOption",
    "LatentDimOption",
    "LeapfrogOption",
    "LearningRateOption",
    "LevelOption",
    "LimitOption",
    "MethodOption",
    "NumParticlesOption",
    "NumSamplesOption",
    "NumberOption",
    "ObjectiveOption",
    "OnNonfiniteAgainOption",
    "OnNonfiniteOption",
    "OnlyOption",
    "OutOption",
    "PairAgainOption",
    "PairArgument",
    "PatienceOption",
    "QuantizeOption",
    "RunArgument",
    "RunDirOption",
    "RunsArgument",
    "ScheduleOption",
    "SeedAloneOption",
    "SeedOption",
    "SpacingOption",
    "StartOption",
    "TargetStderrOption",
    "TemperaturesOption",
    "TestDeviceOption",
    "ValidationOption",
]

_ANEW = "Evaluating anew"
_PAIR, _DATA, _TRAINING, _EVALUATION, _RUN = "The pair", "The data", "Training", "Evaluation", "The run"

_IS, _AIS = "Method is", "Methods ais and bdmc"
_SEED_HELP = "Seed of everything that this command draws."
_LIMIT_HELP = "Evaluate so many test data, chosen at random but always the same."


def _option(panel: str | None, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


def _seed(value: int) -> int:
    try:
        return seed_number("seed", value)
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("seed: ")) from None


PairArgument = Annotated[
    str,
    typer.Argument(
        metavar="PAIR",
        help="A recipe: vae (binary), gaussian-vae (density, one scale), scaled-vae (density, a scale s(z) for each "
        "entry), levels-vae (levels 0..L-1), counts-vae (counts). Or path/to/file.py:factory or "
        "package.module:factory; a factory takes no argument, or D, the number of entries of a datum, and returns "
        "ppl_vae.Pair(model, guide); it may set pair.objective, such as ppl_vae.Renyi(0.5), which trains it.",
    ),
]
PairAgainOption = Annotated[
    str | None,
    _option(_PAIR, "--pair", metavar="FILE.py:FACTORY", help="The pair, where it is code of your own."),
]
LatentDimOption = Annotated[int | None, _option(_PAIR, min=1, help="Dimension of z of a recipe.", show_default="50")]
HiddenOption = Annotated[
    str | None,
    _option(
        _PAIR,
        metavar="WIDTH,...",
        help="Hidden layers of a recipe's encoder; its decoder mirrors them.",
        show_default="200,200",
    ),
]

DataOption = Annotated[
    str,
    _option(
        _DATA,
        metavar="NAME|FILE",
        help="digits, mnist, fashion-mnist, omniglot; or FILE.npy or FILE.npz with one array (N, ...), split at random "
        "but always in the same way, 80 % to train, 10 % for validation, 10 % to test; or FILE.npz with the arrays "
        "train, validation and test. Numbers are taken as they are: divide bytes by 255 yourself.",
    ),
]
ArraysOption = Annotated[
    str | None,
    _option(
        _DATA,
        metavar="NAME,...",
        help="Arrays of FILE.npz with a row per datum, in the order in which the programs take them, as in x,y.",
        show_default="the only one",
    ),
]
DataDirOption = Annotated[
    str | None,
    _option(_DATA, help="Folder of the named data sets.", show_default="$PPL_VAE_DATA, else ~/.cache/ppl_vae"),
]
BinarizeOption = Annotated[
    Literal["dynamic", "fixed", "none"] | None,
    _option(
        _DATA,
        help="Read values in [0, 1] as probabilities and draw binary data. dynamic: anew in every step; fixed: once; "
        "none: as they are. Test data are drawn once, by a fixed seed.",
        show_default="dynamic for the recipe vae, none for other pairs",
    ),
]
DequantizeOption = Annotated[
    int | None,
    _option(
        _DATA,
        min=2,
        metavar="LEVELS",
        help="Spread each of so many equal grey levels in [0, 1] over its share, by a fixed seed: 17 for digits, 256 "
        "for bytes. Densities need it, as of gaussian-vae.",
        show_default="no",
    ),
]
QuantizeOption = Annotated[
    int | None,
    _option(
        _DATA,
        min=2,
        metavar="LEVELS",
        help="Turn grey images in [0, 1] into so many integer levels 0, 1, ...: 17 for digits, 256 for bytes. "
        "Probabilities of levels need it, as of levels-vae and counts-vae.",
        show_default="no",
    ),
]

EpochsOption = Annotated[int, _option(_TRAINING, min=1, help="Passes over the data.")]
BatchSizeOption = Annotated[int, _option(_TRAINING, min=1, help="Rows a step.")]
LearningRateOption = Annotated[float, _option(_TRAINING, help="Learning rate of Adam.")]
ScheduleOption = Annotated[
    Literal["constant", "cosine"],
    _option(_TRAINING, help="Learning rate: as it is, or to 0 along half a cosine."),
]
ObjectiveOption = Annotated[
    Literal["auto", "elbo", "iwae"],
    _option(
        _TRAINING,
        help="elbo, or iwae: the bound of importance weights. auto: pair.objective of a pair of your own that has one, "
        "else elbo.",
    ),
]
GradientOption = Annotated[
    Literal["pathwise", "stl", "score", "dreg", "vimco"],
    _option(
        _TRAINING,
        help="Estimator of the gradient. elbo: pathwise, stl, whose noise vanishes at the posterior, score. iwae: "
        "pathwise, dreg for many draws, score, vimco for discrete latents.",
    ),
]
DiscreteOption = Annotated[
    Literal["score", "enumerate"],
    _option(
        _TRAINING,
        help="Discrete latents in the ELBO: drawn, with the noisy gradient of the score function, or enumerate: summed "
        "over all their values.",
    ),
]
NumParticlesOption = Annotated[
    int | None,
    _option(_TRAINING, min=1, help="Draws of z for each datum and step.", show_default="1, 5 for iwae"),
]
BetaOption = Annotated[float, _option(_TRAINING, min=0.0, help="Weight of the rate in the ELBO.")]
BetaWarmupOption = Annotated[int, _option(_TRAINING, min=0, help="Epochs in which beta rises from 0 in a line.")]
ValidationOption = Annotated[
    bool,
    _option(
        _TRAINING,
        help="Keep the parameters of the best validation ELBO. Without it, the validation data train too.",
    ),
]
PatienceOption = Annotated[
    int | None,
    _option(
        _TRAINING,
        min=1,
        help="Stop after this many epochs without a better validation ELBO.",
        show_default="never",
    ),
]

EvalSamplesOption = Annotated[int, _option(_EVALUATION, min=0, help="K of the evaluation at the end; 0 leaves it out.")]
EvalLimitOption = Annotated[int, _option(_EVALUATION, min=1, help=_LIMIT_HELP)]
MethodOption = Annotated[
    Literal["is", "ais", "bdmc", "exact"],
    _option(
        None,
        help="is: importance sampling with the guide. ais: annealed importance sampling, for continuous latents, where "
        "the guide is too far from the posterior. bdmc: how far ais can be wrong, by bounds from both sides on as many "
        "data simulated from the model (bounds.json). exact: the sum over discrete latents, or quadrature over one or "
        "two continuous numbers.",
    ),
]
NumSamplesOption = Annotated[
    int | None, _option(_IS, min=1, help="K, importance samples for each datum.", show_default="5000")
]
TargetStderrOption = Annotated[
    float | None,
    _option(
        _IS,
        help="Draw only until the standard error of a datum is this small, in nats; --num-samples at most.",
        show_default="no",
    ),
]
EscalateOption = Annotated[
    bool,
    _option(
        _IS,
        help="Estimate untrusted data anew: more samples, then a fitted proposal, then annealing. Takes long where "
        "many are: see --limit.",
    ),
]
AgainstExactOption = Annotated[
    bool,
    _option(None, "--against-exact", help="Set the estimate against the exact log p(x) too, where that can be had."),
]
ChainsOption = Annotated[int | None, _option(_AIS, min=1, help="Chains for each datum.", show_default="16")]
TemperaturesOption = Annotated[
    int | None,
    _option(_AIS, min=1, help="Steps from start to posterior; the bounds close as one over them.", show_default="200"),
]
LeapfrogOption = Annotated[int | None, _option(_AIS, min=1, help="Leapfrog steps of a transition.", show_default="10")]
SpacingOption = Annotated[
    Literal["linear", "sigmoid", "adaptive"] | None,
    _option(_AIS, "--spacing", help="How temperatures are spaced.", show_default="sigmoid"),
]
StartOption = Annotated[
    Literal["guide", "prior"] | None,
    _option(
        _AIS,
        "--start",
        help="Where chains start: the guide, which is nearer, or the prior, which owes nothing to it.",
        show_default="guide",
    ),
]
LimitOption = Annotated[
    int | None, _option(None, min=1, help=_LIMIT_HELP, show_default="all; 100 for ais and bdmc, whose chains are long")
]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.")]
SeedOption = Annotated[int, _option(_RUN, callback=_seed, help=_SEED_HELP)]
SeedAloneOption = Annotated[int, _option(None, "--seed", callback=_seed, help=_SEED_HELP)]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    _option(_RUN, help="Where to compute; auto takes CUDA where there is one."),
]
CompileOption = Annotated[
    Literal["auto", "yes", "no"],
    _option(_TRAINING, help="Compile the training step; auto does where the steps that are left earn it back."),
]
OnNonfiniteOption = Annotated[
    Literal["stop", "skip", "rollback"],
    _option(
        _TRAINING,
        help="What becomes of a step whose loss or gradient is not finite: stop ends the training, skip leaves its "
        "rows out, rollback goes back to the end of an epoch with half the learning rate.",
    ),
]
OnNonfiniteAgainOption = Annotated[
    Literal["stop", "skip", "rollback"] | None,
    _option(
        None,
        "--on-nonfinite",
        help="What becomes of a step whose loss or gradient is not finite.",
        show_default="as the run began",
    ),
]
BadStepOption = Annotated[
    int | None,
    _option(None, "--step", min=0, help="Which step, by the number of steps before it.", show_default="the first"),
]
RunDirOption = Annotated[
    Path | None,
    _option(_RUN, help="New directory for all results.", show_default="runs/PAIR-DATA-NUMBER"),
]

NumberOption = Annotated[int, _option(None, "--n", min=1, help="How many.")]
OutOption = Annotated[Path, _option(None, help="NAME.png for a grid of images, NAME.npy for an array.")]
DrawsOption = Annotated[bool, _option(None, "--draws", help="Draw x from p(x | z) rather than show its mean.")]
CheckedRowsOption = Annotated[int, _option(None, min=1, help="Rows of the training data to check on.")]
AnewSamplesOption = Annotated[
    int | None,
    _option(
        _ANEW,
        "--num-samples",
        min=1,
        help="Evaluate all runs here with so many samples and the same noise, rather than take their evaluations.",
        show_default="take their evaluations",
    ),
]
AnewLimitOption = Annotated[int | None, _option(_ANEW, "--limit", min=1, help=_LIMIT_HELP, show_default="all")]
AnewPairsOption = Annotated[
    list[str] | None,
    _option(
        _ANEW,
        "--pair",
        metavar="FILE.py:FACTORY",
        help="Let this code of your own run for the runs that were made with it; may be repeated.",
    ),
]
LevelOption = Annotated[
    float, _option(None, help="Probability, at least, that no two runs are told apart in the wrong order.")
]
FigureOption = Annotated[
    Path | None, _option(None, metavar="NAME.png", help="Draw the comparison too.", show_default="no")
]
OnlyOption = Annotated[str | None, typer.Option(metavar="CASE,...", help="Only these cases.", show_default="all")]
TestDeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="What to test; auto is the CPU, and CUDA beside it where there is one."),
]
FormatOption = Annotated[
    Literal["table", "markdown", "json"],
    _option(
        None, "--format", help="How to print it; json is one table, or a list of tables where not all runs compare."
    ),
]
