"""Pixel statistics of noise, frames and stripes with known values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safemax.errors import InputError
from safemax.metrics.pixels import PixelStatistics, entropy_bits


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixel_statistics(images: Tensor) -> dict[str, float]:
    metric = PixelStatistics()
    metric.update(images)
    return metric.compute()


def neighbour_correlation(images: Tensor) -> float:
    return pixel_statistics(images)["neighbour_correlation"]


def noise(law: str) -> Tensor:
    normal = torch.randn(50, 3, 32, 32, generator=generator())
    uniform = 2 * torch.rand(50, 3, 32, 32, generator=generator()) - 1
    return {"gaussian": normal.clamp(-1, 1), "uniform": uniform, "binary": normal.sign()}[law]


# Clamped N(0, 1): variance 2 Phi(1) - 1 - 2 phi(1) + P(|x| > 1) = 0.6827 - 0.4839 + 0.3173 = 0.5161; 8 bits call |x| > 1 - 1/255
# saturated: 31.9 %. Uniform: variance 1/3, and 2 of 510 half-steps are saturated: 0.39 %. Binary: one bit a value. The entropy
# of clamped N(0, 1) is 6.65 bits; zlib comes within a tenth of the entropy of uniform and binary noise.
@pytest.mark.parametrize(
    ("law", "std", "saturated", "entropy"),
    [
        ("gaussian", math.sqrt(0.5161), 31.9, 6.65),
        ("uniform", math.sqrt(1 / 3), 0.39, 8.0),
        ("binary", 1.0, 100.0, 1.0),
    ],
)
def test_white_noise_has_the_values_of_its_law(law, std, saturated, entropy):
    found = pixel_statistics(noise(law))
    assert found["std"] == pytest.approx(std, abs=0.005)
    assert found["saturated"] == pytest.approx(saturated, abs=0.4)
    assert found["entropy_bits"] == pytest.approx(entropy, abs=0.02)
    assert found["neighbour_correlation"] == pytest.approx(0, abs=0.01)
    assert entropy <= found["zlib_bits"] + 1e-3 < entropy * 1.35


@pytest.mark.parametrize(("shade", "saturated"), [(-1.0, 100), (0.2, 0), (1.0, 100)])
def test_constant_frames_have_no_contrast_no_entropy_and_compress_to_nothing(shade, saturated):
    found = pixel_statistics(torch.full((20, 1, 32, 32), shade))
    assert found["std"] == pytest.approx(0, abs=1e-7)
    assert found["saturated"] == saturated
    assert found["neighbour_correlation"] == pytest.approx(1)
    assert found["entropy_bits"] == 0
    assert found["zlib_bits"] < 0.02


def test_frames_of_different_shades_have_no_contrast_within_an_image():
    shades = torch.linspace(-1, 1, 11).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    assert pixel_statistics(shades)["std"] == pytest.approx(0, abs=1e-7)


def test_a_chessboard_is_perfectly_anticorrelated():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(2, 1, 8, 8)
    assert neighbour_correlation(board) == pytest.approx(-1)


def test_stripes_agree_along_and_disagree_across():
    # 8x8 stripes of one pixel: 56 pairs agree, 56 disagree
    stripes = torch.tensor([[1.0, -1.0]]).repeat(8, 4).expand(1, 1, 8, 8)
    assert neighbour_correlation(stripes) == pytest.approx(0, abs=1e-12)


def test_a_ramp_is_highly_correlated():
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    assert neighbour_correlation(ramp) > 0.95


def test_four_values_in_equal_parts_have_two_bits():
    assert entropy_bits(torch.tensor([0.25, 0, 0.25, 0.25, 0.25])) == pytest.approx(2)


def test_values_outside_the_range_count_in_std_and_as_saturated():
    found = pixel_statistics(torch.tensor([3.0, -3.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2))
    assert found["std"] == 3
    assert found["saturated"] == 100


@pytest.mark.parametrize("bad", [torch.zeros(0, 1, 8, 8), torch.full((2, 1, 8, 8), float("nan"))])
def test_no_images_or_nan_are_refused(bad):
    with pytest.raises(InputError, match="not all finite"):
        pixel_statistics(bad)
