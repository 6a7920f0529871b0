"""Priors: the state that a method prepares (Fisher information, a mask, replay images), cached for later runs."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch

from safemax.data.batches import Batches, reseed
from safemax.data.dataset import Split
from safemax.diffusion.model import Diffusion
from safemax.storage import cache, checkpoint, source_digest
from safemax.storage.checkpoint import Checkpoint
from safemax.training import snapshot
from safemax.training.method import Method
from safemax.training.processes import Processes
from safemax.training.settings import Training


def folder_for(
    root: Path, diffusion: Diffusion, method: Method, batches: Batches, split: Split, training: Training
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
        "forget": [] if method.shared else list(batches.forget_classes),
        "rows": [] if method.shared else [training.forget_rows, training.retain_rows],
        "seed": training.seed,
        **({"flip": True} if batches.flip else {}),
    }
    if training.trainable != "all":
        facts["trainable"] = [training.trainable, training.lora_rank]
    return root / cache.key(facts)


def prepare(
    root: Path | None,
    diffusion: Diffusion,
    method: Method,
    batches: Batches,
    split: Split,
    training: Training,
    processes: Processes,
) -> float:
    """Let a method prepare its state, or load it from the cache; return the minutes that it took, now or then.

    All processes take part, since methods average gradients over them, and all end with rank 0's state and weights.

    Args:
        root: cache of priors; None keeps none. Only rank 0's counts.
        diffusion: the model before unlearning.
        method: to prepare.
        batches: of this process.
        split: all training data.
        training: the settings.
        processes: of the run.
    """
    folder = folder_for(root, diffusion, method, batches, split, training) if root else None
    prior = processes.share(lambda: checkpoint.newest(folder) if folder else None)
    loaded = _loaded(prior, method, diffusion.device) if prior else None
    if loaded is not None:
        return loaded
    started = time.perf_counter()
    reseed(training.seed, -1, 0)
    method.prepare(diffusion, batches)
    minutes = (time.perf_counter() - started) / 60
    if folder and processes.rank == 0:
        checkpoint.write(folder, Checkpoint(0, method.state(), {"setup_minutes": minutes}))
    start = processes.share(lambda: snapshot.take_start(diffusion.denoiser, method))
    if start and processes.rank > 0:
        snapshot.restore_model(start, diffusion.denoiser, method, diffusion.device)
    return minutes


def _loaded(prior: Checkpoint, method: Method, device: torch.device) -> float | None:
    """Load a prior into the method and return its minutes; None where another program wrote it, so that it is prepared again."""
    try:
        method.load_state({name: value.to(device) for name, value in prior.tensors.items()})
        return float(prior.about["setup_minutes"])
    except (LookupError, RuntimeError, TypeError, ValueError):
        return None
