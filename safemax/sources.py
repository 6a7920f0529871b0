"""Where images come from: a name, a hub id, a folder or Parquet files become one Dataset of uint8 tensors."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safemax.errors import InputError, Stopped, unknown

HUB = {"cifar10": "uoft-cs/cifar10", "fashion_mnist": "zalando-datasets/fashion_mnist", "mnist": "ylecun/mnist"}
KNOWN = ("digits", *HUB, "a hub id owner/name", "a folder", "FOLDER/*.parquet")

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
# What Pillow raised on 180,000 damaged images of ten formats; anything else still ends in one line, without the row.
_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Part of every cache file's key: a change of what decoding yields must change it.
_DECODING = "1"


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Args:
        images: (N, C, H, W) uint8, C is 1 or 3, H = W.
        labels: (N,) int64 in [0, K).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def without(self, classes: Sequence[int]) -> Split:
        """Return the images of all other classes; the labels keep their numbers."""
        rows = ~torch.isin(self.labels, torch.tensor(classes, dtype=torch.int64))
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real images with a train and a test split.

    Args:
        name: short name, fit for a run name.
        train: every class has at least one image here.
        test: images that training never sees.
        class_names: K names; the index of a name is its label.
        natural: whether a mirrored image is as likely as the image, so that training may flip.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    natural: bool

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of pixels, labels, shapes and class names; the dataset's own name and place do not enter."""
        sha = hashlib.sha256(json.dumps(self.class_names).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


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
        Grey sources stay at one channel, all others become RGB. Decoded images are kept in $SAFEMAX_CACHE (default
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
        key = hashlib.sha256(json.dumps([_DECODING, size, origin.key]).encode()).hexdigest()[:16]
        path = Path(os.environ.get("SAFEMAX_CACHE") or ".safemax") / f"{origin.name}-{key}.safetensors"
        return _recall(path, origin.name) or _keep(_read(origin, size), path)


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
    images = torch.from_numpy(np.stack([_array(Image.fromarray(each), size) for each in pixels]))
    labels = torch.from_numpy(bunch.target).long()
    place = torch.stack([labels == k for k in range(10)]).cumsum(1)[labels, torch.arange(len(labels))]
    held = place % 6 == 0
    names = tuple(str(k) for k in range(10))
    return _dataset("digits", Split(images[~held], labels[~held]), Split(images[held], labels[held]), names)


def _dataset(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> Dataset:
    # Names of one character are digits or letters, which a mirror changes, whatever their colours.
    natural = train.images.shape[1] == 3 and any(len(each) > 1 for each in class_names)
    return Dataset(name, train, test, class_names, natural)


# A source found but not yet decoded; key changes whenever its content does.
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
        split = next((_WORDS[word] for word in reversed(words) if word in _WORDS), None)
        if split:
            splits.setdefault(split, []).append(_exact(file))
    return _local(name, base, files, "parquet", splits)


def _images(name: str, folder: Path, files: list[Path]) -> _Origin:
    # By top folder alone: datasets' own search would also take test/train/*.png, a class of that name, for training.
    tops = {_WORDS[top.name.lower()]: top for top in sorted(folder.iterdir()) if top.name.lower() in _WORDS}
    splits = {split: [f"{_exact(top)}/**"] for split, top in tops.items()}
    # datasets skips a class folder without images; here it counts, as an empty class.
    folders = [each for top in tops.values() for each in glob.glob(f"{_exact(top)}/**/", recursive=True)]
    leaves = [Path(each).name for each in folders if not glob.glob(f"{_exact(each)}/*/")]
    return _local(name, folder, files, "imagefolder", splits, frozenset(leaves))


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
    wanted = {split: splits[split] for split in _train_and_test(splits)}
    stats = [(str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # Streaming reads the files in place: no Arrow copy anywhere, nothing written beside the user's data.
    return _Origin(
        name,
        json.dumps([str(base.resolve()), sorted(classes), stats]),
        lambda: _load_dataset(builder, data_files=wanted, streaming=True),
        classes,
    )


def _train_and_test(splits: Iterable[str]) -> tuple[str, str]:
    found = {_WORDS.get(name, name): name for name in sorted(splits)}
    train, test = found.get("train"), found.get("test", found.get("validation"))
    if train is None or test is None:
        missing = "train" if train is None else "test"
        raise InputError(f"no {missing} split; needed: train and test (or validation); found: {_list(found.values())}")
    return train, test


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _read(origin: _Origin, size: int | None) -> Dataset:
    splits = origin.open()
    parts = {name: splits[name] for name in _train_and_test(splits)}
    features = next(iter(parts.values())).features or {}
    image, label = _columns(features)
    rows = [_decode(part, split, image, label, size) for split, part in parts.items()]
    labels = [np.array([label for _, label in part], dtype=np.int64) for part in rows]
    class_names = _class_names(labels[0], labels[1], getattr(features[label], "names", None), origin.classes)
    train, test = (
        Split(images, torch.from_numpy(values))
        for images, values in zip(_stack([[pixels for pixels, _ in part] for part in rows]), labels, strict=True)
    )
    return _dataset(origin.name, train, test, class_names)


def _columns(features: Mapping[str, Any]) -> tuple[str, str]:
    """Find the image and the label column by feature type; a plain struct of bytes and path is an image, too."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    integers = [name for name, feature in features.items() if re.match("u?int", str(getattr(feature, "dtype", "")))]
    return _one("image", images, features), _one("label", named or integers, features)


def _one(kind: str, candidates: list[str], features: Iterable[str]) -> str:
    if kind in candidates or len(candidates) == 1:
        return kind if kind in candidates else candidates[0]
    if candidates:
        raise InputError(f"several {kind} columns ({_list(candidates)}); one is needed, or one named {kind!r}")
    needed = "images" if kind == "image" else "class labels or integers (an image folder: train/<class>/*.png)"
    raise InputError(f"no {kind} column; one of {needed} is needed; found: {_list(features)}")


def _decode(part: Any, split: str, image: str, label: str, size: int | None) -> list[tuple[np.ndarray, int]]:
    rows: list[tuple[np.ndarray, int]] = []
    for table in part.with_format("arrow").iter(1000):
        for stored, value in zip(table.column(image).to_pylist(), table.column(label).to_pylist(), strict=True):
            path = (stored or {}).get("path")
            place = f"row {len(rows)} of {split}" + (f" ({path})" if path else "")
            if value is None:
                raise InputError(f"{place} has no label")
            rows.append((_pixels(stored, place, size), value))
    if not rows:
        raise InputError(f"the {split} split is empty")
    return rows


def _pixels(stored: dict[str, Any] | None, place: str, size: int | None) -> np.ndarray:
    if not stored or (stored["bytes"] is None and stored["path"] is None):
        raise InputError(f"{place} has no image")
    try:
        with Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except _UNDECODABLE as error:
        raise InputError(f"the image in {place} does not decode ({type(error).__name__}: {error})") from error
    if size is None and upright.width != upright.height:
        raise InputError(f"the image in {place} is {upright.width}x{upright.height}, not square; pass size=PIXELS")
    return _array(upright, size)


def _array(image: Image.Image, size: int | None) -> np.ndarray:
    """Return (C, H, W) uint8, square; 16-bit grey keeps its high byte."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L", "I") else "RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def _stack(parts: list[list[np.ndarray]]) -> list[Tensor]:
    """Stack each split's images; among coloured ones a grey image becomes coloured."""
    sides = sorted({each.shape[1] for part in parts for each in part})
    if len(sides) > 1:
        raise InputError(f"images are of several sizes, {sides[0]} to {sides[-1]} pixels; pass size=PIXELS")
    channels = max(each.shape[0] for part in parts for each in part)
    shape = (channels, sides[0], sides[0])
    return [torch.from_numpy(np.stack([np.broadcast_to(each, shape) for each in part])).contiguous() for part in parts]


def _class_names(
    train: np.ndarray, test: np.ndarray, names: list[str] | None, expected: frozenset[str]
) -> tuple[str, ...]:
    known = names or _numbers(train)
    for split, labels in (("train", train), ("test", test)):
        wrong = np.flatnonzero((labels < 0) | (labels >= len(known)))
        if len(wrong):
            raise InputError(f"label {labels[wrong[0]]} in row {wrong[0]} of {split} is not in 0..{len(known) - 1}")
    counts = np.bincount(train, minlength=len(known))
    empty = [name for name, count in zip(known, counts, strict=True) if not count] + sorted(expected - set(known))
    if empty:
        raise InputError(f"no training images in class {_list(repr(name) for name in empty)}; remove it or fill it")
    return tuple(known)


def _numbers(train: np.ndarray) -> list[str]:
    used = np.unique(train)
    if used[0] < 0:
        raise InputError(f"label {used[0]} in row {int(train.argmin())} of train is below 0")
    gaps = np.flatnonzero(used != np.arange(len(used)))
    if len(gaps):
        raise InputError(
            f"labels have no names and a gap: {gaps[0]} is missing, {used[-1]} is used; number them 0..K-1"
        )
    return [str(label) for label in used]


def _recall(path: Path, name: str) -> Dataset | None:
    """Read a cache file; None where there is none or where it does not hold what was written."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            train, test = (
                Split(file.get_tensor(f"{split}.images"), file.get_tensor(f"{split}.labels"))
                for split in ("train", "test")
            )
        stored = _dataset(name, train, test, tuple(json.loads(about["class_names"])))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None
    return stored if stored.digest == about["digest"] else None


def _keep(dataset: Dataset, path: Path) -> Dataset:
    tensors = {
        f"{name}.{field}": getattr(split, field)
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for field in ("images", "labels")
    }
    about = {"class_names": json.dumps(dataset.class_names), "digest": dataset.digest}
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(save(tensors, about))
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write the cache {path} ({error.strerror}); set SAFEMAX_CACHE to a folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return dataset
