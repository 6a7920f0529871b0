"""From the values of label columns to the labels 0..K-1: names decide, never positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safemax.data.class_names import is_variant, refuse_lookalikes, sort_names
from safemax.data.columns import CLASS, NUMBER, LabelType
from safemax.errors import InputError


@dataclass(frozen=True)
class LabelValues:
    """The label column of one file.

    Args:
        split: train or test.
        type: of the column.
        values: as stored.
        first_row: number of the first one among the rows of the split.
    """

    split: str
    type: LabelType
    values: Sequence[Any]
    first_row: int = 0

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"row {self.first_row + row} of {self.split}"

    def names(self) -> list[str]:
        """Return the name of each row's class; a number names itself."""
        return [self._name(row, value) for row, value in enumerate(self.values)]

    def _name(self, row: int, value: Any) -> str:
        if value is None or value != value or value == "":
            raise InputError(f"{self.place(row)} has no label")
        if isinstance(value, (str, bool)):
            return str(value).lower() if isinstance(value, bool) else value
        if not float(value).is_integer():
            raise InputError(
                f"label {value} in {self.place(row)} is not a whole number; choose another column with label_column=NAME"
            )
        number = int(value)
        if self.type.kind != CLASS:
            return str(number)
        if not 0 <= number < len(self.type.names):
            raise InputError(f"label {number} in {self.place(row)} is not in 0..{len(self.type.names) - 1}")
        return self.type.names[number]


def number_labels(
    parts: Sequence[LabelValues], expected: Iterable[str] = ()
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Number the classes of a data set.

    The order is that of the ClassLabel of train's first file; numbers and text are sorted. Every other file, whatever
    the order of its own names, is mapped by name.

    Args:
        parts: the label columns of all files, in the order of their rows.
        expected: names of classes that must have images.

    Returns:
        The names of the classes, and the labels (int64) of each split.

    Raises:
        InputError: a row without a label or with an unknown one, a class without training images, or two names that look the
            same.
    """
    names = [part.names() for part in parts]
    train = {name for part, each in zip(parts, names, strict=True) if part.split == "train" for name in each}
    known = _order(parts, train)
    refuse_lookalikes({*known, *expected})
    empty = [name for name in known if name not in train] + sorted(set(expected) - set(known))
    if empty:
        twin = next((name for name in known if name not in empty and is_variant(name, empty[0])), None)
        remedy = f"it differs from {twin!r} only in case: rename one" if twin else "remove it or fill it"
        raise InputError(f"no training images in class {', '.join(map(repr, empty))}; {remedy}")
    if len(known) == 1:
        raise InputError(f"the only class is {known[0]!r}; a model needs another one to retain")
    labels: dict[str, list[int]] = {"train": [], "test": []}
    index = {name: k for k, name in enumerate(known)}
    for part, each in zip(parts, names, strict=True):
        labels[part.split] += _numbered(part, each, index)
    return tuple(known), {split: np.array(each, dtype=np.int64) for split, each in labels.items()}


def _order(parts: Sequence[LabelValues], train: set[str]) -> list[str]:
    kinds = [part.type for part in parts if part.split == "train"]
    if kinds[0].kind == CLASS:
        return list(kinds[0].names)
    if all(each.kind == NUMBER for each in kinds):
        _check_numbers(parts)
    return sort_names(train)


def _check_numbers(parts: Sequence[LabelValues]) -> None:
    """Raise InputError if the numbers in train are not 0..K-1."""
    used = set()
    for part in parts:
        for row, value in enumerate(part.values if part.split == "train" else ()):
            if value < 0:
                raise InputError(f"label {value} in {part.place(row)} is below 0")
            used.add(int(value))
    gap = next((k for k in range(len(used)) if k not in used), None)
    if gap is not None:
        raise InputError(f"labels have no names and a gap: {gap} is missing, {max(used)} is used; number them 0..K-1")


def _numbered(part: LabelValues, names: list[str], index: dict[str, int]) -> list[int]:
    for row, name in enumerate(names):
        if name in index:
            continue
        if part.type.kind == NUMBER and set(index) == set(map(str, range(len(index)))):
            raise InputError(f"label {name} in {part.place(row)} is not in 0..{len(index) - 1}")
        twin = next((each for each in index if is_variant(each, name)), None)
        hint = " (a number without a name beside classes with names)" if part.type.kind == NUMBER else ""
        hint = f" (train has {ascii(twin)}: give both one name)" if twin else hint
        raise InputError(f"label {name!r} in {part.place(row)}{hint} is no class of train; known: {', '.join(index)}")
    return [index[name] for name in names]
