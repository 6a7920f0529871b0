"""What the two ranks of tests.support.ranks do; imported once, in the process that they are forks of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from safemax import metrics
from safemax.diffusion import sampling, team
from safemax.diffusion.sampling import Sampler
from safemax.errors import Stopped
from safemax.methods import create
from safemax.training import processes
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.support import made_up_measurements, tiny_models


def train(
    rank: int,
    folder: Path,
    *,
    method: str = "safemax",
    steps: int = 6,
    stop_at: int = -1,
    hang_at: int = -1,
    hang_minutes: float = 10.0,
    slow: float = 0.0,
    priors: bool = False,
    ema: float = 0.0,
    differs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a tiny model; rank 1 alone is told to stop or hangs, and has the settings that differ."""
    torch.set_num_threads(1)
    processes.HANG_MINUTES = hang_minutes
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        (folder / "began").touch()
        time.sleep(slow)
        if rank and asked - 1 == hang_at:
            time.sleep(3600)
        return bool(rank) and asked - 1 == stop_at

    own = differs if rank and differs else {}
    settings = Training(**{"steps": steps, "batch_size": 8, "device": "cpu", "checkpoint_every": 2, "ema": ema, **own})
    model, chosen = tiny_models.diffusion(), create(method)
    hooks = Hooks(should_stop=should_stop, progress=False)
    folders = Folders(folder / "steps", folder / "priors" if priors else None, "run-1")
    stopped = False
    try:
        tiny_models.train(model, chosen, settings, hooks=hooks, folders=folders)
    except Stopped:
        stopped = True
    return {
        "digest": model.digest(), "stopped": stopped, "asked": asked,
        "steps": [each.name[5:13] for each in sorted((folder / "steps").glob("step-*"))],
        "priors": sum(each.is_file() for each in (folder / "priors").rglob("*")),
    }  # fmt: skip


DRAWN = (Sampler("ddim", 4), Sampler("ddpm", 4, 1.5, 0.0, False), Sampler("ddim", 4, 1.0, 0.5))


def draw(rank: int, folder: Path, *, together: bool = False) -> list[list[float]]:
    """Draw 15 images in batches of 6 by each of DRAWN, and some that begin at real ones; rank 1 follows, or all are together."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    if together:
        with team.together():
            return draws()
    if rank:
        sampling.follow()
        return []
    with team.leading():
        return draws()


def draws() -> list[list[float]]:
    """Return the pixels, by sampler."""
    labels, split = torch.arange(3).repeat(5), tiny_models.split(15)
    begin = split.images.float() / 127.5 - 1
    models = (tiny_models.diffusion(0), tiny_models.diffusion(1), tiny_models.diffusion(1))
    images = [
        sampling.sample(each, labels, sampler, seed=3, batch_size=6)
        for each, sampler in zip(models, DRAWN, strict=True)
    ]
    images.append(sampling.sample(models[0], labels, DRAWN[0], seed=3, start=(begin, 500)))
    return [each.flatten().tolist() for each in images]


def measure(rank: int, folder: Path) -> dict[str, float]:
    """Measure made-up images, of which each rank has every second batch."""
    torch.set_num_threads(1)
    accelerator_for(Training(device="cpu"))
    panel = metrics.panel(made_up_measurements.setting())
    for batch in made_up_measurements.draws():
        for k, begin in enumerate(range(0, len(batch), 20)):
            if k % 2 == rank:
                panel.update(batch[begin : begin + 20])
    return panel.compute()
