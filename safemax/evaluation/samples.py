"""The images that a model draws under a protocol, and the cache that keeps them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from safemax.data.batches import to_uint8
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample
from safemax.evaluation.protocol import Evaluation
from safemax.storage import cache, source_digest

DRAWING = 1  # part of the key of cached samples: a change of what `draw` draws must change it
SHOWN_PER_CLASS = 5  # images of a class in the comparison picture


@dataclass(frozen=True)
class Samples:
    """What a model drew: images (N, C, H, W) uint8 and the labels (N,) they were drawn for, under both samplers."""

    images: Tensor
    labels: Tensor
    second_images: Tensor
    second_labels: Tensor

    def without(self, classes: tuple[int, ...]) -> Samples:
        """Return the samples of all other classes."""
        left_out = torch.tensor(classes, dtype=torch.int64)
        main, second = (~torch.isin(each, left_out) for each in (self.labels, self.second_labels))
        return Samples(self.images[main], self.labels[main], self.second_images[second], self.second_labels[second])


def draw(
    diffusion: Diffusion,
    forget: tuple[int, ...],
    evaluation: Evaluation,
    *,
    shown: int = SHOWN_PER_CLASS,
    progress: bool = True,
) -> Samples:
    """Draw the samples of a protocol; two models of one architecture start from identical noise, row by row.

    Args:
        diffusion: the model.
        forget: the forgotten labels, which share the protocol's forget samples equally.
        evaluation: samplers, counts and seed.
        shown: images of each retained class under the second sampler, for pictures: its metrics are of the forgotten ones.
        progress: whether to show bars.
    """
    forget_count, retain_count = evaluation.counts
    labels = _labels(diffusion.num_classes, forget, forget_count, retain_count)
    second = _labels(diffusion.num_classes, forget, evaluation.second_samples, min(shown, retain_count))
    seed = evaluation.evaluation_seed
    images = sample(diffusion, labels, evaluation.main_sampler, seed=seed, progress=progress)
    second_images = sample(diffusion, second, evaluation.second_sampler, seed=seed + 1, progress=progress)
    return Samples(to_uint8(images), labels, to_uint8(second_images), second)


def cached_samples(
    diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation, *, progress: bool = True
) -> Samples:
    """Return `draw`, from the cache where the same model drew the same before: a base is sampled once."""
    facts = {
        "model": diffusion.identity(),
        "forget": forget,
        "second": evaluation.second_samples,
        "code": source_digest.digest("safemax.diffusion.sampling"),
        "drawing": DRAWING,
        **evaluation.describe(),
    }
    path = cache.folder("samples") / f"{cache.key(facts)}.safetensors"
    return Samples(**cache.load_or_create(path, lambda: asdict(draw(diffusion, forget, evaluation, progress=progress))))


def _labels(num_classes: int, forget: tuple[int, ...], forget_count: int, retain_count: int) -> Tensor:
    share = [forget_count // len(forget) + (i < forget_count % len(forget)) for i in range(len(forget))]
    counts = {k: retain_count for k in range(num_classes)} | dict(zip(forget, share, strict=True))
    return torch.cat([torch.full((max(n, 1),), k, dtype=torch.int64) for k, n in counts.items()])
