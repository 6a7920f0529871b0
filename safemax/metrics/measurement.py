"""What every metric is given, and how it states what its numbers mean: the interface of the files in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from safemax.judges.load import Judges, Reference


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
    """Images that a model drew, as the judges see them, row by row.

    Args:
        images: (N, C, H, W) uint8.
        labels: the class that each was drawn for, (N,) int64 in [0, K).
        plain: probabilities by the judge without a reject class, (N, K).
        reject: probabilities by the ensemble whose last answer is "none of these", (N, K + 1).
        features: of the plain judge, (N, D).
        reject_features: of the ensemble, (N, E).
    """

    images: Tensor
    labels: Tensor
    plain: Tensor
    reject: Tensor
    features: Tensor
    reject_features: Tensor

    def __getitem__(self, rows: Tensor | slice) -> JudgedImages:
        """Return some of the rows, by a mask (N,) or a slice."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def of(self, classes: Sequence[int]) -> JudgedImages:
        """Return the images that were drawn for some classes."""
        return self[torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))]

    @property
    def answers(self) -> Tensor:
        """What the ensemble takes each image for, (N,) in [0, K]; K is "none of these"."""
        return self.reject.argmax(1)


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that a measurement of a model offers; every metric takes what it needs.

    Args:
        main: the images of the main sampler, of all classes.
        second: those of the second sampler; few of each retained class.
        judges: the classifiers that judged them.
        reference: features of real images of all classes.
        forget: the forgotten labels.
        gold: the main sampler's images of a model retrained without those classes, row by row of the same labels; None
            where there is no such model.
    """

    main: JudgedImages
    second: JudgedImages
    judges: Judges
    reference: Reference
    forget: tuple[int, ...]
    gold: JudgedImages | None = None

    @property
    def is_forget(self) -> Tensor:
        """Which images of the main sampler were drawn for a forgotten class, (N,) bool."""
        return torch.isin(self.main.labels, torch.tensor(self.forget, dtype=torch.int64))

    @cached_property
    def forgotten(self) -> JudgedImages:
        """The main sampler's images of the forgotten classes."""
        return self.main[self.is_forget]

    @cached_property
    def second_forgotten(self) -> JudgedImages:
        """The second sampler's images of the forgotten classes."""
        return self.second.of(self.forget)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K names, in label order."""
        return self.judges.plain.class_names

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.class_names)
