"""Made-up data for a rehearsal: ten classes with CIFAR-10's names at 8x8, and two untrained networks in the place of judges."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from PIL import Image
from safetensors.torch import save_file

from safemax.judges.networks import build

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 8
JUDGES = ("cifar10-resnet20", "cifar10-resnet56")


def data(folder: Path) -> Path:
    """Make the folder that SAFEMAX_DATA is to name, unless it is there; return it."""
    if not (folder / "judges").exists():
        _images(folder / "cifar10" / "train-00000-of-00001.parquet", 40, seed=0)
        _images(folder / "cifar10" / "test-00000-of-00001.parquet", 12, seed=1)
        (folder / "judges").mkdir(parents=True)
        for seed, name in enumerate(JUDGES):
            torch.manual_seed(seed)
            network = build("resnet20", (3, 32, 32), len(CLASSES))
            save_file(network.state_dict(), folder / "judges" / f"{name}.safetensors")
    return folder


def _images(path: Path, per_class: int, seed: int) -> None:
    """Write images whose class is a colour of their upper half, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(per_class * len(CLASSES)) % len(CLASSES)
    pixels = torch.randint(0, 80, (len(labels), SIDE, SIDE, 3), generator=generator)
    pixels[:, : SIDE // 2] += (torch.stack([labels * 17, 153 - labels * 17, labels % 3 * 60], dim=1))[:, None, None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [Image.fromarray(each) for each in pixels.to(torch.uint8).numpy()], "label": labels.tolist()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
