"""Folders of image files: SPLIT/CLASS/.../image, or SPLIT/metadata.csv that says the class of each file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from safemax.data.class_names import refuse_lookalikes
from safemax.data.columns import AUTO, LABEL_NAMES
from safemax.data.decoding import Table
from safemax.data.pixels import suffixes
from safemax.data.splits import WORDS, group, skipped, train_and_test
from safemax.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl")
_HEIC = (".heic", ".heif")
_IMAGE, _LABEL, _FILE_NAME = "image", "label", "file_name"
_ROWS = 1000  # decoded at a time
_SCHEMA = pa.schema([(_IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (_LABEL, pa.string())])


@dataclass(frozen=True)
class ImageFolder:
    """What a folder of images holds.

    Args:
        tables: of train and of test; their labels are the names of the classes.
        classes: names of the class folders, with or without images.
        notes: what was skipped, and why.
    """

    tables: list[Table]
    classes: frozenset[str]
    notes: list[str]


def scan(folder: Path, files: Sequence[Path], label_column: str = AUTO) -> ImageFolder:
    """Find the splits, the classes and the images of a folder, without opening an image.

    The folder directly in the split's names the class, also of images in folders further in.

    Args:
        folder: the data.
        files: all files in it, sorted, without hidden ones.
        label_column: of metadata files; auto finds it.

    Raises:
        InputError: a split is missing or there twice, one has metadata and the other one not, or there are no classes.
    """
    groups = group((top.name, top) for top in sorted(folder.iterdir()) if top.is_dir() and top.name.lower() in WORDS)
    tops, notes = train_and_test(groups)
    splits = {split: _Split(split, each[0], files) for split, each in tops.items()}
    known = {path for split in splits.values() for path in split.files}
    outside = [path.relative_to(folder) for path in files if path not in known and path.suffix.lower() in suffixes()]
    if "validation" in groups:
        outside = [path for path in outside if path.parts[0].lower() not in WORDS]
    notes += skipped(outside, "in no folder of a split")
    if _use_metadata(splits, label_column):
        notes += [note for split in splits.values() for note in split.undescribed(folder)]
        return ImageFolder([split.described() for split in splits.values()], frozenset(), notes)
    if label_column != AUTO:
        raise InputError(
            f"label_column = {label_column!r} is not allowed: the folders name the classes of these images"
        )
    notes += [note for split in splits.values() for note in split.notes(folder)]
    classes = frozenset(name for split in splits.values() for name in split.classes)
    refuse_lookalikes(classes)  # before an image is decoded
    if len(classes) == 1:
        raise InputError(_only_class(splits["train"], *classes))
    return ImageFolder([split.by_folder() for split in splits.values()], classes, notes)


class _Split:
    """One split's folder."""

    def __init__(self, split: str, top: Path, files: Sequence[Path]) -> None:
        self.split, self.top = split, top
        # Path.relative_to takes seconds for the files of a large data set.
        self._depth, within = len(top.parts), f"{top}{os.sep}"
        self.files = [path for path in files if str(path).startswith(within)]
        self.metadata = [top / name for name in METADATA if (top / name) in self.files]
        self.images = [path for path in self.files if path.suffix.lower() in suffixes()]
        self.labelled = [path for path in self.images if path.parent != top]
        self.classes = {each.name for each in top.iterdir() if each.is_dir() and not each.name.startswith(".")}

    def class_of(self, path: Path) -> str:
        return path.parts[self._depth]

    def by_folder(self) -> Table:
        """Return the table of the images in class folders."""
        if not self.labelled and self.images:
            raise InputError(
                f"{self.top.name} has images but no class folders; needed: {self.top.name}/CLASS/*.png, "
                f"or {self.top.name}/metadata.csv with the columns file_name and label"
            )
        labels = [self.class_of(path) for path in self.labelled]
        return _table(self.split, self.top, _SCHEMA, [self.labelled, labels], [_IMAGE, _LABEL])

    def described(self) -> Table:
        """Return the table of the images that the metadata file names."""
        frame = read_metadata(self.metadata[0])
        others = frame.drop(columns=[name for name in (_FILE_NAME, _IMAGE) if name in frame])
        try:
            schema = pa.Schema.from_pandas(others, preserve_index=False).append(_SCHEMA.field(_IMAGE))
        except pa.ArrowException as error:
            raise InputError(f"{self.metadata[0]} has a column of several types: {error}") from error
        columns = [frame[_FILE_NAME].tolist(), *(others[name].tolist() for name in others)]
        return _table(self.split, self.metadata[0], schema, columns, [_IMAGE, *map(str, others)], (self.top,))

    def undescribed(self, folder: Path) -> list[str]:
        """Return a note on the images that the metadata file does not name."""
        named = {os.path.normpath(self.top / str(name)) for name in read_metadata(self.metadata[0])[_FILE_NAME]}
        rest = [path.relative_to(folder) for path in self.images if os.path.normpath(path) not in named]
        return skipped(rest, f"not named in {self.top.name}/{self.metadata[0].name}")

    def notes(self, folder: Path) -> Iterator[str]:
        """Yield what is skipped, and what is deeper than a class folder."""
        rest = [path for path in self.files if path.suffix.lower() not in suffixes()]
        remedy = " (HEIC needs pip install pillow-heif)" if any(path.suffix.lower() in _HEIC for path in rest) else ""
        yield from skipped([path.relative_to(folder) for path in rest], f"no images that can be read here{remedy}")
        stray = [path.relative_to(folder) for path in self.images if path.parent == self.top]
        yield from skipped(stray, "in no class folder") if self.labelled else ()
        deep = [path for path in self.labelled if len(path.parts) > self._depth + 2]
        if deep:
            example = deep[0].parent.relative_to(folder)
            name = self.class_of(deep[0])
            yield f"{len(deep)} images of {self.split} are in folders within class folders: {example} is of class {name}"


