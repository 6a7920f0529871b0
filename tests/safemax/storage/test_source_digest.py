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


def test_a_methods_code_is_that_of_what_it_borrows_too() -> None:
    files = {path.name for path in source_digest._closure(("safemax.methods.salun",))}
    assert {"salun.py", "random_label.py", "base.py", "diffusion.py", "gradients.py"} <= files
    assert not {"page.py", "safemax.py"} & files
