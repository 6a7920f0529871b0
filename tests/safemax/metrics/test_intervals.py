"""Intervals and standard errors against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from safemax.errors import InputError
from safemax.metrics.intervals import MeanWithError, jackknife_error, wilson


@pytest.mark.parametrize("n", [1, 2, 7, 73, 500, 5000])
def test_wilson_is_the_closed_form_at_the_quantile_1_96(n: int) -> None:
    z = 1.96
    for k in {0, 1, n // 3, n - 1, n}:
        middle = (k + z * z / 2) / (n + z * z)
        reach = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
        low, high = wilson(k, n)
        assert low == pytest.approx(100 * max(0.0, middle - reach), abs=1e-12)
        assert high == pytest.approx(100 * min(1.0, middle + reach), abs=1e-12)


def test_wilson_of_none_begins_at_0_and_of_all_ends_at_100() -> None:
    assert wilson(0, 500)[0] == 0
    assert wilson(500, 500)[1] == 100


def test_wilson_of_no_success_in_500_ends_at_three_quarters_of_a_percent() -> None:
    # (k + z^2 / 2 + z sqrt(z^2 / 4)) / (n + z^2) = z^2 / (n + z^2) = 3.8416 / 503.8416
    assert wilson(0, 500) == pytest.approx((0, 0.76246), abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 10), (11, 10)])
def test_wilson_refuses_what_is_no_share(k: int, n: int) -> None:
    with pytest.raises(InputError, match="is not a share"):
        wilson(k, n)


def test_the_jackknifes_error_of_a_mean_is_the_usual_one() -> None:
    # Left-out means of 1..10 by tenths are (55 - i) / 9; the jackknife gives s / sqrt(10) = 3.02765 / 3.16228 exactly.
    left_out = [(55 - i) / 9 for i in range(1, 11)]
    assert abs(jackknife_error(left_out) - 0.957427) < 1e-5
    assert jackknife_error([3.0, 1.0]) == 1.0  # s / sqrt(2) = 1.41421 / 1.41421


def test_a_mean_has_the_usual_error_whatever_the_batches() -> None:
    values = torch.arange(1.0, 11.0)
    for size in (1, 3, 10):
        metric = MeanWithError()
        for part in values.split(size):
            metric.update(part)
        found = metric.compute()
        assert found["mean"].item() == 5.5
        assert abs(found["se"].item() - 0.957427) < 1e-5
    metric.reset()
    metric.update(values[:1])
    assert metric.compute()["se"] == 0
