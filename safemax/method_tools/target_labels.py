"""Which retained label each forgotten label is mapped to."""

from __future__ import annotations

import torch
from torch import Tensor


def next_retained(num_classes: int, retained: tuple[int, ...]) -> Tensor:
    """Return, for each label, the next retained one in cyclic order, (K,) int64.

    If one class c is forgotten, it is mapped to (c + 1) % K, as in the official codes of SalUn and MUNBa.

    Args:
        num_classes: K.
        retained: the retained labels, at least one.
    """
    distance = (torch.tensor(retained) - torch.arange(num_classes)[:, None] - 1) % num_classes  # (K, retained)
    return torch.tensor(retained)[distance.argmin(1)]
