"""Entropy in nats and the probability of the forgotten class."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from safemax.metrics.entropy import entropy, entropy_of_probabilities, forget_probability


def test_certain_logits_have_no_entropy_even_where_probabilities_underflow():
    assert entropy(1e4 * torch.eye(10)).tolist() == [0] * 10


def test_uniform_logits_have_the_logarithm_of_their_number():
    assert entropy(torch.full((3, 10), -7.0)).tolist() == pytest.approx([math.log(10)] * 3, abs=1e-12)


def test_entropy_agrees_with_scipy():
    logits = 3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy.stats.entropy(logits.softmax(1).numpy(), axis=1)
    assert entropy(logits).numpy() == pytest.approx(expected, abs=1e-12)


def test_entropy_of_probabilities_is_that_of_their_logits_and_takes_zeros():
    logits = torch.tensor([[0.0, 1.0, 2.0], [1e4, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(entropy_of_probabilities(logits.softmax(1)), entropy(logits))


def test_forget_probability_is_the_mean_of_the_forgotten_classes_together():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]])
    # class 0: (0.5 + 0) / 2; classes 0 and 2: (0.75 + 0.75) / 2
    assert forget_probability(probs, [0]).mean() == 0.25
    assert forget_probability(probs, [0, 2]).mean() == 0.75
