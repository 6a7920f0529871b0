"""A name from outside names a file in the folder that we chose, and no other name does."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemax.storage.file_names import file_name

PLAIN = ["airplane", "sports car", "safemax-digits-forget0+1-0123abcd", "größe", "数字", "a.b", "a:b", "n'a"]
HOSTILE = [
    *("../../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\nb", "a\0b", "x" * 600, "数" * 200),
    *("\udcff", "-", " ", "a/../b", "....//x", "\u202egpj"),
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_name_that_is_one_already_stays(text: str) -> None:
    assert file_name(text) == text


@pytest.mark.parametrize("letters_only", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_names_a_file_in_the_folder(tmp_path: Path, text: str, letters_only: bool) -> None:
    path = tmp_path / f"{file_name(text, letters_only=letters_only)}.journal"
    path.touch()
    assert [each.resolve() for each in tmp_path.iterdir()] == [path.resolve()]
    assert not path.name.startswith(".")


@pytest.mark.parametrize("letters_only", [False, True])
def test_no_two_texts_share_a_name(letters_only: bool) -> None:
    texts = [*PLAIN, *HOSTILE, "a-b", "a b", "x" * 601, "airplane-"]
    assert len({file_name(each, letters_only=letters_only) for each in texts}) == len(texts)
