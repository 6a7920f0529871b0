"""A package of one class a file is found whole, and a file that breaks the rule is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safemax.plugins import classes_in

BASE = "class Animal:\n    pass\n"
ONE = "from zoo.base import Animal\n\nclass {name}(Animal):\n    pass\n"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an interface and one class."""
    monkeypatch.syspath_prepend(tmp_path)
    for module in [each for each in sys.modules if each.partition(".")[0] == "zoo"]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "base.py").write_text(BASE)
    (tmp_path / "zoo" / "cat.py").write_text(ONE.format(name="Cat"))
    return tmp_path / "zoo"


def classes(zoo: Path) -> dict[str, type]:
    from zoo.base import Animal  # the fixture wrote it

    return classes_in("zoo", [str(zoo)], Animal, skip=("base",))


def test_a_new_file_is_found_by_its_name(zoo: Path) -> None:
    (zoo / "big_dog.py").write_text("from zoo.cat import Cat\n" + ONE.format(name="BigDog"))
    assert {name: each.__name__ for name, each in classes(zoo).items()} == {"big_dog": "BigDog", "cat": "Cat"}


@pytest.mark.parametrize(
    ("source", "defines"),
    [("from zoo.cat import Cat\n", "none"), (ONE.format(name="Dog") + ONE.format(name="Wolf"), "Dog, Wolf")],
)
def test_a_file_with_no_class_or_two_is_named(zoo: Path, source: str, defines: str) -> None:
    (zoo / "dog.py").write_text(source)
    with pytest.raises(TypeError, match=f"^zoo.dog must define exactly one subclass of Animal; it defines: {defines}$"):
        classes(zoo)
