"""What has a VAE that an autoencoder of the same networks lacks, and what does it cost? (claims C14, C15).

Both are trained alike on the same images, the autoencoder for the likelihood of its reconstructions, the VAE for the
ELBO. Then both rebuild test images and decode codes drawn at random: from the prior N(0, I), and for the autoencoder
also from a Gaussian with the moments of its codes. Pictures, errors and sharpness are those of means of p(x given z),
held against grey test images. Distances and coverage are those of binary draws of p(x given z), held against binary
test images, in the features of a classifier trained on such: means of few contrast are no draws of a model.

Expected: the autoencoder rebuilds better and sharper (mean squared error about a half to two thirds of the VAE's; the
VAE averages what maps to one code), both with less than the data's fine detail. Random codes: those of N(0, I) give
the autoencoder few digits, the Gaussian of its codes some, the VAE's prior most, in Fréchet distance, density and
coverage alike (after twelve epochs of 20,000 images coverage was 0.25, 0.37 and 0.57).

Run: python -m experiments.vae_vs_ae [--small]; about 12 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from experiments.common.features import Classifier, classifier
from experiments.common.images import Images, images
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.figures.images import show_images, show_rows
from ppl_vae.rng import key

SAMPLES = {"AE, N(0, I)": "AE, z ~ N(0, I)", "AE, fitted": "AE, z ~ Gaussian of its codes", "VAE": "VAE, z ~ N(0, I)"}
REBUILT = ("AE", "VAE", "VAE, draw")
NUM_SHOWN, NUM_SAMPLES = 8, 30


@dataclass(frozen=True)
class Config:
    """Full form: about 12 minutes on two cores (six trainings of 80 s, and what judges them)."""

    data: str = "mnist"
    num_train: int | None = None
    num_test: int = 5000
    latent_dim: int = 50
    hidden: tuple[int, ...] = (200, 200)
    epochs: int = 60
    batch_size: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)


class Trained(NamedTuple):
    """Both models of a seed."""

    ae: pv.Autoencoder
    vae: pv.VAE


def train(config: Config, found: Images, seed: int) -> Trained:
    """Both on the same data in the same order."""
    size, hidden, latent = found.train.shape[1], list(config.hidden), config.latent_dim

    def decoder() -> pv.decoders.Bernoulli:
        made = pv.decoders.Bernoulli.mlp(latent, hidden[::-1], size)
        made.start_at(found.train)
        return made

    def autoencoder() -> pv.Autoencoder:
        return pv.Autoencoder(pv.networks.MLP(size, hidden, latent), decoder())

    def vae() -> pv.VAE:
        encoder = pv.encoders.DiagonalNormal.mlp(size, hidden, latent)
        return pv.VAE(pv.priors.StandardNormal(latent), decoder(), encoder)

    options: dict[str, Any] = {"epochs": config.epochs, "batch_size": config.batch_size, "binarize": "dynamic"}
    one, other = (trained(make, found.train, seed, **options)[0] for make in (autoencoder, vae))
    assert isinstance(one, pv.Autoencoder)
    assert isinstance(other, pv.VAE)
    return Trained(one, other)


@torch.no_grad()
def rebuild(models: Trained, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Test images as each model rebuilds them."""
    z = models.vae.encoder(x).mean
    return {
        "AE": models.ae.reconstruct(x),
        "VAE": models.vae.decoder(z).mean,
        "VAE, draw": models.vae.reconstruct(x, seed=key(seed, 1))[0],
    }


def sample(models: Trained, train_x: Tensor, n: int, seed: int) -> dict[str, Tensor]:
    """Decoded random codes."""
    codes = models.ae.encode(train_x)
    generator = torch.Generator().manual_seed(key(seed, 2))
    noise = torch.randn(n, codes.shape[1], generator=generator)
    root = torch.linalg.qr(codes - codes.mean(0), mode="r").R / np.sqrt(len(codes) - 1)  # R^T R is the covariance
    return {
        "AE, N(0, I)": models.ae.decode(noise),
        "AE, fitted": models.ae.decode(codes.mean(0) + noise @ root),
        "VAE": models.vae.sample(n, seed=key(seed, 3), mean=True),
    }


