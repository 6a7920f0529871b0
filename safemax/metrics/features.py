"""What metrics need of torchmetrics: networks of features in its form, rows in their order, metrics of one process."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from safemax.data.batches import to_float
from safemax.judges.classifier import Judge


def rows_of(state: list[Tensor] | Tensor, rows: list[Tensor] | Tensor) -> Tensor:
    """Return a state that holds rows, in the order of their places, whether or not processes have been joined.

    Args:
        state: batches, or all rows of all processes, (N, ...).
        rows: the place of each row, in the same form.
    """
    if not len(state):
        return torch.zeros(0, 1)
    return dim_zero_cat(state)[dim_zero_cat(rows).long().argsort(stable=True)]


def joined(metric: Metric) -> AbstractContextManager[None]:
    """Return a context in which a metric's states are those of all processes, inside its `compute` or outside."""
    return nullcontext() if metric._is_synced else metric.sync_context(should_sync=metric._to_sync)


Kind = TypeVar("Kind", bound=Metric | MetricCollection)


def of_this_process(metric: Kind) -> Kind:
    """Return a metric, or a collection, that is not joined with those of other processes, which may have none."""
    for each in metric.modules():
        if isinstance(each, Metric):
            each.sync_on_compute = each._to_sync = False
    return metric


class GivenFeatures(nn.Module):
    """Takes features for images, where a network has been asked before.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features themselves, (N, D)."""
        return features


class JudgeFeatures(nn.Module):
    """A judge's features of images (N, C, H, W) uint8."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge.eval()
        side = torch.zeros(1, *judge.image_shape, device=next(judge.parameters()).device)
        self.num_features = self(side.to(torch.uint8)).shape[1]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features, (N, D) float32."""
        return self.judge.features(to_float(images))
