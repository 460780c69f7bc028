"""What does a more expressive generator buy, in nats, and does an exact likelihood end the blur? (claims C18, C19).

On the same binary images: a VAE; the same with a mixture, a VampPrior or a flow in place of the prior N(0, I); two
stochastic layers; an autoregressive decoder, a small PixelCNN that sees z; and two models without latents, whose
log p(x) is exact: a MADE, which trains for as many epochs as the VAEs, and a gated PixelCNN. Images lose their empty
border and are pooled to half their sides: two cores then train a PixelCNN.

Expected: learned priors and the second layer buy 0.5 to 3 nats of about 38; the autoregressive decoder and the models
of exact likelihood more than these, if they train long enough (they model what pixels have in common, locally, which
the VAE's independent pixels leave as noise). Draws of theirs are as sharp as the data, where those of a VAE carry the
noise of independent pixels and its means are blurred. The autoregressive decoder moves information out of the latents:
its rate is lower. On two cores PixelCNNs train for a tenth of the epochs of the others, in four times their time, and
the likelihood of the autoregressive decoder has a tenth of their samples.

Run: python -m experiments.expressive_generator [--small]; 50 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.features import Classifier, classifier
from experiments.common.generators import Binary, Kind, Networks, kinds
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import Score, score, trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.figures.images import show_rows
from ppl_vae.rng import key

NUM_SHOWN = 9


@dataclass(frozen=True)
class Config:
    """Half of the time of the full form goes to the two models with PixelCNNs."""

    data: str = "mnist"
    border: int = 2
    pool: int = 2
    num_train: int | None = None
    num_test: int = 1000
    networks: Networks = field(default_factory=Networks)
    epochs: int = 40
    epochs_pixels: int = 4
    batch_size: int = 128
    batch_size_pixels: int = 64
    num_samples: int = 2000
    num_samples_pixels: int = 200
    num_draws: int = 500
    seeds: tuple[int, ...] = (0, 1, 2)


def prepared(config: Config) -> Binary:
    """Images without their border, pooled; those of the test made binary once."""
    found = images(config.data, config.num_train, config.num_test)

    def smaller(x: Tensor) -> Tensor:
        inner = nn.functional.pad(x.reshape(-1, *found.shape), [-config.border] * 4)
        return nn.functional.avg_pool2d(inner, config.pool)

    train, test = smaller(found.train), smaller(found.test)
    _, height, width = train.shape[1:]
    binary = pv.data.binarize(test.flatten(1), seed=0)
    return Binary((1, height, width), train.flatten(1), binary, test.flatten(1), found.train_labels)


def measure(config: Config) -> Findings:
    """Log p of each model and seed, what it is ahead of the VAE of that seed on the same test images, and draws."""
    found = prepared(config)
    rows: list[dict[str, Any]] = []
    floors: list[float] = []
    pictures = {"data": found.test[:NUM_SHOWN]}
    for seed in steps(config.seeds, "seeds"):
        features = classifier(pv.data.binarize(found.train, seed), found.train_labels, found.shape, seed)
        like_draws = pv.data.binarize(found.train[: config.num_draws], key(seed, 2))
        floors.append(pv.quality.frechet_distance(features(found.test), features(like_draws)))
        reference: Score | None = None
        for name, kind in kinds(config.networks, found).items():
            pair, fit = fitted(config, kind, found, seed)
            own = score(pair, found.test, num_samples(config, kind), seed)
            reference = reference or own
            gain = paired(own.values, reference.values)
            images_of = looks(config, kind, pair, seed)
            rows.append(
                {
                    "name": name,
                    "seed": seed,
                    **own.numbers(),
                    "rate": float(fit.history["rate"][-1]),
                    "gain": gain.mean,
                    "gain_stderr": gain.stderr,
                    **quality(images_of, found, features),
                    "parameters": sum(p.numel() for p in pair.parameters()),
                    "train_seconds": fit.seconds,
                }
            )
            if seed == config.seeds[0]:
                pictures[name] = images_of["draws"][:NUM_SHOWN]
                if name == "VAE":
                    pictures["VAE, means"] = images_of["means"][:NUM_SHOWN]
    tiles = {name: x.reshape(-1, *found.shape[1:]).numpy() for name, x in pictures.items()}
    return Findings({"rows": rows, "means": means(rows), "frechet_of_training_data": mean(floors)._asdict()}, tiles)


def num_samples(config: Config, kind: Kind) -> int:
    """K of the log-likelihood; one is enough where that is exact."""
    if kind.is_exact:
        return 1
    return config.num_samples_pixels if kind.pixels else config.num_samples


def fitted(config: Config, kind: Kind, found: Binary, seed: int) -> tuple[Any, pv.Fit]:
    """A model of a kind, trained; PixelCNNs for fewer epochs, in smaller batches."""
    return trained(
        kind.make,
        found.train,
        seed,
        binarize="dynamic",
        epochs=config.epochs_pixels if kind.pixels else config.epochs,
        batch_size=config.batch_size_pixels if kind.pixels else config.batch_size,
        learning_rate=2e-3 if kind.pixels else 1e-3,
    )


def looks(config: Config, kind: Kind, pair: Any, seed: int) -> dict[str, Tensor]:
    """Draws of binary images (n, D), and where pixels are independent given z their means, of the same z."""
    found = {"draws": pair.sample(config.num_draws, seed=key(seed, 1)).flatten(1)}
    if kind.has_means:
        found["means"] = pair.sample(config.num_draws, seed=key(seed, 1), mean=True).flatten(1)
    return found


def quality(images_of: Mapping[str, Tensor], found: Binary, features: Classifier) -> dict[str, float]:
    """Fréchet distance of draws, and fine detail of draws and means, that of binary and of grey test images being 1."""
    draws, means = images_of["draws"], images_of.get("means")
    return {
        "frechet": pv.quality.frechet_distance(features(found.test), features(draws)),
        "sharpness_draws": sharpness(draws, found.test, found),
        "sharpness_means": float("nan") if means is None else sharpness(means, found.grey, found),
    }


def sharpness(x: Tensor, reference: Tensor, found: Binary) -> float:
    """Fine detail of flat images relative to that of others."""
    one, other = (flat.reshape(-1, *found.shape[1:]) for flat in (x, reference))
    return pv.quality.sharpness(one, other)


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean over seeds of each number of each model, and its standard error."""
    numbers = ("log_likelihood", "elbo", "rate", "gain", "frechet", "untrusted", "sharpness_draws", "sharpness_means")
    names = dict.fromkeys(row["name"] for row in rows)
    return {
        name: {number: mean([r[number] for r in rows if r["name"] == name])._asdict() for number in numbers}
        for name in names
    }


