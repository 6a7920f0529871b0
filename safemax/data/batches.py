"""Batches of forget and retain rows, drawn from a data set as a pure function of (seed, step)."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safemax.data.dataset import Split
from safemax.data.row_share import RowShare
from safemax.errors import InputError, unknown

# First stream of every derived seed, so that no two uses of one seed draw the same numbers.
_STEP, _FORGET, _RETAIN, _FLIP = range(4)


def to_float(images: Tensor) -> Tensor:
    """Map uint8 images 0..255 to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_x0(stored: Tensor) -> Tensor:
    """Map what is kept of images to float32: uint8 images to [-1, 1], float16 latents to themselves."""
    return to_float(stored) if stored.dtype == torch.uint8 else stored.float()


def to_uint8(images: Tensor) -> Tensor:
    """Map float images to uint8: [-1, 1] to 0..255, clamped and rounded; undoes to_float exactly."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def derive_seed(seed: int, *streams: int) -> int:
    """Derive a seed: the first 63 bits of sha256 over the integers in decimal, joined by commas.

    The same on every machine and version; any other integers, order or count give an unrelated seed.
    """
    text = ",".join(str(int(each)) for each in (seed, *streams))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step in a process."""
    return derive_seed(seed, _STEP, step, rank)


def reseed(seed: int, step: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators (CPU and all GPUs) as a function of (seed, step, rank)."""
    derived = step_seed(seed, step, rank)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


@dataclass(frozen=True, eq=False)
class Rows:
    """Images, or their latents, and their labels: the unit that losses see.

    Args:
        x0: (N, C, H, W) float32; images are in [-1, 1].
        c: (N,) int64 in [0, K).
    """

    x0: Tensor
    c: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.c)

    def __getitem__(self, rows: slice) -> Rows:
        """Return some of the rows."""
        return Rows(self.x0[rows], self.c[rows])

    def split(self, n: int) -> list[Rows]:
        """Cut into n consecutive slices that differ by at most one row; some are empty where n exceeds N."""
        return [Rows(x0, c) for x0, c in zip(self.x0.tensor_split(n), self.c.tensor_split(n), strict=True)]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step of one process trains on; either part may have no rows."""

    forget: Rows
    retain: Rows

    def split(self, n: int) -> list[Batch]:
        """Cut both parts into n slices (see Rows.split); weigh a slice by its rows to recover the batch's mean."""
        return [Batch(*parts) for parts in zip(self.forget.split(n), self.retain.split(n), strict=True)]


class Batches:
    """Endless batches of a split: `batches(step)` depends on the split and (seed, step) alone.

    Forget and retain rows are shuffled apart, without replacement: row i of step s is position s * size + i of an
    endless sequence of epochs, each a permutation seeded by (seed, stream, epoch), which moves to the device once. Pixels stay
    uint8 there; conversion and flips happen there, and no batch makes the CPU wait for the device. The global batch does not
    depend on world; rank r holds rows r, r + world, ...

    Args:
        split: images, or their latents, and labels; they move to the device once.
        forget: class indices of the forget rows; all other classes are retained. () with forget_size 0 draws
            retain rows from all data, which is pretraining.
        forget_size: forget rows of a global batch; 0 for none.
        retain_size: retain rows of a global batch; 0 for none.
        seed: any integer.
        flip: whether each row is mirrored left to right with probability 1/2.
        device: where pixels are kept and batches are made.
        rank: index of this process.
        world: number of processes; it divides both sizes.

    Raises:
        InputError: a class has no images, a size is impossible, or world does not divide it.
    """

    def __init__(
        self,
        split: Split,
        forget: Sequence[int],
        *,
        forget_size: int,
        retain_size: int,
        seed: int,
        flip: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Index the rows and move the images to the device."""
        known = split.labels.unique().tolist()
        self.forget_classes = tuple(sorted(set(forget)))
        self.retain_classes = tuple(k for k in known if k not in self.forget_classes)
        for k in self.forget_classes:
            if k not in known:
                raise unknown("class", k, known)
        _check_size("forget_size", forget_size, self.forget_classes, world)
        _check_size("retain_size", retain_size, self.retain_classes, world)
        if not forget_size + retain_size:
            raise InputError("forget_size = 0 and retain_size = 0 leave an empty batch; one must be at least 1")
        is_forget = torch.isin(split.labels, torch.tensor(self.forget_classes, dtype=torch.int64))
        self._images, self._labels = split.images.to(device), split.labels.to(device)
        self._mirrored = None if split.mirrored is None else split.mirrored.to(device)
        place = self._images.device
        self._forget = _Shuffle(torch.nonzero(is_forget).flatten(), forget_size, seed, _FORGET, place)
        self._retain = _Shuffle(torch.nonzero(~is_forget).flatten(), retain_size, seed, _RETAIN, place)
        self._mine, self._seed, self.flip = RowShare(rank, world).rows, seed, flip

    def whole(self) -> Batches:
        """Return the same batches with the rows of all processes."""
        every = copy.copy(self)
        every._mine = slice(None)
        return every

    def __call__(self, step: int) -> Batch:
        """Return this process's part of the global batch of a step (from 0)."""
        forget, retain = self._forget(step), self._retain(step)
        rows = self._local(forget, retain)
        images = self._images[rows]
        if self.flip:
            mirrored = self._to_device(
                torch.rand(len(forget) + len(retain), generator=_generator(self._seed, _FLIP, step)) < 0.5
            )
            mask = self._local(mirrored[: len(forget)], mirrored[len(forget) :])
            other = images.flip(-1) if self._mirrored is None else self._mirrored[rows]
            images = torch.where(mask[:, None, None, None], other, images)
        x0, c = to_x0(images), self._labels[rows]
        cut = len(forget[self._mine])
        return Batch(Rows(x0[:cut], c[:cut]), Rows(x0[cut:], c[cut:]))

    def _local(self, forget: Tensor, retain: Tensor) -> Tensor:
        return torch.cat([forget[self._mine], retain[self._mine]])

    def _to_device(self, flips: Tensor) -> Tensor:
        """Move what is drawn for a step to the device; a GPU copies it from pinned memory while the CPU continues."""
        if self._images.device.type != "cuda":
            return flips.to(self._images.device)
        return flips.pin_memory().to(self._images.device, non_blocking=True)


class _Shuffle:
    """Rows of a step on a device, out of endless shuffled epochs, which are drawn on the CPU."""

    def __init__(self, rows: Tensor, size: int, seed: int, stream: int, device: torch.device) -> None:
        self._rows, self._size, self._seed, self._stream = rows, size, seed, stream
        self._device = device
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        if not self._size:
            return self._rows[:0].to(self._device)
        count, start = len(self._rows), step * self._size
        stop = start + self._size
        epochs = range(start // count, (stop - 1) // count + 1)
        self._epochs = {epoch: self._epoch(epoch) for epoch in epochs}
        # A stop beyond an epoch's end is cut by slicing; a start before its beginning is not, hence the max.
        return torch.cat([self._epochs[e][max(start - e * count, 0) : stop - e * count] for e in epochs])

    def _epoch(self, epoch: int) -> Tensor:
        if epoch in self._epochs:
            return self._epochs[epoch]
        order = torch.randperm(len(self._rows), generator=_generator(self._seed, self._stream, epoch))
        return self._rows[order].to(self._device)


def _generator(seed: int, *streams: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *streams))


def _check_size(name: str, size: int, classes: tuple[int, ...], world: int) -> None:
    if size < 0:
        raise InputError(f"{name} = {size} is not allowed; {name} is a number of rows, at least 0")
    if size % world:
        raise InputError(f"{name} = {size} is not allowed with {world} processes; {name} must be a multiple of {world}")
    if size and not classes:
        raise InputError(f"{name} = {size} is not allowed: no class is left to draw from; {name} must be 0")
