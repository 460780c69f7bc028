"""What does it cost that one encoder serves all data? (claims C6, C8).

log p(x) - ELBO = KL(q, posterior) is split for trained VAEs by `gap_decomposition`: the approximation gap is what the
best diagonal normal of each datum leaves, found by optimising its mean and scale for this datum alone; the amortisation
gap is what the encoder loses to it. On training and on test data, for encoders of several sizes, each trained with a
decoder of one size.

Expected: the amortisation gap is the larger part for a small encoder and shrinks as the encoder grows, on training
data more than on test data, since an encoder overfits. The approximation gap is about the same on both.

Each encoder leads to a model of its own, whose posteriors are easier or harder to hit: gaps of encoders compare only
together with the log p(x) that they belong to, and errors are those over seeds, each of which is another model.

Run: python -m experiments.amortisation [--small]; about 20 minutes on one core.

Reference: Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.statistics import mean
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet


@dataclass(frozen=True)
class Config:
    """Full form: about twenty minutes on one core."""

    data: str = "mnist"
    num_train: int = 10_000
    num_judged: int = 150
    latent_dim: int = 16
    decoder: tuple[int, ...] = (200, 200)
    encoders: tuple[tuple[int, ...], ...] = ((), (50,), (200, 200), (500, 500))
    epochs: int = 60
    num_seeds: int = 3
    search_steps: int = 150
    search_rounds: int = 3
    search_particles: int = 2
    num_samples: int = 2000


def measure(config: Config) -> Findings:
    """Both gaps for each encoder, on training and test data."""
    found = images(config.data, config.num_train, config.num_judged)
    train, test = (pv.data.binarize(x, seed) for seed, x in enumerate((found.train, found.test)))
    parts = {"training": train[: config.num_judged], "test": test}
    rows = []
    for hidden in steps(config.encoders, "encoders"):
        split: dict[str, list[pv.GapDecomposition]] = {name: [] for name in parts}
        for seed in range(config.num_seeds):
            vae = _vae(config, hidden, train, seed)
            for name, x in parts.items():
                split[name].append(_split(config, vae, x, seed))
        rows += [{"hidden": hidden, "data": name, **_summary(runs)} for name, runs in split.items()]
    return Findings({"rows": rows})


def _vae(config: Config, hidden: tuple[int, ...], x: Tensor, seed: int) -> pv.VAE:
    """A VAE with an encoder of these widths and the decoder of all."""
    size, latent_dim = x.shape[1], config.latent_dim

    def make() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(latent_dim, config.decoder, size)
        return pv.VAE(
            pv.priors.StandardNormal(latent_dim), decoder, pv.encoders.DiagonalNormal.mlp(size, hidden, latent_dim)
        )

    return trained(make, x, seed, epochs=config.epochs)[0]


def _split(config: Config, vae: pv.VAE, x: Tensor, seed: int) -> pv.GapDecomposition:
    """Both gaps of each datum."""
    search = pv.LocalSearch(config.search_steps, config.search_rounds, config.search_particles)
    return pv.gap_decomposition(vae, x, config.num_samples, seed, search=search, progress=False)


def _summary(runs: list[pv.GapDecomposition]) -> dict[str, Any]:
    """Means over the data for each seed, and over seeds with their standard errors: each seed is another model."""
    by_seed = {name: [float(getattr(run, part).mean()) for run in runs] for name, part in _PARTS.items()}
    means = {name: mean(values) for name, values in by_seed.items()}
    return {
        **{name: found.mean for name, found in means.items()},
        **{f"{name}_stderr": found.stderr for name, found in means.items()},
        "by_seed": by_seed,
        "untrusted": 1 - mean([run.trusted.mean() for run in runs]).mean,
        "converged": mean([run.converged.mean() for run in runs]).mean,
        "late_gain": mean([run.late_gain.mean() for run in runs]).mean,
    }


_PARTS = {
    "log_likelihood": "log_evidence",
    "elbo": "elbo",
    "approximation": "approximation",
    "amortisation": "amortisation",
    "closed_by_full_covariance": "richer_gain",
}


def draw(found: Findings) -> Figure:
    """Both gaps, stacked, for each encoder; the likelihoods that they separate."""
    rows = found.numbers["rows"]
    figure = new_figure(10.5, 4.4)
    gaps, levels = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = list(dict.fromkeys(_name(row) for row in rows))
    _draw_gaps(gaps, rows, sizes)
    _draw_levels(levels, rows, sizes)
    gaps.set_ylim(0, 1.4 * gaps.get_ylim()[1])
    for axes in (gaps, levels):
        quiet(axes)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_xlabel("hidden layers of the encoder")
        axes.legend(frameon=False, fontsize="small", ncols=2 if axes is gaps else 1)
    return figure


def _name(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["hidden"])) if row["hidden"] else "none (linear)"


def _draw_gaps(axes: Axes, rows: list[dict[str, Any]], sizes: list[str]) -> None:
    for data, shift, hatch in (("training", -0.2, None), ("test", 0.2, "///")):
        own = [row for row in rows if row["data"] == data]
        x = [sizes.index(_name(row)) + shift for row in own]
        bottom = [row["approximation"] for row in own]
        look = {"width": 0.36, "edgecolor": "white", "hatch": hatch}
        axes.bar(x, bottom, color=MIDDLE, label=f"approximation gap, {data} data", **look)
        top = [row["amortisation"] for row in own]
        axes.bar(x, top, bottom=bottom, color=LIGHT, label=f"amortisation gap, {data} data", **look)
        for kind, base in (("approximation", np.zeros(len(own))), ("amortisation", np.array(bottom))):
            heights = base + [row[kind] for row in own]
            axes.errorbar(x, heights, [2 * row[f"{kind}_stderr"] for row in own], fmt="none", color="0.2", capsize=3)
    axes.set_ylabel("log p(x) - ELBO (nats per datum;\nbars: 2 standard errors over seeds)")
    shares = [row["untrusted"] for row in rows]
    axes.set_title(
        "What the family of q costs, and what amortising it costs\n"
        f"({min(shares):.0%} to {max(shares):.0%} of the log p(x) untrusted: approximation gaps are rather larger)",
        fontsize="medium",
    )


def _draw_levels(axes: Axes, rows: list[dict[str, Any]], sizes: list[str]) -> None:
    for data, style in (("training", "o-"), ("test", "s--")):
        own = [row for row in rows if row["data"] == data]
        x = [sizes.index(_name(row)) for row in own]
        for name, label, colour in (("log_likelihood", "log p(x)", DARK), ("elbo", "ELBO", LIGHT)):
            values, errors = ([row[key] for row in own] for key in (name, f"{name}_stderr"))
            axes.errorbar(x, values, 2 * np.array(errors), fmt=style, color=colour, capsize=3, label=f"{label}, {data}")
    axes.set_ylabel("nats per datum")
    axes.set_title("The model that each encoder leads to")


STUDY = Study(
    "amortisation",
    measure,
    draw,
    full=Config(),
    small=Config(
        data="digits",
        num_train=200,
        num_judged=20,
        latent_dim=2,
        decoder=(16,),
        encoders=((), (16,)),
        epochs=3,
        num_seeds=2,
        search_steps=5,
        search_rounds=1,
        search_particles=16,
        num_samples=50,
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
