"""Image folders: the outer folder is the class, one word names a split, and whatever is left out is counted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from safemax.data.sources import load
from tests.support.written_data import line_of, pets, picture, write_images

FOUR = ("train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")


def test_the_outer_folder_is_the_class(tmp_path: Path) -> None:
    names = [
        f"{split}/{kind}/{view}/0" for split in ("train", "test") for kind in ("cat", "dog") for view in ("l", "r")
    ]
    data = load(str(write_images(tmp_path, *names)))
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert "4 images of train are in folders within class folders: train/cat/l is of class cat" in data.notes


def test_images_beside_and_within_inner_folders_are_of_one_class(tmp_path: Path) -> None:
    data = load(str(write_images(tmp_path, *FOUR, "train/cat/night/0")))
    assert data.train.labels.tolist() == [0, 0, 1]


def test_a_folder_too_many_is_said(tmp_path: Path) -> None:
    names = [f"{split}/images/{kind}/0" for split in ("train", "test") for kind in ("cat", "dog")]
    line = line_of(lambda: load(str(write_images(tmp_path, *names))))
    assert "the only class is 'images' (it has the folders cat, dog: if they are the classes, move them up)" in line


@pytest.mark.parametrize(
    ("one", "other"), [("Training", "train"), ("Train", "train"), ("TEST", "test"), ("eval", "test")]
)
def test_two_folders_of_one_split_are_refused_with_both(tmp_path: Path, one: str, other: str) -> None:
    folder = write_images(tmp_path, *FOUR, f"{one}/cat/1", f"{one}/dog/1")
    line = line_of(lambda: load(str(folder)))
    assert f"{one} and {other} both name the" in line


def test_two_words_for_one_split_are_refused_among_parquet_files(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    (folder / "Training-1.parquet").write_bytes((folder / "train-00000-of-00001.parquet").read_bytes())
    assert "Training and train both name the train split" in line_of(lambda: load(str(folder)))


def test_capital_letters_name_a_split_too(tmp_path: Path) -> None:
    data = load(str(write_images(tmp_path, *(name.replace("train", "TRAIN") for name in FOUR))))
    assert len(data.train) == 2


def test_what_is_skipped_is_counted_and_said_again_from_the_cache(tmp_path: Path) -> None:
    folder = write_images(tmp_path, *FOUR, "train/1", "train/2", "extra/cat/0", "valid/cat/0")
    for name in ("train/cat/notes.txt", "train/Thumbs.db", "train/dog/1.heic"):
        (folder / name).write_bytes(b"no image")
    for _ in range(2):
        data = load(str(folder))
        assert (len(data.train), len(data.test)) == (2, 2)
        assert set(data.notes) == {
            "the validation split is not used: there is a test split",
            "skipped 1 file, which is in no folder of a split: extra/cat/0.png",
            "skipped 3 files, which are no images that can be read here (HEIC needs pip install pillow-heif): "
            "train/Thumbs.db, train/cat/notes.txt, train/dog/1.heic",
            "skipped 2 files, which are in no class folder: train/1.png, train/2.png",
        }


def test_a_folder_of_nothing_that_can_be_read_says_what_it_has(tmp_path: Path) -> None:
    for name in FOUR:
        path = tmp_path / f"{name}.heic"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    line = line_of(lambda: load(str(tmp_path)))
    assert "the train split is empty; skipped 2 files" in line
    assert "HEIC needs pip install pillow-heif" in line


@pytest.mark.parametrize("letters", [("Cat", "cat"), ("DOG", "Dog")])
def test_classes_whose_names_differ_only_in_case_are_told(tmp_path: Path, letters: tuple[str, str]) -> None:
    one, other = letters
    both = write_images(tmp_path / "both", *(f"{split}/{name}/0" for split in ("train", "test") for name in letters))
    assert load(str(both)).notes == (f"the classes {one} and {other} differ only in case and are two classes",)
    apart = write_images(tmp_path / "apart", f"train/{one}/0", "train/x/0", f"test/{other}/0", "test/x/0")
    assert f"class {other!r}; it differs from {one!r} only in case: rename one" in line_of(lambda: load(str(apart)))


def test_single_letters_are_classes_of_their_own(tmp_path: Path) -> None:
    letters = write_images(tmp_path, "train/a/0", "train/A/0", "test/a/0", "test/A/0")
    assert load(str(letters)).notes == ()


def test_nothing_is_said_of_a_plain_folder(tmp_path: Path) -> None:
    assert load(str(write_images(tmp_path, *FOUR))).notes == ()


def test_files_that_parquet_files_leave_out_are_counted(tmp_path: Path) -> None:
    folder = write_images(pets(tmp_path), "train/cat/0")
    (folder / "info.parquet").write_bytes(b"")
    assert load(str(folder)).notes == (
        "skipped 1 file, which is beside Parquet files: train/cat/0.png",
        "skipped 1 file, which is named for no split: info.parquet",
    )


def test_images_without_class_folders_are_refused_with_the_layout(tmp_path: Path) -> None:
    line = line_of(lambda: load(str(write_images(tmp_path, "train/0", "train/1", "test/0"))))
    assert "train has images but no class folders; needed: train/CLASS/*.png, or train/metadata.csv" in line


def write_metadata(folder: Path, *splits: str, form: str = "csv", label: str = "label") -> Path:
    """Write two images a split and a metadata file that calls them dog and cat."""
    for split in splits:
        write_images(folder, f"{split}/a", f"{split}/sub/b")
        frame = pd.DataFrame({"file_name": ["a.png", "sub/b.png"], label: ["dog", "cat"], "width": [8, 8]})
        path = folder / split / f"metadata.{form}"
        if form == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
    return folder


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_name_the_classes(tmp_path: Path, form: str) -> None:
    data = load(str(write_metadata(tmp_path, "train", "test", form=form)))
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.images[:, 0, 0, 1].tolist() == [0, 1]


def test_names_in_metadata_are_read_as_they_are_written(tmp_path: Path) -> None:
    folder = write_metadata(tmp_path, "train", "test")
    for split in ("train", "test"):
        (folder / split / "metadata.csv").write_text(
            "file_name,label,image\na.png,010,x\nsub/b.png,007,x\na.png,NA,x\n"
        )
    assert load(str(folder)).class_names == ("007", "010", "NA")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0,,\n", b'{"file_name": 1'])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_damaged_metadata_are_one_line(tmp_path: Path, content: bytes, form: str) -> None:
    folder = write_metadata(tmp_path, "train", "test", form=form)
    (folder / "train" / f"metadata.{form}").write_bytes(content)
    assert f"metadata.{form}" in line_of(lambda: load(str(folder)))


def test_a_metadata_column_of_several_types_is_refused(tmp_path: Path) -> None:
    folder = write_metadata(tmp_path, "train", "test", form="jsonl")
    rows = '{"file_name": "a.png", "label": {"a": 1}}\n{"file_name": "a.png", "label": [1]}\n'
    (folder / "train" / "metadata.jsonl").write_text(rows)
    assert "metadata.jsonl has a column of several types" in line_of(lambda: load(str(folder)))


def test_images_that_metadata_do_not_name_are_counted(tmp_path: Path) -> None:
    folder = write_images(write_metadata(tmp_path, "train", "test"), "test/c", "test/sub/d")
    data = load(str(folder))
    assert len(data.test) == 2
    assert data.notes == ("skipped 2 files, which are not named in test/metadata.csv: test/c.png, test/sub/d.png",)


def test_metadata_may_have_a_label_column_of_any_name(tmp_path: Path) -> None:
    folder = str(write_metadata(tmp_path, "train", "test", label="species"))
    assert load(folder, label_column="species").class_names == ("cat", "dog")


def test_metadata_of_one_split_alone_are_refused(tmp_path: Path) -> None:
    folder = write_metadata(tmp_path, "train")
    write_images(folder, "test/cat/0", "test/dog/0")
    assert "train/metadata.csv gives labels, and test has no such file" in line_of(lambda: load(str(folder)))


def test_metadata_without_labels_leave_the_classes_to_the_folders(tmp_path: Path) -> None:
    folder = write_images(tmp_path, *FOUR)
    (folder / "train" / "metadata.csv").write_text("file_name,caption\ncat/0.png,a cat\n")
    data = load(str(folder))
    assert data.class_names == ("cat", "dog")
    assert any("train/metadata.csv" in note for note in data.notes)


@pytest.mark.parametrize("place", ["../../secret.png", "/etc/hostname"])
def test_metadata_name_no_file_outside(tmp_path: Path, place: str) -> None:
    picture().save(tmp_path / "secret.png")
    folder = write_metadata(tmp_path / "data", "train", "test")
    (folder / "train" / "metadata.csv").write_text(f"file_name,label\n{place},dog\na.png,cat\n")
    assert f"names the file {place}, which is not in the data's folder" in line_of(lambda: load(str(folder)))


def test_a_file_that_metadata_lack_is_named(tmp_path: Path) -> None:
    folder = write_metadata(tmp_path, "train", "test")
    (folder / "train" / "metadata.csv").write_text("name,label\na.png,cat\n")
    assert "metadata.csv has no column file_name; found: name, label" in line_of(lambda: load(str(folder)))


def saved(folder: Path, *, together: bool) -> Path:
    """Write cats and dogs with save_to_disk, as a DatasetDict or each split by itself."""
    import datasets

    source = pets(folder / "source")
    parts = {
        split: datasets.Dataset.from_parquet(str(source / f"{split}-00000-of-00001.parquet"))
        for split in ("train", "test")
    }
    if together:
        datasets.DatasetDict(parts).save_to_disk(str(folder / "saved"))
    else:
        for split, rows in parts.items():
            rows.save_to_disk(str(folder / "saved" / split))
    return folder / "saved"


@pytest.mark.parametrize("together", [True, False])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, together: bool) -> None:
    folder = saved(tmp_path, together=together)
    assert load(str(folder)).digest == load(str(tmp_path / "source")).digest


def test_one_split_of_save_to_disk_is_refused_with_a_remedy(tmp_path: Path) -> None:
    line = line_of(lambda: load(str(saved(tmp_path, together=False) / "train")))
    assert "save_to_disk wrote this folder with one split" in line
    assert "DatasetDict" in line


def test_a_long_reading_shows_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("safemax.data.decoding.SHOW_PROGRESS_FROM", 4)
    load(str(write_images(tmp_path, *FOUR)))
    assert "reading images: 100%" in capsys.readouterr().err
