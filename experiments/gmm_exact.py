"""Do EM, SVI with the latent enumerated, and scikit-learn find the same mixture? (claims C2, C3, C6).

And what does its exact posterior do to the ELBO, next to an amortised guide of the same mixture? The data are the
first two principal components of the digits; every method starts from the same mixture.

Expected: the same likelihood to 0.001 nats per datum, for every start. With the exact posterior as guide the ELBO is
log p(x) to rounding, for every datum; the gap of an amortised guide, KL(q, posterior), falls as it trains, to a floor
that is lower the larger its network: a linear one cannot be the posterior, whose logits are quadratic in x. This KL has
a trap: a component that q gives no mass to has no gradient, and stays without. So the divergence from the prior is
weighted by beta at first, which falls to 1 in the first half of the training: q then starts as the posterior of a
flatter likelihood and is sharpened. The largest network is trained without that too, and stays in the trap.

Run: python -m experiments.gmm_exact [--small]; 2 minutes on one core.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor, nn

import ppl_vae as pv
from experiments.common.images import images
from experiments.common.progress import steps
from experiments.common.study import Findings, Study
from experiments.common.training import trained
from ppl_vae.figures.canvas import DARK, LIGHT, MIDDLE, new_figure, quiet

_LEAST = 1e-6  # nats: what the curves are cut at


@dataclass(frozen=True)
class Config:
    """The mixture and the trainings of each method."""

    num_components: int = 8
    num_seeds: int = 3
    floor: float = 1e-3
    em_iterations: int = 3000
    svi_epochs: int = 1000
    svi_learning_rate: float = 0.02
    hidden: tuple[tuple[int, ...], ...] = ((), (8,), (64, 64))
    guide_epochs: int = 300
    guide_learning_rate: float = 0.01
    first_beta: float = 30.0
    num_drawn: int = 500


def principal_components() -> Tensor:
    """The digits on their first two principal axes, float64 (N, 2)."""
    x = images("digits").train.double()
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T


class AmortisedGMM(nn.Module):
    """A fixed mixture with an amortised guide."""

    def __init__(self, gmm: pv.GMM, hidden: tuple[int, ...]) -> None:
        super().__init__()
        num_components, dim = gmm.means.shape
        self.amortised = pv.AmortisedCategorical(dim, num_components, hidden)
        self.model, self.guide = gmm.model, self.amortised.guide


def measure(config: Config) -> Findings:
    """The three fits from each start; the exact and the amortised guides on the mixture of the first start."""
    x = principal_components()
    fits, mixtures = zip(*(_fits(config, x, seed) for seed in steps(range(config.num_seeds), "starts")), strict=True)
    gmm = mixtures[0]
    kinds = [*((hidden, config.first_beta) for hidden in config.hidden), (config.hidden[-1], 1.0)]
    guides = [_guide(config, gmm, x, *kind, seed) for kind in kinds for seed in range(config.num_seeds)]
    drawn = _map(gmm, guides[-1 - config.num_seeds][1], x[: config.num_drawn])
    return Findings({"fits": fits, "exact": _exact(gmm, x), "guides": [row for row, _ in guides], "map": drawn})


def _fits(config: Config, x: Tensor, seed: int) -> tuple[dict[str, Any], pv.GMM]:
    """The course of each method from one start: how far below the best of all it is after so many passes."""
    start = pv.GMM.fit(x, config.num_components, max_iter=1, seed=seed, covariance_floor=config.floor)
    em = pv.GMM.fit(
        x, config.num_components, init=start, max_iter=config.em_iterations, tol=1e-10, covariance_floor=config.floor
    )
    svi = _by_svi(config, start, x, seed)
    last, iterations = _by_sklearn(config, start, x)
    best = max(em.history[-1], float(svi[-1]), last)
    row = {
        "seed": seed,
        "log_likelihood": best,
        "em": _course(best - np.array(em.history)),
        "svi": _course(best - svi),
        "sklearn": {"passes": [iterations], "below": [best - last]},
    }
    return row, em


def _course(values: np.ndarray) -> dict[str, np.ndarray]:
    """At most 60 of the values, evenly spaced on a logarithmic axis, the last among them."""
    passes = np.unique(np.geomspace(1, len(values), 60).round().astype(int))
    return {"passes": passes, "below": values[passes - 1]}


def _by_svi(config: Config, start: pv.GMM, x: Tensor, seed: int) -> np.ndarray:
    """Gradient ascent of the exact log-likelihood, all data at each step; its value before each and after the last."""
    gmm, fit = trained(
        lambda: pv.TrainableGMM(start),
        x,
        seed,
        objective=pv.ELBO(discrete="enumerate"),
        epochs=config.svi_epochs,
        batch_size=len(x),
        learning_rate=config.svi_learning_rate,
        schedule=pv.schedules.Cosine(1.0, 0.0, config.svi_epochs),
    )
    return np.append(fit.history["elbo"], float(gmm.to_gmm().log_prob(x).mean()))


def _by_sklearn(config: Config, start: pv.GMM, x: Tensor) -> tuple[float, int]:
    """EM of scikit-learn, without its ridge on the covariances: log-likelihood and iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        config.num_components,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(start.covariances).numpy(),
        max_iter=config.em_iterations,
        tol=1e-10,
        reg_covar=0.0,
    )
    with warnings.catch_warnings():  # the figure shows how far it came
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x.numpy())
    return float(mixture.score(x.numpy())), int(mixture.n_iter_)


