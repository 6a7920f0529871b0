"""The label column is what its name says, names decide the order of classes, and a refusal names columns and parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from safemax.data.columns import LABEL_NAMES
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from tests.support.written_data import image_and, line_of, picture, png, write_frames, write_parquet

SHADES = {"cat": 10, "dog": 200, "emu": 90}


def shades(data: Dataset, name: str) -> list[int]:
    """Return the values of the training and test images of a class."""
    k = data.class_names.index(name)
    values = [split.images[split.labels == k][:, 0, 0, 1] for split in (data.train, data.test)]
    return sorted({int(value) for each in values for value in each})


@pytest.mark.parametrize(
    ("label", "names", "numbers"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        (pd.Categorical(["dog", "cat", "dog"]), ("cat", "dog"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        (np.array([1, 0, 1], np.uint8), ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
    ],
)
@pytest.mark.parametrize("column", ["label", "Label", "target", "fine_label"])
def test_a_label_of_any_type_is_the_label_whatever_integers_are_beside_it(
    tmp_path: Path, label: Any, names: tuple[str, ...], numbers: list[int], column: str
) -> None:
    data = load(write_frames(tmp_path, label, column, image_id=[0, 1, 2], width=[8, 8, 8], fold=[0, 1, 0]))
    assert data.class_names == names
    assert data.train.labels.tolist() == numbers


def test_the_index_that_pandas_adds_after_a_shuffle_is_no_label(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [png(k) for k in range(4)], "digit": [0, 1, 0, 1]}).sample(frac=1, random_state=0)
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / f"{split}.parquet")
    line = line_of(lambda: load(str(tmp_path)))
    assert "no label column" in line
    assert "columns: image, digit, __index_level_0__" in line
    assert load(str(tmp_path), label_column="digit").num_classes == 2


def test_a_column_named_label_wins_over_a_classlabel_of_another_name(tmp_path: Path) -> None:
    import datasets

    features = image_and(datasets.Value("string"), camera=datasets.ClassLabel(names=["front", "back"]))
    table = {"img": [picture(), picture()], "label": ["dog", "cat"], "camera": [0, 0]}
    folder = str(write_parquet(tmp_path, features, train=table, test=table))
    assert load(folder).class_names == ("cat", "dog")
    with_back = {**table, "camera": [0, 1]}
    write_parquet(tmp_path, features, train=with_back, test=with_back)
    assert load(folder, label_column="camera").class_names == ("front", "back")


def test_two_columns_named_like_labels_are_refused_by_name_and_one_can_be_chosen(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, [0, 1], "fine_label", coarse_label=[1, 0])
    line = line_of(lambda: load(folder))
    assert "several label columns (fine_label, coarse_label)" in line
    assert "label_column=NAME" in line
    assert load(folder, label_column="coarse_label").train.labels.tolist() == [1, 0]
    assert "unknown label_column 'fine'" in line_of(lambda: load(folder, label_column="fine"))


def test_the_choice_is_part_of_what_is_cached_and_recorded(tmp_path: Path) -> None:
    folder = write_frames(tmp_path, [0, 1, 0], "fine_label", coarse_label=[1, 0, 0])
    first, second = (load(folder, label_column=name) for name in ("fine_label", "coarse_label"))
    assert first.digest != second.digest
    assert second.params == {"data.label_column": "coarse_label"}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ([0.5, 1.0], "label 0.5 in row 0 of train is not a whole number"),
        ([0.0, float("nan")], "row 1 of train has no label"),
        (["cat", None], "row 1 of train has no label"),
        (["cat", ""], "row 1 of train has no label"),
        ([[0], [1]], "label column 'label' of train.parquet holds list"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "holds timestamp"),
        (["cat", "cat"], "the only class is 'cat'"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: Any, words: str) -> None:
    assert words in line_of(lambda: load(write_frames(tmp_path, label, extra=[0, 1])))


def write_animals(folder: Path, file: str, names: list[str]) -> None:
    """Write cats and dogs (and emus), each class of its shade, with ClassLabel names in an order of the file's own."""
    import datasets

    table = {"img": [picture(SHADES[name]) for name in names], "label": list(range(len(names)))}
    write_parquet(folder / "new", image_and(datasets.ClassLabel(names=names)), train=table)
    (folder / "new" / "train-00000-of-00001.parquet").rename(folder / file)


