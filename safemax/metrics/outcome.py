"""What became of the forgotten class: recognised, recognised as nothing, or recognised as another class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safemax.errors import InputError


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927), in percent; unlike Wald's it has a width at 0 and at n.

    Args:
        k: successes among n, 0 to n.
        n: trials, at least 1.
        z: quantile of the normal law; 1.96 gives 95 %.

    Raises:
        InputError: k is not within 0 to n, or n is 0.
    """
    if not 0 <= k <= n or n == 0:
        raise InputError(f"k = {k} of n = {n} is not a share; n is at least 1 and k from 0 to n")
    middle = (k + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def outcome(probs: Tensor, forget: Sequence[int], num_classes: int) -> dict[str, float]:
    """Return how a judge sees samples that were asked to be of the forgotten classes.

    Args:
        probs: (N, K), or (N, K + 1) where the last column means "none of these", in [0, 1].
        forget: the forgotten classes; a sample counts as recognised if any of them is the most probable answer.
        num_classes: K.

    Returns:
        Percent, 0 to 100, each with its 95 % Wilson interval as `_low` and `_high`: "forget" (lower is better), "reject" (the
        judge sees nothing: noise), "other" (another class: substitution), which add up to 100; and "ua" = 100 - forget,
        unlearning accuracy (higher is better), the paper's where the judge has no reject class.

    Raises:
        InputError: no samples, a shape that does not fit K, or probabilities that are not finite.
    """
    if probs.ndim != 2 or len(probs) == 0 or probs.shape[1] - num_classes not in (0, 1):
        raise InputError(
            f"probs of shape {tuple(probs.shape)} do not fit {num_classes} classes, with or without a reject class"
        )
    if not probs.isfinite().all():
        raise InputError(f"probs of {int((~probs.isfinite()).any(dim=1).sum())} of {len(probs)} samples are not finite")
    n, answers = len(probs), probs.argmax(dim=1)
    forgotten = int(torch.isin(answers, torch.tensor(list(forget), device=answers.device)).sum())
    rejected = int((answers == num_classes).sum())
    counts = {"forget": forgotten, "reject": rejected, "other": n - forgotten - rejected, "ua": n - forgotten}
    return {key: value for name, k in counts.items() for key, value in _with_interval(name, k, n).items()}


def _with_interval(name: str, k: int, n: int) -> dict[str, float]:
    low, high = wilson(k, n)
    return {name: 100 * k / n, f"{name}_low": low, f"{name}_high": high}
