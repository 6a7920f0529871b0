"""Real models and data at the smallest size that still has every part: three classes, 8x8, a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from safemax.data.batches import Batch, Batches
from safemax.data.dataset import Dataset, Split
from safemax.diffusion.model import Diffusion
from safemax.training.hooks import Folders, Hooks
from safemax.training.method import Method
from safemax.training.result import FitResult
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

SILENT = Hooks(progress=False)


def diffusion(seed: int = 0, *, null: bool = True, steps: int = 1000, dropout: float = 0.0) -> Diffusion:
    """Return an untrained three-class model of 8x8 grey images."""
    torch.manual_seed(seed)
    denoiser = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        num_class_embeds=4 if null else 3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=None,
        dropout=dropout,
    )
    return Diffusion(denoiser, DDPMScheduler(steps, clip_sample=False), ("a", "b", "c"))


def split(n: int = 60, seed: int = 0) -> Split:
    """Return n images whose class is the bright third of the picture, noised a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 40, (n, 1, 8, 8), generator=generator)
    for k in range(3):
        images[labels == k, :, :, 3 * k : 3 * k + 2] += 200
    return Split(images.to(torch.uint8), labels)


def dataset() -> Dataset:
    """Return a data set of `split`s."""
    return Dataset("tiny", split(60, 0), split(30, 1), ("a", "b", "c"), False)


def write_images(folder: Path, most: int = 60) -> None:
    """Write at most so many images of each split of `dataset()` as SPLIT/CLASS/NUMBER.png."""
    whole = dataset()
    for name, part in (("train", whole.train), ("test", whole.test)):
        for i, (image, label) in enumerate(zip(part.images[:most], part.labels[:most].tolist(), strict=True)):
            path = folder / name / whole.class_names[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)


def batch(forget: int = 4, retain: int = 4) -> Batch:
    """Return one batch that forgets class 0."""
    return Batches(split(), (0,), forget_size=forget, retain_size=retain, seed=0)(0)


def batches(*forget: int) -> Batches:
    """Return batches of 4 + 4 rows of `split()` that forget these classes, class 0 by default."""
    return Batches(split(), forget or (0,), forget_size=4, retain_size=4, seed=0)


def train(
    diffusion: Diffusion,
    method: Method,
    training: Training,
    *,
    forget: tuple[int, ...] = (0,),
    hooks: Hooks = SILENT,
    folders: Folders | None = None,
) -> FitResult:
    """Train a model on `split()`."""
    return Trainer(diffusion, method, split(), forget, training, hooks=hooks, folders=folders).fit()
