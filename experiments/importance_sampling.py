"""How fast does the importance-sampled log-likelihood approach log p(x) as K grows? (claims C1, C4, C5).

Do its reported errors tell how far it is, and what do m samples buy the ELBO? log p(x) is known: for probabilistic PCA
in closed form, for a blurred Gaussian mixture as a finite sum, for a VAE with two latents by quadrature. With the exact
posterior of PPCA widened by a factor s as guide the laws are known too: the variance of one weight is
chi2 = (s^2 / sqrt(2 s^2 - 1))^d - 1.

Expected: the gap at K falls as chi2 / (2 K) from some eight samples on, to rounding 0 for s = 1. Where the guide is
wider than the posterior, the error that is reported is the actual one from tens of samples on, and 95 % intervals cover
95 %; an amortised guide is too narrow for some data, whose k-hat says so, and its intervals cover less. The ELBO with m
samples is unbiased for every m, so that more samples do not raise it: its variance is d (s^2 - 1)^2 / (2 m).

Run: python -m experiments.importance_sampling [--small]; 3 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
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
    """Pairs, and numbers of samples and data."""

    latent_dim: int = 4
    dim: int = 8
    num_data: int = 20_000
    widths: tuple[float, ...] = (1.0, 1.2, 1.5)
    num_samples: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    num_elbo_samples: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    num_elbo_data: int = 2000
    known_num_samples: tuple[int, ...] = (4, 16, 64, 256, 1024, 4096)
    num_known: int = 360
    num_seeds: int = 5
    num_components: int = 10
    blur: float = 0.1
    vae_epochs: int = 200
    vae_seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0


class Known(NamedTuple):
    """Data, and the pairs, of the same kind, under which their log-likelihood is known."""

    x: Tensor
    """The data, N of them."""
    pairs: list[tuple[Any, np.ndarray]]
    """Pairs, each with exact log p(x) (N,)."""


def widened(ppca: pv.PPCA, s: float) -> pv.Pair:
    """PPCA with its exact posterior, s times as wide, as guide."""

    def guide(x: torch.Tensor) -> None:
        q = ppca.posterior(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=s * q.scale_tril))

    return pv.Pair(ppca.model, guide)


class BlurredMixture:
    """z of a Gaussian mixture, x ~ N(z, v I): again a mixture. The guide is the exact posterior, s times as wide.

    log p(x) of a pair whose latent is the component itself is not estimated but summed.

    Args:
        gmm: The mixture of z, with full covariances.
        v: Variance of the blur.
        s: Width of each component of the guide.
    """

    def __init__(self, gmm: pv.GMM, v: float, s: float) -> None:
        self.gmm, self.v, self.s = gmm, v, s
        self._identity = torch.eye(gmm.means.shape[1], dtype=gmm.means.dtype)
        self.of_data = pv.GMM(gmm.weights, gmm.means, gmm.covariances + v * self._identity)

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        parts = dist.MultivariateNormal(self.gmm.means, self.gmm.covariances)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(self.gmm.weights), parts))
            pyro.sample("x", dist.Normal(z, self.v**0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Each component's posterior, N(m + G (x - m), C - G C) with G = C (C + v I)^-1, wider, in its proportion."""
        covariance = self.gmm.covariances
        gain = torch.linalg.solve(covariance + self.v * self._identity, covariance).mT
        means = self.gmm.means + ((x[:, None] - self.gmm.means)[:, :, None] @ gain.mT)[:, :, 0]
        root = torch.linalg.cholesky(covariance - gain @ covariance)
        parts = dist.MultivariateNormal(means, scale_tril=self.s * root)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=self.of_data.posterior(x).logits), parts))


def random_ppca(config: Config) -> pv.PPCA:
    """PPCA with a random loading."""
    generator = torch.Generator().manual_seed(config.seed)
    loading = torch.randn(config.dim, config.latent_dim, generator=generator, dtype=torch.float64)
    return pv.PPCA(loading, torch.zeros(config.dim), 0.5)


def measure(config: Config) -> Findings:
    """Gap and law for each width and K; actual and reported error for each model with a known log p(x); the ELBO."""
    ppca = random_ppca(config)
    x = ppca.sample(config.num_data, config.seed)
    rows = [_of_width(config, ppca, x, s, k) for s in steps(config.widths, "widths") for k in config.num_samples]
    known = [{"model": name, **row} for name, case in _known(config, ppca, x) for row in _of_model(config, case)]
    elbo = [_of_elbo(config, ppca, x, m) for m in steps(config.num_elbo_samples, "ELBO")]
    return Findings({"rows": rows, "known": known, "elbo": elbo})


