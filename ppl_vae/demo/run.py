"""The two parts of the demonstration: binary digits and grey digits, each with models of one kind of likelihood."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import data, report, schedules
from ppl_vae.checking import kind_of_density
from ppl_vae.demo.album import COLUMNS, Album, Page, file_name
from ppl_vae.errors import PplVaeError
from ppl_vae.evaluation import log_likelihood
from ppl_vae.exact import GMM, PPCA
from ppl_vae.objectives import ELBO, IWAE, Objective
from ppl_vae.pair import as_pair
from ppl_vae.recipes import RECIPES, bernoulli_vae
from ppl_vae.rng import key, seeded
from ppl_vae.rundir import (
    DataSpec,
    PairSpec,
    RunRecord,
    described,
    described_estimate,
    fingerprint,
    write_evaluation,
    write_run,
)
from ppl_vae.svi import Fit, fit
from ppl_vae.threads import one_thread
from ppl_vae.vae import VAE
from ppl_vae.weights import khat_threshold

__all__ = ["DemoSettings", "run_demo"]

_MARK = "demo.json"
_LATENT_DIM, _HIDDEN = 10, (200,)
_BATCH_SIZE, _LEARNING_RATE = 64, 2e-3
_GREY_LEVELS = 17
_LEGEND = """\
log p(x): exact, or importance-sampled ± Monte Carlo standard error; test data, never seen in training.
PPCA and "one scale" share one variance among the pixels; the others have one for each.
"""
_BINARY, _GREY = DataSpec("digits", "dynamic"), DataSpec("digits", dequantize=_GREY_LEVELS)
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
    """How many of the 360 test digits are evaluated, chosen at random but always the same."""
    num_components: tuple[int, ...] = (10, 40)
    """Components of the mixtures."""
    seed: int = 0
    """Of everything random."""


def run_demo(root: Path, settings: DemoSettings = DemoSettings()) -> list[Path]:
    """Train VAEs, mixtures and PPCA on scikit-learn's digits; print two tables, draw two contact sheets.

    Within a table, every model scores the same test data by the same kind of likelihood: binary digits by a
    probability, dequantised grey digits by a density. Numbers of different tables do not compare. The VAEs are left in
    run directories that `ppl-vae evaluate`, `sample` and `compare` take.

    Args:
        root: Directory of the results. An earlier demonstration in it is replaced; anything else is left alone.
        settings: Sizes.

    Returns:
        The paths of the contact sheets.

    Raises:
        PplVaeError: `root` holds something else than an earlier demonstration.
    """
    start = time.monotonic()
    _make_empty(root, settings)
    demo = _Demo(root, settings)
    with one_thread():  # matrices as small as these only wait for more threads
        demo.binary_digits()
        demo.grey_digits()
    demo.album.say(_LEGEND)
    sheets = demo.album.write()
    demo.album.say(f"{time.monotonic() - start:.0f} seconds. Everything is in {root}; the figures on two pages:")
    for sheet in sheets:
        demo.album.say(f"  {sheet}")
    return sheets


class _Demo:
    """The two parts of the demonstration; within each, all numbers compare."""

    def __init__(self, root: Path, settings: DemoSettings) -> None:
        self.root, self.settings, self.album = root, settings, Album(root)

    def binary_digits(self) -> None:
        """Probabilities: a VAE by the ELBO, the same by the importance-weighted bound, and no latents at all."""
        grey, binary = data.load("digits"), data.load("digits", binarize="fixed").test
        test = self._evaluated(binary)
        page = self.album.page(
            "binary-digits",
            "Binary digits: 64 pixels, each drawn from its grey level",
            "Reconstructions and new digits show E[x | z], the probability of each pixel to be white: an average over "
            "binary pictures, hence grey and smooth where data are black and white.",
        )
        objectives: dict[str, Objective] = {"VAE, ELBO": ELBO(), "VAE, IWAE": IWAE(5)}
        rows, vaes, histories = [], {}, {}
        for name, objective in objectives.items():
            with seeded(key(self.settings.seed)):
                vaes[name] = bernoulli_vae(grey.train, _LATENT_DIM, _HIDDEN)
            data_of_run = (grey.train, grey.validation, binary)
            fitted = self._train(name, PairSpec("vae"), vaes[name], _BINARY, data_of_run, objective)
            rows.append(self._row(page, name, vaes[name], _BINARY, test, fitted.seconds))
            histories[name] = fitted.history
        rows.append(_independent_pixels(grey.train, test))
        page.table(rows)
        shown = test[:COLUMNS]
        again = {name: vae.reconstruct(shown)[0] for name, vae in vaes.items()}
        page.reconstructions("Test data and reconstructions E[x | z]", shown, again)
        for name, vae in vaes.items():
            drawn = vae.sample(4 * COLUMNS, self.settings.seed, mean=True)
            page.samples(f"New digits from {name}: E[x | z], z ~ p(z)", drawn)
        page.histograms()
        page.curves(histories, {"VAE, ELBO": "ELBO", "VAE, IWAE": "IWAE bound"})

    def grey_digits(self) -> None:
        """Densities: mixtures by EM, PPCA in closed form, and the VAEs that it is the linear case of."""
        digits, seed = data.load("digits"), self.settings.seed
        parts = enumerate((digits.train, digits.validation, digits.test))
        train, validation, whole_test = (data.dequantize(x, _GREY_LEVELS, key(0, i)) for i, x in parts)
        test = self._evaluated(whole_test)
        page = self.album.page(
            "grey-digits",
            "Grey digits: 64 pixels, dequantised, as densities on [0, 1]",
            "Reconstructions show E[x | z]. A draw of x is noisy by nature: every pixel has the noise of its density "
            "p(x | z), which shows how much of a digit the model holds for noise.",
        )
        rows, samples = [], {}
        for count in self.settings.num_components:
            start = time.monotonic()
            gmm = GMM.fit(train, count, covariance_type="diag", covariance_floor=_COVARIANCE_FLOOR, seed=seed)
            name = f"mixture of {count}"
            rows.append(self._row(page, name, gmm, None, test, time.monotonic() - start))
        samples[name] = gmm.sample(4 * COLUMNS, seed)
        start = time.monotonic()
        ppca = PPCA.fit(train, _LATENT_DIM)
        rows.append(self._row(page, "PPCA", ppca, None, test, time.monotonic() - start))
        samples["PPCA"] = ppca.sample(4 * COLUMNS, seed)
        shown = test[:COLUMNS]
        again = {"PPCA": ppca.posterior(shown).mean @ ppca.loading.mT + ppca.bias}
        for name, recipe in {"VAE, one scale": "gaussian-vae", "VAE, scales s(z)": "scaled-vae"}.items():
            with seeded(key(seed)):
                vae = RECIPES[recipe].build(train, _LATENT_DIM, _HIDDEN)
            fitted = self._train(name, PairSpec(recipe), vae, _GREY, (train, validation, whole_test), ELBO())
            rows.append(self._row(page, name, vae, _GREY, test, fitted.seconds))
            samples[name] = vae.sample(4 * COLUMNS, seed)
            again[name] = vae.reconstruct(shown)[0]
        page.table(rows)
        page.reconstructions("Test data and reconstructions E[x | z]", shown, again)
        page.samples("Test data", test[: 4 * COLUMNS])
        page.samples(f"Mixture of {len(gmm.means)}: means of its components", gmm.means[: 4 * COLUMNS])
        for name, x in samples.items():
            page.samples(f"{name}: draws of x".capitalize() if name[0].islower() else f"{name}: draws of x", x)
        page.histograms()

    def _evaluated(self, test: Tensor) -> Tensor:
        return test[torch.from_numpy(data.split_rows(len(test), self.settings.num_test)[1])]

    def _train(
        self,
        name: str,
        pair_spec: PairSpec,
        pair: VAE,
        data_spec: DataSpec,
        parts: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
    ) -> Fit:
        """Train on the first part and leave a run directory as `ppl-vae fit` does."""
        self.album.say(f"  training {name}")
        train, validation, test = parts
        steps = self.settings.epochs * -(-len(train) // _BATCH_SIZE)
        root = self.root / file_name(name)
        record = RunRecord(
            command=("ppl-vae", "demo"),
            pair=replace(pair_spec, latent_dim=_LATENT_DIM, hidden=_HIDDEN, seed=self.settings.seed),
            data=data_spec,
            data_sha256=fingerprint(test),
            device="cpu",
            num_parameters=sum(p.numel() for p in pair.parameters()),
        )
        with described(root, record):
            fitted = fit(
                pair,
                train,
                objective=objective,
                epochs=self.settings.epochs,
                batch_size=_BATCH_SIZE,
                learning_rate=_LEARNING_RATE,
                schedule=schedules.Cosine(1.0, 0.0, steps),
                binarize="dynamic" if data_spec.binarize == "dynamic" else None,
                validation=validation,
                seed=self.settings.seed,
                device="cpu",
                run_dir=root,
            )
            done = replace(
                record, status="finished", steps=fitted.steps, best_step=fitted.best_step, seconds=fitted.seconds
            )
            write_run(root, done)
        return fitted

    def _row(
        self, page: Page, name: str, pair: Any, data_spec: DataSpec | None, x: Tensor, seconds: float
    ) -> report.ModelRow:
        """A model on test data: its log-likelihood is exact where the model can tell it."""
        num_samples, seed = self.settings.num_samples, self.settings.seed
        estimate = log_likelihood(pair, x, num_samples, seed, device="cpu")
        exact = float(pair.log_prob(x).mean()) if isinstance(pair, GMM | PPCA) else None
        if data_spec is not None:
            kind = kind_of_density(as_pair(pair), (x[:1],))
            record = described_estimate(
                estimate,
                (x,),
                page.title,
                kind,
                seed,
                num_samples=num_samples,
                khat_threshold=khat_threshold(num_samples),
            )
            write_evaluation(self.root / file_name(name), record, estimate)
            page.estimates[name] = estimate
        num_parameters = getattr(pair, "num_parameters", sum(p.numel() for p in as_pair(pair).parameters()))
        return report.ModelRow.of(name, num_parameters, estimate, seconds, exact)


def _independent_pixels(train: Tensor, x: Tensor) -> report.ModelRow:
    """The model without latents: log p(x) = sum_d log Bernoulli(x_d; mean of pixel d)."""
    means = (train.double().sum(0) + 0.5) / (len(train) + 1)
    log_prob = torch.distributions.Bernoulli(means).log_prob(x.double()).sum(1)
    return report.ModelRow(model="no latents", num_parameters=len(means), log_likelihood=float(log_prob.mean()))


def _make_empty(root: Path, settings: DemoSettings) -> None:
    if (root / _MARK).is_file():
        shutil.rmtree(root)
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PplVaeError(f"{root}: expected a new directory or an earlier demo, found something else; take another")
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
