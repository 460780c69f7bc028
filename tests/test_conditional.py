"""Labelled data: against sums over classes of linear Gaussian models, whose guide of z is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.conditional import UNKNOWN, Classifier, SemiSupervisedVAE
from ppl_vae.errors import DataError, PairError
from ppl_vae.pair import as_pair
from ppl_vae.priors import StandardNormal
from ppl_vae.rng import seeded
from tests.linear import CLASSES, DIM, LATENT, SIGMA, ByClass
from tests.running import flat
from tests.statistical import assert_close, assert_estimates, assert_mean

ENUMERATED = pv.ELBO(kl="sampled", discrete="enumerate")

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def truth():
    return ByClass()


@pytest.fixture
def data(generator):
    """Data of every class, and their labels."""
    return torch.randn(8, DIM, generator=generator), torch.arange(8) % CLASSES


def values(pair, batch, objective=ENUMERATED):
    pair = as_pair(pair)
    layout = pv.check(pair, batch).layout
    with seeded(1):
        return objective.evaluate(pair, batch, layout, 1.0)


def each_elbo(pair, batch):
    """The ELBO of every row by itself."""
    return torch.stack([values(pair, tuple(a[i : i + 1] for a in batch)).elbo for i in range(len(batch[0]))])


def test_a_conditional_vae_has_the_evidence_given_the_class(truth, data):
    x, y = data
    ll = pv.log_likelihood(truth.conditional(), data, 20, progress=False)
    assert_close(ll.value, truth.log_evidence(x).gather(1, y[:, None]).squeeze(1), torch.float64)


def test_a_labelled_row_has_the_bound_of_the_conditional_vae_and_log_p_of_its_label(truth, data):
    x, y = data
    conditional = truth.log_evidence(x).gather(1, y[:, None]).squeeze(1)
    expected = conditional + truth.probs[y].log()
    vae = truth.semi_supervised()
    assert_close(each_elbo(vae, data), expected)
    assert_close(pv.log_likelihood(vae, data, 20, progress=False).value, expected, torch.float64)


@pytest.mark.parametrize("kl", ["sampled", "auto"])
def test_an_unlabelled_row_has_the_sum_over_classes(truth, data, kl):
    x, vae = data[0], truth.semi_supervised()
    log_q = vae.classifier(x).logits
    expected = (log_q.exp() * (truth.log_evidence(x) + truth.probs.log() - log_q)).sum(1)
    if kl == "sampled":
        assert_close(each_elbo(vae, (x, torch.full((8,), UNKNOWN))), expected)
    else:  # the closed form holds z apart, whose draws then have an error
        batch, pair = (x, torch.full((8,), UNKNOWN)), as_pair(vae)
        objective, layout = pv.ELBO(20, discrete="enumerate"), pv.check(pair, batch).layout
        assert layout.analytic == {"y", "z"}
        with seeded(2), torch.no_grad():
            found = [float(objective.evaluate(pair, batch, layout, 1.0).elbo) for _ in range(100)]
        assert_mean(found, float(expected.detach().mean()), effect=0.2)


def test_the_log_likelihood_of_an_unlabelled_row_is_that_of_the_mixture(truth, data):
    x = data[0]
    expected = (truth.log_evidence(x) + truth.probs.log()).logsumexp(1)
    ll = pv.log_likelihood(truth.semi_supervised(), (x, torch.full((8,), UNKNOWN)), 20_000, progress=False)
    assert_estimates(ll.value, ll.stderr, expected, effect=0.2)


def test_rows_of_both_kinds_share_a_batch(truth, data):
    x, y = data
    mixed, vae = torch.where(torch.arange(8) % 2 == 0, y, UNKNOWN), truth.semi_supervised()
    assert_close(values(vae, (x, mixed)).elbo, each_elbo(vae, (x, mixed)).mean())


def test_the_classifier_of_a_labelled_row_trains_by_the_term_alone(truth, data):
    x, y = data
    vae = truth.semi_supervised()
    parameters = list(vae.classifier.parameters())
    objective = pv.Supervised(ENUMERATED, vae.log_label, weight=1.7)
    plain, with_term = values(vae, data), values(vae, data, objective)
    assert plain.loss.requires_grad
    assert_close(flat(torch.autograd.grad(plain.loss, parameters), parameters), torch.zeros(44), scale=1.0)
    found = flat(torch.autograd.grad(with_term.loss, parameters), parameters)
    term = 1.7 * torch.distributions.Categorical(logits=vae.classifier.network(x)).log_prob(y).mean()
    assert_close(found, flat(torch.autograd.grad(-term, parameters), parameters), scale=1.0)
    assert_close(with_term.objective, plain.objective + term)


def drifted(truth):
    """The same with a guide of z that is not exact, so that the weights of draws differ."""
    vae = truth.semi_supervised()
    with torch.no_grad():
        vae.encoder.network.layers[0].bias += 0.3
    return vae


@pytest.mark.parametrize(
    "objective",
    [
        *(ENUMERATED, pv.ELBO(discrete="enumerate"), pv.ELBO(), pv.ELBO(5), pv.ELBO(gradient="score")),
        *(pv.ELBO(gradient="stl", discrete="enumerate"), pv.IWAE(5, gradient="dreg")),
        *(pv.IWAE(5), pv.IWAE(5, gradient="vimco"), pv.Renyi(0.5, 5)),
    ],
    ids=repr,
)
def test_no_bound_moves_the_classifier_on_labelled_rows(truth, data, objective):
    """Not by a single draw, where the weights of draws differ; on rows without a label it does."""
    vae, (x, _) = drifted(truth), data
    parameters = list(vae.classifier.parameters())
    of_labelled = torch.autograd.grad(values(vae, data, objective).loss, parameters)
    assert not flat(of_labelled, parameters).any()
    unknown = values(vae, (x, torch.full((8,), UNKNOWN)), objective).loss
    assert float(flat(torch.autograd.grad(unknown, parameters), parameters).norm()) > 0.01


def test_the_term_moves_no_elbo_and_no_judgement(truth, data):
    vae = truth.semi_supervised()
    objective = pv.Supervised(ENUMERATED, vae.log_label, weight=5.0)
    plain, with_term = values(vae, data), values(vae, data, objective)
    for name in ("elbo", "distortion", "rate"):
        assert_close(getattr(with_term, name), getattr(plain, name))
    assert objective.judge() == ENUMERATED.judge()


def test_unknown_labels_leave_the_term_out(truth, data):
    x, y = data
    mixed = torch.where(torch.arange(8) < 3, y, UNKNOWN)
    vae = truth.semi_supervised()
    logits = vae.classifier.network(x).log_softmax(1)
    expected = torch.zeros(8)
    expected[:3] = logits[range(3), y[:3]]
    assert_close(vae.log_label(x, mixed), expected)


def test_draws_given_a_class_have_its_mean(truth):
    vae = truth.conditional()
    y = torch.full((20_000,), 2)
    x = vae.sample_given(y, seed=3).numpy()
    sd = np.sqrt((truth.weight.square().sum(1) + SIGMA**2).numpy())
    for d in range(DIM):
        assert_mean(x[:, d], float(truth.means[2, d]), sigma=sd[d], effect=0.3)


def test_draws_of_the_joint_have_its_mean(truth):
    x = truth.semi_supervised().sample(50_000, seed=3).numpy()
    expected = (truth.probs @ truth.means).numpy()
    for d in range(DIM):
        assert_mean(x[:, d], float(expected[d]), effect=0.3)


def test_draws_are_a_function_of_the_seed(truth, data):
    x, y = data
    vae = truth.semi_supervised()
    for draw in (
        lambda seed: vae.sample(4, seed),
        lambda seed: vae.sample_given(y, seed),
        lambda seed: vae.reconstruct(x, y, 3, seed),
    ):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))
    assert vae.reconstruct(x, y, 3).shape == (3, 8, DIM)
    assert_close(vae.classify(x).sum(1), torch.ones(8))


@pytest.mark.parametrize("label", [CLASSES, -2])
def test_a_label_that_is_no_class_is_refused_with_its_row(truth, data, label):
    x, y = data
    wrong = torch.where(torch.arange(8) == 5, label, y)
    for vae in (truth.conditional(), truth.semi_supervised()):
        with pytest.raises(DataError, match=f"row 5: expected a class in 0, ..., 3, found {label}"):
            pv.fit(vae, (x, wrong), epochs=1, progress=False)


def test_labels_and_data_come_in_any_form(truth, data):
    x, y = data
    for vae in (truth.conditional(), truth.semi_supervised()):
        drawn = vae.sample_given(y)
        for same in (y.tolist(), y.numpy(), y.double()):
            assert torch.equal(vae.sample_given(same), drawn)
            assert torch.equal(vae.reconstruct(x.numpy(), same), vae.reconstruct(x, y))
        for wrong in (["a"], [[0], [1, 2]]):
            with pytest.raises(DataError, match="labels: expected an array of real numbers"):
                vae.sample_given(wrong)
    with pytest.raises(DataError, match=r"row 0: .*found 9; -1 is a label that is unknown"):
        truth.semi_supervised().sample_given([9])
    assert torch.equal(vae.classify(x.numpy()), vae.classify(x))


def test_labels_that_would_broadcast_or_fall_between_classes_are_refused(truth, data):
    x, y = data
    vaes = truth.conditional(), truth.semi_supervised()
    for vae in vaes:
        with pytest.raises(DataError, match=r"labels: expected shape \(N,\), one a datum, found \(8, 1\)"):
            pv.fit(vae, (x, y[:, None]), epochs=1, progress=False)
        with pytest.raises(DataError, match=r"labels: expected shape \(8,\), one a datum, found \(1,\)"):
            vae.reconstruct(x, y[:1])
        with pytest.raises(DataError, match=r"labels: expected shape \(N,\)"):
            vae.sample_given(y[:, None])
    with pytest.raises(DataError, match=r"row 5: expected a class in 0, ..., 3, found 1\.5"):
        pv.check(vaes[0], (x, torch.where(torch.arange(8) == 5, 1.5, y)))


@pytest.mark.parametrize("outputs", [CLASSES - 1, CLASSES + 1])
def test_a_classifier_of_other_classes_is_refused(truth, data, outputs):
    vae = truth.semi_supervised()
    vae.classifier = Classifier.mlp(DIM, [], outputs)
    for use in (lambda: pv.check(vae, data), lambda: vae.classify(data[0]), lambda: vae.log_label(*data)):
        with pytest.raises(PairError, match=f"expected a Categorical of 4 classes, .* found {outputs} classes"):
            use()


def test_an_unknown_label_is_none_of_a_conditional_vae(truth, data):
    with pytest.raises(DataError, match="found -1; only SemiSupervisedVAE takes -1"):
        pv.check(truth.conditional(), (data[0], torch.full((8,), UNKNOWN)))


@pytest.mark.parametrize("probs", [[0.5, 0.0], [[0.5, 0.5]], [0.5, float("nan")]])
def test_every_class_is_possible(truth, probs):
    with pytest.raises(PairError, match="class_probs: expected C positive finite numbers"):
        SemiSupervisedVAE(StandardNormal(LATENT), truth.decoder, truth.encoder, Classifier.mlp(DIM, [], 2), probs)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"weight": float("nan")}, {"log_prob": 3}])
def test_a_term_without_meaning_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pv.Supervised(**{"objective": pv.ELBO(), "log_prob": print, "weight": 1.0, **options})


def test_grey_images_with_labels_train_on_binary_draws(generator):
    vae = SemiSupervisedVAE(
        StandardNormal(2),
        pv.decoders.Bernoulli.mlp(2 + 3, [4], 6),
        pv.encoders.DiagonalNormal.mlp(6 + 3, [4], 2),
        Classifier.mlp(6, [4], 3),
        class_probs=3,
    )
    x, y = torch.rand(30, 6, generator=generator), torch.arange(30) % 4 - 1
    objective = pv.ELBO(discrete="enumerate")
    result = pv.fit(vae, (x, y), objective=objective, binarize="dynamic", epochs=1, batch_size=10, progress=False)
    assert result.steps == 3


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda scores: scores.sum(), r"shape \(\)"),
        (lambda scores: scores[:, None].expand(-1, 5), r"shape \(8, 5\)"),
        (lambda scores: scores[:1], r"shape \(1,\)"),
        (lambda scores: 0.0, "float"),
    ],
    ids=["scalar", "columns", "one row", "no tensor"],
)
def test_what_scores_labels_gives_a_number_a_row(truth, data, wrong, found):
    vae = truth.semi_supervised()
    objective = pv.Supervised(ENUMERATED, lambda x, y: wrong(vae.log_label(x, y)), weight=1.0)
    with pytest.raises(PairError, match=rf"log_prob of Supervised: expected .* of shape \(8,\), found {found}"):
        pv.fit(vae, data, objective=objective, steps=1, progress=False, compile=False)


def test_labels_whose_score_is_not_finite_are_named_with_their_rows(truth, data, tmp_path):
    vae, bad = truth.semi_supervised(), data[0][3]
    at_bad = lambda x: torch.where((x == bad).all(1), torch.nan, 0.0)  # noqa: E731
    objective = pv.Supervised(ENUMERATED, lambda x, y: vae.log_label(x, y) + at_bad(x), weight=1.0)
    options = {"steps": 1, "batch_size": 8, "progress": False, "compile": False, "run_dir": tmp_path / "run"}
    with pytest.raises(pv.EstimateError, match=r"log_prob of the labels is not finite \(rows \[\d\] of the batch\)"):
        pv.fit(vae, data, objective=objective, **options)
    assert "log_prob of the labels" in pv.replay(vae, tmp_path / "run", objective=objective).reason
