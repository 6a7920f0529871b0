"""The fading L1 term of sparsity-aware unlearning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


def fading_l1(weights: Iterable[Parameter], alpha: float, done: int, steps: int) -> Tensor:
    """Return alpha_k times the sum of all |weights|, a scalar; alpha_k falls linearly from alpha to 0 over the run.

    The official code lets it fall once an epoch (Jia et al., FT.py), this once a step.

    Args:
        weights: those that are trained.
        alpha: the first step's weight of the term.
        done: steps done.
        steps: of the run.
    """
    share = 1 - min(done / max(1, steps), 1.0)
    return alpha * share * torch.stack([weight.abs().sum() for weight in weights]).sum()