def _of_width(config: Config, ppca: pv.PPCA, x: Tensor, s: float, k: int) -> dict[str, float]:
    """Gap to log p(x) and its law, reported and actual error."""
    ll = pv.log_likelihood(widened(ppca, s), x, k, config.seed, num_draws=0, progress=False)
    gap = ppca.log_prob(x).numpy() - ll.value
    chi_square = (s**2 / np.sqrt(2 * s**2 - 1)) ** config.latent_dim - 1
    return {
        "s": s,
        "K": k,
        "gap": float(gap.mean()),
        "gap_stderr": float(gap.std(ddof=1) / np.sqrt(len(gap))),
        "law": float(chi_square) / (2 * k),
        "actual_error": float(np.sqrt(np.square(gap).mean())),
        "reported_error": float(np.sqrt(np.square(ll.stderr).mean())) if k > 1 else float("nan"),
    }


def _known(config: Config, ppca: pv.PPCA, x: Tensor) -> Iterator[tuple[str, Known]]:
    """PPCA and a mixture with guides that are too wide, and trainings of a neural VAE, with exact log p(x)."""
    x = x[: config.num_known]
    widest = max(config.widths)
    yield f"PPCA, posterior x {widest}", Known(x, [(widened(ppca, widest), ppca.log_prob(x).numpy())])
    digits = images("digits", num_test=config.num_known)
    yield f"mixture, posterior x {widest}", _mixture(config, digits.train, widest)
    x_test = pv.data.binarize(digits.test, 1).double()
    trainings = [_vae(config, digits.train, seed) for seed in steps(config.vae_seeds, "VAEs")]
    yield (
        "VAE, two latents",
        Known(x_test, [(vae, pv.log_evidence(vae, x_test, progress=False)) for vae in trainings]),
    )


def _mixture(config: Config, train: Tensor, widest: float) -> Known:
    """A blurred mixture of the first two principal components of digits."""
    centred = (train - train.mean(0)).double()
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    gmm = pv.GMM.fit(centred @ axes.T, config.num_components, seed=config.seed, covariance_floor=1e-2)
    pair = BlurredMixture(gmm, config.blur, widest)
    x = pair.of_data.sample(config.num_known, seed=config.seed)
    return Known(x, [(pair, pair.of_data.log_prob(x).numpy())])


def _vae(config: Config, train: Tensor, seed: int) -> pv.VAE:
    """A VAE with two latents on binary digits, in double precision."""
    x, size = pv.data.binarize(train, 0), train.shape[1]

    def make() -> pv.VAE:
        decoder = pv.decoders.Bernoulli.mlp(2, [64], size)
        return pv.VAE(pv.priors.StandardNormal(2), decoder, pv.encoders.FullCovarianceNormal.mlp(size, [64], 2))

    return trained(make, x, seed, epochs=config.vae_epochs, learning_rate=3e-3)[0].double()


def _of_model(config: Config, known: Known) -> list[dict[str, Any]]:
    """Actual and reported error, and how many 95 % intervals hold log p(x), over pairs, seeds and data."""
    rows = []
    for k in config.known_num_samples:
        gap, reported, trusted = (np.stack(part) for part in zip(*_runs(config, known, k), strict=True))
        covered = np.abs(gap) <= 1.96 * reported + 1e-9  # (pairs x seeds, N)
        rows.append(
            {
                "K": k,
                "gap": mean(gap.mean(0)).mean,
                "gap_stderr": mean(gap.mean(0)).stderr,
                "actual_error": float(np.sqrt(np.square(gap).mean())),
                "reported_error": float(np.sqrt(np.square(reported).mean())),
                "coverage": mean(covered.mean(0)).mean,
                "coverage_stderr": mean(covered.mean(0)).stderr,
                "coverage_by_pair": covered.reshape(len(known.pairs), -1).mean(1),
                "trusted": float(trusted.mean()),
                "coverage_trusted": float(covered[trusted].mean()) if trusted.any() else float("nan"),
            }
        )
    return rows


