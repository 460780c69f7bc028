"""Variational autoencoders of labelled data: the class given, or a latent where it is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.arrays import real_array
from ppl_vae.drawing import (
    as_event,
    check_latent_dim,
    check_parts,
    distribution,
    evaluating,
    given,
    mean_or_draw,
    reading,
)
from ppl_vae.errors import DataError, PairError
from ppl_vae.networks import MLP, Activation
from ppl_vae.options import whole_number

__all__ = ["UNKNOWN", "Classifier", "ConditionalVAE", "SemiSupervisedVAE"]

UNKNOWN = -1
"""Label of a datum whose class is not known."""


class _WithClasses(nn.Module):
    """What both share: p(z), p(x given z, y) and q(z given x, y), where networks take the class as one-hot entries."""

    _unknown: ClassVar[str] = "only SemiSupervisedVAE takes -1, where the label is unknown"

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        check_parts(prior=prior, decoder=decoder, encoder=encoder)
        check_latent_dim(prior, encoder)
        whole_number("num_classes", num_classes, least=1)
        self.prior, self.decoder, self.encoder, self.num_classes = prior, decoder, encoder, num_classes

    def sample_given(self, y: Tensor, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw z from p(z), then x from p(x given z, y), or its mean.

        Args:
            y: Classes (N,), one for each draw: a tensor, an array or a list.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x given z, y] instead of a draw of x.

        Returns:
            Draws (N, *event_shape).

        Raises:
            DataError: A label is no class, or they are not one a row.
        """
        with evaluating(self, seed):
            labels = _labels(y)
            z = self.prior().sample((len(labels),))
            return mean_or_draw(self._decode(z, labels.to(z.device)), mean)

    def reconstruct(self, x: Tensor, y: Tensor, num_samples: int = 1, seed: int = 0, mean: bool = True) -> Tensor:
        """Draw z from q(z given x, y), then x' from p(x' given z, y), or its mean.

        Args:
            x: Data (N, *event).
            y: Their classes (N,): a tensor, an array or a list.
            num_samples: Draws of z per datum.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x' given z, y] instead of a draw of x'.

        Returns:
            Reconstructions (num_samples, N, *event_shape).

        Raises:
            ValueError: `num_samples` is no whole number, or negative.
            DataError: x is no tensor or array of finite numbers, or has no row; a label is no class, or they are not
                one a row.
            PairError: A part fails on x.
        """
        whole_number("num_samples", num_samples, least=0)
        with evaluating(self, seed), reading(self, x) as x:
            y = _labels(y, len(x)).to(x.device)
            z = self._encode(x, y).sample((num_samples,))
            return mean_or_draw(self._decode(z, y), mean)

    def _decode(self, z: Tensor, y: Tensor) -> dist.Distribution:
        return given("decoder", self.decoder, self._with_class(z, y))

    def _encode(self, x: Tensor, y: Tensor) -> dist.Distribution:
        return distribution("encoder", self.encoder(self._with_class(x.flatten(1), y)))

    def _with_class(self, features: Tensor, y: Tensor) -> Tensor:
        """Features (..., D) and the class, one-hot: (..., D + C)."""
        one_hot = y.unsqueeze(-1) == torch.arange(self.num_classes, device=y.device)
        inside = one_hot.any(-1)
        if type(y) is Tensor and not bool(inside.all()):  # a capture has no values to look at
            row = int((~inside).nonzero()[0, -1])
            raise DataError(
                f"row {row}: expected a class in 0, ..., {self.num_classes - 1}, found {float(y[~inside][0]):g}; "
                f"{self._unknown}"
            )
        entries = torch.where(inside.unsqueeze(-1), one_hot.to(features.dtype), torch.nan)  # a loss of NaN if compiled
        leading = torch.broadcast_shapes(features.shape[:-1], entries.shape[:-1])
        return torch.cat([features.expand(*leading, -1), entries.expand(*leading, -1)], -1)


def _labels(y: Any, rows: int | None = None) -> Tensor:
    """Labels in any form, as `_one_a_row`.

    Raises:
        DataError: They are no numbers, or have another shape.
    """
    return _one_a_row(y if isinstance(y, Tensor) else torch.from_numpy(real_array("labels", y)), rows)


