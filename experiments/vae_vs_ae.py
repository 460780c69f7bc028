"""What has a VAE that an autoencoder of the same networks lacks, and what does it cost? (claims C14, C15).

Both are trained alike on the same images, the autoencoder for the likelihood of its reconstructions, the VAE for the
ELBO. Then both rebuild test images and decode codes drawn at random: from the prior N(0, I), and for the autoencoder
also from a Gaussian with the moments of its codes. Pictures, errors and sharpness are those of means of p(x given z),
held against grey test images. Distances and coverage are those of binary draws of p(x given z), held against binary
test images, in the features of a classifier trained on such: means of few contrast are no draws of a model.

Expected: the autoencoder rebuilds better and sharper (mean squared error about a half to two thirds of the VAE's; the
VAE averages what maps to one code), both with less than the data's fine detail. Random codes: those of N(0, I) give
the autoencoder few digits, the Gaussian of its codes some, the VAE's prior most, in Fréchet distance (a squared
distance of Gaussians of features), density and coverage alike (after twelve epochs of 20,000 images coverage was 0.25,
0.37 and 0.57).

Run: python -m experiments.vae_vs_ae [--small]; 12 minutes on one core that has nothing else to do.
"""

from __future__ import annotations

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
from ppl_vae.figures.canvas import DARK, LIGHT, new_figure, quiet
from ppl_vae.figures.images import show_images, show_rows
from ppl_vae.rng import key

SAMPLES = {"AE, N(0, I)": "AE, z ~ N(0, I)", "AE, fitted": "AE, z ~ Gaussian of its codes", "VAE": "VAE, z ~ N(0, I)"}
REBUILT = ("AE", "VAE", "VAE, draw")
NUM_SHOWN, NUM_SAMPLES = 8, 30


@dataclass(frozen=True)
class Config:
    """The networks that both share, and their training."""

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
        return pv.Autoencoder(encoder=pv.networks.MLP(size, hidden, latent), decoder=decoder())

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
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    for seed in steps(config.seeds, "seeds"):
        features = classifier(pv.data.binarize(found.train, seed), found.train_labels, found.shape, seed)
        models = train(config, found, seed)
        sets = pictures_of(models, found, seed)
        rows += judged(sets, found, features, seed)
        pictures = pictures or shown(models, sets, found, seed)
    tiles = {name: x.reshape(-1, *found.shape[1:]).numpy() for name, x in pictures.items()}
    return Findings({"rows": rows, "means": means(rows)}, tiles)


Sets = dict[str, dict[str, Tensor]]


def pictures_of(models: Trained, found: Images, seed: int) -> Sets:
    """All sets of flat pictures of a seed, by kind and name."""
    n = len(found.test)
    return {
        "data": {"training": found.train[:n]},
        "rebuilt": rebuild(models, found.test, seed),
        "samples": sample(models, found.train, n, seed),
    }


def judged(sets: Sets, found: Images, features: Classifier, seed: int) -> list[dict[str, Any]]:
    """What is said of every set, and for images that were rebuilt their mean squared error."""
    shape, real = found.shape[1:], features(pv.data.binarize(found.test, seed))
    grey = found.test.reshape(-1, *shape)
    rows = []
    for kind, name in ((kind, name) for kind, members in sets.items() for name in members):
        x = sets[kind][name].reshape(-1, *shape)
        row = {"seed": seed, "kind": kind, "name": name, **quality(x, real, grey, features, key(seed, 5))}
        rows.append(row | ({"error": float((x - grey).square().mean())} if kind == "rebuilt" else {}))
    return rows


