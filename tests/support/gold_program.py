"""What the two ranks of tests.support.ranks do with a gold model; apart from rank_program, which imports no MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pipelines.correction import retrained
from pipelines.correction.retrained import GoldRecipe
from pipelines.engine.signals import StopSignal
from safemax.diffusion import team
from safemax.training.devices import accelerator_for
from safemax.training.settings import Training
from tests.support import tiny_models

RECIPE = GoldRecipe(Training(steps=4, batch_size=8, forget_share=0.0, device="cpu"), null_drop=0.1, min_snr_gamma=0.0)


def train(rank: int, folder: Path) -> list[float]:
    """Train the gold model of a tiny model in a cache of this rank's own; rank 1 takes part. Returns the leader's weights."""
    torch.set_num_threads(1)
    os.environ["SAFEMAX_CACHE"] = str(folder / "cache")
    accelerator_for(Training(device="cpu"))
    if rank:
        team.follow({retrained.JOB: retrained.train_along(tiny_models.dataset, StopSignal())})
        assert not (folder / "cache").exists()
        return []
    with team.leading():
        return trained()


def trained() -> list[float]:
    """Return the weights of the gold model, trained where it is not cached."""
    gold = RECIPE.make(tiny_models.diffusion(1), tiny_models.dataset(), (0,), lambda: False)
    return torch.cat([each.detach().flatten() for each in gold.parameters()]).tolist()
