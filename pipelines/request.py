"""What a user may ask of every pipeline: the data, the classes to forget, the model to correct and its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safemax.knobs import check, knob

if TYPE_CHECKING:
    from safemax.data import Dataset


@dataclass(frozen=True)
class Data:
    """The real images."""

    data: str = knob(
        "digits", "digits, cifar10, fashion_mnist, mnist, a Hugging Face id, or a folder of Parquet files or images"
    )
    size: int = knob(0, "side in pixels that images are resized to; 0 keeps theirs", bounds=(0, 1024))

    def __post_init__(self) -> None:
        check(self)

    def load(self) -> Dataset:
        """Return the data set."""
        from safemax.data import load

        return load(self.data, size=self.size or None)


@dataclass(frozen=True)
class Forget:
    """The classes to forget."""

    forget: str = knob("0", "classes by name or index, separated by commas: airplane, or 3,5")


@dataclass(frozen=True)
class Model:
    """The model to correct, and the name that its versions and its experiment carry."""

    model: str = knob("base", "base (the registered one), a folder, a Hugging Face id, or models:/NAME@ALIAS")
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")

    def name_for(self, dataset: Dataset) -> str:
        """Return the name of the product model."""
        return f"{dataset.name}-ddpm" if self.name == "auto" else self.name
