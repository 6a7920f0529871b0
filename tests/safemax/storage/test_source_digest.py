"""The digest of code follows what runs: a module's own statements and those of what it imports, no words about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemax.storage import source_digest

ABOVE = (
    '"""A module."""\n\nfrom toy.below import double\n\n\ndef run(x):\n    """Run."""\n    return double(x)  # twice\n'
)
BELOW = "def double(x):\n    return 2 * x\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two modules of a package of the test's own."""
    monkeypatch.setattr(source_digest, "_PACKAGE", "toy")
    monkeypatch.setattr(source_digest, "_ROOT", tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "above.py").write_text(ABOVE)
    (tmp_path / "toy" / "below.py").write_text(BELOW)
    return tmp_path / "toy"


def digest() -> str:
    source_digest.digest.cache_clear()
    return source_digest.digest("toy.above")


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("above", "return double(x)", "return double(x) + 1", False),
        ("below", "2 * x", "3 * x", False),
        ("above", '"""Run."""', '"""Run it, and say so."""', True),
        ("above", "  # twice", "", True),
        ("below", "2 * x", "(2  *  x)", True),
    ],
)
def test_statements_change_it_and_words_do_not(place: Path, name: str, old: str, new: str, same: bool) -> None:
    before, path = digest(), place / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (digest() == before) is same


LAZY = """
from importlib import import_module


def __getattr__(name):
    return getattr(import_module("toy.above"), name)
"""
STUB = """
from toy.above import run as run
from toy.below import double as twice
"""


def closure(package: Path, source: str) -> set[str]:
    """Return the files behind a module of this source, by their path in the package."""
    (package / "user.py").write_text(source)
    return {str(path.relative_to(package)) for path in source_digest._closure(("toy.user",))} - {"user.py"}


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("from toy import below", {"below.py"}),  # a submodule, although a face lists more
        ("from toy import twice", {"below.py"}),
        ("from toy import run", {"above.py", "below.py"}),
        ("import toy", {"__init__.py"}),  # what it loads lazily is unknown; the test below keeps our code from it
        ("import toy.below", {"below.py"}),
        ("from . import below", {"below.py"}),
        ("from .below import double", {"below.py"}),
        ("from toy.room import helper", {"room/first.py"}),
        ("from toy.room import own", {"room/__init__.py", "room/first.py"}),
        ("from toy import room", {"room/__init__.py", "room/first.py"}),
        ("from toy.room import second", {"room/second.py"}),
        ("def late():\n    from toy import below", {"below.py"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy import below", set()),
    ],
)
def test_only_what_an_import_reaches_counts_whatever_a_face_passes_on(
    place: Path, source: str, files: set[str]
) -> None:
    (place / "__init__.py").write_text(LAZY)
    (place / "__init__.pyi").write_text(STUB)
    (place / "room").mkdir()
    (place / "room" / "__init__.py").write_text(
        "from toy.room.first import helper\n\ndef own():\n    return helper()\n"
    )
    (place / "room" / "first.py").write_text("def helper():\n    return 1\n")
    (place / "room" / "second.py").write_text("")
    assert closure(place, source) == files


def test_a_methods_code_is_that_of_what_it_borrows_too() -> None:
    files = {path.name for path in source_digest._closure(("safemax.methods.salun",))}
    assert {"salun.py", "random_label.py", "method.py", "model.py", "gradients.py"} <= files
    assert not {"safemax.py", "relearn.py", "measure.py", "__init__.py"} & files


def test_no_module_imports_the_face_whose_lazy_names_no_digest_can_follow() -> None:
    root = source_digest._ROOT / "safemax"
    imports = {path: set(source_digest._imports("safemax.any", path)) for path in root.rglob("*.py")}
    assert len(imports) > 50
    assert [path for path, modules in imports.items() if "safemax" in modules] == []