def _runs(config: Config, known: Known, k: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Gap to log p(x), reported error and trust of each datum, for every pair and seed."""
    for pair, log_evidence in known.pairs:
        for seed in range(config.num_seeds):
            ll = pv.log_likelihood(pair, known.x, k, seed, num_draws=0, progress=False)
            yield log_evidence - ll.value, ll.stderr, ll.trusted


def _of_elbo(config: Config, ppca: pv.PPCA, x: Tensor, m: int) -> dict[str, float]:
    """Bias and variance of the ELBO of a datum with m samples; the truth is log p(x) - KL(q, posterior)."""
    s, d, x = max(config.widths), config.latent_dim, x[: config.num_elbo_data]
    divergence = d * ((s**2 - 1) / 2 - np.log(s))
    ll = pv.log_likelihood(widened(ppca, s), x, m, config.seed, num_draws=0, progress=False)
    error = ll.elbo - (ppca.log_prob(x).numpy() - divergence)
    return {
        "m": m,
        "bias": float(error.mean()),
        "bias_stderr": float(error.std(ddof=1) / np.sqrt(len(error))),
        "variance": float(error.var(ddof=1)),
        "law": d * (s**2 - 1) ** 2 / (2 * m),
        "gap": divergence,
    }


def draw(found: Findings) -> Figure:
    """The gap with its law, actual and reported error, coverage, and the ELBO."""
    figure = new_figure(10.5, 8)
    gap, error, coverage, elbo = figure.subplots(2, 2).flat
    _draw_gap(gap, found.numbers["rows"])
    _draw_known(error, coverage, found.numbers["known"])
    _draw_elbo(elbo, found.numbers["elbo"])
    for axes in (gap, error, coverage, elbo):
        quiet(axes)
        axes.legend(frameon=False, fontsize="small")
    return figure


_STYLES = list(zip((DARK, LIGHT, MIDDLE), "os^", strict=True))


def _draw_gap(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for (colour, marker), s in zip(_STYLES, sorted({r["s"] for r in rows} - {1.0}), strict=False):
        own = [r for r in rows if r["s"] == s]
        k = [r["K"] for r in own]
        gap, width = [r["gap"] for r in own], [2 * r["gap_stderr"] for r in own]
        axes.errorbar(k, gap, width, fmt=marker, color=colour, label=f"PPCA, guide = posterior x {s}")
        axes.plot(k, [r["law"] for r in own], color="0.6", zorder=0)
    axes.plot([], [], color="0.6", label="law: chi2 / 2K")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="samples K (± 2 standard errors)",
        ylabel="log p(x) - estimate (nats per datum)",
    )
    axes.set_title("With many samples too low by chi2 / 2K")


def _draw_known(error: Axes, coverage: Axes, rows: list[dict[str, Any]]) -> None:
    for (colour, marker), name in zip(_STYLES, dict.fromkeys(r["model"] for r in rows), strict=True):
        own = [r for r in rows if r["model"] == name]
        k = [r["K"] for r in own]
        error.plot(k, [r["actual_error"] for r in own], marker, color=colour, label=f"{name}: actual")
        error.plot(k, [r["reported_error"] for r in own], "--", color=colour)
        share, width = [100 * r["coverage"] for r in own], [200 * r["coverage_stderr"] for r in own]
        coverage.errorbar(k, share, width, fmt=f"{marker}-", color=colour, label=name)
        told = [r for r in own if r["trusted"] > 0.2 and r["K"] > 10]  # fewer samples have no verdict
        trusted = [100 * r["coverage_trusted"] for r in told]
        coverage.plot([r["K"] for r in told], trusted, f"{marker}:", color=colour, markerfacecolor="none")
    error.set(xscale="log", yscale="log", xlabel="samples K", ylabel="error of one datum (nats, root mean square)")
    error.plot([], [], "k--", label="reported")
    last = [r for r in rows if r["K"] == max(r["K"] for r in rows)]
    ratios = [f"{_short(r)} {r['actual_error'] / r['reported_error']:.2f}" for r in last]
    error.set_title(f"Actual / reported error at K = {last[0]['K']}:\n{', '.join(ratios)}")
    coverage.plot([], [], "k:", label="of the trusted data alone")
    coverage.axhline(95, color="0.6", zorder=0)
    coverage.set(xscale="log", xlabel="samples K (± 2 standard errors over data)")
    coverage.set_ylabel("intervals that hold log p(x) (%)")
    shares = ", ".join(f"{_short(r)} {100 * r['coverage']:.0f}" for r in last)
    coverage.set_title(f"95 % intervals at K = {last[0]['K']} cover, in %:\n{shares}")


def _short(row: dict[str, Any]) -> str:
    return str(row["model"]).split(",")[0]


def _draw_elbo(axes: Axes, rows: list[dict[str, Any]]) -> None:
    m = np.array([r["m"] for r in rows])
    gap = rows[0]["gap"]
    law = np.sqrt([r["law"] for r in rows])
    axes.fill_between(m, -gap - law, -gap + law, color=LIGHT, alpha=0.4, label="law: ± 1 standard deviation")
    centre, spread = [r["bias"] - gap for r in rows], np.sqrt([r["variance"] for r in rows])
    axes.errorbar(m, centre, spread, fmt="o", color=DARK, capsize=3, label="mean ± standard deviation of one datum")
    axes.axhline(0, color="0.3", linestyle=":", label="log p(x)")
    axes.axhline(-gap, color="0.6", label="log p(x) - KL(guide, posterior)")
    axes.set(xscale="log", xlabel="samples m", ylabel="ELBO - log p(x) (nats per datum)")
    axes.set_title("More samples make the ELBO sharper, not higher")


STUDY = Study(
    "importance_sampling",
    measure,
    draw,
    full=Config(),
    small=Config(
        latent_dim=2,
        dim=3,
        num_data=50,
        widths=(1.0, 1.2),
        num_samples=(1, 16),
        num_elbo_samples=(1, 10),
        num_elbo_data=50,
        known_num_samples=(4, 64),
        num_known=40,
        num_seeds=2,
        vae_epochs=8,
        vae_seeds=(0, 1),
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
