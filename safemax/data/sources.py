"""Where images come from: a name, a hub id, a folder or Parquet files become one Dataset."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from safemax.data.dataset import Dataset, Split, load_cached, save_cached
from safemax.data.decoding import VERSION, WORDS, decode, square, train_and_test
from safemax.errors import InputError, Stopped, unknown
from safemax.storage import cache

HUB = {"cifar10": "uoft-cs/cifar10", "fashion_mnist": "zalando-datasets/fashion_mnist", "mnist": "ylecun/mnist"}
KNOWN = ("digits", *HUB, "a hub id owner/name", "a folder", "FOLDER/*.parquet")


def load(source: str, *, size: int | None = None) -> Dataset:
    """Load a dataset by name or place.

    Args:
        source: `digits` (scikit-learn's 1,797 handwritten digits, 8x8, embedded); `cifar10`, `fashion_mnist` or `mnist`
            (read from $SAFEMAX_DATA/<source> where that exists, else from the Hugging Face hub); any hub id owner/name
            with one image and one label column; a folder of Parquet files whose names say train and test (or
            validation), or a glob of such files; an image folder train/<class>/*.png, test/<class>/*.png.
        size: side in pixels to which every image is centre-cropped and resized (Pillow's bicubic, which filters when it
            shrinks); needed where images are not square or not of one size.

    Returns:
        Grey sources stay at one channel, all others become RGB. Decoded images are cached in $SAFEMAX_CACHE (default
        `.safemax` in the working directory), keyed by the files' names, sizes and modification times or by the hub's
        fingerprint, and verified by digest when read.

    Raises:
        InputError: the source is unknown, unreachable, empty or cannot train a class-conditional model; one line.
    """
    if size is not None and size < 1:
        raise InputError(f"size = {size} is not allowed; size is a number of pixels of at least 1")
    if source == "digits":
        return _digits(size)
    with _one_line(f"data = {source}"):
        origin = _origin(source)
        key = cache.key({"decoding": VERSION, "size": size, "origin": origin.key})
        path = cache.root() / f"{origin.name}-{key}.safetensors"
        return load_cached(path, origin.name) or save_cached(
            decode(origin.name, origin.open(), size, origin.classes), path
        )


@contextmanager
def _one_line(prefix: str) -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"cannot be read ({type(error).__name__}): "
        raise InputError(f"{prefix}: {kind}{' '.join(str(error).split())}") from error


def _digits(size: int | None) -> Dataset:
    # Every sixth image of a class (its 6th, 12th, ...) is a test image: 1,501 and 296, and no generator decides.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 16 grey levels up to 16: 255/16 each, halves to even, so 8 becomes 128.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(np.stack([square(Image.fromarray(each), size) for each in pixels]))
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
    open: Callable[[], Mapping[str, Any]]
    classes: frozenset[str] = frozenset()


def _origin(source: str) -> _Origin:
    if source in HUB:
        copy = Path(os.environ.get("SAFEMAX_DATA", ""), source)
        if "SAFEMAX_DATA" in os.environ and copy.is_dir():
            return _folder(source, copy)
        return _hub(source, HUB[source], f"$SAFEMAX_DATA/{source}")
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        return _parquet_glob(path)
    if source and path.is_dir():
        return _folder(path.resolve().name, path)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise InputError("no such folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _hub(path.name, source, source)
    raise unknown("name", source, KNOWN)


def _hub(name: str, hub_id: str, folder: str) -> _Origin:
    try:
        splits = _load_dataset(hub_id)
    except (OSError, ValueError) as error:
        raise InputError(f"no folder {folder}, and the Hugging Face hub does not give {hub_id}: {error}") from error
    key = json.dumps([hub_id, *(f"{split} {rows._fingerprint}" for split, rows in splits.items())])
    return _Origin(name, key, lambda: splits)


def _load_dataset(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    return datasets.load_dataset(*args, **kwargs)


def _parquet_glob(path: Path) -> _Origin:
    base = next(each for each in path.parents if not glob.has_magic(str(each)))
    files = sorted(base.glob(str(path.relative_to(base))))
    if not files:
        raise InputError("no such file")
    return _parquet(base.resolve().name, base, files)


def _folder(name: str, folder: Path) -> _Origin:
    # Unlike Path.rglob, glob follows linked folders and skips hidden files, as datasets does.
    files = [Path(file) for file in sorted(glob.glob(f"{_exact(folder)}/**/*", recursive=True)) if os.path.isfile(file)]
    if not files:
        raise InputError("the folder is empty")
    tables = [file for file in files if file.suffix == ".parquet"]
    return _parquet(name, folder, tables) if tables else _images(name, folder, files)


def _parquet(name: str, base: Path, files: list[Path]) -> _Origin:
    splits: dict[str, list[str]] = {}
    for file in files:
        words = re.split("[^a-z]+", str(file.relative_to(base)).lower())
        split = next((WORDS[word] for word in reversed(words) if word in WORDS), None)
        if split:
            splits.setdefault(split, []).append(_exact(file))
    return _local(name, base, files, "parquet", splits)


def _images(name: str, folder: Path, files: list[Path]) -> _Origin:
    # By top folder alone: datasets' own search would also take test/train/*.png, a class of that name, for training.
    tops = {WORDS[top.name.lower()]: top for top in sorted(folder.iterdir()) if top.name.lower() in WORDS}
    splits = {split: [f"{_exact(top)}/**"] for split, top in tops.items()}
    # datasets skips a class folder without images; here it counts as an empty class.
    folders = [each for top in tops.values() for each in glob.glob(f"{_exact(top)}/**/", recursive=True)]
    leaves = [Path(each) for each in folders if not glob.glob(f"{_exact(each)}/*/")]
    classes = {leaf.name for leaf in leaves if leaf not in tops.values()}
    if len(classes) == 1:
        raise InputError(f"the only class is {classes.pop()!r}; a model needs another one to retain")
    return _local(name, folder, files, "imagefolder", splits, frozenset(leaf.name for leaf in leaves))


def _exact(path: Path | str) -> str:
    return glob.escape(str(path))


def _local(
    name: str,
    base: Path,
    files: Iterable[Path],
    builder: str,
    splits: dict[str, list[str]],
    classes: frozenset[str] = frozenset(),
) -> _Origin:
    wanted = {split: splits[split] for split in train_and_test(splits)}
    stats = [(str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # Streaming reads the files in place: no Arrow copy anywhere, nothing written next to the user's data.
    return _Origin(
        name,
        json.dumps([str(base.resolve()), sorted(classes), stats]),
        lambda: _load_dataset(builder, data_files=wanted, streaming=True),
        classes,
    )
