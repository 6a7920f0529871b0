"""What kind of picture a sample is, by its pixels: noise, one colour, or neither."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor
from torchmetrics import Metric

from safemax import metric_keys as keys
from safemax.data.batches import to_float, to_uint8
from safemax.errors import InputError
from safemax.metrics.features import rows_of
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    "pixels/std": MetricInfo("deviation within an image; uniform noise has 0.58", "", ""),
    "pixels/saturated": MetricInfo("pixels at 0 or 255", "%", ""),
    "pixels/neighbour_correlation": MetricInfo("correlation of neighbouring pixels; 0 white noise", "-1..1", ""),
    "pixels/entropy_bits": MetricInfo("entropy of the pixel values", "bits", ""),
    "pixels/zlib_bits": MetricInfo("bits a pixel value takes when compressed", "bits", ""),
}


class PixelStatistics(Metric):
    """Five numbers that do not depend on a judge.

    The 8-bit pixels are held until the end, since the images are compressed as one stream, in the order of their rows.
    """

    higher_is_better = None
    full_state_update = False

    deviation: Tensor
    products: Tensor
    squares: Tensor
    histogram: Tensor
    pixels: list[Tensor]
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("deviation", "products", "squares"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(256, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixels", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, rows: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            images: (N, C, H, W) float in [-1, 1]; values outside count as they are in "std" and are clamped for the others.
            rows: the place of each image among all, (N,); None continues where the last batch ended.

        Raises:
            InputError: values that are not finite.
        """
        if len(images) == 0:
            return
        if not images.isfinite().all():
            raise InputError(f"images of shape {tuple(images.shape)} are not all finite")
        pixels = to_uint8(images)
        products, squares = neighbour_moments(images.clamp(-1, 1))
        self.deviation += images.double().flatten(1).std(dim=1, correction=0).sum()
        self.products += products
        self.squares += squares
        self.histogram += pixels.flatten().to(torch.int64).bincount(minlength=256)
        begin = sum(map(len, self.rows))
        self.pixels.append(pixels)
        self.rows.append(torch.arange(begin, begin + len(images)) if rows is None else rows)

    def compute(self) -> dict[str, float]:
        """Return the numbers.

        Returns:
            "std": mean over images of the deviation within an image; 0 a constant frame, 0.577 uniform noise, 0.718 clamped
            N(0, 1), 1 binary noise. "saturated": values at 0 or 255 of 8 bits, in percent, 0 to 100. "neighbour_correlation": of
            pixels side by side, -1 to 1; 0 white noise, 1 constant frames, high for pictures. "entropy_bits": of the 8-bit values
            of all images together, 0 to 8. "zlib_bits": per 8-bit value, of all images compressed as one stream, about 0 to 8.
            None has a better direction: they describe.

        Raises:
            InputError: no images.
        """
        pixels = rows_of(self.pixels, self.rows)
        if len(pixels) == 0:
            raise InputError("there are no images, or they are not all finite")
        stream = pixels.cpu().numpy().tobytes()
        shares = self.histogram.double() / pixels.numel()
        return {
            "std": (self.deviation / len(pixels)).item(),
            "saturated": 100 * (shares[0] + shares[255]).item(),
            "neighbour_correlation": (self.products / self.squares).item() if self.squares > 0 else 1.0,
            "entropy_bits": entropy_bits(shares),
            "zlib_bits": 8 * len(zlib.compress(stream, 9)) / pixels.numel(),
        }


class Panel(PanelMetric):
    """The statistics of the main sampler's images of the forgotten classes."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.statistics = PixelStatistics()

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            forgotten = images.of(self.setting.forget)
            self.statistics.update(to_float(forgotten.images), forgotten.rows)

    def compute(self) -> dict[str, float]:
        return {keys.PIXELS + name: value for name, value in self.statistics.compute().items()}


def neighbour_moments(images: Tensor) -> tuple[float, float]:
    """Return the sum of products of pixels side by side and one above the other, and that of their squares, which divides it.

    Every channel of every image (N, C, H, W) is centred on its own mean, so that a difference between images is no correlation
    within them; if no image varies, the correlation is 1.
    """
    centred = images.double() - images.double().mean(dim=(2, 3), keepdim=True)
    pairs = [(centred[..., 1:], centred[..., :-1]), (centred[..., 1:, :], centred[..., :-1, :])]
    products = sum((a * b).sum().item() for a, b in pairs)
    return products, sum((a.square() + b.square()).sum().item() / 2 for a, b in pairs)


def entropy_bits(shares: Tensor) -> float:
    """Return the entropy of a histogram's shares, in bits, 0 (one value) to log2 of their number (all equally often)."""
    return torch.special.entr(shares).sum().item() / math.log(2)
