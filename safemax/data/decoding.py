"""From the rows of tables to one Dataset of uint8 tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from safemax.data.class_names import differing_in_case
from safemax.data.columns import AUTO, find_columns, label_type
from safemax.data.dataset import Dataset, Split
from safemax.data.labels import LabelValues, number_labels
from safemax.data.pixels import Decoded, PixelOptions, read_image
from safemax.errors import InputError
from safemax.progress import bar

# Part of every cache file's key: a change of what decoding yields must change it.
VERSION = "2"
SHOW_PROGRESS_FROM = 5000  # images; fewer are decoded in a second or two
_SLICE = 50  # images that a thread decodes at a time: one by one, small ones cost more to hand out than to decode
# What Pillow raised on 180,000 damaged images of ten formats; anything else still ends in one line, without the row.
_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of one split.

    Args:
        split: train or test.
        place: of the file, for messages.
        schema: names and types of the columns, with Hugging Face's metadata where there are any.
        rows: their number.
        read: yields the values of the columns that it is given, some rows at a time.
        roots: folders that a row without bytes may name a file of.
    """

    split: str
    place: str
    schema: pa.Schema
    rows: int
    read: Callable[[list[str]], Iterable[list[list[Any]]]]
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a table beside its place.

    Args:
        image_column: name, or auto.
        label_column: name, or auto.
        pixels: how images become bytes.
    """

    image_column: str = AUTO
    label_column: str = AUTO
    pixels: PixelOptions = PixelOptions()


def decode(
    name: str,
    tables: Sequence[Table],
    options: ReadOptions,
    expected: frozenset[str] = frozenset(),
    notes: Sequence[str] = (),
) -> Dataset:
    """Decode the tables of a source, of which the first one of train names the columns and orders the classes.

    Args:
        name: of the dataset.
        tables: those of train and those of test, in order.
        options: see ReadOptions.
        expected: classes that must have images.
        notes: of the dataset, beside those of the images.

    Raises:
        InputError: an image cannot be decoded, or the data cannot be trained on; with the row.
    """
    first = next(table for table in tables if table.split == "train")
    image, label = find_columns(first.schema, options.image_column, options.label_column)
    types = [label_type(table.schema, label, table.place) for table in tables]
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    remarks: Counter[str] = Counter()
    parts = []
    with _Reader(options.pixels, sum(table.rows for table in tables)) as reader:
        for table, kind in zip(tables, types, strict=True):
            rows = images[table.split]
            decoded, values = reader.read(table, image, label, len(rows))
            parts.append(LabelValues(table.split, kind, values, len(rows)))
            rows += [each.pixels for each in decoded]
            remarks.update(remark for each in decoded for remark in each.remarks)
    for split, rows in images.items():
        if not rows:
            raise InputError("; ".join([f"the {split} split is empty", *notes]))
    class_names, labels = number_labels(parts, expected)
    stacked = _stack(list(images.values()))
    train, test = (Split(each, torch.from_numpy(labels[split])) for each, split in zip(stacked, images, strict=True))
    counted = [f"{count} of {len(train) + len(test)} images {remark}" for remark, count in remarks.items()]
    pairs = differing_in_case(class_names)
    counted += [f"the classes {one} and {other} differ only in case and are two classes" for one, other in pairs]
    return Dataset.of(name, train, test, class_names, [*notes, *counted])


class _Reader:
    """Decodes rows in threads, most of Pillow's decoders release Python's lock, and shows how long it will take."""

    def __init__(self, options: PixelOptions, total: int) -> None:
        self._options = options
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._bar = bar(
            shown=total >= SHOW_PROGRESS_FROM, total=total, desc="reading images", unit="image", mininterval=0.5
        )

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._pool.shutdown(cancel_futures=True)

    def read(self, table: Table, image: str, label: str, first_row: int) -> tuple[list[Decoded], list[Any]]:
        """Return the images and the stored labels of a table, whose first row has a number in its split."""
        if image not in table.schema.names:
            found = ", ".join(table.schema.names)
            raise InputError(f"{table.place} has no column {image!r}, which holds the images; found: {found}")
        decoded: list[Decoded] = []
        values: list[Any] = []
        for stored, labels in table.read([image, label]):
            start = first_row + len(decoded)
            places = [f"row {start + k} of {table.split}" for k in range(len(stored))]
            slices = [slice(k, k + _SLICE) for k in range(0, len(stored), _SLICE)]
            done = self._pool.map(lambda some: self._images(stored[some], places[some], table.roots), slices)  # noqa: B023
            decoded += [each for some in done for each in some]
            values += labels
            self._bar.update(len(stored))
        return decoded, values

    def _images(self, stored: Sequence[Any], places: Sequence[str], roots: tuple[Path, ...]) -> list[Decoded]:
        return [self._image(each, place, roots) for each, place in zip(stored, places, strict=True)]

    def _image(self, stored: Any, place: str, roots: tuple[Path, ...]) -> Decoded:
        content, path = _content(stored)
        if content is None and path is None:
            raise InputError(f"{place} has no image")
        source = content if content is not None else path if isinstance(path, Path) else _allowed(path, place, roots)
        place += f" ({path})" if path else ""
        try:
            return read_image(source, self._options)
        except InputError as error:
            raise InputError(f"the image in {place} {error}") from error
        except UnidentifiedImageError as error:
            raise InputError(f"the image in {place} does not decode (no known image format)") from error
        except _UNDECODABLE as error:
            raise InputError(f"the image in {place} does not decode ({type(error).__name__}: {error})") from error


def _content(stored: Any) -> tuple[bytes | None, Any]:
    """Return the bytes and the path of what an image column holds."""
    if isinstance(stored, bytes):
        return stored, None
    if isinstance(stored, (str, Path)):
        return None, stored
    if isinstance(stored, dict):
        return stored.get("bytes"), stored.get("path") or None
    return None, None


def _allowed(path: str, place: str, roots: tuple[Path, ...]) -> Path:
    """Return the file that a row names; InputError where it is outside the data: a table must not choose what is opened."""
    for root in roots:
        file = (root / path).resolve()
        if file.is_relative_to(root.resolve()) and file.is_file():
            return file
    raise InputError(
        f"{place} has no bytes but names the file {path}, which is not in the data's folder; store the bytes"
    )


def _stack(parts: list[list[np.ndarray]]) -> list[Tensor]:
    """Stack each split's images; among coloured ones a grey image becomes coloured."""
    sides = sorted({each.shape[1] for part in parts for each in part})
    if len(sides) > 1:
        raise InputError(f"images are of several sizes, {sides[0]} to {sides[-1]} pixels; pass size=PIXELS")
    channels = max(each.shape[0] for part in parts for each in part)
    shape = (channels, sides[0], sides[0])
    return [torch.from_numpy(np.stack([np.broadcast_to(each, shape) for each in part])).contiguous() for part in parts]
