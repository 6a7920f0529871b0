"""What the two ranks of tests.support.ranks do; imported once, in the process that they are forks of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from safemax.errors import Stopped
from safemax.methods import create
from safemax.training import processes
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.support import tiny_models


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
