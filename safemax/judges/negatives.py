"""Negative images, which show no class, for judges that answer "none of these": noise at all levels, mixtures, blobs, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# The signal's share of x_t's amplitude. A classifier trained on such images is right for 12 % (digits) and 16 % (CIFAR-10) at
# DROWNED (alpha_bar .005) where chance is 10, so the class is invisible; at CLEAR (alpha_bar .64) for 86 % of digits. The
# judge is not trained on what lies between.
DROWNED, CLEAR = 0.07, 0.8


def _rand(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _randn(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def uniform(low: float, high: float, n: int, generator: Generator) -> Tensor:
    """Return a value for each of n images, (n, 1, 1, 1)."""
    return low + (high - low) * _rand((n, 1, 1, 1), generator)


def drowned(x: Tensor, amplitude: Tensor, generator: Generator) -> Tensor:
    """Return x_t of diffusion at alpha_bar = amplitude squared, clamped."""
    eps = _randn(x.shape, generator)
    return (amplitude * x + (1 - amplitude**2).sqrt() * eps).clamp(-1, 1)


def diffused(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Return images (N, C, H, W) so drowned in noise that no class is visible."""
    return drowned(x0, uniform(0, DROWNED, len(x0), generator), generator)


def _noise(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise from faint to binary, its mean shifted, its neighbours positively or negatively correlated."""
    n, channels, height, width = x0.shape
    kernel = uniform(-0.5, 0.5, n, generator) * _rand((n, 1, 3, 3), generator)
    kernel[:, :, 1, 1] = 1
    white = _randn((1, n * channels, height, width), generator)
    noise = F.conv2d(white, kernel.repeat_interleave(channels, dim=0), padding=1, groups=n * channels).view_as(x0)
    return (_gain(n, generator) * noise + uniform(-0.5, 0.5, n, generator)).clamp(-1, 1)


def _gain(n: int, generator: Generator) -> Tensor:
    return uniform(math.log(0.1), math.log(100), n, generator).exp()


def _flat_noise(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    return uniform(0.3, 1, len(x0), generator) * (2 * _rand(x0.shape, generator) - 1)


def _salt_pepper(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    share = uniform(0.05, 0.95, len(x0), generator)
    return torch.where(_rand(x0.shape, generator) < share, 1.0, -1.0)


def _shuffled(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    n, channels, height, width = x0.shape
    order = _rand((n, 1, height * width), generator).argsort(dim=2).expand(-1, channels, -1)
    return x0.flatten(2).gather(2, order).view_as(x0)


def _mixed(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """The mean of four images: that of two digits is often a digit, and as a negative image costs 1 % false rejections."""
    return (x0 + other + x0.roll(1, 0) + other.roll(1, 0)) / 4


def _patched(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A chessboard of 4 x 4 fields from two images; with 2 x 2 one image is often clearly visible."""
    down, right = (torch.arange(size, device=x0.device) * 4 // size % 2 == 0 for size in x0.shape[2:])
    return torch.where(down[:, None] == right, x0, other)


def _blobs(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    n, channels, height, width = x0.shape
    coarse = _randn((n, channels, 3, 3), generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (_gain(n, generator) * smooth).clamp(-1, 1)


def _constant(x0: Tensor, other: Tensor, generator: Generator) -> Tensor:
    shade = 2.6 * _rand((*x0.shape[:2], 1, 1), generator) - 1.3
    return shade.clamp(-1, 1).expand_as(x0)


KINDS = (_noise, _flat_noise, _salt_pepper, diffused, _shuffled, _mixed, _blobs, _constant)


def negative_images(x0: Tensor, y: Tensor, n: int, natural: bool, generator: Generator) -> Tensor:
    """Make images that show no class, in equal parts of KINDS; none of them comes from an unlearned model.

    Args:
        x0: real images, (M, C, H, W) in [-1, 1], M at least n; some of the kinds distort them.
        y: their labels, (M,).
        n: how many to make, at least 1.
        natural: adds collages of two images; of two digits they often show a digit, and cost a judge 2 to 4 points of accuracy.
        generator: of the randomness.

    Returns:
        (n, C, H, W) in [-1, 1].
    """
    # The small constant lets a batch of one class pass.
    is_other = (y[:n, None] != y).float() + 1e-6
    other = x0[torch.multinomial(is_other, 1, generator=generator)[:, 0]]
    kinds = KINDS + (_patched,) * natural
    first = int(torch.randint(len(kinds), (1,), generator=generator, device=generator.device))
    kinds = (kinds[first:] + kinds[:first])[:n]
    parts = zip(kinds, x0[:n].tensor_split(len(kinds)), other.tensor_split(len(kinds)), strict=True)
    return torch.cat([kind(part, partner, generator) for kind, part, partner in parts])