def read_metadata(path: Path) -> pd.DataFrame:
    """Read a metadata file; InputError where it is damaged or has no column file_name."""
    try:
        # As text: the class 007 keeps its zeros, and NA is a name.
        as_text = {"dtype": str, "keep_default_na": False}
        frame = pd.read_csv(path, **as_text) if path.suffix == ".csv" else pd.read_json(path, lines=True, dtype=False)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if _FILE_NAME not in frame:
        raise InputError(f"{path} has no column {_FILE_NAME}; found: {', '.join(map(str, frame))}")
    return frame


def _use_metadata(splits: dict[str, _Split], label_column: str) -> bool:
    """Say whether metadata files give the labels; InputError where one split has them and the other one not."""
    with_labels = {split: each for split, each in splits.items() if each.metadata and _has_label(each, label_column)}
    if not with_labels:
        return False
    without = [each.top.name for split, each in splits.items() if split not in with_labels]
    if without:
        (only,) = with_labels.values()
        raise InputError(
            f"{only.top.name}/{only.metadata[0].name} gives labels, and {without[0]} has no such file; "
            "give both splits one, or remove it and name the classes by folders"
        )
    return True


def _has_label(split: _Split, label_column: str) -> bool:
    names = {str(name) for name in read_metadata(split.metadata[0])}
    if label_column != AUTO:
        return label_column in names
    return any(name.lower() in LABEL_NAMES for name in names)


def _table(
    split: str, place: Path, schema: pa.Schema, columns: list[list[Any]], names: list[str], roots: tuple[Path, ...] = ()
) -> Table:
    values = dict(zip(names, columns, strict=True))

    def read(chosen: list[str]) -> Iterator[list[list[Any]]]:
        for start in range(0, len(columns[0]), _ROWS):
            yield [values[name][start : start + _ROWS] for name in chosen]

    return Table(split, place.name, schema, len(columns[0]), read, roots)


def _only_class(train: _Split, name: str) -> str:
    inner = sorted({path.relative_to(train.top).parts[1] for path in train.labelled if path.parent.parent != train.top})
    hint = f" (it has the folders {', '.join(inner[:3])}: if they are the classes, move them up)" if inner else ""
    return f"the only class is {name!r}{hint}; a model needs another one to retain"
