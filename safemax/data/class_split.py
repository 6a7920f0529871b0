"""The classes of a data set, split by what a correction does with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from safemax.errors import unknown


class Labelled(Protocol):
    """Images, samples or features with labels."""

    def without(self, classes: tuple[int, ...], /) -> Self:
        """Return the part with other labels."""
        ...


T = TypeVar("T", bound=Labelled)


@dataclass(frozen=True)
class ClassSplit:
    """Which classes a correction forgets, which ones its base has forgotten before, and which ones it must retain.

    Args:
        forget: labels to forget now.
        forgotten_earlier: labels that the model to correct has forgotten, without those in `forget`. They are neither
            trained on nor counted as forgotten or retained, and they are tested again.
        retained: all other labels.
    """

    forget: tuple[int, ...]
    forgotten_earlier: tuple[int, ...]
    retained: tuple[int, ...]

    @classmethod
    def of(cls, class_names: Sequence[str], forget: Iterable[int], forgotten: Iterable[str] = ()) -> ClassSplit:
        """Return the split.

        Args:
            class_names: of the data set, by label.
            forget: labels to forget now.
            forgotten: names of all classes that the model to correct has forgotten so far.

        Raises:
            InputError: the data set has no class of such a name.

        >>> ClassSplit.of(("cat", "dog", "bird"), forget=(0,), forgotten=("dog",))
        ClassSplit(forget=(0,), forgotten_earlier=(1,), retained=(2,))
        """
        now, before = tuple(forget), tuple(forgotten)
        missing = [name for name in before if name not in class_names]
        if missing:
            raise unknown("class", missing[0], class_names)
        earlier = tuple(k for k in map(class_names.index, before) if k not in now)
        retained = tuple(k for k in range(len(class_names)) if k not in (*now, *earlier))
        return cls(now, earlier, retained)

    @property
    def all_forgotten(self) -> tuple[int, ...]:
        """Labels that the corrected model must not know."""
        return (*self.forget, *self.forgotten_earlier)

    def counted(self, labelled: T) -> T:
        """Return a training split, samples or reference features without the classes that were forgotten earlier."""
        return labelled.without(self.forgotten_earlier)

    def scaled(self, count: int) -> int:
        """Return how many images `all_forgotten` needs where `forget` has `count`: as many a class.

        >>> ClassSplit(forget=(0,), forgotten_earlier=(1, 2), retained=()).scaled(100)
        300
        """
        return count * len(self.all_forgotten) // len(self.forget)
