"""A class split says of every class whether it is forgotten now, was forgotten earlier, or is retained."""

from __future__ import annotations

import pytest

from safemax.data.class_split import ClassSplit
from safemax.errors import InputError
from tests.support import tiny_models

NAMES = ("a", "b", "c", "d", "e")


def test_every_class_has_one_part() -> None:
    split = ClassSplit.of(NAMES, forget=(3, 0), forgotten=("e", "b"))
    assert (split.forget, split.forgotten_earlier, split.retained) == ((3, 0), (4, 1), (2,))
    assert split.all_forgotten == (3, 0, 4, 1)


def test_a_class_that_is_forgotten_again_counts_as_forgotten_now() -> None:
    split = ClassSplit.of(NAMES, forget=(1,), forgotten=("b", "c"))
    assert (split.forget, split.forgotten_earlier, split.retained) == ((1,), (2,), (0, 3, 4))


def test_a_forgotten_class_that_the_data_does_not_have_is_an_error() -> None:
    with pytest.raises(InputError, match="unknown class 'nobody'"):
        ClassSplit.of(NAMES, forget=(1,), forgotten=("nobody",))


def test_what_was_forgotten_earlier_is_not_counted() -> None:
    images = tiny_models.split()
    counted = ClassSplit.of(("a", "b", "c"), forget=(0,), forgotten=("b",)).counted(images)
    assert counted.labels.unique().tolist() == [0, 2]
    assert len(counted) == int((images.labels != 1).sum())


@pytest.mark.parametrize(
    ("forget", "forgotten", "count"), [((0,), (), 7), ((0,), ("b", "c"), 21), ((0, 3), ("b",), 10)]
)
def test_a_class_forgotten_earlier_is_drawn_as_often_as_one_forgotten_now(
    forget: tuple[int, ...], forgotten: tuple[str, ...], count: int
) -> None:
    # 7 images for one class: 7 * 3 / 1 for three; 7 for two classes: 7 * 3 // 2 = 10 for three.
    assert ClassSplit.of(NAMES, forget, forgotten).scaled(7) == count
