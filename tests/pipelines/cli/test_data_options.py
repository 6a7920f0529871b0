"""The parameters of the data reach the reading of it, and what was skipped is printed once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.cli.options import DataOptions
from safemax.errors import InputError, Note
from tests.support.written_data import write_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    names = ("train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0", "train/stray")
    return str(write_images(tmp_path / "data", *names))


def test_what_was_skipped_is_noted(folder: str, recwarn: pytest.WarningsRecorder) -> None:
    DataOptions(folder).load(quiet=True)
    assert not recwarn.list
    with pytest.warns(Note) as told:
        DataOptions(folder).load()
    (note,) = told
    assert str(note.message) == f"data = {folder}: skipped 1 file, which is in no class folder: train/stray.png"


def test_every_option_reaches_the_data_and_its_record(folder: str) -> None:
    options = DataOptions(folder, size=4, background="black", pixel_range="0,9", flip="true")
    data = options.load()
    assert data.image_shape == (3, 4, 4)
    assert data.natural
    assert data.params == {"data.background": "black", "data.pixel_range": "0,9", "data.flip": "true"}
    again = DataOptions(**asdict(options)).load(quiet=True)
    assert again.params == data.params


@pytest.mark.parametrize(("name", "value"), [("background", "grey"), ("flip", "maybe")])
def test_values_that_are_not_allowed_are_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"unknown {name} '{value}'"):
        DataOptions(**{name: value})  # type: ignore[arg-type]


def test_a_label_column_does_not_go_with_class_folders(folder: str) -> None:
    with pytest.raises(InputError, match="label_column = 'kind' is not allowed: the folders name the classes"):
        DataOptions(folder, label_column="kind").load()
