"""The divergence between two models' answers."""

from __future__ import annotations

import math

import pytest
import torch

from safemax.metrics.retrain_gap import jensen_shannon


def test_jensen_shannon_is_0_for_equal_ln_2_for_disjoint_and_symmetric() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    assert jensen_shannon(p, p) == 0
    assert abs(jensen_shannon(p, q) - 0.693147) < 1e-6
    r = torch.tensor([0.2, 0.3, 0.5]).double()
    assert abs(jensen_shannon(p, r) - jensen_shannon(r, p)) < 1e-12


def test_jensen_shannon_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    for seed in range(20):
        p, q = torch.rand(2, 11, generator=torch.Generator().manual_seed(seed)).double()
        p, q = p / p.sum(), q / q.sum()
        entropies = [-sum(x * math.log(x) for x in each.tolist()) for each in ((p + q) / 2, p, q)]
        assert jensen_shannon(p, q) == pytest.approx(entropies[0] - (entropies[1] + entropies[2]) / 2, abs=1e-12)
