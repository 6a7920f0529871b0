"""The images that a model draws under a protocol, and the cache that keeps them."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.data.batches import to_uint8
from safemax.diffusion import arithmetic
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Request
from safemax.errors import InputError
from safemax.evaluation import panel_classes
from safemax.evaluation.protocol import Evaluation
from safemax.metrics.measurement import MAIN, SECOND
from safemax.progress import Bar, bar
from safemax.storage import cache, source_digest

DRAWING = 2  # part of the key of cached samples: a change of what `draw` draws must change it
SHOWN_PER_CLASS = 5  # images of a class in the comparison picture
BATCH = 500  # images denoised together, and kept together until the draw is whole
SHORT_DRAW = 50_000  # passes from which a correction says beforehand what its panel will cost
LONG_DRAW = 1_000_000  # passes of the network from which the cost is said beforehand; the fast panel takes 70,500


@dataclass(frozen=True)
class Samples:
    """What a model drew: images (N, C, H, W) uint8 and the labels (N,) they were drawn for, under every sampler.

    Args:
        images, labels: of the main sampler.
        second_images, second_labels: of the second sampler.
        user_images, user_labels: of the samplers that people use, one after the other.
        user_samplers: which of metric_keys.USER_SAMPLERS drew each of them, (N,).
    """

    images: Tensor
    labels: Tensor
    second_images: Tensor
    second_labels: Tensor
    user_images: Tensor = field(default_factory=lambda: torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
    user_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    user_samplers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def without(self, classes: tuple[int, ...]) -> Samples:
        """Return the samples of all other classes."""
        left_out = torch.tensor(classes, dtype=torch.int64)
        main, second, user = (
            ~torch.isin(each, left_out) for each in (self.labels, self.second_labels, self.user_labels)
        )
        return Samples(
            self.images[main], self.labels[main], self.second_images[second], self.second_labels[second],
            self.user_images[user], self.user_labels[user], self.user_samplers[user],
        )  # fmt: skip

    def draws(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return images and labels by what they were drawn for, see JudgedImages.draw."""
        main = {MAIN: (self.images, self.labels), SECOND: (self.second_images, self.second_labels)}
        rows = {name: self.user_samplers == k for k, name in enumerate(keys.USER_SAMPLERS)}
        return main | {name: (self.user_images[own], self.user_labels[own]) for name, own in rows.items() if own.any()}


def draw(
    diffusion: Diffusion,
    forget: tuple[int, ...],
    evaluation: Evaluation,
    *,
    shown: int = SHOWN_PER_CLASS,
    progress: bool = True,
    parts: Path | None = None,
) -> Samples:
    """Draw the samples of a protocol; two models of one architecture start from identical noise, row by row.

    Args:
        diffusion: the model.
        forget: the forgotten labels, which share the protocol's forget samples equally.
        evaluation: samplers, counts and seed.
        shown: images of each retained class under the second sampler, for pictures: its metrics are of the forgotten ones.
        progress: whether to show a bar with the time left.
        parts: folder that keeps each batch as it is drawn, and gives what it has of them: a draw that was ended goes on.
    """
    requests = _requests(diffusion, forget, evaluation, shown)
    steps = sum(len(each.firsts) * each.sampler.steps for each in requests.values())
    with bar(shown=progress, total=steps, unit="step", desc="sampling", leave=False) as drawn:
        images = {name: _drawn(request, name, parts, drawn) for name, request in requests.items()}
    users = [name for name in keys.USER_SAMPLERS if name in requests]
    labels = {name: request.labels for name, request in requests.items()}
    return Samples(
        images[MAIN], labels[MAIN], images[SECOND], labels[SECOND],
        torch.cat([images[name] for name in users] or [images[MAIN][:0]]),
        torch.cat([labels[name] for name in users] or [labels[MAIN][:0]]),
        torch.cat([torch.full_like(labels[name], keys.USER_SAMPLERS.index(name)) for name in users] or [labels[MAIN][:0]]),
    )  # fmt: skip


def _requests(diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation, shown: int) -> dict[str, Request]:
    """Return what is to be drawn, by what it is for."""
    (forget_count, retain_count), seed = evaluation.counts, evaluation.evaluation_seed
    retained = panel_classes.labels(evaluation.retain_classes, diffusion.class_names, forget)
    labels = partial(_labels, retained, forget)
    how: dict[str, Any] = {"batch_size": BATCH, "computed": evaluation.arithmetic}
    main, second = labels(forget_count, retain_count), labels(evaluation.second_samples, min(shown, retain_count))
    requests = {
        MAIN: Request(diffusion, main, evaluation.main_sampler, seed, **how),
        SECOND: Request(diffusion, second, evaluation.second_sampler, seed + 1, **how),
    }
    few = labels(evaluation.user_samples * len(forget), evaluation.user_samples)
    drawn_by = evaluation.user_samplers(diffusion)
    users = {name: Request(diffusion, few, each, seed + 2, **how) for name, each in drawn_by.items()}
    return requests | users


