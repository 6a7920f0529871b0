"""SearchMethodOptions labels of a job are forgotten and retained, and which retained label each forgotten one is mapped to."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches


def classes(batches: Callable[[int], Batch]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the forgotten and the retained labels of a job, sorted; a batch alone may lack a class."""
    both = cast(Batches, batches)
    return both.forget_classes, both.retain_classes


def next_retained(num_classes: int, retained: tuple[int, ...]) -> Tensor:
    """Return, for each label, the next retained one in cyclic order, (K,) int64; never a forgotten class.

    Where one class c is forgotten it is mapped to (c + 1) % K, as SalUn's and MUNBa's official codes write.
    """
    behind = (torch.tensor(retained) - torch.arange(num_classes)[:, None] - 1) % num_classes  # (K, retained)
    return torch.tensor(retained)[behind.argmin(1)]
