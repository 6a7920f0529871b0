"""Where images come from: a name, a hub id, a folder or Parquet files become one Dataset."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from safemax.data.class_names import as_number
from safemax.data.columns import AUTO
from safemax.data.dataset import Dataset, Split, load_cached, save_cached
from safemax.data.decoding import VERSION, ReadOptions, Table, decode
from safemax.data.image_folder import scan
from safemax.data.pixels import BACKGROUNDS, PixelOptions, square, suffixes
from safemax.data.splits import WORDS, group, skipped, train_and_test, word_of
from safemax.errors import InputError, Stopped, unknown
from safemax.storage import cache

FLIPS = (AUTO, "true", "false")
_DEFAULTS = (AUTO, BACKGROUNDS[0])
_MIRRORED_TEXT = (
    "the images look like photographs, so training mirrors them, but their classes are named like digits or letters; "
    "if a mirrored image no longer shows its class, pass flip=false"
)
_decoded: dict[str, Path] = {}  # files of decoded data by the key under which a worker asks for them
HUB = {"cifar10": "uoft-cs/cifar10", "fashion_mnist": "zalando-datasets/fashion_mnist", "mnist": "ylecun/mnist"}
KNOWN = ("digits", *HUB, "a hub id owner/name", "a folder", "FOLDER/*.parquet")


def load(
    source: str,
    *,
    size: int | None = None,
    label_column: str = AUTO,
    image_column: str = AUTO,
    background: str = BACKGROUNDS[0],
    pixel_range: str = AUTO,
    flip: str | bool = AUTO,
) -> Dataset:
    """Load a dataset by name or place.

    Args:
        source: `digits` (scikit-learn's 1,797 handwritten digits, 8x8, embedded); `cifar10`, `fashion_mnist` or `mnist`
            (read from $SAFEMAX_DATA/<source> where that exists, else from the Hugging Face hub); any hub id owner/name
            with one image and one label column; a folder of Parquet files whose names say train and test (or
            validation), or a glob of such files; a folder that `save_to_disk` wrote; an image folder
            train/<class>/*.png, test/<class>/*.png.
        size: side in pixels to which every image is centre-cropped and resized (Pillow's bicubic, which filters when it
            shrinks); needed where images are not square or not of one size.
        label_column: column of the labels; auto is `label`, or the only column with a name of columns.LABEL_NAMES, or
            the only ClassLabel.
        image_column: column of the images; auto is `image`, or the only one that can hold images.
        background: white or black, what transparent pixels are composited on.
        pixel_range: LOW,HIGH, the values of black and white in grey images of more than 8 bits; see PixelOptions.
        flip: whether images are natural, so that training mirrors them: auto decides by dataset.looks_natural.

    Returns:
        Grey sources stay at one channel, all others become RGB. Decoded images are cached in $SAFEMAX_CACHE (default
        `.safemax` in the working directory), keyed by the files' names, sizes and modification times or by the hub's
        fingerprint, and verified by digest when read. `notes` say what was skipped.

    Raises:
        InputError: the source is unknown, unreachable, empty or cannot train a class-conditional model; one line.
    """
    flip = str(flip).lower()
    if flip not in FLIPS:
        raise unknown("flip", flip, FLIPS)
    options = ReadOptions(image_column, label_column, PixelOptions(size, background, pixel_range))
    dataset = _load(source, options)
    given = {"label_column": label_column, "image_column": image_column, "background": background,
             "pixel_range": pixel_range, "flip": flip}  # fmt: skip
    dataset = replace(dataset, options={name: value for name, value in given.items() if value not in _DEFAULTS})
    if flip != AUTO:
        return replace(dataset, natural=flip == "true")
    is_text = all(len(name) == 1 or as_number(name) is not None for name in dataset.class_names)
    return replace(dataset, notes=(*dataset.notes, *[_MIRRORED_TEXT] * (dataset.natural and is_text)))


def _load(source: str, options: ReadOptions) -> Dataset:
    with _one_line(f"data = {source}"):
        if source == "digits":
            return _digits(options)
        asked = cache.key({"source": source, "options": asdict(options)})
        if cache.is_filled_from_elsewhere() and (dataset := _brought(asked)):
            return dataset
        origin = _origin(source, options.label_column)
        key = cache.key({"decoding": VERSION, "options": asdict(options), "origin": origin.key})
        path = cache.root() / f"{origin.name}-{key}.safetensors"
        _decoded[asked] = path
        return load_cached(path, origin.name) or save_cached(
            decode(origin.name, origin.tables(), options, origin.classes, origin.notes), path
        )


def decoded(key: str) -> list[Path]:
    """Return the file of the data set that this process loaded under a worker's key, [] where it loaded none."""
    path = _decoded.get(key)
    return [path] if path is not None and path.exists() else []


def _brought(key: str) -> Dataset | None:
    """Return the data that the driver decoded, None where it decoded none such."""
    folder = cache.folder("sources") / key
    if not cache.has(folder):
        return None
    (path,) = folder.glob("*.safetensors")
    return load_cached(path, path.stem.rpartition("-")[0])


@contextmanager
def _one_line(prefix: str) -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"cannot be read ({type(error).__name__}): "
        raise InputError(f"{prefix}: {kind}{' '.join(str(error).split())}") from error


def _digits(options: ReadOptions) -> Dataset:
    # Every sixth image of a class (its 6th, 12th, ...) is a test image: 1,501 and 296, and no generator decides.
    from sklearn.datasets import load_digits

    if {options.label_column, options.image_column} != {AUTO}:
        raise InputError("label_column and image_column are not allowed: there are no columns")
    bunch = load_digits()
    # 16 grey levels up to 16: 255/16 each, halves to even, so 8 becomes 128.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(np.stack([square(Image.fromarray(each), options.pixels.size) for each in pixels]))
    labels = torch.from_numpy(bunch.target).long()
    place = torch.stack([labels == k for k in range(10)]).cumsum(1)[labels, torch.arange(len(labels))]
    is_test = place % 6 == 0
    names = tuple(str(k) for k in range(10))
    return Dataset.of(
        "digits", Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test]), names
    )


# A source that is not decoded yet; key changes whenever its content does.
@dataclass(frozen=True)
class _Origin:
    name: str
    key: str
    tables: Callable[[], Sequence[Table]]
    classes: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def _origin(source: str, label_column: str) -> _Origin:
    if source in HUB:
        copy = Path(os.environ.get("SAFEMAX_DATA", ""), source)
        if "SAFEMAX_DATA" in os.environ and copy.is_dir():
            return _folder(source, copy, label_column)
        return _hub(source, HUB[source], f"$SAFEMAX_DATA/{source}")
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        return _parquet_glob(path)
    if source and path.is_dir():
        return _folder(path.resolve().name, path, label_column)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise InputError("no such folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _hub(path.name, source, source)
    raise unknown("name", source, KNOWN)


def _hub(name: str, hub_id: str, folder: str) -> _Origin:
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        splits = datasets.load_dataset(hub_id)
    except Stopped:
        raise
    except Exception as error:  # the hub's clients raise by transport: network, missing repository, gated, offline
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"there is no folder {folder}, and the Hugging Face hub does not give {hub_id}: {reason}; without a network, "
            f"download it elsewhere (`hf download {hub_id} --repo-type=dataset --local-dir=FOLDER`) and pass data=FOLDER"
        ) from error
    key = json.dumps([hub_id, *(f"{split} {rows._fingerprint}" for split, rows in splits.items())])
    # Rows of a repository of loose files name what was downloaded.
    roots = (Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    tables, notes = _of_splits(splits, roots)
    return _Origin(name, key, lambda: tables, notes=tuple(notes))


def _of_splits(splits: Mapping[str, Any], roots: tuple[Path, ...]) -> tuple[list[Table], list[str]]:
    """Return the tables of splits that Hugging Face datasets opened, and notes."""
    chosen, notes = train_and_test(group((name, rows) for name, rows in splits.items() if name.lower() in WORDS))
    unused = [name for name in splits if name.lower() not in WORDS]
    notes += [f"the split {name} is not used" for name in unused]
    return [_of_rows(split, each[0], roots) for split, each in chosen.items()], notes


def _of_rows(split: str, rows: Any, roots: tuple[Path, ...]) -> Table:
    def read(columns: list[str]) -> Iterator[list[list[Any]]]:
        for part in rows.select_columns(columns).with_format("arrow").iter(1000):
            yield [part.column(name).to_pylist() for name in columns]

    return Table(split, split, rows.features.arrow_schema, len(rows), read, roots)


def _parquet_glob(path: Path) -> _Origin:
    base = next(each for each in path.parents if not glob.has_magic(str(each)))
    files = sorted(base.glob(str(path.relative_to(base))))
    if not files:
        raise InputError("no such file")
    return _parquet(base.resolve().name, base, files)


def _folder(name: str, folder: Path, label_column: str) -> _Origin:
    # Unlike Path.rglob, glob follows linked folders and skips hidden files, as datasets does.
    places = sorted(glob.glob(f"{glob.escape(str(folder))}/**/*", recursive=True))
    files = [Path(file) for file in places if os.path.isfile(file)]
    if not files:
        raise InputError("the folder is empty")
    if any(file.name == "state.json" for file in files):
        return _saved(name, folder, files)
    tables = [file for file in files if file.suffix == ".parquet"]
    if not tables:
        images = scan(folder, files, label_column)
        return _Origin(
            name, _key(folder, files, images.classes), lambda: images.tables, images.classes, tuple(images.notes)
        )
    rest = [file.relative_to(folder) for file in files if file.suffix.lower() in suffixes()]
    return _parquet(name, folder, tables, skipped(rest, "beside Parquet files"))


def _parquet(name: str, base: Path, files: list[Path], notes: Sequence[str] = ()) -> _Origin:
    words = {file: word_of(file.relative_to(base)) for file in files}
    chosen, unused = train_and_test(group((word, file) for file, word in words.items() if word))
    unnamed = [file.relative_to(base) for file, word in words.items() if not word]
    notes = [*notes, *unused, *skipped(unnamed, "named for no split")]
    tables = [(split, file) for split, each in chosen.items() for file in each]
    return _Origin(
        name, _key(base, files), lambda: [_of_file(split, file, base) for split, file in tables], notes=tuple(notes)
    )


def _of_file(split: str, file: Path, base: Path) -> Table:
    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.name} cannot be read: {error}") from error

    def read(columns: list[str]) -> Iterator[list[list[Any]]]:
        for batch in opened.iter_batches(1000, columns=columns):
            yield [batch.column(name).to_pylist() for name in columns]

    return Table(split, file.name, opened.schema_arrow, opened.metadata.num_rows, read, (base,))


def _saved(name: str, folder: Path, files: list[Path]) -> _Origin:
    """Return what `save_to_disk` of Hugging Face datasets wrote: a folder for each split."""
    import datasets

    if (folder / "state.json") in files:
        raise InputError(
            "save_to_disk wrote this folder with one split; needed: train and test; "
            "save a DatasetDict with both, or each into a folder train and test"
        )
    splits = {
        file.parent.name: datasets.load_from_disk(str(file.parent)) for file in files if file.name == "state.json"
    }
    tables, notes = _of_splits(splits, (folder,))
    return _Origin(name, _key(folder, files), lambda: tables, notes=tuple(notes))


def _key(base: Path, files: Iterable[Path], classes: Iterable[str] = ()) -> str:
    found = [(str(file).removeprefix(str(base)), file.stat()) for file in files]
    stats = [(name, each.st_size, each.st_mtime_ns) for name, each in found]
    return json.dumps([str(base.resolve()), sorted(classes), stats])
