"""Do latents discover structure, and does that serve further tasks? (claim C20).

On MNIST: how well do the codes E[z given x] of a VAE, which never saw a label, tell the digits apart, beside raw pixels
and as many principal components: linear probe and nearest neighbours from few and from many labels, k-means clusters
against classes. A VAE with two latents gives a map. On sprites whose factors are known: MIG, SAP and DCI over beta,
beside principal components, and traversals. Three seeds: weights, noise and the choice of labelled data.

Expected: with few labels nearest neighbours and a probe do better on codes than on pixels and on principal components,
and so do clusters, which see no label; with thousands of labels 784 pixels do better than ten codes, and ten codes
better than ten principal components. In the map digits of a class lie together. Disentanglement is modest at any beta
(Locatello et al. 2019), mostly above that of principal components, and large beta loses factors.

Run: python -m experiments.latent_structure [--small]; 8 minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

import ppl_vae as pv
from experiments.common.codes import coding, posterior_means
from experiments.common.curves import curve_over
from experiments.common.images import Images, images
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures import show_rows
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet
from ppl_vae.latents import active_units, cluster_agreement, dci, linear_probe, mig, neighbour_accuracy, sap
from ppl_vae.recipes import bernoulli_vae
from ppl_vae.rng import permutation

_CATEGORICAL = (0,)  # the shape of a sprite
_PLACES = 7  # values of a traversed latent


@dataclass(frozen=True)
class Config:
    """Networks, and numbers of labels and data."""

    data: str = "mnist"
    seeds: tuple[int, ...] = (0, 1, 2)
    latent_dim: int = 10
    hidden: tuple[int, ...] = (200, 200)
    epochs: int = 20
    num_labels: tuple[int, ...] = (100, 1000, 5000)
    num_test: int = 5000
    num_mapped: int = 400
    map_side: int = 12
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    shown: tuple[float, ...] = (1.0, 4.0)
    sprite_hidden: tuple[int, ...] = (128, 128)
    sprite_steps: int = 8000


def measure(config: Config) -> Findings:
    """Classes from codes, the map, and disentanglement."""
    data = images(config.data, num_test=config.num_test)
    rows = [row for seed in steps(config.seeds, "classes") for row in classes(data, config, seed)]
    planes = [vae_of(data.train, 2, config, seed) for seed in steps(config.seeds, "maps")]
    plane = planes[0]
    where = posterior_means(plane, data.test[: config.num_mapped])
    places = [[*z, label] for z, label in zip(where.tolist(), data.test_labels.tolist(), strict=False)]
    pictures = {"map": decoded_plane(plane, config.map_side).reshape(-1, *data.shape[1:]).numpy()}
    scores, traversals = disentanglement(config)
    numbers = {
        "classes": rows,
        "gains": gains(rows),
        "map": places,
        "map_neighbours": mean([neighbours_in(plane, data, config) for plane in planes])._asdict(),
        "disentanglement": scores,
    }
    return Findings(numbers, pictures | traversals)


def vae_of(x: Tensor, latent_dim: int, config: Config, seed: int) -> pv.VAE:
    """The Bernoulli VAE of MNIST, dynamic binarisation."""
    make = lambda: bernoulli_vae(x, latent_dim, config.hidden)  # noqa: E731 (named for the line below)
    return trained(make, x, seed, epochs=config.epochs, binarize="dynamic")[0]


def neighbours_in(plane: pv.VAE, data: Images, config: Config) -> float:
    """Share of the test data whose nearest labelled neighbours on the map are of their class."""
    n = max(config.num_labels)
    codes, test = posterior_means(plane, data.train[:n]), posterior_means(plane, data.test)
    return neighbour_accuracy(codes, data.train_labels[:n], test, data.test_labels)


def classes(data: Images, config: Config, seed: int) -> list[dict[str, Any]]:
    """How well each representation tells classes apart, from each number of labels."""
    vae = vae_of(data.train, config.latent_dim, config, seed)
    pca = PCA(config.latent_dim, random_state=seed).fit(data.train.numpy())
    labelled = permutation(len(data.train), seed, 0)[: max(config.num_labels)]
    x, y, test_y = data.train[labelled], data.train_labels[labelled].numpy(), data.test_labels.numpy()
    codes = {
        "pixels": (x.numpy(), data.test.numpy()),
        "PCA": (pca.transform(x.numpy()), pca.transform(data.test.numpy())),
        "VAE": (posterior_means(vae, x).numpy(), posterior_means(vae, data.test).numpy()),
    }
    rows = []
    for name, (own, test) in codes.items():
        found: dict[str, float] = cluster_agreement(test, test_y, seed)._asdict()
        for n in config.num_labels:
            found[f"probe_{n}"] = linear_probe(own[:n], y[:n], test, test_y)
            found[f"neighbours_{n}"] = neighbour_accuracy(own[:n], y[:n], test, test_y)
        rows.append({"codes": name, "seed": seed, **found})
    return rows


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The VAE's codes minus the others, over seeds, at the same labels."""
    by = {name: [row for row in rows if row["codes"] == name] for name in ("VAE", "pixels", "PCA")}
    return [
        {"over": other, "what": what, **paired(*([row[what] for row in by[name]] for name in ("VAE", other)))._asdict()}
        for other in ("pixels", "PCA")
        for what in rows[0]
        if what not in ("codes", "seed")
    ]


