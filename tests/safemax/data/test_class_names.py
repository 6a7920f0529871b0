"""Numbers in names of classes mean numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemax.data.class_names import label_meaning, parse_classes, refuse_lookalikes, sort_names
from safemax.data.sources import load
from tests.support.written_data import line_of, picture, write_frames, write_images


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["010", "9", "002"], ["002", "9", "010"]),
        (["1", "01"], ["01", "1"]),
        (["b10", "b9"], ["b10", "b9"]),
        (["10", "9", "other"], ["10", "9", "other"]),
        (["²", "10", "9"], ["10", "9", "²"]),
    ],
)
def test_names_that_are_all_numbers_sort_by_value(names: list[str], ordered: list[str]) -> None:
    assert sort_names(names) == ordered


@pytest.mark.parametrize(
    ("text", "names", "indices"),
    [
        ("1", ("01", "02", "03"), (0,)),
        ("03,1", ("01", "02", "03"), (0, 2)),
        ("2", ("1", "2", "3"), (1,)),
        ("10", ("8", "9", "10"), (2,)),
        ("7", ("007", "cat", "dog"), (0,)),
        ("1", ("007", "cat", "dog"), (1,)),
        ("01", ("1", "01", "2"), (1,)),
    ],
)
def test_a_number_means_the_class_of_that_value(text: str, names: tuple[str, ...], indices: tuple[int, ...]) -> None:
    assert parse_classes(text, names) == indices


@pytest.mark.parametrize("text", ["0", "4"])
def test_a_number_is_no_position_where_all_names_are_numbers(text: str) -> None:
    assert f"unknown class '{text}'" in line_of(lambda: parse_classes(text, ("01", "02", "03")))


def test_a_number_that_fits_two_names_is_refused_with_both() -> None:
    assert "class '1' may be '01' or '001'" in line_of(lambda: parse_classes("1", ("01", "001", "02")))


def test_label_k_is_the_folder_named_k(tmp_path: Path) -> None:
    names = [f"{split}/{k}/0" for split in ("train", "test") for k in range(12)]
    folder = write_images(tmp_path, *names)
    for k in range(12):
        picture(20 * k).save(folder / "train" / str(k) / "0.png")
    data = load(str(folder))
    assert data.class_names == tuple(map(str, range(12)))
    assert data.train.images[data.train.labels == 10][0, 0, 0, 1] == 200


def test_labels_of_an_unnamed_model_are_numbers_where_the_names_are_0_to_k() -> None:
    assert label_meaning(("0", "1", "2")) == "its labels 0 to 2 are read as the classes of these numbers"
    assert "numbers" in label_meaning(("00", "01"))


def test_labels_of_an_unnamed_model_are_positions_where_names_are_no_numbers() -> None:
    assert label_meaning(("cat", "dog")).endswith("positions in the data's list of classes: 0 is cat, 1 is dog")
    assert label_meaning(("1", "2")).endswith("0 is 1, 1 is 2")
    assert label_meaning([f"n{k}" for k in range(1000)]).endswith("19 is n19, ...")


def test_numbers_in_another_order_are_refused_for_an_unnamed_model() -> None:
    assert "label 1 of the data is the class named '2'" in line_of(lambda: label_meaning(("0", "2", "1")))


LOOKALIKES = {
    "blank at the end": ("cat", "cat "),
    "blank in front": ("cat", " cat"),
    "two blanks": ("tabby cat", "tabby  cat"),
    "no-break space": ("tabby cat", "tabby\u00a0cat"),
    "tab": ("tabby cat", "tabby\tcat"),
    "composed and decomposed": ("caf\u00e9", "cafe\u0301"),
    "zero-width space": ("cat", "cat\u200b"),
    "byte order mark": ("cat", "\ufeffcat"),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_names_that_look_the_same_are_refused_wherever_they_come_from(tmp_path: Path, kind: str) -> None:
    names = LOOKALIKES[kind]
    words = "differ only in blanks, invisible characters or the form of Unicode; give both one name"
    folders = write_images(
        tmp_path / "folders", *(f"{split}/{name}/0" for split in ("train", "test") for name in names)
    )
    assert words in line_of(lambda: load(str(folders)))
    apart = write_images(tmp_path / "apart", f"train/{names[0]}/0", "train/dog/0", f"test/{names[1]}/0", "test/dog/0")
    assert words in line_of(lambda: load(str(apart)))
    (tmp_path / "columns").mkdir()
    write_frames(tmp_path / "columns", list(names))
    assert words in line_of(lambda: load(str(tmp_path / "columns")))


@pytest.mark.parametrize(
    "names", [("cat", "cats"), ("a b", "ab"), ("e", "\u00e9"), ("Cat", "cat"), ("1", "01"), ("a", "\u0430")]
)
def test_names_that_can_be_told_apart_are_classes_of_their_own(names: tuple[str, str]) -> None:
    refuse_lookalikes(names)


def test_names_of_a_label_column_that_differ_only_in_case_are_told(tmp_path: Path) -> None:
    write_frames(tmp_path, ["Cat", "cat", "a", "A"])
    assert load(str(tmp_path)).notes == ("the classes Cat and cat differ only in case and are two classes",)