def _one_a_row(y: Tensor, rows: int | None = None) -> Tensor:
    """Labels, one for each datum.

    Raises:
        DataError: They have another shape, which would broadcast.
    """
    if y.dim() != 1 or (rows is not None and len(y) != rows):
        expected = "(N,)" if rows is None else f"({rows},)"
        raise DataError(f"labels: expected shape {expected}, one a datum, found {tuple(y.shape)}: reshape them")
    return y


class ConditionalVAE(_WithClasses):
    """The pair `p(x, z given y) = p(z) p(x given z, y)` and `q(z given x, y)`; data are (x, y).

    Decoder and encoder take the class as `num_classes` further entries, one-hot, behind z and behind the flat x: the
    pseudo-inputs of a `VampPrior` of this encoder are such rows too, a class behind each.

    Args:
        prior: `prior()` returns p(z), event shape (latent_dim,).
        decoder: Maps (..., latent_dim + num_classes) to p(x given z, y).
        encoder: Maps (N, entries of x + num_classes) to q(z given x, y).
        num_classes: C; y (N,) is in 0, ..., C - 1.

    Raises:
        PairError: A part is no module, or encoder and prior have latents of different dimensions.
        DataError: From the programs, if a label is no class, or is not one a row.

    Reference:
        Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative Models.

    Example:
        >>> from ppl_vae import decoders, encoders, priors
        >>> vae = ConditionalVAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli.mlp(2 + 10, [8], 64),
        ...     encoders.DiagonalNormal.mlp(64 + 10, [8], 2),
        ...     num_classes=10,
        ... )
        >>> vae.sample_given(torch.arange(10)).shape
        torch.Size([10, 64])
    """

    def model(self, x: Tensor, y: Tensor) -> None:
        """Pyro program of p(x, z given y): latent "z", observed "x", one plate "data" over the rows."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", distribution("prior", self.prior()))
            likelihood = self._decode(z, _one_a_row(y))
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Pyro program of q(z given x, y): latent "z", one plate "data" over the rows."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self._encode(x, _one_a_row(y)))


class Classifier(nn.Module):
    """The guide of a class, `q(y given x) = Categorical(softmax(f(x)))`.

    Args:
        network: Maps x (N, *event) to the logits f(x), one for each class.

    Example:
        >>> Classifier.mlp(64, [8], 10)(torch.zeros(5, 64)).batch_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def mlp(
        cls, in_features: int, hidden: Sequence[int], num_classes: int, activation: Activation = nn.Tanh
    ) -> Classifier:
        """Build the classifier on an `MLP`."""
        return cls(MLP(in_features, hidden, num_classes, activation))

    def forward(self, x: Tensor) -> dist.Categorical:
        """Return q(y given x): batch shape (N,), event shape ()."""
        return dist.Categorical(logits=self.network(x))


