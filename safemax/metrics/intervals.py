"""How far a number can be trusted: intervals of shares, means with their errors, and standard errors by leaving rows out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from scipy.special import ndtr
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics import Metric

from safemax.errors import InputError

LEVEL = float(2 * ndtr(1.96) - 1)  # of Wilson's interval: 95 % by the rounded quantile that every recorded number used
GROUPS = 10  # parts of the rows that a jackknife leaves out in turn


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


def with_interval(name: str, k: int, n: int) -> dict[str, float]:
    """Return a share of k among n in percent, and its 95 % interval as `_low` and `_high` behind the name."""
    low, high = wilson(k, n)
    return {name: 100 * k / n, f"{name}_low": low, f"{name}_high": high}


def jackknife_error(left_out: Sequence[float]) -> float:
    """Return the delete-a-group jackknife standard error of a statistic: Shao and Tu 1995, section 2.3.

    Row i belongs to group i modulo GROUPS: where rows are sorted by class, every group holds every class. Of a mean it is the
    usual s / sqrt(N) in expectation.

    Args:
        left_out: the statistic without each group of rows in turn.
    """
    return math.sqrt((len(left_out) - 1) * statistics.pvariance(left_out))


class MeanWithError(Metric):
    """The mean of values and its standard error, s / sqrt(n), which is 0 for a single value."""

    higher_is_better = None
    full_state_update = False

    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Take values (N,)."""
        values = values.double()
        self.count += len(values)
        self.total += values.sum()
        self.squares += values.square().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `mean` and `se`, float64 scalars."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        return {"mean": mean, "se": (variance / (self.count - 1).clamp_min(1)).sqrt()}
