"""From the rows of a table, as Hugging Face datasets opens them, to one Dataset of uint8 tensors."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from safemax.data.dataset import Dataset, Split
from safemax.errors import InputError

# Part of every cache file's key: a change of what decoding yields must change it.
VERSION = "1"
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
# What Pillow raised on 180,000 damaged images of ten formats; anything else still ends in one line, without the row.
_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode(name: str, splits: Mapping[str, Any], size: int | None, expected: frozenset[str] = frozenset()) -> Dataset:
    """Decode the train and the test split of a source, and find its image and its label column.

    Args:
        name: of the dataset.
        splits: tables of Hugging Face datasets by the split's name.
        size: side in pixels, see safemax.data.sources.load.
        expected: classes that must have images.

    Raises:
        InputError: an image cannot be decoded, or the data cannot be trained on; with the row.
    """
    parts = {split: splits[split] for split in train_and_test(splits)}
    features = next(iter(parts.values())).features or {}
    image, label = _columns(features)
    rows = [_rows(part, split, image, label, size) for split, part in parts.items()]
    labels = [np.array([label for _, label in part], dtype=np.int64) for part in rows]
    class_names = _class_names(labels[0], labels[1], getattr(features[label], "names", None), expected)
    train, test = (
        Split(images, torch.from_numpy(values))
        for images, values in zip(_stack([[pixels for pixels, _ in part] for part in rows]), labels, strict=True)
    )
    return Dataset.of(name, train, test, class_names)


def train_and_test(splits: Iterable[str]) -> tuple[str, str]:
    """Return the names of the split to train on and of the one to test on; InputError where one is missing."""
    known = {WORDS.get(name, name): name for name in sorted(splits)}
    train, test = known.get("train"), known.get("test", known.get("validation"))
    if train is None or test is None:
        missing = "train" if train is None else "test"
        raise InputError(f"no {missing} split; needed: train and test (or validation); found: {_list(known.values())}")
    return train, test


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """Return (C, H, W) uint8, square; 16-bit grey keeps its high byte."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L", "I") else "RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def _columns(features: Mapping[str, Any]) -> tuple[str, str]:
    """Find the image and the label column by feature type; a plain struct of bytes and path is an image, too."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    integers = [name for name, feature in features.items() if re.match("u?int", str(getattr(feature, "dtype", "")))]
    return _one("image", images, features), _one("label", named or integers, features)


def _one(kind: str, candidates: list[str], features: Iterable[str]) -> str:
    if kind in candidates or len(candidates) == 1:
        return kind if kind in candidates else candidates[0]
    if candidates:
        raise InputError(f"several {kind} columns ({_list(candidates)}); one is needed, or one named {kind!r}")
    needed = "images" if kind == "image" else "class labels or integers (an image folder: train/<class>/*.png)"
    raise InputError(f"no {kind} column; one of {needed} is needed; found: {_list(features)}")


def _rows(part: Any, split: str, image: str, label: str, size: int | None) -> list[tuple[np.ndarray, int]]:
    rows: list[tuple[np.ndarray, int]] = []
    for table in part.with_format("arrow").iter(1000):
        for stored, value in zip(table.column(image).to_pylist(), table.column(label).to_pylist(), strict=True):
            path = (stored or {}).get("path")
            place = f"row {len(rows)} of {split}" + (f" ({path})" if path else "")
            if value is None:
                raise InputError(f"{place} has no label")
            rows.append((_pixels(stored, place, size), value))
    if not rows:
        raise InputError(f"the {split} split is empty")
    return rows


def _pixels(stored: dict[str, Any] | None, place: str, size: int | None) -> np.ndarray:
    if not stored or (stored["bytes"] is None and stored["path"] is None):
        raise InputError(f"{place} has no image")
    try:
        with Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except _UNDECODABLE as error:
        raise InputError(f"the image in {place} does not decode ({type(error).__name__}: {error})") from error
    if size is None and upright.width != upright.height:
        raise InputError(f"the image in {place} is {upright.width}x{upright.height}, not square; pass size=PIXELS")
    return square(upright, size)


def _stack(parts: list[list[np.ndarray]]) -> list[Tensor]:
    """Stack each split's images; among coloured ones a grey image becomes coloured."""
    sides = sorted({each.shape[1] for part in parts for each in part})
    if len(sides) > 1:
        raise InputError(f"images are of several sizes, {sides[0]} to {sides[-1]} pixels; pass size=PIXELS")
    channels = max(each.shape[0] for part in parts for each in part)
    shape = (channels, sides[0], sides[0])
    return [torch.from_numpy(np.stack([np.broadcast_to(each, shape) for each in part])).contiguous() for part in parts]


def _class_names(
    train: np.ndarray, test: np.ndarray, names: list[str] | None, expected: frozenset[str]
) -> tuple[str, ...]:
    known = names or _numbers(train)
    for split, labels in (("train", train), ("test", test)):
        wrong = np.flatnonzero((labels < 0) | (labels >= len(known)))
        if len(wrong):
            raise InputError(f"label {labels[wrong[0]]} in row {wrong[0]} of {split} is not in 0..{len(known) - 1}")
    counts = np.bincount(train, minlength=len(known))
    empty = [name for name, count in zip(known, counts, strict=True) if not count] + sorted(expected - set(known))
    if empty:
        raise InputError(f"no training images in class {_list(repr(name) for name in empty)}; remove it or fill it")
    return tuple(known)


def _numbers(train: np.ndarray) -> list[str]:
    used = np.unique(train)
    if used[0] < 0:
        raise InputError(f"label {used[0]} in row {int(train.argmin())} of train is below 0")
    gaps = np.flatnonzero(used != np.arange(len(used)))
    if len(gaps):
        raise InputError(
            f"labels have no names and a gap: {gaps[0]} is missing, {used[-1]} is used; number them 0..K-1"
        )
    return [str(label) for label in used]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