@pytest.mark.parametrize("other", ["test.parquet", "train-1.parquet"])
def test_names_in_another_order_in_another_file_are_mapped_by_name(tmp_path: Path, other: str) -> None:
    for file in ("train-0.parquet", "test.parquet"):
        write_animals(tmp_path, file, ["cat", "dog", "emu"])
    write_animals(tmp_path, other, ["emu", "dog", "cat"])
    data = load(str(tmp_path))
    assert data.class_names == ("cat", "dog", "emu")
    assert [shades(data, name) for name in data.class_names] == [[10], [200], [90]]


@pytest.mark.parametrize("other", ["test.parquet", "train-1.parquet"])
def test_a_class_that_the_first_file_does_not_name_is_refused(tmp_path: Path, other: str) -> None:
    for file in ("train-0.parquet", "test.parquet"):
        write_animals(tmp_path, file, ["cat", "dog"])
    write_animals(tmp_path, other, ["emu", "cat"])
    assert "label 'emu' in row " in line_of(lambda: load(str(tmp_path)))


def test_numbers_beside_names_are_refused(tmp_path: Path) -> None:
    import datasets

    write_animals(tmp_path, "train.parquet", ["dog", "cat"])
    table = {"img": [picture(), picture()], "label": [0, 1]}
    write_parquet(tmp_path / "new", image_and(datasets.Value("int64")), test=table)
    (tmp_path / "new" / "test-00000-of-00001.parquet").rename(tmp_path / "test.parquet")
    line = line_of(lambda: load(str(tmp_path)))
    assert "label '0' in row 0 of test (a number without a name beside classes with names)" in line


def test_a_file_without_the_label_column_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path, [0, 1])
    pd.DataFrame({"image": [png(0)], "kind": [0]}).to_parquet(tmp_path / "test.parquet")
    line = line_of(lambda: load(str(tmp_path)))
    assert "test.parquet has no column 'label'" in line
    assert "image, kind" in line


def test_an_image_column_can_be_chosen_and_may_hold_bare_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"photo": [png(1)["bytes"], png(2)["bytes"]], "label": [0, 1]})
    frame["mask"] = frame["photo"].tolist()[::-1]
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / f"{split}.parquet")
    assert "several image columns (photo, mask)" in line_of(lambda: load(str(tmp_path)))
    assert load(str(tmp_path), image_column="mask").train.images[:, 0, 0, 1].tolist() == [2, 1]


def test_columns_cannot_be_chosen_where_there_are_none() -> None:
    assert "there are no columns" in line_of(lambda: load("digits", label_column="label"))


def test_the_list_of_label_names_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in page for name in LABEL_NAMES)


@pytest.mark.parametrize("place", ["/etc/hostname", "../secret/0.png", "inside/0.png", "no/such.png"])
def test_a_row_may_only_name_files_within_the_data(tmp_path: Path, place: str) -> None:
    for folder in ("secret", "data/inside"):
        (tmp_path / folder).mkdir(parents=True)
        picture(77).save(tmp_path / folder / "0.png")
    frame = pd.DataFrame({"image": [{"bytes": None, "path": place}, png(0)], "label": [0, 1]})
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / "data" / f"{split}.parquet")
    if place.startswith("inside"):
        assert load(str(tmp_path / "data")).train.images[0, 0, 0, 1] == 77
    else:
        line = line_of(lambda: load(str(tmp_path / "data")))
        assert f"row 0 of train has no bytes but names the file {place}, which is not in the data's folder" in line


def test_a_link_does_not_lead_a_row_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    picture(77).save(tmp_path / "secret.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    frame = pd.DataFrame({"image": [{"bytes": None, "path": "link.png"}, png(0)], "label": [0, 1]})
    for split in ("train", "test"):
        frame.to_parquet(tmp_path / "data" / f"{split}.parquet")
    assert "which is not in the data's folder" in line_of(lambda: load(str(tmp_path / "data")))


@pytest.mark.parametrize("names", [("../../x", "y"), ("/etc/x", "y"), ("..", "a/b")])
def test_names_of_classes_are_no_paths(tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "a" / "b" / "cache"))
    assert load(write_frames(tmp_path / "data", list(names))).class_names == tuple(sorted(names))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "data"}
    assert {path.name for path in (tmp_path / "a").rglob("*") if path.is_dir()} == {"b", "cache"}


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    assert "two classes are named 'a;b'" in line_of(lambda: load(write_frames(tmp_path, ["a,b", "a;b"])))
