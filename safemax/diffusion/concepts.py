"""The classes of a model that is told them by text: a table of prompts, or one prompt made of each class name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safemax.diffusion.condition import Prompt, class_names, ordered
from safemax.errors import InputError, unknown

ROLES = ("forget", "retain", "held_out")
_COLUMNS = ("prompt", "name", "role", "images")


@dataclass(frozen=True)
class Concepts:
    """What a table of concepts says.

    Args:
        prompts: of all classes.
        forget: names of the classes to forget, in the table's order.
        images: the folder of a class's images, by name, where the table has one.
    """

    prompts: tuple[Prompt, ...]
    forget: tuple[str, ...] = ()
    images: dict[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the table's order."""
        return class_names(self.prompts)

    def in_order_of(self, names: Sequence[str]) -> tuple[Prompt, ...]:
        """Return the prompts in the order of a data set's classes.

        Raises:
            InputError: the table's classes are not those of the data.
        """
        if set(names) != set(self.names):
            raise InputError(
                f"the concepts are {', '.join(self.names)}, the classes of the data {', '.join(names)}; they must be the same"
            )
        return tuple(sorted(self.prompts, key=lambda each: names.index(each.name)))


def from_template(template: str, names: Sequence[str]) -> Concepts:
    """Return one prompt for each class name, such as "a photo of a {}"; InputError for a template without {}."""
    if template.count("{}") != 1:
        raise InputError(f"prompt = {template!r} is not allowed; it must contain {{}} once, in place of the class name")
    return Concepts(tuple(Prompt(template.replace("{}", name), name) for name in names))


def read(path: Path) -> Concepts:
    """Read a CSV file with the columns prompt, name, role (forget, retain or held_out) and, optionally, images.

    Rows of one name are paraphrases: training draws one of them for each image, but for those of the role held_out, which
    are only asked. A folder is found from the file's own.

    Raises:
        InputError: the file is missing, has other columns or values, or nothing or everything is to be forgotten.
    """
    rows = _rows(path)
    prompts: list[Prompt] = []
    roles: dict[str, str] = {}
    images: dict[str, Path] = {}
    for number, row in enumerate(rows, start=2):
        role, name = row["role"] or "retain", row["name"] or row["prompt"]
        if role not in ROLES:
            raise InputError(f"{path}, line {number}: {unknown('role', role, ROLES)}")
        prompts.append(Prompt(row["prompt"], name, role == "held_out"))
        if role != "held_out" and roles.setdefault(name, role) != role:
            raise InputError(f"{path}, line {number}: {name!r} is both to be forgotten and to be retained")
        if row["images"]:
            images[name] = path.parent / row["images"]
    found = Concepts(ordered(prompts), tuple(name for name, role in roles.items() if role == "forget"), images)
    if not 0 < len(found.forget) < len(found.names):
        raise InputError(
            f"{path}: {len(found.forget)} of {len(found.names)} classes have the role forget; some must, not all"
        )
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"concepts = {path} cannot be read: {str(error).splitlines()[0]}") from error
    columns = reader.fieldnames or []
    if "prompt" not in columns or not set(columns) <= set(_COLUMNS):
        raise InputError(f"concepts = {path} has the columns {', '.join(columns)}; they are prompt, name, role, images")
    return [{name: (row.get(name) or "").strip() for name in _COLUMNS} for row in rows]
