"""What judges are trained on: real images, mirrored, moved and hazed, and negatives that show no class."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from safemax.data.batches import derive_seed, to_float
from safemax.data.dataset import Dataset, Split
from safemax.judges.negatives import CLEAR, drowned, negative_images, uniform
from safemax.judges.recipes import REJECT_SHARE


def on(dataset: Dataset, device: torch.device) -> Dataset:
    """Return a data set whose training images lie on a device."""
    train = dataset.train
    return replace(dataset, train=Split(train.images.to(device), train.labels.to(device)))


class Passes:
    """Passes over a data set: every image once an epoch, in an order and mirrored as (seed, epoch) says."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.device = dataset.train.images.device
        self.mirrored = torch.rand(len(dataset.train), generator=self._seeded(-1)) < 0.5
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def rows(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a step; a batch may end one epoch and begin the next."""
        size, places = len(self.dataset.train), range(step * count, (step + 1) * count)
        parts = [self._of_epoch(e, places, size) for e in range(places[0] // size, places[-1] // size + 1)]
        images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return images, labels

    def _of_epoch(self, epoch: int, places: range, size: int) -> tuple[Tensor, Tensor]:
        if epoch != self.epoch:
            self.epoch, self.order = epoch, torch.randperm(size, generator=self._seeded(epoch))
        first, last = max(places.start - epoch * size, 0), min(places.stop - epoch * size, size)
        rows = self.order[first:last]
        mirrored = self.mirrored[rows] ^ bool(epoch % 2)
        rows = rows.to(self.device)
        x = to_float(self.dataset.train.images[rows])
        if self.dataset.natural:
            x = torch.where(mirrored.to(self.device).view(-1, 1, 1, 1), x.flip(3), x)
        return x, self.dataset.train.labels[rows]

    def _seeded(self, epoch: int) -> Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, epoch))


def draw(dataset: Dataset, batch_size: int, shift: bool, reject: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a batch drawn with replacement, on the data's device, which is the generator's: images (N, C, H, W) and labels (N,).

    Args:
        dataset: its train split is drawn from.
        batch_size: N.
        shift: move real images by up to an eighth of their side.
        reject: make a third of the rows negatives, whose label is K.
        generator: of the randomness.
    """
    rows = torch.randint(
        len(dataset.train),
        (batch_size - negatives_of(batch_size, reject),),
        generator=generator,
        device=generator.device,
    )
    x0, y = to_float(dataset.train.images[rows]), dataset.train.labels[rows]
    return varied(dataset, _flipped(x0, generator) if dataset.natural else x0, x0, y, batch_size, shift, generator)


def negatives_of(batch_size: int, reject: bool) -> int:
    """Return how many rows of a batch are negatives."""
    return round(batch_size * REJECT_SHARE) if reject else 0


def varied(
    dataset: Dataset, x: Tensor, x0: Tensor, y: Tensor, batch_size: int, shift: bool, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return a whole batch of real images x, moved, with labels y: where they are fewer than it, negatives of x0 follow them."""
    x = _shifted(x, generator) if shift else x
    num_negatives = batch_size - len(x)
    if num_negatives == 0:
        return x, y
    x = _hazed(x, generator)
    negatives = negative_images(x0, y, num_negatives, dataset.natural, generator)
    return torch.cat([x, negatives]), torch.cat([y, y.new_full((num_negatives,), dataset.num_classes)])


def _flipped(x: Tensor, generator: Generator) -> Tensor:
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device) < 0.5
    return torch.where(chosen, x.flip(3), x)


def _shifted(x: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to an eighth of its size; the gap repeats the border."""
    n, _, height, width = x.shape
    device, reach = generator.device, max(1, height // 8)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    down, right = torch.randint(2 * reach + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = down + torch.arange(height, device=device), right + torch.arange(width, device=device)
    each = torch.arange(n, device=device)[:, None, None]
    return padded.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _hazed(x: Tensor, generator: Generator) -> Tensor:
    """Drown a quarter of the images slightly: without them the judge would reject a class for a little grain."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device) < 0.25
    return torch.where(chosen, drowned(x, uniform(CLEAR, 1, len(x), generator), generator), x)
