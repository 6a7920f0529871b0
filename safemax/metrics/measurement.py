"""What every metric of the panel is given, and how it states what its numbers mean: the interface of the files in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from safemax.judges.load import Judges
from safemax.judges.reference import Reference

# What a batch of images was drawn for; other draws have the names of metric_keys.USER_SAMPLERS.
MAIN, SECOND, GOLD = "main", "second", "gold"


class MetricInfo(NamedTuple):
    """What a metric says.

    Args:
        text: one phrase.
        unit: "%" (0 to 100), "0..1", "nats", "minutes", "GB" (1e9 bytes), ...
        better: "higher", "lower", or "" where a number describes and has no better direction.
    """

    text: str
    unit: str
    better: str


@dataclass(frozen=True, eq=False)
class JudgedImages:
    """A batch of images that a model drew, as the judges see them, row by row.

    Args:
        images: (N, C, H, W) uint8.
        labels: the class that each was drawn for, (N,) int64 in [0, K).
        plain: probabilities by the judge without a reject class, (N, K).
        reject: probabilities by the ensemble whose last answer is "none of these", (N, K + 1).
        features: of the plain judge, (N, D).
        reject_features: of the ensemble, (N, E).
        rows: the place of each among all that are drawn for forgotten classes, or among all others, (N,) int64. It makes
            the numbers independent of how the rows are cut into batches and shared over processes.
        draw: MAIN, SECOND, GOLD (the main sampler's images of a model retrained without the classes, in the same order), or
            a name of metric_keys.USER_SAMPLERS.
    """

    images: Tensor
    labels: Tensor
    plain: Tensor
    reject: Tensor
    features: Tensor
    reject_features: Tensor
    rows: Tensor
    draw: str = MAIN

    def __getitem__(self, rows: Tensor | slice) -> JudgedImages:
        """Return some of the rows, by a mask (N,) or a slice."""
        tensors = (each.name for each in fields(self) if each.name != "draw")
        return replace(self, **{name: getattr(self, name)[rows] for name in tensors})

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def of(self, classes: Sequence[int]) -> JudgedImages:
        """Return the images that were drawn for some classes."""
        return self[torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))]

    def without(self, classes: Sequence[int]) -> JudgedImages:
        """Return the images that were drawn for all other classes."""
        return self[~torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))]


@dataclass(frozen=True, eq=False)
class PanelSetting:
    """What is known before the first image is drawn.

    Args:
        judges: the classifiers that judge the images.
        reference: features of real images of all classes.
        forget: the forgotten labels.
    """

    judges: Judges
    reference: Reference
    forget: tuple[int, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K names, in label order."""
        return self.judges.plain.class_names

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.class_names)

    @property
    def retained(self) -> tuple[int, ...]:
        """The classes of the reference that are not forgotten."""
        return tuple(k for k in self.reference.labels.unique().tolist() if k not in self.forget)


class PanelMetric(WrapperMetric):
    """One file's part of the panel: it hands what it needs of each batch to metrics, which it holds as attributes.

    Args:
        setting: what is known before the first image is drawn.
    """

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__()
        self.setting = setting

    def update(self, images: JudgedImages) -> None:
        """Take a batch of some draw."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return the numbers by key, with `_low` and `_high` for an interval and `_se` for a standard error behind a key."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        for metric in self.modules():
            if isinstance(metric, Metric) and not isinstance(metric, WrapperMetric):
                metric.reset()
