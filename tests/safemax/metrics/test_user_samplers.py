"""The worst of the samplers that people use, and the picture of what became of the class."""

from __future__ import annotations

import pytest
import torch

from safemax import metric_keys as keys
from safemax.metrics.outcome import OutcomeShares
from safemax.metrics.user_samplers import loss, worst

BASE = {"samplers/clipped_accuracy": 98.7, "samplers/unguided_accuracy": 89.6}
MODEL = {
    "samplers/clipped_accuracy": 90.7,
    "samplers/unguided_accuracy": 95.0,
    "samplers/strong_accuracy": 100.0,
    "samplers/clipped_recognised": 22.5,
    "samplers/strong_recognised": 0.0,
}


def test_the_worst_is_the_least_accuracy_and_the_most_recognised() -> None:
    assert worst(MODEL) == {keys.WORST_SAMPLER_ACCURACY: 90.7, keys.WORST_SAMPLER_RECOGNISED: 22.5}
    assert worst({}) == {}


def test_the_loss_is_the_largest_under_one_and_the_same_sampler() -> None:
    assert loss(MODEL, BASE) == {keys.WORST_SAMPLER_LOSS: pytest.approx(8.0)}
    assert loss(MODEL, {}) == {}


def test_the_shares_draw_themselves_with_their_intervals() -> None:
    shares = OutcomeShares((0,), 2)
    shares.update(torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.0, 0.1]]), torch.tensor([0, 0]))
    figure, axes = shares.plot()
    assert [bar.get_width() for bar in axes.patches] == [50, 50, 0]
    assert [each.get_text() for each in axes.get_yticklabels()] == ["recognised", "rejected", "another class"]
    assert figure is axes.get_figure()