def draw(found: Findings) -> Figure:
    """Draws of each model, and beside each its log-likelihood and its distance to the data."""
    table = found.numbers["means"]
    names = list(table)
    figure = new_figure(16, 6.8)
    left, middle, detail, right = figure.subplots(1, 4, width_ratios=[2.2, 1.9, 1.3, 1.3])
    strips = {"test images": "data", **{name: name for name in ("VAE, means", *names)}}
    show_rows(left, {label: found.pictures[name] for label, name in strips.items()}, "Draws of binary images")
    places = np.arange(len(names))[::-1]
    _likelihoods(middle, [table[name] for name in names], places)
    middle.set_yticks(places, [f"{name}\n{_in_words(found, name)}" for name in names])
    _sharpness(detail, [table[name] for name in names], places)
    _distances(right, [table[name] for name in names], places, found.numbers["frechet_of_training_data"]["mean"])
    figure.suptitle(_headline(table, found.numbers["rows"]), fontsize="x-large", fontweight="bold")
    return figure


def _headline(table: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """The first two by log p(x), how far they are apart over seeds, and the first by distance."""
    first, second = sorted(table, key=lambda name: -table[name]["log_likelihood"]["mean"])[:2]
    lead = paired(*([r["log_likelihood"] for r in rows if r["name"] == name] for name in (first, second)))
    nearest = min(table, key=lambda name: table[name]["frechet"]["mean"])
    return (
        f"Best log p(x): {first}, {table[first]['gain']['mean']:+.1f} nats over the VAE, {lead.mean:.2f} ± "
        f"{2 * lead.stderr:.2f} over {second}.\nBy Fréchet distance: {nearest}"
    )


def _in_words(found: Findings, name: str) -> str:
    """What a model tells its latents, and how long it trained."""
    rate = found.numbers["means"][name]["rate"]["mean"]
    seconds = np.mean([row["train_seconds"] for row in found.numbers["rows"] if row["name"] == name])
    return f"{f'rate {rate:.1f} nats' if rate else 'no latents'}, trained {seconds:.0f} s"


def _likelihoods(axes: Axes, rows: list[dict[str, Any]], places: np.ndarray) -> None:
    """ELBO and log p of each model, two standard errors over seeds, and what it gains over the first."""
    log_p = [row["log_likelihood"]["mean"] for row in rows]
    errors = [2 * (row["log_likelihood"]["stderr"] or 0.0) for row in rows]
    axes.errorbar(
        log_p, places, xerr=errors, fmt="o", color=DARK, capsize=3, label="log p(x), ± 2 standard errors over seeds"
    )
    bounds = [row["elbo"]["mean"] if row["rate"]["mean"] else np.nan for row in rows]  # else exact: no bound
    axes.plot(bounds, places, "|", color=LIGHT, ms=14, mew=3, label="ELBO")
    for row, value, place in zip(rows, log_p, places, strict=True):
        axes.annotate(f"{row['gain']['mean']:+.1f}", (value, place), (0, 8), textcoords="offset points", ha="center")
    axes.set(xlabel="nats per image (more is better)", ylim=(-0.6, len(rows) - 0.2))
    axes.set_title("Likelihood of test images; gain over the VAE")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=2)
    quiet(axes)


