"""Which files and folders are for training and which ones for tests, by the words in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from safemax.errors import InputError

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
SHOWN = 3  # names of a listing in a note
T = TypeVar("T")


def word_of(path: Path) -> str | None:
    """Return the last word of a relative path that names a split, as it is written; None where there is none."""
    words = [word for word in re.split("[^A-Za-z]+", str(path)) if word.lower() in WORDS]
    return words[-1] if words else None


def group(named: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Group things by split.

    Args:
        named: the word that names the split, and the thing.

    Returns:
        By train, test and validation, as far as there are any.

    Raises:
        InputError: two words name one split, such as train and Training: one of the two would be left out or mixed in.
    """
    words: dict[str, str] = {}
    groups: dict[str, list[T]] = {}
    for word, thing in named:
        split = WORDS[word.lower()]
        if words.setdefault(split, word) != word:
            raise InputError(f"{words[split]} and {word} both name the {split} split; keep one, or rename the other")
        groups.setdefault(split, []).append(thing)
    return groups


def train_and_test(groups: Mapping[str, Sequence[T]]) -> tuple[dict[str, Sequence[T]], list[str]]:
    """Return the things of train and of test, and a note where a validation split is left out.

    Where there is no test, validation takes its place.

    Raises:
        InputError: train or test is missing.
    """
    test = "test" if "test" in groups else "validation"
    missing = [name for name, split in (("train", "train"), ("test", test)) if split not in groups]
    if missing:
        found = ", ".join(sorted(groups)) or "none"
        raise InputError(f"no {missing[0]} split; needed: train and test (or validation); found: {found}")
    unused = ["the validation split is not used: there is a test split"] * ("validation" in groups and test == "test")
    return {"train": groups["train"], "test": groups[test]}, unused


def skipped(paths: Sequence[Path], why: str) -> list[str]:
    """Return a note that counts skipped files and says why; none where there are none.

    >>> skipped([Path("a.txt"), Path("b.db")], "not images")
    ['skipped 2 files, which are not images: a.txt, b.db']
    """
    if not paths:
        return []
    names = [str(path) for path in paths[:SHOWN]] + ["..."] * (len(paths) > SHOWN)
    count = "1 file, which is" if len(paths) == 1 else f"{len(paths)} files, which are"
    return [f"skipped {count} {why}: {', '.join(names)}"]
