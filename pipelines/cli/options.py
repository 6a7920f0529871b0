"""Parameters that several pipelines share: the data, the classes to forget, the model to correct, the alias to move."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from safemax.errors import InputError, note
from safemax.knobs import check, knob

if TYPE_CHECKING:
    from safemax.data.dataset import Dataset


SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid")
_NOT_IN_A_NAME = re.compile(r"[/:.%\"'\s]+")  # MLflow refuses them in a registered model's name, or its filters break


def product_name(name: str, dataset_name: str) -> str:
    """Return the name of a product's registered model and experiment; InputError if MLflow would refuse it.

    Args:
        name: what the user gave; auto is DATA-ddpm, with a - for each character that MLflow refuses.
        dataset_name: of the data.
    """
    if name != "auto":
        return check_model_name("name", name)
    return _NOT_IN_A_NAME.sub("-", f"{dataset_name}-ddpm")


def check_model_name(parameter: str, name: str) -> str:
    """Return the name of a registered model, given as a parameter; InputError if MLflow would refuse it."""
    if not name or _NOT_IN_A_NAME.search(name):
        raise InputError(f"{parameter} = {name!r} is not allowed; a name has no / : . %, quotes or spaces")
    return name


@dataclass(frozen=True)
class DataOptions:
    """The real images."""

    data: str = knob(
        "digits", "digits, cifar10, fashion_mnist, mnist, a Hugging Face id, or a folder of Parquet files or of images"
    )
    size: int = knob(0, "side in pixels that images are resized to; 0 keeps their size", bounds=(0, 1024))
    label_column: str = knob("auto", "column of the labels; auto is label, or the only one named like a label")
    image_column: str = knob("auto", "column of the images; auto is image, or the only one that holds images")
    background: str = knob("white", "what transparent pixels are composited on", choices=("white", "black"))
    pixel_range: str = knob(
        "auto", "LOW,HIGH: values of black and white in grey images of more than 8 bits, e.g. 0,65535"
    )
    flip: str = knob(
        "auto", "mirror images in training, and train the judges for it; auto: if they look like photographs",
        choices=("auto", "true", "false"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    def load(self, *, quiet: bool = False) -> Dataset:
        """Return the data set, and tell what was skipped or assumed when it was read, unless `quiet`."""
        from safemax.data.sources import load

        options = {name: value for name, value in asdict(self).items() if name not in ("data", "size")}
        dataset = load(self.data, size=self.size or None, **options)
        for each in () if quiet else dataset.notes:
            note(f"data = {self.data}: {each}")
        return dataset


@dataclass(frozen=True)
class PlanOptions:
    """Before the work."""

    plan: bool = knob(False, "say what would be done and how long that takes on this machine, and do nothing")


@dataclass(frozen=True)
class ForgetOptions:
    """The classes to forget."""

    forget: str = knob("0", "classes by name or index, separated by commas: airplane, or 3,5")


@dataclass(frozen=True)
class ModelOptions:
    """The model to correct, and the name that its versions and its experiment carry."""

    model: str = knob("base", "base (the registered one), a folder, a Hugging Face id, or models:/NAME@ALIAS")
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")
    schedule: str = knob("auto", "noise schedule of a folder without a scheduler", choices=("auto", *SCHEDULES))
    prompt: str = knob(
        "", "of a text model: what asks for a class, with its name in place of {}, such as a photo of a {}", prose=True
    )
    concepts: str = knob(
        "none", "of a text model: CSV file of prompts (columns prompt, name, role and images) that name its classes"
    )
    concept_images: int = knob(
        200, "images that the model draws of each concept without images, where no data are given", bounds=(10, 100_000)
    )

    def __post_init__(self) -> None:
        check(self)

    def name_for(self, dataset: Dataset) -> str:
        """Return the name of the product model."""
        return product_name(self.name, dataset.name)


@dataclass(frozen=True)
class AliasOptions:
    """The alias to move."""

    model: str = knob("digits-ddpm", "registered model")
    alias: str = knob("champion", "alias to move: letters, digits, - and _")
    expect: str = knob("any", "version that the alias must point to now, else nothing changes: a number, none, or any")
    why: str = knob("", "the reason, for the record; up to 1000 characters", prose=True)
    dry_run: bool = knob(False, "show what would happen and change nothing")

    def __post_init__(self) -> None:
        check(self)
        check_model_name("model", self.model)
        if not re.fullmatch(r"(?!latest$|v\d+$)[A-Za-z0-9_-]{1,100}", self.alias):
            raise InputError(f"alias = {self.alias!r} is not allowed; letters, digits, - and _, not latest or v1")
        if not re.fullmatch(r"any|none|[0-9]{1,9}", self.expect):
            raise InputError(f"expect = {self.expect!r} is not allowed; it is a version's number, none, or any")
        if len(self.why) > 1000:
            raise InputError(f"why has {len(self.why)} characters; up to 1000 are allowed")

    def validate(self, holder: str | None) -> None:
        """Raise InputError if the alias points to another version than `expect`.

        Args:
            holder: number of the version that the alias points to now, None where it points to none.
        """
        current = holder or "none"
        if self.expect not in ("any", current):
            raise InputError(f"expect = {self.expect}, but {self.alias} points to {current}; nothing was changed")
