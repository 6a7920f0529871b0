"""Datasets from every kind of source, and batches as a pure function of (seed, step)."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from safemax.data.batches import Batches, Rows, derive_seed, reseed, to_float, to_uint8
from safemax.data.class_names import parse_classes
from safemax.data.dataset import Dataset, Split
from safemax.data.sources import load
from tests.support.written_data import image_and, line_of, numbered, pets, picture, write_images, write_parquet


def test_digits_are_split_by_class_at_every_sixth_image() -> None:
    digits = load("digits")
    # 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 images a class; a sixth of each, rounded down, is 296 in all.
    assert digits.test.labels.bincount().tolist() == [29, 30, 29, 30, 30, 30, 30, 29, 29, 30]
    assert (len(digits.train), len(digits.test)) == (1501, 296)


def test_digits_scale_sixteen_grey_levels_to_bytes() -> None:
    levels = torch.unique(load("digits").train.images)
    assert levels.tolist() == [round(k * 255 / 16) for k in range(17)]


def test_digits_are_named_and_never_mirrored() -> None:
    digits = load("digits")
    assert digits.class_names == tuple("0123456789")
    assert digits.image_shape == (1, 8, 8)
    assert not digits.natural


def test_digits_are_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    load("digits", size=16)
    assert not list(tmp_path.iterdir())


def test_parquet_folder_keeps_pixels_order_and_names(tmp_path: Path) -> None:
    data = load(str(pets(tmp_path / "pets")))
    assert (data.name, data.class_names, data.num_classes) == ("pets", ("cat", "dog"), 2)
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.images[:, 0, 0, 1].tolist() == [0, 1, 2, 3]
    assert data.test.images[:, 2, 7, 7].tolist() == [90, 91]
    assert data.train.images.dtype == torch.uint8


def test_parquet_pattern_reads_the_files_that_match(tmp_path: Path) -> None:
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "notes.txt").write_text("kept apart")
    assert load(f"{tmp_path}/pets/*.parquet").digest == load(str(tmp_path / "pets")).digest


def test_parquet_shards_keep_their_order(tmp_path: Path) -> None:
    import datasets

    features = image_and(datasets.ClassLabel(names=["cat", "dog"]))
    pets(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    for shard in (1, 0):
        write_parquet(tmp_path / "part", features, train={"img": [picture(shard)], "label": [shard]})
        (tmp_path / "part" / "train-00000-of-00001.parquet").rename(tmp_path / f"train-0000{shard}-of-00002.parquet")
    assert load(str(tmp_path)).train.labels.tolist() == [0, 1]
    assert load(f"{tmp_path}/*.parquet").train.labels.tolist() == [0, 1]


def test_a_file_name_decides_its_split_before_its_folder_does(tmp_path: Path) -> None:
    pets(tmp_path / "test set")
    assert len(load(str(tmp_path)).train) == 4


def test_known_name_reads_the_local_copy_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_DATA", str(tmp_path))
    pets(tmp_path / "cifar10")
    data = load("cifar10")
    assert (data.name, len(data.train)) == ("cifar10", 4)


def test_validation_serves_as_test_split(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    (folder / "test-00000-of-00001.parquet").rename(folder / "validation-00000-of-00001.parquet")
    assert len(load(str(folder)).test) == 2


def test_image_folder_takes_classes_from_folders_in_sorted_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a[1]", "train/dog/b", "train/dog/a", "train/cat/c", "test/cat/d", "test/dog/e")
    data = load(str(folder))
    # Pictures are numbered as written: c is 2, a is 1, b is 0.
    assert data.class_names == ("cat", "dog")
    assert data.train.images[:, 0, 0, 1].tolist() == [2, 1, 0]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]


def test_image_folder_may_hold_classes_named_train_and_test(tmp_path: Path) -> None:
    folder = write_images(tmp_path, *(f"{split}/{name}/0" for split in ("train", "test") for name in ("test", "train")))
    data = load(str(folder))
    assert data.class_names == ("test", "train")
    assert (len(data.train), len(data.test)) == (2, 2)


def test_image_folder_may_be_made_of_links(tmp_path: Path) -> None:
    real = write_images(tmp_path / "real", "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(real / split)
    assert load(str(tmp_path / "linked")).digest == load(str(real)).digest


def test_user_folder_is_left_as_it_was(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    load(str(folder))
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == before


def test_integer_labels_name_themselves(tmp_path: Path) -> None:
    data = load(str(numbered(tmp_path, [1, 0, 2])))
    assert data.class_names == ("0", "1", "2")


def test_label_column_is_preferred_among_several(tmp_path: Path) -> None:
    import datasets

    kind = datasets.ClassLabel(names=["cat", "dog"])
    table = {"img": [picture(), picture()], "label": [0, 1], "fine_label": [0, 0]}
    folder = write_parquet(tmp_path, image_and(kind, fine_label=kind), train=table, test=table)
    assert load(str(folder)).train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_images_stay_at_one_channel_and_are_not_mirrored(tmp_path: Path, mode: str) -> None:
    data = load(str(pets(tmp_path, mode=mode)))
    assert data.image_shape == (1, 8, 8)
    assert data.train.images[0, 0, 0].tolist() == [255] + [0] * 7
    assert not data.natural


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0", suffix=".tiff")
    picture(0, mode).save(folder / "train" / "cat" / "0.tiff")
    assert load(str(folder)).train.images[0, :, 0, :2].tolist() == [[255, 0]] * 3


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    for path in folder.rglob("*.png"):
        Image.fromarray(np.full((8, 8), 0x7F80, np.uint16)).save(path)
    assert load(str(folder)).train.images.unique().tolist() == [0x7F]


def test_a_grey_image_among_coloured_ones_becomes_coloured(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    picture(7, "L").save(folder / "train" / "cat" / "0.png")
    assert load(str(folder)).train.images[0, :, 0, 1].tolist() == [7, 7, 7]


def test_coloured_digits_are_not_mirrored(tmp_path: Path) -> None:
    names = [f"{split}/{k}/0" for split in ("train", "test") for k in range(2)]
    assert not load(str(write_images(tmp_path, *names))).natural


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down: the white left column is shown on the right
    picture().save(folder / "train" / "cat" / "0.png", exif=exif)
    assert load(str(folder)).train.images[0, 0, 0].tolist() == [0] * 7 + [255]


def test_size_crops_the_centre_before_it_resizes(tmp_path: Path) -> None:
    folder = pets(tmp_path, size=(12, 4))
    data = load(str(folder), size=4)
    # 12x4 has its white column at x = 0; the centre 4x4 spans x = 4..7 and is flat.
    assert data.train.images.shape == (4, 3, 4, 4)
    assert data.train.images[3].unique().tolist() == [3]


def test_sizes_have_their_own_cache(tmp_path: Path) -> None:
    folder = str(pets(tmp_path))
    assert [load(folder, size=size).image_shape[1] for size in (None, 4, None)] == [8, 4, 8]


def cache_file() -> Path:
    """Return the one cache file of this test."""
    (path,) = Path(os.environ["SAFEMAX_CACHE"]).iterdir()
    return path


def test_cache_returns_what_was_decoded(tmp_path: Path) -> None:
    folder = str(pets(tmp_path))
    first = load(folder)
    written = cache_file().stat().st_mtime_ns
    second = load(folder)
    assert (second.digest, second.class_names, second.natural) == (first.digest, first.class_names, first.natural)
    assert cache_file().stat().st_mtime_ns == written


@pytest.mark.parametrize("place", [0, 3, 200, -1, None])
def test_damaged_cache_file_is_built_again(tmp_path: Path, place: int | None) -> None:
    folder = str(pets(tmp_path))
    digest = load(folder).digest
    whole = cache_file().read_bytes()
    damaged = bytearray(whole[:-10] if place is None else whole)
    if place is not None:
        damaged[place] ^= 1
    cache_file().write_bytes(damaged)
    assert load(folder).digest == digest
    assert cache_file().read_bytes() != damaged
    assert cache_file().stat().st_size == len(whole)


def test_cache_notices_a_changed_source(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    first = load(str(folder))
    picture(77).save(folder / "train" / "cat" / "0.png")
    second = load(str(folder))
    assert second.train.images[0, 0, 0, 1] == 77
    assert second.digest != first.digest


def test_cache_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pets(tmp_path)
    monkeypatch.setenv("SAFEMAX_CACHE", str(folder / "test-00000-of-00001.parquet" / "below"))
    assert "set SAFEMAX_CACHE" in line_of(lambda: load(str(folder)))


def test_full_disk_is_one_line_and_leaves_no_partial_cache(tmp_path: Path) -> None:
    folder = str(pets(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        line = line_of(lambda: load(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write the cache" in line
    assert not list(Path(os.environ["SAFEMAX_CACHE"]).iterdir())


def test_digest_depends_on_names_and_shapes_as_well() -> None:
    def digest(names: tuple[str, ...], shape: tuple[int, ...]) -> str:
        split = Split(torch.zeros(shape, dtype=torch.uint8), torch.tensor([0, 1]))
        return Dataset("a", split, split, names, False).digest

    shape = (2, 1, 4, 4)
    assert len({digest(("a", "b"), shape), digest(("a", "c"), shape), digest(("a", "b"), (2, 4, 2, 2))}) == 3


def test_unknown_source_lists_what_is_known() -> None:
    line = line_of(lambda: load("cifar"))
    assert all(word in line for word in ("'cifar'", "cifar10", "digits", "fashion_mnist", "mnist", "hub id", "folder"))


def test_unreachable_hub_is_one_line() -> None:
    line = line_of(lambda: load("owner/pets"))
    assert "no folder owner/pets, and the Hugging Face hub does not give owner/pets" in line
    assert "hf download owner/pets --repo-type=dataset --local-dir=FOLDER`) and pass data=FOLDER" in line


@pytest.mark.parametrize(
    ("source", "words"), [("/no/such/folder", "no such folder"), ("/no/*.parquet", "no such file")]
)
def test_missing_folder_is_refused(source: str, words: str) -> None:
    assert line_of(lambda: load(source)) == f"data = {source}: {words}"


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "the folder is empty" in line_of(lambda: load(str(tmp_path)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_is_named(tmp_path: Path, split: str) -> None:
    folder = pets(tmp_path)
    (folder / f"{split}-00000-of-00001.parquet").unlink()
    assert f"no {split} split" in line_of(lambda: load(str(folder)))


def test_image_folder_without_test_images_is_refused(tmp_path: Path) -> None:
    assert "no test split" in line_of(lambda: load(str(write_images(tmp_path, "train/cat/0", "train/dog/0"))))


def test_empty_class_is_named(tmp_path: Path) -> None:
    assert "no training images in class 'dog'" in line_of(lambda: load(str(pets(tmp_path, labels=(0, 0)))))


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    (folder / "train" / "bird").mkdir()
    assert "no training images in class 'bird'" in line_of(lambda: load(str(folder)))


def test_image_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    path = folder / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    line = line_of(lambda: load(str(folder)))
    assert f"row 1 of train ({path}) does not decode" in line


def test_table_row_that_does_not_decode_is_named(tmp_path: Path) -> None:
    import datasets

    stored = {"img": [{"bytes": b"no image", "path": None}], "label": [0]}
    folder = pets(tmp_path)
    write_parquet(folder, image_and(datasets.ClassLabel(names=["cat", "dog"])), test=stored)
    assert "row 0 of test does not decode" in line_of(lambda: load(str(folder)))


def test_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = pets(tmp_path) / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in line_of(lambda: load(str(tmp_path)))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1, 3], [0], "2 is missing, 3 is used"),
        ([1, 2], [1], "0 is missing"),
        ([0, -1], [0], "label -1 in row 1 of train"),
        ([0, 1], [0, 2], "label 2 in row 1 of test is not in 0..1"),
        ([0, None], [0], "row 1 of train has no label"),
        ([], [0], "the train split is empty"),
        ([0, 1], [], "the test split is empty"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, train: list[int], test: list[int], words: str
) -> None:
    assert words in line_of(lambda: load(str(numbered(tmp_path, train, test))))


def test_two_unmarked_label_columns_are_refused_by_name(tmp_path: Path) -> None:
    import datasets

    kind = datasets.ClassLabel(names=["cat", "dog"])
    features = {"img": datasets.Image(), "fine": kind, "coarse": kind}
    table = {"img": [picture()], "fine": [0], "coarse": [1]}
    folder = write_parquet(tmp_path, features, train=table, test=table)
    assert "several label columns (fine, coarse)" in line_of(lambda: load(str(folder)))


def test_missing_columns_are_refused(tmp_path: Path) -> None:
    import datasets

    table = {"text": ["a"], "label": [0]}
    kinds = {"text": datasets.Value("string"), "label": datasets.Value("int64")}
    words = write_parquet(tmp_path / "words", kinds, train=table, test=table)
    assert "no image column" in line_of(lambda: load(str(words)))
    table = {"img": [picture()], "digit": [0]}
    numbers = write_parquet(
        tmp_path / "numbers", {"img": datasets.Image(), "digit": datasets.Value("int64")}, train=table, test=table
    )
    line = line_of(lambda: load(str(numbers)))
    assert "no label column" in line
    assert "label_column=NAME; columns: img, digit" in line


def test_a_folder_of_one_class_is_refused_and_a_comma_in_a_name_becomes_a_semicolon(tmp_path: Path) -> None:
    alone = write_images(tmp_path / "alone", "train/cat/0", "test/cat/0")
    assert "the only class is 'cat'" in line_of(lambda: load(str(alone)))
    names = [f"{split}/{name}/0" for split in ("train", "test") for name in ("tench, Tinca tinca", "test")]
    assert load(str(write_images(tmp_path / "fish", *names))).class_names == ("tench; Tinca tinca", "test")


def test_images_of_other_sizes_ask_for_size(tmp_path: Path) -> None:
    assert "12x8, not square; pass size" in line_of(lambda: load(str(pets(tmp_path / "wide", size=(12, 8)))))
    folder = write_images(tmp_path / "two", "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    picture(size=(9, 9)).save(folder / "test" / "dog" / "0.png")
    assert "several sizes, 8 to 9 pixels; pass size" in line_of(lambda: load(str(folder)))


def test_size_below_one_is_refused() -> None:
    assert line_of(lambda: load("digits", size=0)).startswith("size = 0")


NAMES = ("airplane", "cat", "dog", "10", "tench, Tinca")


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("airplane", (0,)),
        ("0", (0,)),
        ("dog,cat", (1, 2)),
        (" 2 , dog,1", (1, 2)),
        ("10", (3,)),
        ("tench, Tinca", (4,)),
    ],
)
def test_classes_are_named_by_name_or_index(text: str, indices: tuple[int, ...]) -> None:
    assert parse_classes(text, NAMES) == indices


def test_a_name_wins_over_an_index() -> None:
    assert parse_classes("1", ("1", "0")) == (0,)


@pytest.mark.parametrize("text", ["dogs", "5", "-1", "1.0", "cat;dog"])
def test_unknown_class_lists_the_known_ones(text: str) -> None:
    line = line_of(lambda: parse_classes(text, NAMES))
    assert line.startswith(f"unknown class '{text}'")
    assert "airplane" in line


@pytest.mark.parametrize("text", ["", " ", "cat,,dog", ","])
def test_no_class_is_refused(text: str) -> None:
    assert "names no class" in line_of(lambda: parse_classes(text, NAMES))


def test_all_classes_at_once_are_refused() -> None:
    assert "names every class" in line_of(lambda: parse_classes("0,1", ("cat", "dog")))


def tiny(count: int = 30, classes: int = 3) -> Split:
    """Return images that are all one value, their row number, except for a black left column."""
    rows = torch.arange(count, dtype=torch.uint8)
    images = rows[:, None, None, None].expand(-1, 1, 2, 2).clone()
    images[..., 0] = 200
    return Split(images, torch.arange(count) % classes)


def numbers(rows: Rows) -> list[int]:
    """Return the row numbers that tiny wrote into its images."""
    return to_uint8(rows.x0)[:, 0, 0].amin(1).tolist()


def batches(**changes: Any) -> Batches:
    """Make batches of tiny that forget class 1."""
    return Batches(**{"split": tiny(), "forget": (1,), "forget_size": 4, "retain_size": 6, "seed": 0, **changes})


def same(one: Tensor, other: Tensor) -> bool:
    """Compare bit for bit."""
    return torch.equal(one, other)


def test_forget_and_retain_rows_come_from_their_classes() -> None:
    source = batches()
    batch = source(0)
    assert (source.forget_classes, source.retain_classes) == ((1,), (0, 2))
    assert (len(batch.forget), len(batch.retain)) == (4, 6)
    assert all(n % 3 == 1 for n in numbers(batch.forget))
    assert all(n % 3 != 1 for n in numbers(batch.retain))


def test_labels_belong_to_their_images() -> None:
    retain = batches()(7).retain
    assert retain.c.tolist() == [n % 3 for n in numbers(retain)]
    assert (retain.x0.dtype, retain.c.dtype) == (torch.float32, torch.int64)


def test_batch_depends_on_seed_and_step_alone() -> None:
    source = batches(flip=True)
    for step in range(9):
        source(step)
    torch.manual_seed(1)
    fresh = batches(flip=True)(5)
    assert same(source(5).retain.x0, fresh.retain.x0)
    assert same(source(5).forget.c, fresh.forget.c)
    assert numbers(batches(seed=1)(5).retain) != numbers(fresh.retain)


@pytest.mark.parametrize("size", [1, 3, 6, 20, 47])
def test_every_epoch_shows_each_row_once(size: int) -> None:
    source = batches(retain_size=size)
    seen = [n for step in range(-(-60 // size)) for n in numbers(source(step).retain)]
    # 20 of tiny's 30 rows are retained: three epochs are 60 draws.
    epochs = [seen[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == [n for n in range(30) if n % 3 != 1] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_forget_and_retain_orders_are_unrelated() -> None:
    split = tiny(count=200, classes=2)
    batch = Batches(split, (1,), forget_size=100, retain_size=100, seed=0)(0)
    assert [n // 2 for n in numbers(batch.forget)] != [n // 2 for n in numbers(batch.retain)]


def test_processes_share_out_one_global_batch() -> None:
    whole = batches(flip=True)(3)
    parts = [batches(flip=True, rank=rank, world=2)(3) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert same(part.retain.x0, whole.retain.x0[rank::2])
        assert same(part.forget.x0, whole.forget.x0[rank::2])
        assert same(part.forget.c, whole.forget.c[rank::2])


def test_without_forget_classes_all_data_is_retained() -> None:
    batch = batches(forget=(), forget_size=0, retain_size=30)(0)
    assert len(batch.forget) == 0
    assert batch.forget.x0.shape == (0, 1, 2, 2)
    assert sorted(numbers(batch.retain)) == list(range(30))


def test_forget_classes_stay_out_without_forget_rows() -> None:
    batch = batches(forget_size=0, retain_size=20)(0)
    assert sorted(numbers(batch.retain)) == [n for n in range(30) if n % 3 != 1]


def test_half_of_the_rows_are_mirrored() -> None:
    split = Split(torch.tensor([[0, 255]], dtype=torch.uint8).expand(10, 1, 1, 2), torch.arange(10) % 2)
    source = Batches(split, (0,), forget_size=50, retain_size=50, seed=0, flip=True)
    first = torch.cat(
        [part.x0[:, 0, 0, 0] for step in range(20) for part in (source(step).forget, source(step).retain)]
    )
    # 2,000 fair draws: the share of mirrored rows has a standard deviation of 0.011.
    assert (first > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_unflipped_rows_are_never_mirrored() -> None:
    assert (batches()(0).retain.x0[..., 0] == to_float(torch.tensor(200))).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forget": (3,)}, "unknown class '3'"),
        ({"forget": (-1,)}, "unknown class '-1'"),
        ({"forget_size": -1}, "forget_size = -1"),
        ({"retain_size": -2}, "retain_size = -2"),
        ({"forget_size": 0, "retain_size": 0}, "forget_size = 0 and retain_size = 0"),
        ({"forget": ()}, "forget_size = 4 is not allowed: no class is left"),
        ({"forget": (0, 1, 2)}, "retain_size = 6 is not allowed: no class is left"),
        ({"world": 4}, "retain_size = 6 is not allowed with 4 processes"),
        ({"world": 3}, "forget_size = 4 is not allowed with 3 processes"),
    ],
)
def test_impossible_batches_are_refused(changes: dict[str, Any], words: str) -> None:
    assert words in line_of(lambda: batches(**changes))


def test_split_cuts_near_equal_consecutive_slices() -> None:
    batch = batches(forget_size=4, retain_size=6)(0)
    pieces = batch.split(4)
    assert [len(piece.forget) for piece in pieces] == [1, 1, 1, 1]
    assert [len(piece.retain) for piece in pieces] == [2, 2, 1, 1]
    assert same(torch.cat([piece.retain.x0 for piece in pieces]), batch.retain.x0)
    assert same(torch.cat([piece.retain.c for piece in pieces]), batch.retain.c)


def test_mix_is_sha256_of_the_integers() -> None:
    # printf '0,1,2' | sha256sum | cut -c-16 gives c0be322c1ad6af50; its upper 63 bits.
    assert derive_seed(0, 1, 2) == 0xC0BE322C1AD6AF50 >> 1


def test_mix_tells_apart_order_count_and_sign() -> None:
    seeds = [
        derive_seed(1, 2),
        derive_seed(2, 1),
        derive_seed(12),
        derive_seed(1, 2, 0),
        derive_seed(-1, 2),
        derive_seed(1),
        derive_seed(2**80),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def draws() -> tuple[float, float, float]:
    """Draw one number from each generator."""
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_reseed_sets_every_generator_from_seed_step_and_rank() -> None:
    seen = []
    for key in [(0, 1, 2), (0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)]:
        reseed(*key)
        seen.append(draws())
    assert seen[0] == seen[1]
    assert all(len(set(column)) == 4 for column in zip(*seen, strict=True))


def test_bytes_survive_the_way_to_float_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert same(to_uint8(floats), values)
    assert (floats.dtype, floats.min().item(), floats.max().item()) == (torch.float32, -1.0, 1.0)


def test_to_uint8_rounds_and_clamps() -> None:
    # (x + 1) * 127.5: -1.5 is below 0, 2 above 255; 0.0 is 127.5, halves to even; 0.001 is 127.6.
    assert to_uint8(torch.tensor([-1.5, 2.0, 0.0, 0.001])).tolist() == [0, 255, 128, 128]


needs_copies = pytest.mark.skipif(
    not os.environ.get("SAFEMAX_DATA"), reason="SAFEMAX_DATA does not name the folder of real data"
)


@needs_copies
@pytest.mark.slow
def test_cifar10_is_whole_and_in_published_order() -> None:
    data = load("cifar10")
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    assert (len(data.train), len(data.test), data.image_shape, data.natural) == (50_000, 10_000, (3, 32, 32), True)
    # data_batch_1 begins with frog, truck, truck, deer; test_batch with cat, ship, ship, airplane.
    assert data.train.labels[:4].tolist() == [6, 9, 9, 4]
    assert data.test.labels[:4].tolist() == [3, 8, 8, 0]
    # Mean of the training set as published everywhere: (.4914, .4822, .4465).
    assert data.train.images.float().mean((0, 2, 3)).div(255).tolist() == pytest.approx(
        [0.4914, 0.4822, 0.4465], abs=1e-4
    )


@needs_copies
@pytest.mark.slow
def test_mnist_is_whole_and_grey() -> None:
    data = load("mnist")
    assert (len(data.train), len(data.test), data.image_shape, data.natural) == (60_000, 10_000, (1, 28, 28), False)
    # Published: the mean pixel of the training set is .1307.
    assert data.train.images.float().mean().div(255).item() == pytest.approx(0.1307, abs=1e-4)