class SemiSupervisedVAE(_WithClasses):
    """The pair `p(x, y, z) = p(y) p(z) p(x given z, y)` and `q(y given x) q(z given x, y)`, M2 of the paper.

    Data are (x, y) with y = -1 where the label is unknown. There the class is a discrete latent "y", which
    `ELBO(discrete="enumerate")` sums over; the log-likelihood of the row is log p(x). Where the label is known it is
    observed at the site "label", and that of the row is log p(x, y): the site "y" is masked in both programs, which is
    a guide that gives the label with certainty.

    The bound alone never moves the classifier on labelled rows. `Supervised` adds the paper's term that does:
    `Supervised(ELBO(discrete="enumerate"), vae.log_label, weight)`.

    Args:
        prior: `prior()` returns p(z), event shape (latent_dim,).
        decoder: Maps (..., latent_dim + num_classes) to p(x given z, y).
        encoder: Maps (..., entries of x + num_classes) to q(z given x, y).
        classifier: Maps x (N, *event) to the categorical q(y given x).
        class_probs: p(y), C positive numbers, normalised here; a number C makes them equal.

    Raises:
        PairError: A part is no module, encoder and prior differ in the dimension of z, or a class is impossible; from
            the programs, if the classifier gives another number of classes.
        DataError: From the programs, if a label is neither a class nor -1, or is not one a row.

    Reference:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-Supervised Learning with Deep Generative Models.

    Example:
        >>> from ppl_vae import decoders, encoders, priors
        >>> vae = SemiSupervisedVAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli.mlp(2 + 10, [8], 64),
        ...     encoders.DiagonalNormal.mlp(64 + 10, [8], 2),
        ...     Classifier.mlp(64, [8], 10),
        ...     class_probs=10,
        ... )
        >>> vae.sample(3).shape, vae.classify(torch.zeros(5, 64)).shape
        (torch.Size([3, 64]), torch.Size([5, 10]))
    """

    _unknown = "-1 is a label that is unknown"
    class_logits: Tensor

    def __init__(
        self,
        prior: nn.Module,
        decoder: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        class_probs: int | Sequence[float] | Tensor,
    ) -> None:
        probs = torch.ones(class_probs) if isinstance(class_probs, int) else torch.as_tensor(class_probs)
        if probs.dim() != 1 or not bool(((probs > 0) & probs.isfinite()).all()):
            raise PairError(f"class_probs: expected C positive finite numbers, found {probs.tolist()}")
        super().__init__(prior, decoder, encoder, len(probs))
        check_parts(encoder=classifier)
        self.classifier = classifier
        self.register_buffer("class_logits", probs.to(torch.get_default_dtype()).log().log_softmax(0))

    def model(self, x: Tensor, y: Tensor) -> None:
        """Pyro program of p(x, y, z): latents "y" and "z", observed "x" and "label", one plate "data"."""
        known, classes = y != UNKNOWN, dist.Categorical(logits=self.class_logits)
        with pyro.plate("data", x.shape[0], dim=-1):
            label = pyro.sample("label", classes.mask(known), obs=torch.where(known, y, 0))
            drawn = pyro.sample("y", classes.mask(~known))
            z = pyro.sample("z", distribution("prior", self.prior()))
            likelihood = self._decode(z, torch.where(known, label, drawn))
            pyro.sample("x", likelihood, obs=as_event(x, likelihood))

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Pyro program of q(y, z given x): latents "y" and "z", one plate "data"."""
        known = _one_a_row(y) != UNKNOWN
        with pyro.plate("data", x.shape[0], dim=-1):
            # Draws of y that count for nothing are uniform: log q(y), which weighs and scores them, moves nothing.
            logits = torch.where(known.unsqueeze(-1), 0.0, self._classes(x).logits)
            drawn = pyro.sample("y", dist.Categorical(logits=logits).mask(~known))
            pyro.sample("z", self._encode(x, torch.where(known, y, drawn)))

    def log_label(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log q(y given x) in nats, (N,); zero where the label is unknown."""
        known = _one_a_row(y) != UNKNOWN
        log_q = self._classes(x).log_prob(torch.where(known, y, 0))
        return torch.where(known, log_q, 0.0)

    def classify(self, x: Tensor) -> Tensor:
        """Return the probabilities q(y given x), (N, C).

        Raises:
            DataError: x is no tensor or array of finite numbers, or has no row.
            PairError: The classifier fails on x, or has another number of classes.
        """
        with evaluating(self), reading(self, x) as x:
            return self._classes(x).probs

    def _classes(self, x: Tensor) -> dist.Categorical:
        found = distribution("classifier", self.classifier(x))
        if not isinstance(found, dist.Categorical) or found.param_shape[-1] != self.num_classes:
            what = f"{found.param_shape[-1]} classes" if isinstance(found, dist.Categorical) else type(found).__name__
            raise PairError(
                f"the classifier: expected a Categorical of {self.num_classes} classes, as many as class_probs, found "
                f"{what}: change its outputs or class_probs"
            )
        return found

    def sample(self, n: int, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw y from p(y), z from p(z), then x from p(x given z, y), or its mean.

        Args:
            n: Number of draws.
            seed: Seed of this call; the global generators stay as they are.
            mean: Return E[x given z, y] instead of a draw of x.

        Returns:
            Draws (n, *event_shape).

        Raises:
            ValueError: n is no whole number, or negative.
        """
        whole_number("n", n, least=0)
        with evaluating(self, seed):
            y = dist.Categorical(logits=self.class_logits).sample((n,))
            return mean_or_draw(self._decode(self.prior().sample((n,)), y), mean)
