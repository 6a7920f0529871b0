"""Precision and coverage against brute force and hand values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safemax.errors import InputError
from safemax.metrics import precision_coverage as module
from safemax.metrics.intervals import wilson
from safemax.metrics.precision_coverage import precision_coverage


def features(n: int, d: int = 3, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def brute_force(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    def radius(i: int) -> float:
        return sorted(math.dist(real[i], real[j]) for j in range(len(real)) if j != i)[k - 1]

    hits = [[math.dist(real[i], each) <= radius(i) for i in range(len(real))] for each in generated]
    precision = sum(any(row) for row in hits) / len(generated)
    return precision, sum(any(column) for column in zip(*hits, strict=True)) / len(real)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_precision_and_coverage_agree_with_brute_force(k, shift, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)  # 40 rows take three chunks
    real, generated = features(40), features(30, seed=1, shift=shift)
    result = precision_coverage(real, generated, k)
    assert (result["precision"], result["coverage"]) == pytest.approx(brute_force(real, generated, k))


def test_points_on_a_line_have_hand_values():
    # balls at k = 1: 0 and 1 reach 1, 3 reaches 2, 10 reaches 7; of the generated, 0.5 and 1.9 lie in a ball, 4.9 in those of 3
    # (rim 5) and 10 (rim 3), 30 in none; the balls of 0 and 1 hold 0.5, of 3 1.9, of 10 4.9
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    result = precision_coverage(real, torch.tensor([[0.5], [1.9], [4.9], [30.0]]), k=1)
    assert (result["precision"], result["coverage"]) == (0.75, 1)


def test_one_repeated_picture_is_precise_but_covers_little():
    real = features(200)
    result = precision_coverage(real, real[:1].expand(100, -1), k=5)
    assert result["precision"] == 1
    # it lies in its own ball and in those of few neighbours
    assert result["coverage"] < 0.15


def test_samples_far_away_have_neither():
    result = precision_coverage(features(50), features(50, seed=1, shift=100))
    assert (result["precision"], result["coverage"]) == (0, 0)


def test_intervals_are_wilsons():
    result = precision_coverage(features(50), features(20, seed=1, shift=100))
    assert result["precision_high"] == pytest.approx(wilson(0, 20)[1] / 100)
    assert result["coverage_high"] == pytest.approx(wilson(0, 50)[1] / 100)


@pytest.mark.parametrize(("real", "k"), [(5, 5), (5, 0)])
def test_k_beyond_the_real_rows_is_refused(real, k):
    with pytest.raises(InputError, match="below real"):
        precision_coverage(features(real), features(5), k)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="finite"):
        precision_coverage(features(20), torch.full((5, 3), float("nan")))
