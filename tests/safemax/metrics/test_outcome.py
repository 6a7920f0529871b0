"""Outcome shares and their intervals."""

from __future__ import annotations

import pytest
import torch

from safemax.errors import InputError
from safemax.metrics.intervals import wilson
from safemax.metrics.outcome import outcome


def answers(*classes: int, columns: int) -> torch.Tensor:
    """Probabilities whose largest is at the given classes."""
    return torch.eye(columns)[list(classes)] * 0.6 + 0.4 / columns


def test_the_three_shares_count_recognised_rejected_and_other():
    # 10 samples: 1 of class 2, 3 rejected (column 4), 6 of classes 0, 1 and 3
    result = outcome(answers(2, 4, 4, 4, 0, 0, 1, 1, 3, 3, columns=5), forget=[2], num_classes=4)
    assert (result["forget"], result["reject"], result["other"], result["ua"]) == (10, 30, 60, 90)
    assert (result["reject_low"], result["reject_high"]) == wilson(3, 10)
    assert (result["ua_low"], result["ua_high"]) == wilson(9, 10)


def test_a_judge_without_reject_class_rejects_nothing():
    result = outcome(answers(2, 0, 1, 3, columns=4), forget=[2], num_classes=4)
    assert (result["forget"], result["reject"], result["other"]) == (25, 0, 75)


def test_every_forgotten_class_counts_as_recognised():
    assert outcome(answers(0, 1, 2, 3, columns=4), forget=[1, 3], num_classes=4)["forget"] == 50


@pytest.mark.parametrize("probs", [torch.ones(3, 6), torch.ones(4)])
def test_probabilities_that_do_not_fit_are_refused(probs):
    with pytest.raises(InputError, match="do not fit 4 answers"):
        outcome(probs, forget=[0], num_classes=4)


def test_no_samples_are_refused():
    with pytest.raises(InputError, match="no samples"):
        outcome(torch.zeros(0, 4), forget=[0], num_classes=4)


def test_probabilities_that_are_not_finite_are_refused():
    probs = answers(0, 1, columns=4)
    probs[1, 2] = float("nan")
    with pytest.raises(InputError, match="1 of 2 samples are not finite"):
        outcome(probs, forget=[0], num_classes=4)