def _drawn(request: Request, name: str, parts: Path | None, drawn: Bar) -> Tensor:
    """Return a request's images, (N, C, H, W) uint8, from the parts that are there and by drawing the others."""
    paths = [parts / f"{name}-{first:07d}.safetensors" for first in request.firsts] if parts else []
    kept = [part["images"] for part in takewhile(bool, map(cache.load_tensors, paths)) if part]
    drawn.set_description(f"sampling {request.sampler}")
    drawn.update(len(kept) * request.sampler.steps)
    for images in request.batches(skip=len(kept), drawn=drawn):
        kept.append(to_uint8(images))
        if parts:
            cache.save_tensors(paths[len(kept) - 1], {"images": kept[-1]})
    return torch.cat(kept)


def cached_samples(
    diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation, *, progress: bool = True
) -> Samples:
    """Return `draw`, from the cache where the same model drew the same before: a base is sampled once.

    A draw that was ended before it was whole continues after its last whole batch.
    """
    path = cached_path(diffusion, forget, evaluation)
    parts = path.with_suffix(".parts")

    def make() -> dict[str, Tensor]:
        if progress:
            announce(diffusion, forget, evaluation)
        return asdict(draw(diffusion, forget, evaluation, progress=progress, parts=parts))

    samples = Samples(**cache.load_or_create(path, make))
    shutil.rmtree(parts, ignore_errors=True)
    return samples


def cached_path(diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation) -> Path:
    """Return where `cached_samples` keeps what a model drew."""
    facts = {
        "model": diffusion.identity(),
        "forget": forget,
        "second": evaluation.second_samples,
        "code": source_digest.digest("safemax.diffusion.sampling"),
        "drawing": DRAWING,
        **evaluation.describe(),
    }
    return cache.folder("samples") / f"{cache.key(facts)}.safetensors"


def workload(diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation) -> tuple[int, int]:
    """Return how many images `draw` draws, and the passes of the network, one a row, that they take."""
    requests = _requests(diffusion, forget, evaluation, SHOWN_PER_CLASS).values()
    return sum(len(each.labels) for each in requests), sum(len(each.labels) * each.sampler.passes for each in requests)


def announce(diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation, least: int = LONG_DRAW) -> None:
    """Print what a draw costs on this device, measured on one pass of a batch, where it takes long; refuse what takes too long.

    Args:
        diffusion: the model, on its device.
        forget: the forgotten labels.
        evaluation: how much is drawn, and how long it may take.
        least: passes of the network from which the cost is said.

    Raises:
        InputError: it takes more than evaluation.panel_hours.
    """
    images, passes = workload(diffusion, forget, evaluation)
    if passes < least:
        return
    # not compiled for an estimate, which takes a minute: bf16 is nearer to what it will take than float32
    measured = arithmetic.EXACT if evaluation.arithmetic == arithmetic.EXACT else arithmetic.BF16
    with arithmetic.computed(diffusion, measured, 0):
        hours = _seconds_a_row(diffusion, min(BATCH, images)) * passes / 3600
    took = f"{_time(hours)} on one {diffusion.device.type} device"
    cost = f"sampling {images:,} images takes {passes:,} passes of the network, about {took}"
    if evaluation.panel_hours and hours > evaluation.panel_hours:
        raise InputError(
            f"{cost}: more than panel_hours = {evaluation.panel_hours:g}; fewer retain_samples or retain_classes, or protocol = "
            "fast, take less, and panel_hours = 0 allows any"
        )
    print(
        f"{cost}; the processes of torchrun share them, and a draw that was stopped resumes after its last whole batch of {BATCH}",
        flush=True,
    )


@torch.no_grad()
def _seconds_a_row(diffusion: Diffusion, rows: int) -> float:
    """Return the seconds that a pass takes for one of so many rows, or of fewer where the memory is not enough."""
    x_t = torch.zeros(rows, *diffusion.x0_shape, device=diffusion.device)
    t = torch.zeros(rows, dtype=torch.int64, device=diffusion.device)
    try:
        with diffusion.without_dropout():
            diffusion(x_t, t, t).sum().item()  # the first pass chooses kernels
            started = time.perf_counter()
            diffusion(x_t, t, t).sum().item()
    except torch.cuda.OutOfMemoryError:
        if rows == 1:
            raise
        return _seconds_a_row(diffusion, max(1, rows // 4))
    return (time.perf_counter() - started) / rows


def _time(hours: float) -> str:
    return f"{hours:.2g} hours" if hours >= 1.5 else f"{60 * hours:.2g} minutes"


def _labels(retained: tuple[int, ...], forget: tuple[int, ...], forget_count: int, retain_count: int) -> Tensor:
    share = [forget_count // len(forget) + (i < forget_count % len(forget)) for i in range(len(forget))]
    counts = dict.fromkeys(retained, retain_count) | dict(zip(forget, share, strict=True))
    return torch.cat([torch.full((max(counts[k], 1),), k, dtype=torch.int64) for k in sorted(counts)])
