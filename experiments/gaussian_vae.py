"""Is a Gaussian VAE worth infinitely many components, and when does it pass every mixture? (claims C11, C12, C13).

Log-likelihood of held-out digits of MNIST (margin cut, averaged to 10 x 10, 16 grey levels, dequantised) under VAEs,
Gaussian mixtures of 1 to 256 components, and probabilistic PCA, all trained on the same data. The decoder's scale is
fixed, learned, one sigma(z) for all pixels, or one for each; the encoder's covariance is diagonal or full. No standard
deviation falls below 0.01 in any of them, about half that of the noise of dequantisation.

Expected: with a fixed or learned scale, or one sigma(z) for all pixels, a mixture is better than the VAE, because the
noise of a pixel depends on the digit. With one sigma(z) for each pixel the VAE passes every mixture (on 20,000 data 102
against 95 nats in a trial run); mixtures with full covariances overfit from some dozen components on, earlier with
fewer data, where the lead is as large. The mixture to lead over is chosen by validation data, and then the best of
three starts; the lead over the best of all on the test data, which is no choice one could make, stands beside it. A
richer covariance of q should not hurt. The numbers are densities of x in [0, 1]^100.

Run: python -m experiments.gaussian_vae [--small]; 40 minutes on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.codes import coding
from experiments.common.dequantised import Split, dequantised
from experiments.common.progress import steps
from experiments.common.statistics import mean, paired
from experiments.common.study import Findings, Study
from experiments.common.training import score, trained
from ppl_vae.figures import show_rows
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet

_MIN_SCALE, _FIRST_SCALE, _SAMPLES = 0.01, 0.1, 12
_BEST = "one sigma(z) a pixel"


class Variant(NamedTuple):
    """A kind of Gaussian VAE."""

    name: str
    scale: Any
    """A number, "learned", "shared" (one sigma(z) for all pixels) or "per_latent" (one for each)."""
    full_covariance: bool = False


@dataclass(frozen=True)
class Config:
    """What is compared, and on how much data."""

    data: str = "mnist"
    levels: int = 16
    sizes: tuple[int, ...] = (1000, 5000, 20_000)
    num_test: int = 1000
    full_components: tuple[int, ...] = (1, 4, 16, 32, 64)
    diagonal_components: tuple[int, ...] = (1, 4, 16, 64, 256)
    tied_components: tuple[int, ...] = (4, 16, 64, 256)
    em_iterations: int = 200
    em_starts: int = 3
    ppca_dims: tuple[int, ...] = (8, 16, 32, 64)
    variants: tuple[Variant, ...] = (
        Variant("sigma = 0.05", 0.05),
        Variant("sigma = 0.1", 0.1),
        Variant("sigma = 0.2", 0.2),
        Variant("sigma learned", "learned"),
        Variant("one sigma(z)", "shared"),
        Variant(_BEST, "per_latent"),
        Variant(f"{_BEST}, full covariance", "per_latent", True),
    )
    latent_dim: int = 24
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 9000
    num_seeds: int = 3
    num_samples: int = 1000


def measure(config: Config) -> Findings:
    """Held-out log-likelihoods for each size of the training data, and samples of the best of each kind."""
    x = dequantised(config.data, config.levels, max(config.sizes), config.num_test)
    rows, leads, pictures = [], [], {"data": _pictures(x.test[:_SAMPLES])}
    for size in steps(config.sizes, "sizes"):
        largest = size == max(config.sizes)
        own = x._replace(train=x.train[:size])
        exact = _mixtures(config, own) + (_ppca(config, own) if largest else [])
        mixture = _chosen(config, own, exact)
        vaes = [
            _vae(config, variant, own, seed)
            for variant in config.variants
            if largest or variant.name == _BEST
            for seed in range(config.num_seeds)
        ]
        chosen = [vae for vae in vaes if vae["kind"] == _BEST]
        lead = paired(np.mean([vae["values"] for vae in chosen], axis=0), mixture["values"])
        over_seeds = mean([vae["values"].mean() for vae in chosen]).stderr
        errors = {"stderr": lead.stderr, "stderr_over_seeds": over_seeds}
        leads.append({"num_train": size, "lead": lead.mean, **errors, "mixture": _name(mixture)})
        if largest:
            pictures[f"mixture, {_name(mixture)}"] = _pictures(mixture["model"].sample(_SAMPLES))
            pictures["VAE"] = _pictures(chosen[0]["model"].sample(_SAMPLES))
            pictures["VAE, means"] = _pictures(chosen[0]["model"].sample(_SAMPLES, mean=True))
        rows += [{"num_train": size, **_numbers(row, config.levels)} for row in exact + vaes]
    return Findings({"rows": rows, "leads": leads}, pictures)


def _mixtures(config: Config, x: Split) -> list[dict[str, Any]]:
    """Mixtures with full, diagonal and tied covariances, with at least ten data for each component."""
    families = {"full": config.full_components, "diag": config.diagonal_components, "tied": config.tied_components}
    kinds = [(kind, number) for kind, numbers in families.items() for number in numbers]
    return [_mixture(config, x, kind, number, 1) for kind, number in kinds if len(x.train) >= 10 * number]


def _mixture(config: Config, x: Split, kind: Any, num_components: int, num_starts: int) -> dict[str, Any]:
    """A mixture by EM, the best of some starts on the training data."""
    gmm = pv.GMM.fit(
        x.train,
        num_components,
        covariance_type=kind,
        num_restarts=num_starts,
        max_iter=config.em_iterations,
        tol=1e-3,
        covariance_floor=_MIN_SCALE**2,
    )
    return {"kind": f"GMM, {kind}", "size": num_components, **_exact(gmm, x)}


def _chosen(config: Config, x: Split, exact: list[dict[str, Any]]) -> dict[str, Any]:
    """The mixture that validation data choose, from more starts, in its place in the list."""
    mixtures = [i for i, row in enumerate(exact) if row["kind"] != "PPCA"]
    place = max(mixtures, key=lambda i: exact[i]["validation"])
    kind, size = exact[place]["kind"].removeprefix("GMM, "), exact[place]["size"]
    exact[place] = {**_mixture(config, x, kind, size, config.em_starts), "starts": config.em_starts}
    return exact[place]


def _ppca(config: Config, x: Split) -> list[dict[str, Any]]:
    return [{"kind": "PPCA", "size": dim, **_exact(pv.PPCA.fit(x.train, dim), x)} for dim in config.ppca_dims]


def _exact(model: pv.GMM | pv.PPCA, x: Split) -> dict[str, Any]:
    return {
        "model": model,
        "values": model.log_prob(x.test).numpy(),
        "validation": float(model.log_prob(x.validation).mean()),
    }


def _vae(config: Config, variant: Variant, x: Split, seed: int) -> dict[str, Any]:
    """A trained VAE with its importance-sampled log-likelihood, and distortion and rate of training and test data."""
    vae, _ = trained(
        lambda: _made(config, variant, x.train.shape[1]),
        x.train,
        seed,
        steps=config.steps,
        schedule=pv.schedules.Cosine(1.0, 0.0, config.steps),
        validation=x.validation,
    )
    found = score(vae, x.test, config.num_samples, seed)
    seen, held = coding(vae, x.train[: len(x.test)]), coding(vae, x.test)
    return {
        "kind": variant.name,
        "seed": seed,
        "model": vae,
        "values": found.values,
        "monte_carlo_stderr": found.stderr,
        "elbo": found.elbo,
        "untrusted": found.untrusted,
        "distortion": held.distortion,
        "rate": held.rate,
        "seen_distortion": seen.distortion,
        "seen_rate": seen.rate,
    }


def _made(config: Config, variant: Variant, size: int) -> pv.VAE:
    """A VAE; every scale that is learned starts at 0.1, for from a large one the latents fall silent."""
    latent_dim, hidden = config.latent_dim, config.hidden
    scale = "per_latent" if variant.scale == "shared" else variant.scale
    outputs = size + {"shared": 1, "per_latent": size}.get(variant.scale, 0)
    network = pv.networks.MLP(latent_dim, hidden, outputs, nn.ReLU)
    decoder = pv.decoders.Gaussian(network, size, scale, _MIN_SCALE)
    raw = math.log(math.expm1(_FIRST_SCALE - _MIN_SCALE))
    with torch.no_grad():
        network.layers[-1].bias[size:] = raw  # type: ignore[index]
        if decoder.raw_scale is not None:
            decoder.raw_scale.fill_(raw)
    kind = pv.encoders.FullCovarianceNormal if variant.full_covariance else pv.encoders.DiagonalNormal
    encoder = kind.mlp(size, hidden, latent_dim, activation=nn.ReLU)
    return pv.VAE(pv.priors.StandardNormal(latent_dim), decoder, encoder)


def _numbers(row: dict[str, Any], levels: int) -> dict[str, Any]:
    """What the record keeps: the mean over test data, with its error as one for new data, and bits per grey level."""
    found = mean(row["values"])
    bits = math.log2(levels) - found.mean / (row["model"].sample(1).shape[1] * math.log(2))
    kept = {name: value for name, value in row.items() if name not in ("model", "values")}
    return {**kept, "log_likelihood": found.mean, "stderr": found.stderr, "bits_per_pixel": bits}


def _name(row: dict[str, Any]) -> str:
    return f"{row['size']} {row['kind'].removeprefix('GMM, ')}"


def _pictures(x: Tensor) -> np.ndarray:
    side = math.isqrt(x.shape[1])
    return x.detach().reshape(-1, side, side).float().numpy()


def draw(found: Findings) -> Figure:
    """log p(x) against components with the VAEs as bands, its parts, the lead by size of data, and samples."""
    rows, leads = found.numbers["rows"], found.numbers["leads"]
    figure = new_figure(11, 10)
    grid = figure.add_gridspec(3, 2, width_ratios=(3, 2), height_ratios=(3, 2.2, 2.6))
    levels, sizes = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    parts = figure.add_subplot(grid[1, :])
    largest = max(row["num_train"] for row in rows)
    own = [row for row in rows if row["num_train"] == largest]
    _draw_levels(levels, own, largest)
    _draw_sizes(sizes, rows, leads)
    _draw_parts(parts, [row for row in own if "seed" in row])
    for axes in (levels, sizes, parts):
        quiet(axes)
    title = "Test data, and draws from each model (VAE: one sigma(z) a pixel; below, the means of p(x given z))"
    show_rows(figure.add_subplot(grid[2, :]), found.pictures, title)
    return figure


def _draw_levels(axes: Axes, rows: list[dict[str, Any]], size: int) -> None:
    styles = {
        "GMM, full": ("o-", DARK),
        "GMM, diag": ("s--", MIDDLE),
        "GMM, tied": ("v-.", "0.2"),
        "PPCA": ("^:", "0.5"),
    }
    for kind, (style, colour) in styles.items():
        own = [row for row in rows if row["kind"] == kind]
        label = {"PPCA": "PPCA, by latent dimensions"}.get(kind, kind.replace("diag", "diagonal"))
        axes.plot(
            [row["size"] for row in own], [row["log_likelihood"] for row in own], style, color=colour, label=label
        )
    last = max(row["size"] for row in rows if "size" in row)
    kinds = {
        name: [r["log_likelihood"] for r in rows if r["kind"] == name]
        for name in {r["kind"]: 0 for r in rows if "seed" in r}
    }
    height, low = -math.inf, min(row["log_likelihood"] for row in rows)
    apart = 0.045 * (max(row["log_likelihood"] for row in rows) - low)
    for name, own in sorted(kinds.items(), key=lambda kind: np.mean(kind[1])):
        axes.fill_between([1, last], min(own) - 0.3, max(own) + 0.3, color=LIGHT, alpha=0.5, linewidth=0)
        axes.hlines(float(np.mean(own)), 1, last, color=LIGHT)
        height = max(float(np.mean(own)), height + apart)
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
        place = {"xy": (last, np.mean(own)), "xytext": (1.4 * last, height), "arrowprops": arrow}
        axes.annotate(name, **place, va="center", fontsize="x-small")
    axes.set_xlim(0.8, last**1.9)  # room for the names
    axes.set_ylim(low - 8 * apart, None)  # and for the legend
    axes.fill_between([], [], color=LIGHT, alpha=0.5, label="VAEs, mean, worst and best seed")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**power for power in range(int(math.log2(last)) + 1)][::2])
    axes.set(xlabel="components (or latent dimensions of PPCA)", ylabel="held-out log p(x) (nats per datum)")
    axes.set_title(f"{size:,} training data: {_passing(rows)}")
    axes.legend(frameon=False, fontsize="small")


def _draw_parts(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Of each kind of VAE the ELBO as reconstruction less rate, and log p(x) above it; means over seeds."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    reconstruction, elbo, log_p = (
        np.array([np.mean([sign * row[what] for row in rows if row["kind"] == kind]) for kind in kinds])
        for what, sign in (("distortion", -1), ("elbo", 1), ("log_likelihood", 1))
    )
    y = np.arange(len(kinds))
    axes.hlines(y, elbo, reconstruction, color=MIDDLE, linewidth=5, alpha=0.5, label="rate, KL(q(z given x), p(z))")
    axes.plot(reconstruction, y, "D", color=DARK, ms=8, label="reconstruction, E log p(x given z)")
    axes.plot(elbo, y, "s", color=LIGHT, ms=8, label="ELBO, their difference")
    axes.plot(log_p, y, "o", color="black", ms=5, label="log p(x)")
    for i, (left, right) in enumerate(zip(elbo, reconstruction, strict=True)):
        axes.annotate(
            f"{right - left:.0f}", ((left + right) / 2, i), (0, 5), textcoords="offset points", fontsize="x-small"
        )
    axes.set_yticks(y, [kind.replace(", ", ",\n") for kind in kinds], fontsize="small")
    axes.set_ylim(len(kinds) - 0.5, -0.7)
    axes.set(xlabel="nats per held-out datum", title="A smaller scale buys reconstruction at a higher rate")
    axes.legend(frameon=False, fontsize="small", loc="upper right")


def _passing(rows: list[dict[str, Any]]) -> str:
    """How many kinds of VAE are better than every mixture, on average over seeds."""
    best = max(row["log_likelihood"] for row in rows if row["kind"].startswith("GMM"))
    kinds = {row["kind"] for row in rows if "seed" in row}
    means = [np.mean([row["log_likelihood"] for row in rows if row["kind"] == kind]) for kind in kinds]
    passing = sum(m > best for m in means)
    return f"{passing} of {len(kinds)} kinds of VAE\n{'passes' if passing == 1 else 'pass'} every mixture"


def _draw_sizes(axes: Axes, rows: list[dict[str, Any]], leads: list[dict[str, Any]]) -> None:
    x, lead = ([row[what] for row in leads] for what in ("num_train", "lead"))
    errors = [2 * row["stderr"] for row in leads]
    axes.errorbar(x, lead, errors, fmt="o-", color=DARK, capsize=3, label="over the one that validation chooses")
    least = [_lead_over_all(rows, size) for size in x]
    axes.plot(x, least, "D", color=LIGHT, mfc="none", mew=2, ms=10, label="over the best on the test data")
    for row in leads:
        place = {"xytext": (9, -14 if row is leads[0] else 6), "textcoords": "offset points"}
        axes.annotate(row["mixture"].replace("diag", "diagonal"), (row["num_train"], row["lead"]), **place)
    axes.axhline(0, color="0.5")
    axes.margins(x=0.25)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{size:,}" for size in x])
    axes.minorticks_off()
    axes.set(xlabel="training data", ylabel="VAE - mixture, nats per datum\n(± 2 standard errors over test data)")
    axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 0.06))
    first, last = f"{least[0]:.0f} nats on {x[0]:,} data", f"{least[-1]:.0f} on {x[-1]:,}"
    axes.set_title(f"Lead of one sigma(z) a pixel over mixtures:\n{first}, {last}", fontsize="medium")


def _lead_over_all(rows: list[dict[str, Any]], size: int) -> float:
    """What the best kind of VAE, on average over seeds, is ahead of the best mixture on the test data."""
    own = [row for row in rows if row["num_train"] == size]
    vae = np.mean([row["log_likelihood"] for row in own if row["kind"] == _BEST])
    return float(vae - max(row["log_likelihood"] for row in own if row["kind"].startswith("GMM")))


STUDY = Study(
    "gaussian_vae",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        levels=17,
        sizes=(200, 400),
        num_test=40,
        full_components=(1, 2),
        diagonal_components=(1, 4),
        tied_components=(2,),
        em_iterations=3,
        ppca_dims=(4,),
        variants=(Variant("sigma learned", "learned"), Variant(_BEST, "per_latent")),
        latent_dim=2,
        hidden=(16,),
        steps=20,
        num_seeds=1,
        num_samples=20,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
