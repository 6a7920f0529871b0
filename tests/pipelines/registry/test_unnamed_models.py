"""What the labels of a model without class names are taken for is the number that names a class, or it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.registry.lineage import agree_on_classes
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_models


def unnamed() -> Diffusion:
    """Return a model of three classes that states no names."""
    diffusion = tiny_models.diffusion()
    diffusion.class_names, diffusion.names_are_stated = ("0", "1", "2"), False
    return diffusion


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("0", "1", "2"), "its labels 0 to 2 are read as the classes of these numbers"),
        (("cat", "dog", "emu"), "positions in the data's list of classes: 0 is cat, 1 is dog, 2 is emu"),
        (("01", "02", "03"), "positions in the data's list of classes: 0 is 01, 1 is 02, 2 is 03"),
    ],
)
def test_a_model_without_names_takes_those_of_the_data_and_says_so(
    names: tuple[str, ...], words: str, recwarn: pytest.WarningsRecorder
) -> None:
    diffusion = unnamed()
    for _ in range(2):
        agree_on_classes(diffusion, replace(tiny_models.dataset(), class_names=names))
    assert diffusion.class_names == names
    (line,) = (str(each.message) for each in recwarn.list)
    assert line.startswith("the model has no class names; ")
    assert words in line


def test_numbers_in_another_order_are_refused() -> None:
    with pytest.raises(InputError, match="label 0 of the data is the class named '2'"):
        agree_on_classes(unnamed(), replace(tiny_models.dataset(), class_names=("2", "1", "0")))


def test_a_model_with_names_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    agree_on_classes(tiny_models.diffusion(), tiny_models.dataset())
    assert not recwarn.list
