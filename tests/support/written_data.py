"""Small data sets written to disk as strangers write them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from safemax.errors import InputError

Table = Mapping[str, Any]


def picture(value: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Draw a picture whose left column is white and whose other pixels have one value."""
    pixels = np.full((size[1], size[0]), value, np.uint8)
    pixels[:, 0] = 255
    return Image.fromarray(pixels).convert(mode)


def write_parquet(folder: Path, features: Mapping[str, Any], **splits: Table) -> Path:
    """Write one Parquet file per split, as push_to_hub names them."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        rows = datasets.Dataset.from_dict(table, features=datasets.Features(dict(features)))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_images(folder: Path, *names: str, suffix: str = ".png") -> Path:
    """Write one picture under each name, such as train/cat/0."""
    for value, name in enumerate(names):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(value).save(path)
    return folder


def png(value: int) -> dict[str, Any]:
    """Return a picture of one value as a row of an image column."""
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_frames(folder: Path, label: Any, name: str = "label", **more: Any) -> str:
    """Write the same rows as train and as test with pandas, which knows no ClassLabel; image k has the value 10 k."""
    frame = pd.DataFrame({"image": [png(10 * k) for k in range(len(label))], name: label, **more})
    for split in ("train", "test"):
        frame.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def image_and(label: Any, **more: Any) -> dict[str, Any]:
    """Return the features of a table with an image column."""
    import datasets

    return {"img": datasets.Image(), "label": label, **more}


def pets(
    folder: Path, *, mode: str = "RGB", size: tuple[int, int] = (8, 8), labels: Sequence[int | None] = (0, 1, 0, 1)
) -> Path:
    """Write cats and dogs: train images of values 0, 1, ..., and test images of 90 and 91."""
    import datasets

    images = [picture(k, mode, size) for k in range(len(labels))]
    return write_parquet(
        folder,
        image_and(datasets.ClassLabel(names=["cat", "dog"])),
        train={"img": images, "label": list(labels)},
        test={"img": [picture(90, mode, size), picture(91, mode, size)], "label": [1, 0]},
    )


def numbered(folder: Path, train: Sequence[int | None], test: Sequence[int | None] = (0,)) -> Path:
    """Write a table whose labels are integers without names."""
    import datasets

    tables = {
        split: {"img": [picture() for _ in labels], "label": list(labels)}
        for split, labels in (("train", train), ("test", test))
    }
    return write_parquet(folder, image_and(datasets.Value("int64")), **tables)


def line_of(call: Callable[[], Any]) -> str:
    """Return the one line that a call is refused with."""
    with pytest.raises(InputError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)
