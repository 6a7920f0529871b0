"""Standard errors of statistics that have no formula for theirs, by leaving out a part of the rows at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor


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
