"""The gated PixelCNN: an image model of convolutions that see nothing but earlier pixels, and all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.autoregressive.model import AutoregressiveModel
from ppl_vae.errors import PairError
from ppl_vae.options import whole_number

__all__ = ["PixelCNN"]


class PixelCNN(AutoregressiveModel):
    """The gated PixelCNN, `p(x) = prod_i p(x_i given x_1 ... x_{i-1})` over the pixels of an image, row by row.

    A vertical stack sees all rows above a pixel, a horizontal stack what is left of it in its row; both together see
    every earlier pixel, without a blind spot. Colours of one pixel come one after another.

    Args:
        event_shape: (C, H, W).
        channels: Features of each stack, at least C.
        num_layers: Gated layers; the first has kernels of `first_size`, the others of `kernel_size`.
        levels: L >= 2; pixels are 0 .. L - 1, binary ones for L = 2.
        context_shape: What it is conditioned on, as a decoder on z: an integer or (F,) for a vector that every pixel
            sees, (F, H, W) for an image of features, (F,) of which a pixel sees; () for none.
        kernel_size: Odd width of the kernels.
        first_size: Odd width of the kernels of the first layer.

    Raises:
        PairError: A size has no meaning.
        ValueError: A number of levels, channels or layers is not whole.

    Reference:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu (2016), Conditional Image Generation with
        PixelCNN Decoders; Gulrajani et al. (2017), PixelVAE, on it as a decoder.

    Example:
        >>> pixelcnn = PixelCNN((1, 4, 4), channels=8, num_layers=2)
        >>> pixelcnn.sample(3).shape, pixelcnn.log_prob(torch.zeros(5, 16)).shape
        (torch.Size([3, 1, 4, 4]), torch.Size([5]))
        >>> decoder = PixelCNN((1, 4, 4), channels=8, num_layers=2, context_shape=2)
        >>> decoder(torch.zeros(7, 5, 2)).batch_shape  # particles, data
        torch.Size([7, 5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int = 32,
        num_layers: int = 6,
        levels: int = 2,
        context_shape: int | Sequence[int] = (),
        kernel_size: int = 3,
        first_size: int = 7,
    ) -> None:
        super().__init__(event_shape, levels, context_shape)
        whole_number("channels", channels)
        whole_number("num_layers", num_layers)
        self._check(channels, num_layers, (kernel_size, first_size))
        colours, context = self.event_shape[0], self.context_shape[0] if self.context_shape else 0
        sizes = [first_size] + [kernel_size] * (num_layers - 1)
        widths = [colours] + [channels] * (num_layers - 1)
        self.layers = nn.ModuleList(
            GatedLayer(width, channels, size, colours, context, first=i == 0)
            for i, (width, size) in enumerate(zip(widths, sizes, strict=True))
        )
        features, outputs = colour_of(channels, colours), colour_of(colours * self._outputs_each, colours)
        self.head = nn.Sequential(
            nn.ReLU(), MaskedConv(features, features, 1), nn.ReLU(), MaskedConv(features, outputs, 1)
        )

    @property
    def order(self) -> Sequence[int]:
        """Row by row, pixel by pixel, colour by colour."""
        colours, height, width = self.event_shape
        pixels = height * width
        return [colour * pixels + pixel for pixel in range(pixels) for colour in range(colours)]

    def logits(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Logits of the pixels of x (..., C, H, W), broadcast against context (..., *context_shape)."""
        lead = x.shape[:-3]
        if context is not None:
            batch = context.shape[: context.dim() - len(self.context_shape)]
            lead = torch.broadcast_shapes(lead, batch)
            maps = context if len(self.context_shape) == 3 else context[..., None, None]
            context = maps.expand(*lead, *maps.shape[-3:]).reshape(-1, *maps.shape[-3:])
        scaled = self.scaled(x)  # zero, outside the image, is no level of two
        down = right = scaled.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        for layer in self.layers:
            down, right = layer(down, right, context)
        logits = self.head(right).reshape(*lead, self.event_shape[0], self._outputs_each, *self.event_shape[1:])
        return logits.squeeze(-3) if self.levels == 2 else logits.movedim(-3, -1)

    @property
    def _outputs_each(self) -> int:
        return 1 if self.levels == 2 else self.levels

    def _check(self, channels: int, num_layers: int, sizes: Sequence[int]) -> None:
        shape, context = self.event_shape, self.context_shape
        if len(shape) != 3 or not (len(context) < 2 or (len(context) == 3 and context[1:] == shape[1:])):
            raise PairError(
                "PixelCNN expected an event shape (C, H, W) and a context shape (), (F,) or (F, H, W), found "
                f"{shape} and {context}"
            )
        if channels < shape[0] or num_layers < 1 or not all(size % 2 and size > 1 for size in sizes):
            raise PairError(
                f"PixelCNN expected at least {shape[0]} channels, one layer, and odd kernels of 3 or more, found "
                f"{channels} channels, {num_layers} layers, kernels {tuple(sizes)}"
            )


class GatedLayer(nn.Module):
    """One layer of both stacks: `tanh(a) sigmoid(b)`, with a residual connection in the horizontal one.

    Args:
        in_channels: Features that it takes.
        channels: Features that it returns, in each stack.
        size: Odd width of its kernels.
        colours: C of the images.
        context: Features of the context, 0 for none.
        first: Whether it looks at the image itself: it then hides the pixel from its own feature, and has no residual.
    """

    def __init__(self, in_channels: int, channels: int, size: int, colours: int, context: int, first: bool) -> None:
        super().__init__()
        taken, features = colour_of(in_channels, colours), colour_of(channels, colours)
        gates = torch.cat([features, features])
        self.first, self.reach = first, size // 2
        # The rows above: the image's own row is hidden, while features of that row know earlier rows alone.
        self.vertical = nn.Conv2d(in_channels, 2 * channels, (self.reach + (not first), size))
        self.horizontal = MaskedConv(taken, gates, self.reach + 1, hide_own=first)
        self.down_to_right = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = MaskedConv(features, features, 1)
        self.context = nn.Conv2d(context, 4 * channels, 1, bias=False) if context else None

    def forward(self, down: Tensor, right: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the features of both stacks (B, in_channels, H, W) to the next ones (B, channels, H, W)."""
        vertical = self.vertical(F.pad(down, (self.reach, self.reach, self.reach, -1 if self.first else 0)))
        horizontal = self.horizontal(F.pad(right, (self.reach, 0))) + self.down_to_right(vertical)
        if self.context is not None and context is not None:
            to_vertical, to_horizontal = self.context(context).chunk(2, 1)
            vertical, horizontal = vertical + to_vertical, horizontal + to_horizontal
        stepped = self.out(_gated(horizontal))
        return _gated(vertical), stepped if self.first else right + stepped


class MaskedConv(nn.Conv2d):
    """A convolution over the pixels to the left and the pixel itself, of which it sees the earlier colours.

    Args:
        taken: Colour of each input feature.
        given: Colour of each output feature.
        width: Pixels that it sees in a row; the last of them is the output's own.
        hide_own: Whether an output sees none of its own colour at its own pixel (mask A), as it must where inputs are
            the image, or all (mask B), where inputs are features that know earlier entries alone.
    """

    mask: Tensor

    def __init__(self, taken: Tensor, given: Tensor, width: int, hide_own: bool = False) -> None:
        super().__init__(len(taken), len(given), (1, width))
        earlier = taken < given[:, None] if hide_own else taken <= given[:, None]
        mask = torch.ones_like(self.weight)
        mask[..., -1] = earlier[..., None].to(mask)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W + width - 1), padded on the left, to (B, out, H, W)."""
        return F.conv2d(x, self.weight * self.mask, self.bias)


def colour_of(num_features: int, colours: int) -> Tensor:
    """The colour that each of some features belongs to: it may know this one's earlier ones and, inside, itself."""
    return torch.arange(num_features) * colours // num_features


def _gated(features: Tensor) -> Tensor:
    signal, gate = features.chunk(2, 1)
    return signal.tanh() * gate.sigmoid()