@torch.no_grad()
def decoded_plane(vae: pv.VAE, side: int) -> Tensor:
    """Means of p(x given z) on a grid of the quantiles of N(0, I), the second latent rising upwards."""
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    grid = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(-1)
    return vae.decoder(grid).mean


def disentanglement(config: Config) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Scores of codes of the sprites, and traversals of the first seed."""
    data = pv.data.sprites()
    v, binary, middle = data.factors.numpy(), pv.data.binarize(data.images), len(data.images) // 2
    pca = PCA(config.latent_dim, random_state=0).fit_transform(data.images.numpy())
    rows = [{"codes": "PCA", "beta": None, "seed": seed, **scores(pca, v, seed)} for seed in config.seeds]
    pictures = {}
    for seed, beta in steps(list(product(config.seeds, config.betas)), "sprites"):
        vae, _ = trained(
            lambda: bernoulli_vae(data.images, config.latent_dim, config.sprite_hidden),
            data.images,
            seed,
            objective=pv.ELBO(beta=beta),
            steps=config.sprite_steps,
            learning_rate=2e-3,
            binarize="dynamic",
        )
        codes = posterior_means(vae, data.images).numpy()
        used = {**coding(vae, binary)._asdict(), "active": int(active_units(codes).sum())}
        rows.append({"codes": "VAE", "beta": beta, "seed": seed, **used, **scores(codes, v, seed)})
        if seed == config.seeds[0] and beta in config.shown:
            pictures[f"beta = {beta:g}"] = traversed(vae, data.images[middle], codes).reshape(-1, 16, 16).numpy()
    return rows, pictures


def scores(codes: np.ndarray, factors: np.ndarray, seed: int) -> dict[str, float]:
    """All scores of disentanglement."""
    return {"mig": mig(codes, factors), "sap": sap(codes, factors, _CATEGORICAL), **dci(codes, factors, seed)._asdict()}


@torch.no_grad()
def traversed(vae: pv.VAE, x: Tensor, codes: np.ndarray) -> Tensor:
    """Means of p(x given z) as each of the five latents used most goes from -2 to 2, the others as in x."""
    rows = []
    for latent in np.argsort(-codes.var(0))[:5]:
        z = posterior_means(vae, x[None]).repeat(_PLACES, 1)
        z[:, latent] = torch.linspace(-2, 2, _PLACES)
        rows.append(vae.decoder(z).mean)
    return torch.cat(rows)


def draw(found: Findings) -> Figure:
    """The map, accuracy against labels, clusters; disentanglement over beta, and traversals."""
    figure = new_figure(14, 9.5)
    panels = figure.subplot_mosaic([["map", "plane", "labels"], ["scores", "low", "high"]])
    _draw_map(panels["map"], found)
    side = int(len(found.pictures["map"]) ** 0.5)
    plane = dict(enumerate(np.split(found.pictures["map"], side)))
    show_rows(panels["plane"], plane, "What the decoder makes of the plane (mean images)")
    panels["plane"].set(xlabel="first latent, quantiles of its prior", ylabel="second latent, the same", yticks=[])
    _draw_labels(panels["labels"], found)
    _draw_scores(panels["scores"], found.numbers["disentanglement"])
    for name, title in zip(("low", "high"), [p for p in found.pictures if p != "map"], strict=True):
        rows = np.split(found.pictures[title], len(found.pictures[title]) // _PLACES)
        named = {f"latent {i + 1}": row for i, row in enumerate(rows)}
        show_rows(panels[name], named, f"Sprites, {title}: one latent at a time")
        panels[name].set_xlabel("from -2 to 2; latents by variance of their mean")
    return figure


def _draw_map(axes: Axes, found: Findings) -> None:
    """Each datum as its digit, at its code."""
    for first, second, label in found.numbers["map"]:
        axes.plot(first, second, marker=f"${label:.0f}$", color=(DARK, LIGHT)[int(label) % 2], ms=6, mew=0)
    share = found.numbers["map_neighbours"]
    axes.set_title(
        f"Two latents, no labels: neighbours agree for\n{share['mean']:.0%} ± {200 * share['stderr']:.0f} points"
    )
    axes.set(xlabel="first latent, posterior mean of test data (odd digits orange)", ylabel="second latent")
    axes.locator_params(nbins=6)
    quiet(axes)


def _draw_labels(axes: Axes, found: Findings) -> None:
    """Accuracy against number of labels, and the agreement of clusters in the legend."""
    rows = found.numbers["classes"]
    labels = sorted(int(name.split("_")[1]) for name in rows[0] if name.startswith("probe_"))
    for name, colour, marker in (("VAE", DARK, "o"), ("pixels", LIGHT, "s"), ("PCA", MIDDLE, "^")):
        own = [row for row in rows if row["codes"] == name]
        rand = mean([row["adjusted_rand"] for row in own]).mean
        for kind, style, words in (("neighbours", "-", f"clusters {rand:.2f}"), ("probe", "--", "")):
            points = [{"labels": n, "right": row[f"{kind}_{n}"]} for n in labels for row in own]
            label = f"{name}, {kind}" + (f" ({words})" if words else "")
            curve_over(axes, points, "labels", "right", label, colour, marker + style)
    axes.set(
        xscale="log",
        xlabel="labels (± 2 standard errors over seeds)",
        ylabel="accuracy on test data",
        title=_labels_title(found, labels[0]),
    )
    axes.set_xticks(labels, [f"{n:,}" for n in labels])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize="small", title="in brackets: adjusted Rand index")


def _labels_title(found: Findings, few: int) -> str:
    gain = next(g for g in found.numbers["gains"] if g["over"] == "pixels" and g["what"] == f"neighbours_{few}")
    points = f"{100 * gain['mean']:+.1f} ± {200 * gain['stderr']:.1f} points"
    return f"From {few} labels, by neighbours, codes less pixels:\n{points}"


def _draw_scores(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Scores against beta; those of principal components as lines."""
    vae = [row for row in rows if row["codes"] == "VAE"]
    betas = sorted({row["beta"] for row in vae})
    for what, label, colour, marker in (
        ("mig", "MIG", DARK, "o"),
        ("sap", "SAP", LIGHT, "s"),
        ("disentanglement", "DCI, disentanglement", MIDDLE, "^"),
    ):
        curve_over(axes, vae, "beta", what, f"VAE, {label}", colour, marker + "-")
        pca = mean([row[what] for row in rows if row["codes"] == "PCA"]).mean
        axes.plot(betas, [pca] * len(betas), marker + ":", color=colour, mfc="none", label=f"PCA, {label}")
    axes.set(
        xscale="log",
        xlabel="beta (± 2 standard errors over seeds)",
        ylabel="score; 1: a code for each factor",
        ylim=(0, 1.4 * axes.get_ylim()[1]),
    )
    axes.set_xticks(betas, [f"{beta:g}" for beta in betas])
    axes.set_xticks([], minor=True)
    axes.set_title("Disentanglement of the sprites' five factors")
    axes.legend(frameon=False, fontsize="x-small", ncols=2, loc="upper center")


STUDY = Study(
    "latent_structure",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        seeds=(0, 1),
        latent_dim=6,
        hidden=(64,),
        epochs=2,
        num_labels=(50, 500),
        num_test=200,
        map_side=6,
        betas=(1.0, 4.0),
        sprite_hidden=(32,),
        sprite_steps=30,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
