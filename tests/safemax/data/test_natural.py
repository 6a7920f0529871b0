"""Images decide whether they are natural, names do not; the user's word wins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from safemax.data.dataset import looks_natural
from safemax.data.sources import load
from tests.support.written_data import line_of


def photographs(size: int, count: int = 20) -> Tensor:
    """Cut squares from scikit-learn's two photographs and shrink them."""
    whole = [Image.fromarray(each) for each in load_sample_images().images]
    cuts = [whole[k % 2].crop((20 * k, 10 * k, 20 * k + 200, 10 * k + 200)).resize((size, size)) for k in range(count)]
    return torch.from_numpy(np.stack([np.asarray(each) for each in cuts])).permute(0, 3, 1, 2)


def coloured_digits(tint: tuple[float, float, float] = (1, 0.4, 0.1)) -> Tensor:
    """Return digits in one colour, with soft edges, at 32x32."""
    return (load("digits", size=32).train.images[:50] * torch.tensor(tint).view(3, 1, 1)).to(torch.uint8)


@pytest.mark.parametrize("size", [8, 28, 32, 64, 128])
def test_photographs_are_natural(size: int) -> None:
    assert looks_natural(photographs(size))


@pytest.mark.parametrize("size", [8, 32, 64])
def test_grey_photographs_are_not_told_from_scans(size: int) -> None:
    grey = photographs(size).float().mean(1, keepdim=True).to(torch.uint8)
    assert not looks_natural(grey)
    assert not looks_natural(grey.expand(-1, 3, -1, -1))


def test_a_few_levels_of_colour_as_jpeg_leaves_them_are_grey() -> None:
    grey = photographs(32).float().mean(1, keepdim=True).clamp(8, 240)
    noise = torch.randint(-5, 6, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert not looks_natural((grey + noise).to(torch.uint8))


def test_drawings_are_not_natural() -> None:
    assert not looks_natural(coloured_digits())
    assert not looks_natural(photographs(32) // 128 * 128)


def test_a_minority_of_other_images_does_not_decide() -> None:
    digits, photos = coloured_digits(), photographs(32, 30)
    assert looks_natural(torch.cat([digits[:20], photos]))
    assert not looks_natural(torch.cat([digits[:40], photos]))


def write(folder: Path, images: Tensor, names: tuple[str, str]) -> str:
    """Write images in turn into two classes, for both splits."""
    for k, image in enumerate(images):
        for split in ("train", "test"):
            path = folder / split / names[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return str(folder)


@pytest.mark.parametrize("names", [("0", "1"), ("cat", "dog")])
def test_names_do_not_decide_and_flip_does(tmp_path: Path, names: tuple[str, str]) -> None:
    photos = write(tmp_path / "photos", photographs(16, 4), names)
    drawings = write(tmp_path / "drawings", coloured_digits()[:4], names)
    assert [load(photos).natural, load(drawings).natural] == [True, False]
    assert any("pass flip=false" in note for note in load(photos).notes) == (names == ("0", "1"))
    assert not load(photos, flip="true").notes
    assert not load(drawings).notes
    data = load(drawings, flip="true")
    assert data.natural
    assert data.params == {"data.flip": "true"}
    assert data.flip_facts == {"flip": True}
    assert data.digest == load(drawings).digest
    assert not load(photos, flip=False).natural
    assert not load(photos).flip_facts


def test_an_unknown_flip_is_refused() -> None:
    assert "unknown flip 'maybe'" in line_of(lambda: load("digits", flip="maybe"))