def _exact(gmm: pv.GMM, x: Tensor) -> dict[str, float]:
    """Largest distance of ELBO and estimate to log p(x), over data, with the exact posterior as guide."""
    ll = pv.log_likelihood(gmm, x, 10, num_draws=0, progress=False)
    log_prob = gmm.log_prob(x).numpy()
    return {
        "elbo_gap": float(np.abs(log_prob - ll.elbo).max()),
        "estimate_gap": float(np.abs(log_prob - ll.value).max()),
        "stderr": float(ll.stderr.max()),
    }


def _guide(
    config: Config, gmm: pv.GMM, x: Tensor, hidden: tuple[int, ...], first_beta: float, seed: int
) -> tuple[dict[str, Any], pv.AmortisedCategorical]:
    """An amortised guide of a fixed mixture: its gap after every epoch, which is KL(q, posterior)."""
    num_steps = config.guide_epochs * -(-len(x) // 128)

    def beta(step: int) -> float:
        return max(1.0, first_beta ** (1 - 2 * step / num_steps))

    pair, fit = trained(
        lambda: AmortisedGMM(gmm, hidden),
        x,
        seed,
        objective=pv.ELBO(discrete="enumerate", beta=beta),
        epochs=config.guide_epochs,
        batch_size=128,
        learning_rate=config.guide_learning_rate,
        schedule=pv.schedules.Cosine(1.0, 0.0, num_steps),
        validation=x,
    )
    gap = float(gmm.log_prob(x).mean()) - fit.history["validation_elbo"]
    return {"hidden": hidden, "first_beta": first_beta, "seed": seed, "last": gap[-1], **_course(gap)}, pair.amortised


@torch.no_grad()
def _map(gmm: pv.GMM, amortised: pv.AmortisedCategorical, x: Tensor) -> dict[str, Any]:
    """Where data lie, how unsure the posterior is of them, and how far the amortised guide is from it."""
    exact, q = gmm.posterior(x).probs, amortised(x).probs
    entropy = -torch.special.xlogy(exact, exact).sum(-1)
    variance, direction = torch.linalg.eigh(gmm.covariances)
    return {
        "x": x,
        "entropy": entropy,
        "distance": 0.5 * (exact - q).abs().sum(-1),
        "centres": gmm.means,
        "axes": variance.sqrt(),
        "angles": torch.rad2deg(torch.atan2(direction[:, 1, 1], direction[:, 0, 1])),
    }


def draw(found: Findings) -> Figure:
    """The courses of EM and SVI, the gaps of the guides, and responsibilities with the error of an amortised guide."""
    figure = new_figure(10.5, 8)
    course, gaps, unsure, wrong = figure.subplots(2, 2).flat
    _draw_course(course, found.numbers["fits"])
    _draw_gaps(gaps, found.numbers["guides"], found.numbers["exact"]["elbo_gap"])
    for axes in (course, gaps):
        quiet(axes)
        axes.legend(frameon=False, fontsize="small")
    told = found.numbers["map"]
    _draw_map(unsure, told, told["entropy"], "entropy of the exact posterior (nats)")
    unsure.set_title("Exact responsibilities: sure inside, not between")
    _draw_map(wrong, told, told["distance"], "total variation distance")
    wrong.set_title("Where the largest amortised guide differs from them")
    return figure


def _draw_course(axes: Axes, fits: list[dict[str, Any]]) -> None:
    styles = {"em": ("-", DARK, "EM"), "svi": ("--", LIGHT, "SVI, latent enumerated")}
    styles["sklearn"] = ("^", MIDDLE, "scikit-learn, at its end")
    for own in fits:
        for name, (style, colour, title) in styles.items():
            label = title if own is fits[0] else None
            below = np.maximum(own[name]["below"], _LEAST)
            axes.plot(own[name]["passes"], below, style, color=colour, label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="passes over the data", ylabel="nats per datum below the best of its start"
    )
    apart = max(own[name]["below"][-1] for own in fits for name in styles)
    axes.set_title(f"{len(fits)} starts: the three end within {apart:.0e} nats\n(curves are cut at {_LEAST:.0e})")


def _draw_gaps(axes: Axes, guides: list[dict[str, Any]], exact: float) -> None:
    told = [(tuple(g["hidden"]), g["first_beta"]) for g in guides]
    kinds = list(dict.fromkeys(told))
    looks = ((MIDDLE, "-"), (LIGHT, "--"), (DARK, "-."), ("0.5", ":"))
    for (size, beta), (colour, style) in zip(kinds, looks[4 - len(kinds) :], strict=True):
        own = [g for g, kind in zip(guides, told, strict=True) if kind == (size, beta)]
        label = f"hidden {' x '.join(map(str, size))}" if size else "linear"
        label += f", beta {beta:g} to 1" if beta > 1 else ", beta 1"
        for g in own:
            axes.plot(g["passes"], g["below"], color=colour, ls=style, label=label if g is own[0] else None)
    axes.set(xscale="log", yscale="log", xlabel="epochs", ylabel="log p(x) - ELBO (nats per datum)")
    axes.set_title(
        f"Amortised guides: gap {min(g['last'] for g in guides):.3f} nats or more\n(exact posterior: {exact:.0e})"
    )


def _draw_map(axes: Axes, told: dict[str, Any], values: list[float], label: str) -> None:
    x = np.array(told["x"])
    for centre, (short, long), angle in zip(told["centres"], told["axes"], told["angles"], strict=True):
        axes.add_patch(Ellipse(centre, 4 * long, 4 * short, angle=angle, fill=False, color=MIDDLE, linewidth=1))
    points = axes.scatter(x[:, 0], x[:, 1], 12, values, cmap="Greys", edgecolors="0.5", linewidths=0.3)
    axes.figure.colorbar(points, ax=axes, label=label)
    axes.set(xlabel="first principal component (ellipses: 2 standard deviations)", ylabel="second principal component")


STUDY = Study(
    "gmm_exact",
    measure,
    draw,
    full=Config(),
    small=Config(
        num_components=3, num_seeds=1, em_iterations=30, svi_epochs=20, hidden=((), (4,)), guide_epochs=3, num_drawn=50
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
