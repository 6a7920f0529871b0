"""Entropy and overlap of latent states, where both can be had by hand."""

from __future__ import annotations

import math

import pytest
import torch

from safemax.metrics.latents import entropy, overlap

STANDARD = 0.5 * math.log(2 * math.pi * math.e)  # entropy of N(0, 1), 1.4189 nats


def test_pure_noise_has_the_entropy_of_a_standard_normal_and_full_overlap() -> None:
    images, labels = torch.rand(20, 1, 2, 2), torch.arange(20) % 2
    nothing_left = torch.tensor([1e-12])
    assert entropy(images, nothing_left).item() == pytest.approx(STANDARD, abs=1e-5)
    assert overlap(images, labels, nothing_left).item() == pytest.approx(1, abs=1e-4)


def test_entropy_grows_by_half_the_log_of_the_variance() -> None:
    # Pixels -1 and 1 in each of four independent places: a full factorial of 16 images, covariance 16/15 I.
    images = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).view(16, 1, 2, 2)
    alpha_bar = torch.tensor([0.75, 0.25])
    expected = [STANDARD + 0.5 * math.log(a * 16 / 15 + 1 - a) for a in (0.75, 0.25)]
    assert entropy(images, alpha_bar).tolist() == pytest.approx(expected, abs=1e-5)


def test_overlap_is_the_mass_that_two_gaussians_of_one_covariance_share() -> None:
    # One pixel: class 0 at 0 and 0.2 , class 1 at 0.8 and 1. Means 0.1 and 0.9 (0.8 apart), pooled variance
    # (4 x 0.01) / (4 - 2) = 0.02. At alpha_bar 0.5: d^2 = 0.5 x 0.64 / (0.5 x 0.02 + 0.5) = 0.62745; 2 Phi(-d / 2) = 0.69206.
    images = torch.tensor([0.0, 0.2, 0.8, 1.0]).view(4, 1, 1, 1)
    d = math.sqrt(0.32 / 0.51)
    expected = math.erfc(d / 2 / math.sqrt(2))
    assert expected == pytest.approx(0.69206, abs=1e-4)
    assert overlap(images, torch.tensor([3, 3, 7, 7]), torch.tensor([0.5])).item() == pytest.approx(expected, abs=1e-5)


def test_classes_of_equal_means_overlap_fully_at_every_step() -> None:
    images = torch.tensor([0.0, 1.0, 0.2, 0.8]).view(4, 1, 1, 1)
    assert overlap(images, torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.5])).tolist() == pytest.approx([1, 1])
