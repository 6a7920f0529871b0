"""Outcome shares and their intervals."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from safemax.errors import InputError
from safemax.metrics.outcome import outcome, wilson


def answers(*classes: int, columns: int) -> torch.Tensor:
    """Probabilities whose largest is at the given classes."""
    return torch.eye(columns)[list(classes)] * 0.6 + 0.4 / columns


@pytest.mark.parametrize(("k", "n"), [(0, 500), (1, 500), (10, 500), (250, 500), (500, 500), (0, 1), (3, 7)])
def test_wilson_agrees_with_scipy(k, n):
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    # scipy's quantile is 1.959964, ours 1.96
    assert wilson(k, n) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=2e-3)


def test_wilson_of_no_success_in_500_ends_at_three_quarters_of_a_percent():
    # (k + z^2 / 2 + z sqrt(z^2 / 4)) / (n + z^2) = z^2 / (n + z^2) = 3.8416 / 503.8416
    assert wilson(0, 500) == pytest.approx((0, 0.76246), abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 10), (11, 10)])
def test_wilson_refuses_what_is_no_share(k, n):
    with pytest.raises(InputError, match="is not a share"):
        wilson(k, n)


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


@pytest.mark.parametrize("probs", [torch.zeros(0, 4), torch.ones(3, 6), torch.ones(4)])
def test_probabilities_that_do_not_fit_are_refused(probs):
    with pytest.raises(InputError, match="do not fit 4 classes"):
        outcome(probs, forget=[0], num_classes=4)


def test_probabilities_that_are_not_finite_are_refused():
    probs = answers(0, 1, columns=4)
    probs[1, 2] = float("nan")
    with pytest.raises(InputError, match="1 of 2 samples are not finite"):
        outcome(probs, forget=[0], num_classes=4)
