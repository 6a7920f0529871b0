"""Labelled images in memory, and the cache file that holds them, verified by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from safemax.errors import InputError
from safemax.storage import cache


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Args:
        images: (N, C, H, W) uint8, C is 1 or 3, H = W.
        labels: (N,) int64 in [0, K).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def without(self, classes: Sequence[int]) -> Split:
        """Return the images of all other classes; the labels keep their numbers."""
        rows = ~torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real images with a train and a test split.

    Args:
        name: short name, fit for a run name.
        train: every class has at least one image here.
        test: images that training never sees.
        class_names: K names; the index of a name is its label.
        natural: whether a mirrored image is as likely as the image, so that training may flip.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    natural: bool

    @classmethod
    def of(cls, name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> Dataset:
        """Return a dataset that is natural where its images have colour and its names more than one character.

        Names of one character are digits or letters, which a mirror changes, whatever their colours. A comma in a name
        becomes a semicolon: commas separate the classes that a user names.
        """
        class_names = tuple(each.replace(",", ";") for each in class_names)
        natural = train.images.shape[1] == 3 and any(len(each) > 1 for each in class_names)
        return cls(name, train, test, class_names, natural)

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of pixels, labels, shapes and class names; the dataset's own name and location do not count."""
        sha = hashlib.sha256(json.dumps(self.class_names).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


def load_cached(path: Path, name: str) -> Dataset | None:
    """Read what `save_cached` wrote; None where there is no file or where it is damaged."""
    tensors = cache.load_tensors(path)
    if tensors is None:
        return None
    train, test = (Split(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in ("train", "test"))
    return Dataset.of(name, train, test, tuple(cache.tensor_to_json(tensors["class_names"])))


def save_cached(dataset: Dataset, path: Path) -> Dataset:
    """Write a dataset as one safetensors file, whole or not at all, and return it; InputError where the place cannot be written."""
    tensors = {
        f"{name}.{field}": getattr(split, field)
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for field in ("images", "labels")
    }
    try:
        cache.save_tensors(path, {**tensors, "class_names": cache.json_to_tensor(dataset.class_names)})
    except OSError as error:
        raise InputError(f"cannot write the cache {path} ({error.strerror}); set SAFEMAX_CACHE to a folder") from error
    return dataset
