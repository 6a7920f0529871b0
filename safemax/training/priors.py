"""Priors: the state that a method prepares (Fisher information, a mask, replay images), cached for later runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.storage import cache, checkpoint, source_digest
from safemax.storage.checkpoint import Checkpoint
from safemax.training.method import Method
from safemax.training.settings import Training


def folder_for(
    root: Path, diffusion: Diffusion, method: Method, split: Split, forget: tuple[int, ...], training: Training
) -> Path | None:
    """Return the folder of the prior that this run would prepare, None if the method's prior is not cached.

    Its name is a digest of everything that the prior depends on, the method's code included.
    """
    depends_on = method.prior()
    if depends_on is None:
        return None
    facts = {
        "method": type(method).__name__,
        "knobs": depends_on,
        "code": source_digest.digest(type(method).__module__),
        "model": diffusion.identity(),
        "data": hashlib.sha256(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest(),
        "forget": [] if method.shared else list(forget),
        "rows": [] if method.shared else [training.forget_rows, training.retain_rows],
        "seed": training.seed,
    }
    return root / cache.key(facts)


def load(folder: Path, method: Method, device: torch.device) -> float | None:
    """Load a prior into the method and return the minutes its preparation took; None if the folder has none."""
    saved = checkpoint.newest(folder)
    if saved is None:
        return None
    method.load_state({name: value.to(device) for name, value in saved.tensors.items()})
    return saved.about["setup_minutes"]


def save(folder: Path, method: Method, setup_minutes: float) -> None:
    """Save what the method prepared, with the minutes that took."""
    checkpoint.write(folder, Checkpoint(0, method.state(), {"setup_minutes": setup_minutes}))