def shown(models: Trained, sets: Sets, found: Images, seed: int) -> dict[str, Tensor]:
    """Flat pictures for the figure."""
    chosen = _distinct(found.test_labels)
    again = models.vae.reconstruct(found.test[chosen], seed=key(seed, 4))[0]
    return {
        "rebuilt/original": found.test[chosen],
        **{f"rebuilt/{name}": x[chosen] for name, x in sets["rebuilt"].items()},
        "rebuilt/VAE, second draw": again,
        **{f"samples/{name}": x[:NUM_SAMPLES] for name, x in sets["samples"].items()},
        **{f"between/{name}": x for name, x in between(models, found.test[chosen[[0, 4]]]).items()},
    }


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
    figure = new_figure(12, 14.4)
    grid = figure.add_gridspec(4, 12, height_ratios=[4.4, 1.9, 4.4, 3.4])
    numbers = found.numbers["means"]
    _draw_rebuilt(figure.add_subplot(grid[0, :]), found)
    ways = {name: found.pictures[f"between/{name}"] for name in ("AE", "VAE")}
    show_rows(figure.add_subplot(grid[1, :]), ways, "From one test image to another, in a straight line of codes")
    for i, (name, title) in enumerate(SAMPLES.items()):
        axes = figure.add_subplot(grid[2, 4 * i : 4 * i + 4])
        show_images(axes, found.pictures[f"samples/{name}"], 6)
        axes.set_axis_off()
        axes.set_title(f"Random codes: {title}")
    for i, panel in enumerate(PANELS):
        _draw_panel(figure.add_subplot(grid[3, 3 * i : 3 * i + 3]), numbers, panel)
    figure.suptitle(_headline(numbers), fontsize="x-large", fontweight="bold")
    return figure


class Panel(NamedTuple):
    """Bars of one number."""

    kind: str
    number: str
    label: str
    title: str


PANELS = (
    Panel("rebuilt", "error", "error per pixel (mean square)", "Rebuilt: error (less is better)"),
    Panel("rebuilt", "sharpness", "fine detail, test images = 1", "Rebuilt: sharpness"),
    Panel("samples", "frechet", "Fréchet distance to test images", "Samples: distance to data"),
    Panel("samples", "coverage", "share of test images covered", "Samples: data covered"),
)
_LOOKS = {"AE": (LIGHT, ""), "AE, N(0, I)": (LIGHT, ""), "AE, fitted": (LIGHT, "//"), "VAE": (DARK, "")}
_LOOKS["VAE, draw"] = (DARK, "//")


def _draw_rebuilt(axes: Axes, found: Findings) -> None:
    """Test images and what each model makes of them."""
    names = {"original": "original", "AE": "AE", "VAE, mean of q": "VAE", "VAE, draw of q": "VAE, draw"}
    rows = {label: found.pictures[f"rebuilt/{name}"] for label, name in names.items()}
    rows["VAE, 2nd draw"] = found.pictures["rebuilt/VAE, second draw"]
    kept = (found.numbers["means"][f"rebuilt, {name}, sharpness"]["mean"] for name in ("AE", "VAE"))
    show_rows(axes, rows, "Rebuilt test images: the AE keeps {:.0%} of their fine detail, the VAE {:.0%}".format(*kept))


def _draw_panel(axes: Axes, numbers: dict[str, Any], panel: Panel) -> None:
    """One bar for each model, with twice its standard error over seeds, and the training images as a line."""
    names = list(SAMPLES) if panel.kind == "samples" else REBUILT
    values = [numbers[f"{panel.kind}, {name}, {panel.number}"] for name in names]
    places = [name.replace(", ", "\n", 1) for name in names]
    colours, hatches = zip(*(_LOOKS[name] for name in names), strict=True)
    errors = [2 * (v["stderr"] or 0.0) for v in values]
    look = {"capsize": 4, "color": colours, "hatch": hatches, "edgecolor": "white"}
    axes.bar(places, [v["mean"] for v in values], yerr=errors, **look)
    quiet(axes)
    axes.set(title=panel.title, ylabel=panel.label, xlabel="± 2 standard errors over seeds")
    if panel.number != "error":
        floor = numbers[f"data, training, {panel.number}"]["mean"]
        axes.axhline(floor, color="0.3", linestyle="--", zorder=3, label=f"training images: {floor:.3g}")
        axes.legend(frameon=False, fontsize="small", loc="upper right")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])


def _headline(numbers: dict[str, Any]) -> str:
    """The two sides of the trade."""
    error = {name: numbers[f"rebuilt, {name}, error"]["mean"] for name in ("AE", "VAE")}
    distance = {name: numbers[f"samples, {name}, frechet"]["mean"] for name in SAMPLES}
    nearest = min(value for name, value in distance.items() if name != "VAE")
    return (
        f"The autoencoder rebuilds with {error['AE'] / error['VAE']:.0%} of the VAE's error; the Fréchet distance\n"
        f"(squared) of the best of its random codes is {nearest / distance['VAE']:.1f} times that of the VAE's"
    )


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
