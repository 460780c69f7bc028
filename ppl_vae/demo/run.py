"""The two parts of the demonstration: binary digits and grey digits, each with models of one kind of likelihood."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vae import data, decoders, encoders, figures, priors, report, schedules
from ppl_vae.demo.album import COLUMNS, Album, file_name
from ppl_vae.errors import PplVaeError
from ppl_vae.evaluation import log_likelihood
from ppl_vae.exact import GMM, PPCA
from ppl_vae.objectives import ELBO, IWAE, Objective
from ppl_vae.pair import as_pair
from ppl_vae.recipes import bernoulli_vae, gaussian_vae
from ppl_vae.rng import key, seeded
from ppl_vae.svi import Fit, fit
from ppl_vae.vae import VAE

__all__ = ["DemoSettings", "run_demo"]

_MARK = "demo.json"
_LATENT_DIM, _HIDDEN = 10, (200,)
_BATCH_SIZE, _LEARNING_RATE = 64, 2e-3
_GREY_LEVELS = 17
_KHAT_LIMIT = 0.7
_LEGEND = """\
log p(x): exact, or importance-sampled ± Monte Carlo standard error; test data, never seen in training.
k-hat > 0.7: share of the data whose weights have too heavy a tail: their estimate is too low rather than too high,
and ± does not cover that. PPCA and "one scale" share one variance among the pixels; the others have one for each.
"""
# Always-black pixels have no variance but that of dequantisation, 1/12 of a squared grey level.
_COVARIANCE_FLOOR = 1 / 12 / _GREY_LEVELS**2


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demonstration; the defaults take about a minute on two cores."""

    epochs: int = 80
    """Passes of each VAE over the 1,257 training digits."""
    num_samples: int = 5000
    """K of the importance-sampled log-likelihoods."""
    num_test: int = 360
    """How many of the 360 test digits are evaluated."""
    num_components: tuple[int, ...] = (10, 40)
    """Components of the mixtures."""
    seed: int = 0
    """Of everything random."""


def run_demo(root: Path, settings: DemoSettings = DemoSettings()) -> Path:
    """Train VAEs, mixtures and PPCA on scikit-learn's digits; print two tables, draw a contact sheet.

    Within a table, every model scores the same test data by the same kind of likelihood: binary digits by a
    probability, dequantised grey digits by a density. Numbers of different tables do not compare.

    Args:
        root: Directory of the results. An earlier demonstration in it is replaced; anything else is left alone.
        settings: Sizes.

    Returns:
        The path of the contact sheet.

    Raises:
        PplVaeError: `root` holds something else than an earlier demonstration.
    """
    start = time.monotonic()
    _make_empty(root, settings)
    demo = _Demo(root, settings)
    with _one_thread():
        demo.binary_digits()
        demo.grey_digits()
    demo.album.say(_LEGEND)
    sheet = demo.album.write()
    demo.album.say(f"{time.monotonic() - start:.0f} seconds. Everything is in {root}; the figures on one page: {sheet}")
    return sheet


