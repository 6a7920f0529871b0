"""How far a number can be trusted: intervals of shares, and standard errors by leaving rows out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from scipy.special import ndtr
from scipy.stats import binomtest
from torch import Tensor

from safemax.errors import InputError

LEVEL = float(2 * ndtr(1.96) - 1)  # of Wilson's interval: 95 % by the rounded quantile that every recorded number used


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (Wilson 1927), in percent; unlike Wald's it has a width at 0 and at n.

    Args:
        k: successes among n, 0 to n.
        n: trials, at least 1.

    Raises:
        InputError: k is not within 0 to n, or n is 0.
    """
    if not 0 <= k <= n or n == 0:
        raise InputError(f"k = {k} of n = {n} is not a share; n is at least 1 and k from 0 to n")
    interval = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def standard_error(statistic: Callable[[Tensor], float], rows: Tensor, groups: int = 10) -> float:
    """Return the delete-a-group jackknife standard error of a statistic of rows (N, ...): Shao and Tu 1995, section 2.3.

    Group g holds rows g, g + groups, ...: where rows are sorted by class, every group holds every class. Of the mean it
    is the usual s / sqrt(N) in expectation.

    Args:
        statistic: of some of the rows, such as the Frechet distance to fixed real features.
        rows: N is at least 2.
        groups: parts to leave out in turn, at most N of them are used.
    """
    groups = min(groups, len(rows))
    part = torch.arange(len(rows)) % groups
    left_out = [statistic(rows[part != g]) for g in range(groups)]
    return math.sqrt((groups - 1) * statistics.pvariance(left_out))