@torch.no_grad()
def between(models: Trained, x: Tensor) -> dict[str, Tensor]:
    """The way from x[0] to x[1] in a straight line of codes."""
    t = torch.linspace(0, 1, NUM_SHOWN)[:, None]
    one, other = models.ae.encode(x), models.vae.encoder(x).mean
    return {
        "AE": models.ae.decode(one[0].lerp(one[1], t)),
        "VAE": models.vae.decoder(other[0].lerp(other[1], t)).mean,
    }


def quality(x: Tensor, real: np.ndarray, grey: Tensor, features: Classifier, seed: int) -> dict[str, float]:
    """What is said of a set of pictures (N, H, W), and of binary draws of them."""
    seen = features(pv.data.binarize(x.flatten(1), seed))
    judged = pv.quality.density_coverage(real, seen)
    return {
        "sharpness": pv.quality.sharpness(x, grey),
        "frechet": pv.quality.frechet_distance(real, seen),
        "density": judged.density,
        "coverage": judged.coverage,
    }


def measure(config: Config) -> Findings:
    """Numbers of each seed and their means; pictures of the first seed."""
    found = images(config.data, config.num_train, config.num_test)
    shape = found.shape[1:]
    grey, n = found.test.reshape(-1, *shape), len(found.test)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, np.ndarray] = {}
    for seed in steps(config.seeds, "seeds"):
        binary = pv.data.binarize(found.train, seed)
        features = classifier(binary, found.train_labels, found.shape, seed)
        models, real = train(config, found, seed), features(pv.data.binarize(found.test, seed))
        sets = {
            "data": {"training": found.train[:n]},
            "rebuilt": rebuild(models, found.test, seed),
            "samples": sample(models, found.train, n, seed),
        }
        for kind, members in sets.items():
            for name, flat in members.items():
                x = flat.reshape(-1, *shape)
                row = {"seed": seed, "kind": kind, "name": name, **quality(x, real, grey, features, key(seed, 5))}
                if kind == "rebuilt":
                    row["error"] = float((x - grey).square().mean())
                rows.append(row)
        if not pictures:
            shown = _distinct(found.test_labels)
            again = models.vae.reconstruct(found.test[shown], seed=key(seed, 4))[0]
            kept = {
                "rebuilt/original": found.test[shown],
                **{f"rebuilt/{name}": x[shown] for name, x in sets["rebuilt"].items()},
                "rebuilt/VAE, second draw": again,
                **{f"samples/{name}": x[:NUM_SAMPLES] for name, x in sets["samples"].items()},
                **{f"between/{name}": x for name, x in between(models, found.test[shown[[0, 4]]]).items()},
            }
            pictures = {name: x.reshape(-1, *shape).numpy() for name, x in kept.items()}
    return Findings({"rows": rows, "means": means(rows)}, pictures)


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over seeds of each number, and of the paired differences that the claims are about."""

    def of(kind: str, name: str, number: str) -> list[float]:
        return [row[number] for row in rows if (row["kind"], row["name"]) == (kind, name)]

    names = dict.fromkeys((row["kind"], row["name"]) for row in rows)
    every = {
        f"{kind}, {name}, {number}": mean(of(kind, name, number))._asdict()
        for kind, name in names
        for number in ("error", "sharpness", "frechet", "density", "coverage")
        if number != "error" or kind == "rebuilt"
    }
    claims = {
        "error of VAE - AE": paired(of("rebuilt", "VAE", "error"), of("rebuilt", "AE", "error")),
        "sharpness of VAE - AE": paired(of("rebuilt", "VAE", "sharpness"), of("rebuilt", "AE", "sharpness")),
        "frechet of AE, N(0, I) - VAE": paired(
            of("samples", "AE, N(0, I)", "frechet"), of("samples", "VAE", "frechet")
        ),
        "frechet of AE, fitted - VAE": paired(of("samples", "AE, fitted", "frechet"), of("samples", "VAE", "frechet")),
    }
    return every | {name: found._asdict() for name, found in claims.items()}


def _distinct(labels: Tensor) -> Tensor:
    """Rows of the first image of each of the first classes."""
    return torch.stack([(labels == k).nonzero()[0, 0] for k in range(NUM_SHOWN)])


def draw(found: Findings) -> Figure:
    """Reconstructions and interpolations, samples, and the numbers of each."""
    figure = new_figure(12, 14)
    grid = figure.add_gridspec(4, 12, height_ratios=[4.4, 1.9, 4.4, 3.2])

    def of(number: str, name: str) -> float:
        kind = "rebuilt" if name in REBUILT and number != "frechet" else "samples"
        return float(found.numbers["means"][f"{kind}, {name}, {number}"]["mean"])

    rebuilt = figure.add_subplot(grid[0, :])
    show_rows(
        rebuilt,
        {
            "original": found.pictures["rebuilt/original"],
            "AE": found.pictures["rebuilt/AE"],
            "VAE, mean of q": found.pictures["rebuilt/VAE"],
            "VAE, draw of q": found.pictures["rebuilt/VAE, draw"],
            "VAE, 2nd draw": found.pictures["rebuilt/VAE, second draw"],
        },
        f"Rebuilt test images: the AE keeps {of('sharpness', 'AE'):.0%} of their fine detail, the VAE "
        f"{of('sharpness', 'VAE'):.0%}",
    )
    ways = figure.add_subplot(grid[1, :])
    path = {name: found.pictures[f"between/{name}"] for name in ("AE", "VAE")}
    show_rows(ways, path, "From one test image to another, in a straight line of codes")
    for i, (name, title) in enumerate(SAMPLES.items()):
        axes = figure.add_subplot(grid[2, 4 * i : 4 * i + 4])
        show_images(axes, found.pictures[f"samples/{name}"], 6)
        axes.set_axis_off()
        axes.set_title(f"Random codes: {title}")
    panels: list[tuple[str, str, str, Sequence[str]]] = [
        ("error", "error per pixel (mean square)", "Rebuilt: error (less is better)", REBUILT),
        ("sharpness", "fine detail, test images = 1", "Rebuilt: sharpness", REBUILT),
        ("frechet", "Fréchet distance to test images", "Samples: distance to data", list(SAMPLES)),
        ("coverage", "share of test images covered", "Samples: data covered", list(SAMPLES)),
    ]
    for i, (number, label, title, names) in enumerate(panels):
        kind = "rebuilt" if names is REBUILT else "samples"
        axes = figure.add_subplot(grid[3, 3 * i : 3 * i + 3])
        _bars(axes, [found.numbers["means"][f"{kind}, {name}, {number}"] for name in names], list(names))
        axes.set_title(title)
        axes.set_ylabel(label)
        if number != "error":
            floor = found.numbers["means"][f"data, training, {number}"]["mean"]
            axes.axhline(floor, color="0.3", linestyle="--", label="training images")
            axes.legend(frameon=False, fontsize="small", loc="upper right")
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    nearest = min(of("frechet", name) for name in SAMPLES if name != "VAE")
    figure.suptitle(
        f"The autoencoder rebuilds with {of('error', 'AE') / of('error', 'VAE'):.0%} of the VAE's error; the best of "
        f"its\nrandom codes are {nearest / of('frechet', 'VAE'):.1f} times as far from the data as the VAE's",
        fontsize="x-large",
        fontweight="bold",
    )
    return figure


def _bars(axes: Axes, values: list[dict[str, float | None]], names: list[str]) -> None:
    """One bar for each model, with twice its standard error over seeds."""
    heights, errors = ([v[part] or 0.0 for v in values] for part in ("mean", "stderr"))
    axes.bar(
        [name.replace(", ", "\n", 1) for name in names],
        heights,
        yerr=[2 * e for e in errors],
        capsize=4,
        color=[LIGHT, MIDDLE, DARK],
        hatch=["", "//", ""],
        edgecolor="white",
    )
    quiet(axes)


STUDY = Study(
    "vae_vs_ae",
    measure,
    draw,
    full=Config(),
    small=Config(
        "digits", seeds=(0, 1), num_train=600, num_test=200, latent_dim=8, hidden=(32,), epochs=15, batch_size=32
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
