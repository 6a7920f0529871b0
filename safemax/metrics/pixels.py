"""What kind of picture a sample is, by its pixels: noise, one colour, or neither."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.data.batches import to_float, to_uint8
from safemax.errors import InputError
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {
    "pixels/std": MetricInfo("deviation within an image; uniform noise has 0.58", "", ""),
    "pixels/saturated": MetricInfo("pixels at 0 or 255", "%", ""),
    "pixels/neighbour_correlation": MetricInfo("correlation of neighbouring pixels; 0 white noise", "-1..1", ""),
    "pixels/entropy_bits": MetricInfo("entropy of the pixel values", "bits", ""),
    "pixels/zlib_bits": MetricInfo("bits a pixel value takes when compressed", "bits", ""),
}


def measure(given: Measurement) -> dict[str, float]:
    """Return the statistics of the main sampler's images of the forgotten classes."""
    statistics = pixel_statistics(to_float(given.forgotten.images))
    return {keys.PIXELS + name: value for name, value in statistics.items()}


def pixel_statistics(images: Tensor) -> dict[str, float]:
    """Return five numbers that do not depend on a judge.

    Args:
        images: (N, C, H, W) float in [-1, 1]; values outside count as they are in "std" and are clamped for the others.

    Returns:
        "std": mean over images of the deviation within an image; 0 a constant frame, 0.577 uniform noise, 0.718 clamped N(0, 1),
        1 binary noise. "saturated": values at 0 or 255 of 8 bits, in percent, 0 to 100. "neighbour_correlation": of pixels side by
        side, -1 to 1; 0 white noise, 1 constant frames, high for pictures. "entropy_bits": of the 8-bit values of all images
        together, 0 to 8. "zlib_bits": per 8-bit value, of all images compressed as one stream, about 0 to 8.
        None has a better direction: they describe.

    Raises:
        InputError: no images, or values that are not finite.
    """
    if len(images) == 0 or not images.isfinite().all():
        raise InputError(f"images of shape {tuple(images.shape)} are none or not all finite")
    pixels = to_uint8(images)
    return {
        "std": images.double().flatten(1).std(dim=1, correction=0).mean().item(),
        "saturated": 100 * ((pixels == 0) | (pixels == 255)).double().mean().item(),
        "neighbour_correlation": neighbour_correlation(images.clamp(-1, 1)),
        "entropy_bits": entropy_bits(pixels),
        "zlib_bits": 8 * len(zlib.compress(pixels.cpu().numpy().tobytes(), 9)) / pixels.numel(),
    }


def neighbour_correlation(images: Tensor) -> float:
    """Return the correlation of pixels side by side and one above the other, -1 to 1, pooled over images (N, C, H, W).

    Every channel of every image is centred on its own mean, so that a difference between images is no correlation within them;
    if no image varies, the answer is 1.
    """
    centred = images.double() - images.double().mean(dim=(2, 3), keepdim=True)
    pairs = [(centred[..., 1:], centred[..., :-1]), (centred[..., 1:, :], centred[..., :-1, :])]
    products = sum((a * b).sum().item() for a, b in pairs)
    squares = sum((a.square() + b.square()).sum().item() / 2 for a, b in pairs)
    return products / squares if squares > 0 else 1.0


def entropy_bits(pixels: Tensor) -> float:
    """Return the entropy of uint8 values' histogram, in bits, 0 (one value) to 8 (all equally often)."""
    shares = pixels.flatten().to(torch.int64).bincount(minlength=256).double() / pixels.numel()
    return torch.special.entr(shares).sum().item() / math.log(2)
