"""How fast does the importance-sampled log-likelihood approach log p(x)? (claims C4, C5).

Do its reported errors tell how far it is?

On probabilistic PCA every part is known: the exact log p(x), and for the exact posterior widened by a factor s as
guide, the variance of one weight, chi2 = (s^2 / sqrt(2 s^2 - 1))^d - 1.

Expected: the ELBO (K = 1) lies d [log 1/s + (s^2 - 1) / 2] nats below log p(x); the gap at K falls as chi2 / (2 K);
the spread of the estimate over data is the standard error it reports. With s = 1 all gaps are 0 to rounding.

Run: python -m experiments.importance_sampling [--small]; half a minute on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import ppl_vae as pv
from experiments.common.progress import steps
from experiments.common.study import Findings, Study
from ppl_vae.figures.canvas import new_figure


@dataclass(frozen=True)
class Config:
    """Full form: half a minute on two cores."""

    latent_dim: int = 4
    dim: int = 8
    num_data: int = 20_000
    widths: tuple[float, ...] = (1.0, 1.2, 1.5)
    num_samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seed: int = 0


def widened(ppca: pv.PPCA, s: float) -> pv.Pair:
    """PPCA with its exact posterior, s times as wide, as guide."""

    def guide(x: torch.Tensor) -> None:
        q = ppca.posterior(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=s * q.scale_tril))

    return pv.Pair(ppca.model, guide)


def measure(config: Config) -> Findings:
    """Gap to log p(x), its law, and reported against actual error, for each width and K."""
    generator = torch.Generator().manual_seed(config.seed)
    loading = torch.randn(config.dim, config.latent_dim, generator=generator, dtype=torch.float64)
    ppca = pv.PPCA(loading, torch.zeros(config.dim), 0.5)
    x = ppca.sample(config.num_data, config.seed)
    exact = ppca.log_prob(x).numpy()
    rows = []
    for s in steps(config.widths, "widths"):
        chi_square = (s**2 / np.sqrt(2 * s**2 - 1)) ** config.latent_dim - 1
        for k in config.num_samples:
            ll = pv.log_likelihood(widened(ppca, s), x, k, config.seed, num_draws=0, progress=False)
            gap = exact - ll.value
            rows.append(
                {
                    "s": s,
                    "K": k,
                    "gap": float(gap.mean()),
                    "gap_stderr": float(gap.std(ddof=1) / np.sqrt(len(gap))),
                    "law": float(chi_square) / (2 * k),
                    "actual_error": float(np.sqrt(np.square(gap).mean())),
                    "reported_error": float(np.sqrt(np.square(ll.stderr).mean())) if k > 1 else float("nan"),
                }
            )
    return Findings({"rows": rows})


def draw(found: Findings) -> Figure:
    """Gap against K with its law, and reported against actual error."""
    rows = found.numbers["rows"]
    figure = new_figure(9.5, 4)
    left, right = figure.subplots(1, 2)
    for s, marker in zip(sorted({r["s"] for r in rows} - {1.0}), "os^", strict=False):
        own = [r for r in rows if r["s"] == s]
        k = [r["K"] for r in own]
        left.errorbar(
            k, [r["gap"] for r in own], [2 * r["gap_stderr"] for r in own], fmt=marker, label=f"measured, s = {s}"
        )
        left.plot(k, [r["law"] for r in own], color="0.5", zorder=0)
        told = [r for r in own if r["K"] > 1]
        right.plot([r["actual_error"] for r in told], [r["reported_error"] for r in told], marker, label=f"s = {s}")
    left.set(xscale="log", yscale="log", xlabel="K samples", ylabel="log p(x) - estimate, nats per datum")
    left.set_title("The gap falls as chi2 / 2K (grey lines)")
    limits = np.array(right.get_xlim())
    right.plot(limits, limits, color="0.5", zorder=0)
    right.set(xscale="log", yscale="log", xlabel="actual error, nats (root mean square)", ylabel="reported error, nats")
    right.set_title("The reported error is the actual one")
    for axes in (left, right):
        axes.legend(frameon=False)
    return figure


STUDY = Study(
    "importance_sampling",
    measure,
    draw,
    full=Config(),
    small=Config(latent_dim=2, dim=3, num_data=50, widths=(1.0, 1.2), num_samples=(1, 16)),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