class _Demo:
    """The two parts of the demonstration; within each, all numbers compare."""

    def __init__(self, root: Path, settings: DemoSettings) -> None:
        self.root, self.settings, self.album = root, settings, Album(root)

    def binary_digits(self) -> None:
        """Probabilities: a VAE by the ELBO, the same by the importance-weighted bound, and no latents at all."""
        grey, test = data.load("digits"), data.load("digits", binarize="fixed").test[: self.settings.num_test]
        title = "Binary digits: 64 pixels, each drawn from its grey level"
        self.album.say(title.partition(":")[0])
        objectives: dict[str, Objective] = {"VAE, ELBO": ELBO(), "VAE, IWAE": IWAE(5)}
        rows, vaes = [], {}
        for name, objective in objectives.items():
            with seeded(key(self.settings.seed)):
                vaes[name] = bernoulli_vae(grey.train, _LATENT_DIM, _HIDDEN)
            fitted = self._train(name, vaes[name], grey.train, grey.validation, objective, "dynamic")
            rows.append(self._row(name, vaes[name], test, fitted.seconds))
            self.album.figures[f"binary digits: training of {name}"] = figures.learning_curves(fitted.history, title="")
        rows.append(_independent_pixels(grey.train, test))
        self.album.table(title, rows)
        shown = test[: 2 * COLUMNS]
        again = {name: vae.reconstruct(shown)[0] for name, vae in vaes.items()}
        self.album.reconstructions("binary digits: test data and their reconstructions E[x | z]", shown, again)
        for name, vae in vaes.items():
            drawn = vae.sample(4 * COLUMNS, self.settings.seed, mean=True)
            self.album.samples(f"binary digits: {name}, E[x | z] with z ~ p(z)", drawn)

    def grey_digits(self) -> None:
        """Densities: mixtures by EM, PPCA in closed form, and the VAEs that it is the linear case of."""
        digits, seed = data.load("digits"), self.settings.seed
        train, validation, test = (
            _dequantized(x, key(seed, i)) for i, x in enumerate((digits.train, digits.validation, digits.test))
        )
        test, shown = test[: self.settings.num_test], test[: 2 * COLUMNS]
        title = "Grey digits: 64 pixels, dequantised, as densities on [0, 1]"
        self.album.say(title.partition(":")[0])
        rows, samples = [], {}
        for count in self.settings.num_components:
            start = time.monotonic()
            gmm = GMM.fit(train, count, covariance_type="diag", covariance_floor=_COVARIANCE_FLOOR, seed=seed)
            name = f"mixture of {count}"
            rows.append(self._row(name, gmm, test, time.monotonic() - start))
        samples[name] = gmm.sample(4 * COLUMNS, seed)
        start = time.monotonic()
        ppca = PPCA.fit(train, _LATENT_DIM)
        rows.append(self._row("PPCA", ppca, test, time.monotonic() - start))
        samples["PPCA"] = ppca.sample(4 * COLUMNS, seed)
        again = {"PPCA": ppca.posterior(shown).mean @ ppca.loading.mT + ppca.bias}
        with seeded(key(seed)):
            vaes = {"VAE, one scale": gaussian_vae(train, _LATENT_DIM, _HIDDEN)}
            vaes["VAE, scales s(z)"] = _scaled_vae(train.shape[1])
        for name, vae in vaes.items():
            fitted = self._train(name, vae, train, validation, ELBO())
            rows.append(self._row(name, vae, test, fitted.seconds))
            samples[name] = vae.sample(4 * COLUMNS, seed)
            again[name] = vae.reconstruct(shown)[0]
        self.album.table(title, rows)
        self.album.reconstructions("grey digits: test data and their reconstructions E[x | z]", shown, again)
        self.album.samples("grey digits: test data", test[: 4 * COLUMNS])
        self.album.samples(f"grey digits: mixture of {len(gmm.means)}, means of its components", gmm.means)
        for name, x in samples.items():
            self.album.samples(f"grey digits: {name}, draws of x", x)

    def _train(
        self,
        name: str,
        pair: VAE,
        x: Tensor,
        validation: Tensor,
        objective: Objective,
        binarize: Literal["dynamic"] | None = None,
    ) -> Fit:
        self.album.say(f"  training {name}")
        steps = self.settings.epochs * -(-len(x) // _BATCH_SIZE)
        return fit(
            pair,
            x,
            objective=objective,
            epochs=self.settings.epochs,
            batch_size=_BATCH_SIZE,
            learning_rate=_LEARNING_RATE,
            schedule=schedules.Cosine(1.0, 0.0, steps),
            binarize=binarize,
            validation=validation,
            seed=self.settings.seed,
            device="cpu",
            run_dir=self.root / file_name(name),
        )

    def _row(self, name: str, pair: Any, x: Tensor, seconds: float) -> report.ModelRow:
        """A model on test data: its log-likelihood is exact where the model can tell it."""
        estimate = log_likelihood(pair, x, self.settings.num_samples, self.settings.seed, device="cpu")
        exact = float(pair.log_prob(x).mean()) if isinstance(pair, GMM | PPCA) else None
        if exact is None:
            histogram = figures.log_likelihood_histogram(estimate.value, estimate.khat, title="")
            self.album.figures[f"{name}: log p(x) of the test data"] = histogram
        return report.ModelRow(
            model=name,
            num_parameters=getattr(pair, "num_parameters", sum(p.numel() for p in as_pair(pair).parameters())),
            elbo=float(estimate.elbo.mean()),
            log_likelihood=estimate.mean if exact is None else exact,
            log_likelihood_stderr=estimate.mean_stderr if exact is None else None,
            ess=float(np.median(estimate.ess)),
            share_khat=float((estimate.khat > _KHAT_LIMIT).mean()),
            seconds=seconds,
        )


def _scaled_vae(size: int) -> VAE:
    """A VAE whose decoder gives each pixel a scale of its own, which depends on z."""
    decoder = decoders.Gaussian.mlp(_LATENT_DIM, _HIDDEN, size, scale="per_latent", min_scale=_COVARIANCE_FLOOR**0.5)
    encoder = encoders.DiagonalNormal.mlp(size, _HIDDEN, _LATENT_DIM)
    return VAE(priors.StandardNormal(_LATENT_DIM), decoder, encoder)


def _independent_pixels(train: Tensor, x: Tensor) -> report.ModelRow:
    """The model without latents: log p(x) = sum_d log Bernoulli(x_d; mean of pixel d)."""
    means = (train.double().sum(0) + 0.5) / (len(train) + 1)
    log_prob = torch.distributions.Bernoulli(means).log_prob(x.double()).sum(1)
    return report.ModelRow(model="independent pixels", num_parameters=len(means), log_likelihood=float(log_prob.mean()))


def _dequantized(x: Tensor, seed: int) -> Tensor:
    """Spread each of the 17 grey levels uniformly over its share of [0, 1] (Uria, Murray and Larochelle, 2013)."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return ((_GREY_LEVELS - 1) * x + noise) / _GREY_LEVELS


def _make_empty(root: Path, settings: DemoSettings) -> None:
    if (root / _MARK).is_file():
        shutil.rmtree(root)
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PplVaeError(f"{root}: expected a new directory or an earlier demo, found something else; take another")
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices as small as these only wait for more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
