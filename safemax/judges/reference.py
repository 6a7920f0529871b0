"""Features of real images and of noise, which samples are measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.judges.classifier import predict
from safemax.judges.inception import Moments, by_class
from safemax.judges.load import Judges
from safemax.storage import cache

NOISE = 500  # images of pure noise, the far end of the normalised KID


@dataclass(frozen=True)
class Reference:
    """Features of real images, by class.

    Args:
        features: in the plain judge's space, (N, D).
        labels: (N,).
        rejecting: in the space of the ensemble with a reject class, (N, E).
        inception: moments of all real training images in the space of the standard FID, one a class; empty without its weights.
    """

    features: Tensor
    labels: Tensor
    rejecting: Tensor
    inception: tuple[Moments, ...] = ()

    def of(self, classes: tuple[int, ...]) -> Tensor:
        """Return the plain judge's features of some classes' real images."""
        return self.features[self._rows(classes)]

    def rejecting_of(self, classes: tuple[int, ...]) -> Tensor:
        """Return the ensemble's features of the same images."""
        return self.rejecting[self._rows(classes)]

    def without(self, classes: tuple[int, ...]) -> Reference:
        """Return the features of all other classes: those that a model forgot earlier are neither forgotten now nor retained."""
        rows = ~self._rows(classes)
        inception = tuple(each.none() if k in classes else each for k, each in enumerate(self.inception))
        return Reference(self.features[rows], self.labels[rows], self.rejecting[rows], inception)

    def _rows(self, classes: tuple[int, ...]) -> Tensor:
        return torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))


def reference(dataset: Dataset, judges: Judges, per_class: int = 1000) -> Reference:
    """Return features of real training images, computed once, then cached: of `per_class` a class, Inception's of all.

    Args:
        dataset: the real images.
        judges: their networks give the features.
        per_class: images of each class, fewer where there are fewer.
    """
    tensors = _reference(dataset, judges, per_class)
    real = Reference(tensors["features"], tensors["labels"], tensors["rejecting"])
    if judges.inception is None:
        return real
    return replace(real, inception=by_class(judges.inception, dataset.train, dataset.digest, dataset.class_names))


def noise_features(judges: Judges) -> Tensor:
    """Return the plain judge's features of NOISE images of N(0, 1) clamped to [-1, 1], (NOISE, D); computed once, then cached."""
    path = cache.folder("references") / f"{cache.key({'judges': judges.digest, 'noise': NOISE})}.safetensors"

    def make() -> dict[str, Tensor]:
        shape = (NOISE, *judges.plain.image_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        return {"features": predict(judges.plain, noise)[1]}

    return cache.load_or_create(path, make)["features"]


def _reference(dataset: Dataset, judges: Judges, per_class: int) -> dict[str, Tensor]:
    facts = {"data": dataset.digest, "judges": judges.digest, "per_class": per_class, "spaces": 2}
    path = cache.folder("references") / f"{cache.key(facts)}.safetensors"

    def make() -> dict[str, Tensor]:
        rows = torch.cat(
            [torch.nonzero(dataset.train.labels == k).flatten()[:per_class] for k in range(dataset.num_classes)]
        )
        images = to_float(dataset.train.images[rows])
        features, rejecting = (predict(judge, images)[1] for judge in (judges.plain, judges.reject))
        return {"features": features, "labels": dataset.train.labels[rows], "rejecting": rejecting}

    return cache.load_or_create(path, make)