def _sharpness(axes: Axes, rows: list[dict[str, Any]], places: np.ndarray) -> None:
    """Fine detail of draws and of means of p(x given z), that of test images being 1."""
    for number, shift, colour, label in (
        ("sharpness_draws", 0.2, DARK, "draws"),
        ("sharpness_means", -0.2, LIGHT, "means of p(x given z)"),
    ):
        values = [row[number]["mean"] if row[number]["mean"] is not None else np.nan for row in rows]
        errors = [2 * (row[number]["stderr"] or 0.0) for row in rows]
        axes.barh(places + shift, values, 0.38, xerr=errors, color=colour, capsize=3, label=label)
    axes.axvline(1, color="0.3", linestyle=":", label="test images")
    axes.set(yticks=[], xlabel="fine detail, test images = 1\n(± 2 standard errors)", title="Sharpness\n")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small")
    quiet(axes)


def _distances(axes: Axes, rows: list[dict[str, Any]], places: np.ndarray, floor: float) -> None:
    """Fréchet distance of draws to test images, and that of as many training images."""
    distances = [row["frechet"] for row in rows]
    errors = [2 * (d["stderr"] or 0.0) for d in distances]
    axes.barh(places, [d["mean"] for d in distances], xerr=errors, color=MIDDLE, capsize=3)
    axes.axvline(floor, color="0.3", linestyle=":", label="training images")
    axes.set(
        yticks=[],
        xlabel="draws to test images\n(± 2 standard errors)",
        title="Fréchet distance\n(less is better)",
    )
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small")
    quiet(axes)


STUDY = Study(
    "expressive_generator",
    measure,
    draw,
    full=Config(),
    small=Config(
        "digits",
        border=0,
        pool=1,
        num_train=200,
        num_test=50,
        networks=Networks(latent_dim=4, hidden=(16,), num_components=5, made_hidden=(64,), channels=4, num_layers=2),
        epochs=3,
        epochs_pixels=2,
        num_samples=20,
        num_samples_pixels=5,
        num_draws=20,
        seeds=(0, 1),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
