"""Names of classes as people write them: numbers mean numbers, whatever their zeros in front and their order in a list."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from safemax.errors import InputError, unknown

SHOWN = 20  # classes of a listing in a message


def as_number(name: str) -> int | None:
    """Return the number that a name writes in the digits 0 to 9, None for any other name.

    >>> as_number("07"), as_number("seven"), as_number("-7")
    (7, None, None)
    """
    return int(name) if name.isascii() and name.isdigit() else None


def plain(name: str) -> str:
    """Return a class name as it is compared: without case, underscores and surrounding blanks."""
    return " ".join(name.replace("_", " ").split()).lower()


def sort_names(names: Iterable[str]) -> list[str]:
    """Sort names: by value where all of them are numbers, else as text.

    >>> sort_names({"10", "9", "2"}), sort_names({"b10", "b9", "2"})
    (['2', '9', '10'], ['2', 'b10', 'b9'])
    """
    names = sorted(names)
    if any(as_number(name) is None for name in names):
        return names
    return sorted(names, key=int)


def refuse_lookalikes(names: Iterable[str]) -> None:
    """Raise InputError for two names that look the same: they differ in blanks, invisible characters or the form of Unicode.

    >>> refuse_lookalikes(["cat", "Cat", "c at"])
    """
    first: dict[str, str] = {}
    for name in sorted(set(names)):
        one = first.setdefault(_look(name), name)
        if one != name:
            raise InputError(
                f"the classes {ascii(one)} and {ascii(name)} differ only in blanks, invisible characters or the form of Unicode; "
                "give both one name"
            )


def differing_in_case(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that a person may have meant for one, since they differ only in case; single letters are not.

    >>> list(differing_in_case(["dog", "Dog", "a", "A"]))
    [('Dog', 'dog')]
    """
    first: dict[str, str] = {}
    for name in sorted(set(names)):
        one = first.setdefault(name.casefold(), name)
        if one != name and len(name) > 1:
            yield one, name


def is_variant(name: str, other: str) -> bool:
    """Return whether two names differ only in case, blanks, invisible characters or the form of Unicode."""
    return _look(name).casefold() == _look(other).casefold()


def _look(name: str) -> str:
    """Return what is seen of a name: composed characters, single blanks, none at the ends, nothing invisible."""
    visible = "".join(each for each in unicodedata.normalize("NFC", name) if unicodedata.category(each) != "Cf")
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def parse_classes(text: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Read `forget`: class names or indices, separated by commas.

    A name wins over a number, and a name may contain commas where it is the only one. A number means the class whose
    name has that value (1 means 01). Where names are not all numbers, any other number is an index.

    Returns:
        Sorted indices, each once.

    Raises:
        InputError: a class is unknown, a number fits several names, none is given, or none would be left to retain.
    """
    names = list(class_names)
    items = [text.strip()] if text.strip() in names else [item.strip() for item in text.split(",")]
    if not all(items):
        raise InputError(f"forget = {text!r} names no class; known: {', '.join(names)}")
    chosen = tuple(sorted({_index(item, names) for item in items}))
    if len(chosen) == len(names):
        raise InputError(f"forget = {text!r} names every class; at least one of {', '.join(names)} must be retained")
    return chosen


def _index(item: str, names: list[str]) -> int:
    if item in names:
        return names.index(item)
    number = as_number(item)
    values = [as_number(name) for name in names]
    matches = [k for k, value in enumerate(values) if value is not None and value == number]
    if len(matches) > 1:
        raise InputError(f"class {item!r} may be {' or '.join(repr(names[k]) for k in matches)}; write the name")
    if matches:
        return matches[0]
    if number is not None and number < len(names) and None in values:
        return number
    raise unknown("class", item, names)


def label_meaning(class_names: Sequence[str]) -> str:
    """Say which class a label of a model without class names is taken for.

    Returns:
        A sentence: labels mean the numbers that name the classes, or positions in the list of names.

    Raises:
        InputError: the names are the numbers 0 to K - 1, but in another order: label 1 would not mean the class named 1.
    """
    numbers = [as_number(name) for name in class_names]
    if numbers == list(range(len(numbers))):
        return f"its labels 0 to {len(numbers) - 1} are read as the classes of these numbers"
    if set(numbers) == set(range(len(numbers))):
        k = next(k for k, number in enumerate(numbers) if k != number)
        raise InputError(
            f"label {k} of the data is the class named {class_names[k]!r}, and a model without class names numbers its "
            "classes; sort the names of the data by value, or write class_names into the model's model_index.json"
        )
    shown = [f"{k} is {name}" for k, name in enumerate(class_names[:SHOWN])] + ["..."] * (len(class_names) > SHOWN)
    return f"its labels are read as positions in the data's list of classes: {', '.join(shown)}"
