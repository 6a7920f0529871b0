"""Labelled images in memory, and the cache file that holds them, verified by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from safemax.data.class_names import refuse_lookalikes
from safemax.errors import InputError
from safemax.storage import cache

COLOUR = 16  # levels between the channels of a pixel: JPEG gives grey photographs a few
MANY = 1024  # distinct colours of a large photograph at least; 95 % of CIFAR-10 have over 600 in 1,024 pixels


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory, or their latents.

    Args:
        images: (N, C, H, W) uint8, C is 1 or 3, H = W; or float16 latents.
        labels: (N,) int64 in [0, K).
        mirrored: the latents of the mirrored images, where training is to draw them too.
    """

    images: Tensor
    labels: Tensor
    mirrored: Tensor | None = None

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
        notes: sentences about what was skipped or assumed when the images were read.
        options: parameters that differ from their defaults, such as background, for the record.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    natural: bool
    notes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, train: Split, test: Split, class_names: Sequence[str], notes: Sequence[str] = ()) -> Dataset:
        """Return a dataset that is natural where `looks_natural` says so of its training images.

        A comma in a name becomes a semicolon: commas separate the classes that a user names.

        Raises:
            InputError: two classes have one name, or names that look the same.
        """
        names = tuple(each.replace(",", ";") for each in class_names)
        if len(set(names)) < len(names):
            twice = next(each for each in names if names.count(each) > 1)
            raise InputError(f"two classes are named {twice!r} (a comma counts as a semicolon); rename one")
        refuse_lookalikes(names)
        return cls(name, train, test, names, looks_natural(train.images), tuple(notes))

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def params(self) -> dict[str, object]:
        """Return the options as parameters of a run: data.background, ..."""
        return {f"data.{name}": value for name, value in self.options.items()}

    @property
    def flip_facts(self) -> dict[str, bool]:
        """Return what decides trained work beside the digest: whether training mirrors, where the user decided it."""
        return {"flip": self.natural} if "flip" in self.options else {}

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of pixels, labels, shapes and class names; the dataset's own name and location do not count."""
        sha = hashlib.sha256(json.dumps(self.class_names).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


def looks_natural(images: Tensor) -> bool:
    """Say whether images are like photographs, which may be mirrored: most of them have colour and many shades.

    Of up to 256 images, spread over all, more than half must have a pixel whose channels differ by more than COLOUR and
    more distinct colours than a quarter of their pixels, or than MANY. Scans, drawings and text are not natural; nor
    are photographs without colour, which cannot be told from scans.

    Args:
        images: (N, C, H, W) uint8.
    """
    if images.shape[1] == 1:
        return False
    some = images[:: -(-len(images) // 256)]
    coloured = (some.amax(1).int() - some.amin(1)).flatten(1).amax(1) > COLOUR
    packed = (some.int() * torch.tensor([65536, 256, 1], dtype=torch.int32).view(3, 1, 1)).sum(1).flatten(1)
    shades = torch.tensor([len(each.unique()) for each in packed])
    natural = coloured & (shades > min(packed.shape[1] // 4, MANY))
    return bool(natural.float().mean() > 0.5)


def load_cached(path: Path, name: str) -> Dataset | None:
    """Read what `save_cached` wrote; None where there is no file or where it is damaged."""
    tensors = cache.load_tensors(path)
    if tensors is None:
        return None
    train, test = (Split(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in ("train", "test"))
    class_names, notes = (cache.tensor_to_json(tensors[each]) for each in ("class_names", "notes"))
    return Dataset.of(name, train, test, class_names, notes)


def save_cached(dataset: Dataset, path: Path) -> Dataset:
    """Write a dataset as one safetensors file, whole or not at all, and return it; InputError where the place cannot be written."""
    tensors = {
        f"{name}.{field}": getattr(split, field)
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for field in ("images", "labels")
    }
    try:
        texts = {"class_names": cache.json_to_tensor(dataset.class_names), "notes": cache.json_to_tensor(dataset.notes)}
        cache.save_tensors(path, {**tensors, **texts})
    except OSError as error:
        raise InputError(f"cannot write the cache {path} ({error.strerror}); set SAFEMAX_CACHE to a folder") from error
    return dataset
