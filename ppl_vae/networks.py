"""Networks that map any number of leading (particle, datum) dimensions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import isfinite, prod

import torch
from torch import Tensor, nn

from ppl_vae.errors import DataError, PairError

__all__ = [
    "MLP",
    "Activation",
    "ConvDecoder",
    "ConvEncoder",
    "Standardize",
    "event_sizes",
    "lower_bound",
    "positive",
    "raw_of_positive",
]

Activation = Callable[[], nn.Module]


def positive(raw: Tensor, minimum: float = 0.0) -> Tensor:
    """Map real numbers to (minimum, inf): `minimum + log(1 + exp(raw))`, elementwise, no overflow."""
    return minimum + nn.functional.softplus(raw)


def raw_of_positive(value: Tensor, minimum: float = 0.0) -> Tensor:
    """Undo `positive`: `log(exp(value - minimum) - 1)`, elementwise, no overflow.

    Example:
        >>> import torch
        >>> positive(raw_of_positive(torch.tensor([0.5, 300.0]), 0.1), 0.1)
        tensor([  0.5000, 300.0000])
    """
    above = value - minimum
    return above + (-torch.expm1(-above)).log()


def event_sizes(shape: int | Sequence[int], name: str = "event_shape") -> tuple[int, ...]:
    """The shape of one datum, an integer for flat data.

    Raises:
        PairError: It is empty, or a size is no positive integer.

    Example:
        >>> event_sizes(784), event_sizes([1, 28, 28])
        ((784,), (1, 28, 28))
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not sizes or any(isinstance(s, bool) or not hasattr(s, "__index__") or s.__index__() < 1 for s in sizes):
        raise PairError(f"{name} expected positive integers, one per dimension, found {shape!r}")
    return tuple(size.__index__() for size in sizes)


def lower_bound(min_scale: float) -> float:
    """Check the lower bound of a scale.

    Raises:
        PairError: It is negative or not finite.
    """
    if not (isfinite(min_scale) and min_scale >= 0):
        raise PairError(f"min_scale expected a finite number >= 0, found {min_scale}")
    return float(min_scale)


class Standardize(nn.Module):
    """The fixed map `(x - loc) / scale`, first in an encoder whose data are far from the size 1, such as counts.

    Args:
        loc: What becomes 0, a number or a tensor that broadcasts with x.
        scale: What becomes 1, likewise.

    Example:
        >>> import torch
        >>> Standardize(10.0, 2.0)(torch.tensor([6.0, 12.0]))
        tensor([-2.,  1.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor | float, scale: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("loc", torch.as_tensor(loc))
        self.register_buffer("scale", torch.as_tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map x to its own shape."""
        return (x - self.loc) / self.scale


class MLP(nn.Module):
    """Multilayer perceptron `W_n a(... a(W_1 x + b_1) ...) + b_n`.

    Takes (..., in_features), or images (N, *event) with in_features entries each, to (..., out_features).

    Args:
        in_features: Entries of one input.
        hidden: Width of each hidden layer; `[]` is one affine map.
        out_features: Entries of one output.
        activation: Makes the module `a` between two layers.

    Raises:
        DataError: An input has another number of entries.

    Example:
        >>> import torch
        >>> MLP(784, [200, 200], 100)(torch.zeros(32, 1, 28, 28)).shape
        torch.Size([32, 100])
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, activation: Activation = nn.Tanh
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        widths = [in_features, *hidden]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        return self.layers(_shaped(x, (self.in_features,)))


class ConvEncoder(nn.Module):
    """Image to vector: one stride-2 convolution per entry of `channels`, then an affine map.

    Takes images (..., C, H, W), or the same flat (..., C H W), to (..., out_features).

    Args:
        in_shape: (C, H, W); each convolution halves H and W.
        channels: Channels after each convolution.
        out_features: Entries of one output.
        activation: Makes the module after each convolution.

    Raises:
        PairError: H or W cannot be halved len(channels) times.
        DataError: An input has another shape.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), [16, 32], 100)(torch.zeros(5, 32, 784)).shape
        torch.Size([5, 32, 100])
    """

    def __init__(
        self, in_shape: Sequence[int], channels: Sequence[int], out_features: int, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.in_shape = _image_shape(in_shape)
        small = _halved(self.in_shape, channels)
        widths = [self.in_shape[0], *channels]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 4, 2, 1), activation())]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(prod(small), out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., C, H, W) or (..., C H W) to (..., out_features)."""
        x = _shaped(x, self.in_shape)
        return self.layers(x.flatten(0, -4)).unflatten(0, x.shape[:-3]) if x.dim() > 3 else self.layers(x[None])[0]


class ConvDecoder(nn.Module):
    """Vector to image: an affine map, then one transposed stride-2 convolution per entry of `channels`.

    Takes (..., in_features) to (..., C, H, W).

    Args:
        in_features: Entries of one input.
        channels: Channels before each transposed convolution.
        out_shape: (C, H, W); each transposed convolution doubles H and W.
        activation: Makes the module before each transposed convolution.

    Raises:
        PairError: H or W cannot be halved len(channels) times.

    Example:
        >>> import torch
        >>> ConvDecoder(50, [32, 16], (1, 28, 28))(torch.zeros(5, 32, 50)).shape
        torch.Size([5, 32, 1, 28, 28])
    """

    def __init__(
        self, in_features: int, channels: Sequence[int], out_shape: Sequence[int], activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.in_features, self.out_shape = in_features, _image_shape(out_shape)
        small = _halved(self.out_shape, channels[::-1])
        widths = [*channels, self.out_shape[0]]
        layers = [layer for a, b in pairwise(widths) for layer in (activation(), nn.ConvTranspose2d(a, b, 4, 2, 1))]
        self.layers = nn.Sequential(nn.Linear(in_features, prod(small)), nn.Unflatten(-1, small), *layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map z (..., in_features) to (..., C, H, W)."""
        z = _shaped(z, (self.in_features,))
        return self.layers(z.reshape(-1, self.in_features)).reshape(*z.shape[:-1], *self.out_shape)


def _shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View x as (..., *shape); flat entries are folded, and data (N, *event) are flattened or folded."""
    if x.dim() and x.shape[-1] == prod(shape):
        return x.unflatten(-1, shape)
    if x.shape[-len(shape) :] == shape:
        return x
    if x.dim() > 1 and prod(x.shape[1:]) == prod(shape):
        return x.reshape(x.shape[0], *shape)
    raise DataError(
        f"a network expected inputs (..., {', '.join(map(str, shape))}) or as many entries per datum, "
        f"found shape {tuple(x.shape)}: reshape the data or build the network for them"
    )


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise PairError(f"a convolutional network expected a shape (channels, height, width), found {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


def _halved(shape: tuple[int, int, int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of the smallest feature map: channels[-1] of (H, W) / 2^len(channels)."""
    _, height, width = shape
    factor = 2 ** len(channels)
    if not channels or height % factor or width % factor:
        raise PairError(
            f"{len(channels)} stride-2 convolutions expected a height and width divisible by {factor}, at least one "
            f"convolution, found {height} x {width}: change the number of channels or pad the images"
        )
    return channels[-1], height // factor, width // factor
